"""The photograph, upright on a canvas, with the position of its mouth; and the pseudo-speakers.

Lengths ending in `_px` are in pixels of the photograph, those ending in `_c` in pixels of the canvas.

A pseudo-speaker is the photograph with other proportions, colours, light and manner of speech.
"""

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Image = NDArray[np.uint8]
Contour = tuple[tuple[float, float], ...]

# Measured in the photograph by mediapipe 1.2.2 (FaceLandmarker), pixels, from left to right.
_LEFT_IRIS_PX: Final = (203.5, 101.1)
_RIGHT_IRIS_PX: Final = (246.0, 103.5)
_MOUTH_CENTRE_PX: Final = (223.4, 145.0)
OUTER_UPPER_PX: Final[Contour] = (
    (202.3, 139.2), (204.7, 138.9), (207.8, 138.9), (211.7, 139.1), (217.3, 139.4), (223.4, 140.6),
    (229.7, 139.8), (235.2, 139.9), (239.2, 140.0), (242.2, 140.2), (244.5, 140.6),
)  # fmt: skip
INNER_UPPER_PX: Final[Contour] = (
    (203.9, 139.7), (206.4, 140.1), (209.4, 140.7), (213.1, 141.4), (217.7, 142.4), (223.3, 143.2),
    (229.0, 142.8), (233.7, 142.2), (237.4, 141.7), (240.4, 141.4), (242.9, 141.1),
)  # fmt: skip
INNER_LOWER_PX: Final[Contour] = (
    (203.9, 139.7), (206.9, 142.9), (209.5, 145.1), (213.2, 147.1), (217.6, 148.4), (223.0, 149.2),
    (228.3, 148.9), (233.0, 147.7), (236.7, 146.0), (239.5, 144.0), (242.9, 141.1),
)  # fmt: skip
OUTER_LOWER_PX: Final[Contour] = (
    (202.3, 139.2), (204.4, 143.4), (207.2, 147.5), (211.2, 151.3), (216.5, 153.7), (222.7, 154.7),
    (229.1, 154.1), (234.4, 152.0), (238.7, 148.5), (242.0, 144.6), (244.5, 140.6),
)  # fmt: skip
CHIN_PX: Final[Contour] = (
    (182.6, 139.8), (185.3, 149.0), (189.1, 156.1), (194.6, 162.7), (199.7, 167.7), (205.3, 172.3),
    (212.2, 175.9), (221.4, 177.4), (230.7, 176.9), (238.0, 174.1), (244.1, 170.1), (249.7, 165.5),
    (256.1, 159.4), (260.9, 152.7), (265.0, 143.9),
)  # fmt: skip

# The canvas is twice the photograph's size, with room for the head to move.
SCALE: Final = 2.0
CANVAS_WIDTH: Final = 840
CANVAS_HEIGHT: Final = 500
ORIGIN_C: Final = (420.0, 310.0)  # the mouth's centre on the canvas


def _upright() -> NDArray[np.float64]:
    """Returns the 2×3 matrix photograph → canvas: irises level, the mouth's centre at ORIGIN_C."""
    roll = np.arctan2(_RIGHT_IRIS_PX[1] - _LEFT_IRIS_PX[1], _RIGHT_IRIS_PX[0] - _LEFT_IRIS_PX[0])
    turn = SCALE * np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])
    return np.hstack([turn, (np.array(ORIGIN_C) - turn @ np.array(_MOUTH_CENTRE_PX))[:, None]])


@lru_cache(maxsize=8)
def contour(points_px: Contour) -> NDArray[np.float64]:
    """Returns a measured contour on the canvas, relative to the mouth's centre, shape (number of points, 2)."""
    matrix = _upright()
    return np.array(points_px) @ matrix[:, :2].T + matrix[:, 2] - np.array(ORIGIN_C)


def rows_of(points_px: Contour, x_w: Floats) -> Floats:
    """Returns the contour's rows at the columns x_w, both relative to the mouth's centre; constant beyond its ends."""
    points_c = contour(points_px)
    return np.interp(x_w, points_c[:, 0], points_c[:, 1]).astype(np.float32)


@lru_cache(maxsize=1)
def _canvas() -> Image:
    data = files("pipeline.demo").joinpath("astronaut.png").read_bytes()
    photograph = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert photograph is not None, "astronaut.png is damaged"
    size = (CANVAS_WIDTH, CANVAS_HEIGHT)
    upright = cv2.warpAffine(
        photograph, _upright(), size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(upright, np.uint8)


def canvas() -> Image:
    """Returns a new copy of the canvas, uint8 BGR (CANVAS_HEIGHT, CANVAS_WIDTH, 3)."""
    return _canvas().copy()


@dataclass(frozen=True, slots=True)
class Speaker:
    """How a speaker differs from the photograph. Factors are about 1 unless a range is given.

    zoom                     canvas to frame, about 0.9
    aspect                   width over height of the face
    shear                    slant of the face, about 0
    mirrored                 whether the photograph is mirrored left to right
    mouth_width, upper_lip, lower_lip   sizes of parts
    chin_px                  lengthening of the chin, pixels of the photograph
    skin_bgr                 gain of each colour
    gamma                    exponent of brightness: above 1 is a darker skin
    lip_bgr                  colour of the lips, 0..255
    lip_tint                 share of that colour over the photograph's, 0..1
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
    """Returns a random speaker. In these ranges all faces still looked natural on a contact sheet."""
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
