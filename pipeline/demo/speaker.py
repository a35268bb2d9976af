"""Pseudo-speakers: the one photograph in other proportions, colours, light and manners of speech."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Speaker:
    """How a speaker differs from the photograph. Factors are about 1 unless a range is named.

    zoom                     canvas to frame, about 0.9
    aspect                   width over height of the face
    shear                    slant of the face, about 0
    mirrored                 the photograph left-right reversed
    mouth_width, upper_lip, lower_lip   sizes of parts
    chin_px                  lengthening of the chin, pixels of the photograph
    skin_bgr                 gain of each colour
    gamma                    exponent of brightness: above 1 is a darker skin
    lip_bgr                  colour of the lips, 0..255
    lip_tint                 how much of that colour covers the photograph's, 0..1
    side_light               light from the left (positive) or the right, -0.3..0.3
    speed, effort            of speech
    """

    zoom: float = 0.9
    aspect: float = 1.0
    shear: float = 0.0
    mirrored: bool = False
    mouth_width: float = 1.0
    upper_lip: float = 1.0
    lower_lip: float = 1.0
    chin_px: float = 0.0
    skin_bgr: tuple[float, float, float] = (1.0, 1.0, 1.0)
    gamma: float = 1.0
    lip_bgr: tuple[float, float, float] = (110.0, 105.0, 180.0)
    lip_tint: float = 0.5
    side_light: float = 0.0
    speed: float = 1.0
    effort: float = 1.0


def draw_speaker(rng: np.random.Generator) -> Speaker:
    """A random speaker. The ranges are as wide as still looked like a person on a contact sheet."""
    skin = rng.normal(0.0, 0.05, 3).clip(-0.09, 0.09)
    lip_red = float(rng.uniform(145, 185))
    return Speaker(
        zoom=float(rng.uniform(0.80, 1.0)),
        aspect=float(rng.uniform(0.94, 1.06)),
        shear=float(rng.uniform(-0.04, 0.04)),
        mirrored=bool(rng.integers(2)),
        mouth_width=float(rng.uniform(0.9, 1.1)),
        upper_lip=float(rng.uniform(0.8, 1.25)),
        lower_lip=float(rng.uniform(0.8, 1.2)),
        chin_px=float(rng.uniform(-1.5, 2.0)),
        skin_bgr=(float(1 + skin[0]), float(1 + skin[1]), float(1 + skin[2])),
        gamma=float(rng.uniform(0.85, 1.3)),
        lip_bgr=(lip_red * float(rng.uniform(0.56, 0.66)), lip_red * float(rng.uniform(0.54, 0.62)), lip_red),
        lip_tint=float(rng.uniform(0.4, 0.7)),
        side_light=float(rng.uniform(-0.12, 0.12)),
        speed=float(rng.uniform(0.9, 1.1)),
        effort=float(rng.uniform(0.88, 1.12)),
    )
