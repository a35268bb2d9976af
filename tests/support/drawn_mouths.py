"""Drawn mouths that speak: clips whose motion is known at any time, frame rate, size and place."""

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 6
"""Mouth shapes a second."""


def speaking(
    seed: int,
    seconds: float = 3.0,
    start_s: float = 0.0,
    fps: float = 25.0,
    size_px: int = 96,
    shift_px: float = 0.0,
    words: NDArray[np.int64] | None = None,
) -> NDArray[np.uint8]:
    """Returns a clip of a mouth with random openings and widths, T×size×size.

    `words` chooses the mouth shapes: equal numbers are equal shapes. `seed` decides all others. `start_s` cuts off the
    start; `shift_px` moves the picture, in pixels of a crop of 96 px.
    """
    rng = np.random.default_rng(0 if words is not None else seed)
    shapes_S4 = rng.uniform(-1, 1, (200, 4))
    if words is not None:
        shapes_S4 = shapes_S4[words]
    time_T = start_s + np.arange(round(seconds * fps)) / fps
    place_S = np.arange(len(shapes_S4)) / RATE_HZ
    weight_TS = np.exp(-((time_T[:, None] - place_S) ** 2) / (2 * 0.07**2))
    opening_T, width_T, jaw_T, teeth_T = (weight_TS / weight_TS.sum(axis=1, keepdims=True) @ shapes_S4).T
    y, x = (np.mgrid[:size_px, :size_px] + 0.5) * (96 / size_px) - 48 - shift_px
    distance_THW = np.hypot(x / (20 + 4 * width_T)[:, None, None], y / (6 + 5 * opening_T)[:, None, None])
    lips_THW = 50 / (1 + np.exp(8 * (distance_THW - 1.5)))
    inside_THW = 60 / (1 + np.exp(8 * (distance_THW - 1)))
    chin_THW = 25 * np.exp(-((y - 30 - 5 * jaw_T[:, None, None]) ** 2) / 60)
    teeth_THW = inside_THW * (0.5 + 0.5 * teeth_T)[:, None, None] * (y < 0)
    skin_HW = 150 + 0.3 * x + 15 * np.cos(y / 20)
    return np.clip(skin_HW - lips_THW - inside_THW + teeth_THW - chin_THW, 0, 255).astype(np.uint8)
