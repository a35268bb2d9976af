"""How much a mouth moves in its crop, beyond what its surroundings explain: of a still picture next to nothing.

Shapes: T frames, H height, W width of the crop; N side of the shrunk crop.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

LAG_S = 0.12
"""Between the pictures that are compared: the lips have moved by more than noise, the head by less than it can."""

SIDE_PX = 48
"""Crops are shrunk to this side and blurred, which takes away the camera's noise and most of the codec's."""

_BLUR_PX = 0.6
_MOST_STEPS, _LEAST_SHIFT_PX = 3, 0.2
"""Surroundings are aligned until they shift by less, and at most this often."""
_LEAST_CONTRAST = 5.0
"""Gray levels: below it there is nothing to see, and noise must not pass for motion."""

_Y, _X = (np.mgrid[:SIDE_PX, :SIDE_PX] - (SIDE_PX - 1) / 2) / SIDE_PX
_MOUTH = (np.abs(_X) < 0.25) & (np.abs(_Y - 0.02) < 0.17)
"""As wide as a mouth in the canonical crop, and as high as an open one."""
_SURROUNDINGS = ((np.abs(_X) > 0.32) | (_Y < -0.22)) & (np.abs(_X) < 0.47) & (np.abs(_Y) < 0.47)
"""Nose and cheeks; the chin speaks too."""


def mouth_motion(clip_THW: NDArray[np.uint8], fps: float) -> float:
    """Root mean square change of the mouth's gray levels within LAG_S, in standard deviations of the crop's.

    Taken off is what a change of light (gain and offset) and a motion of the whole crop (affine) fitted to the
    surroundings explain, and as much as stays unexplained there: noise, and what the fit cannot follow.
    """
    lag = min(max(1, round(LAG_S * fps)), len(clip_THW) - 1)
    if lag < 1:
        return 0.0
    # every other stretch of LAG_S is enough, and half the work
    firsts, seconds = ([_shrunk(crop_HW) for crop_HW in clip_THW[start :: 2 * lag]] for start in (0, lag))
    beyond = [_change(first, second) for first, second in zip(firsts, seconds, strict=False)]
    contrast = max(_LEAST_CONTRAST, float(np.median([picture.std() for picture in firsts + seconds])))
    return float(np.sqrt(max(0.0, float(np.mean(beyond)))) / contrast)


def _shrunk(crop_HW: NDArray[np.uint8]) -> NDArray[np.float32]:
    small = cv2.resize(crop_HW, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.GaussianBlur(small.astype(np.float32), (0, 0), _BLUR_PX), np.float32)


def _change(first_NN: NDArray[np.float32], second_NN: NDArray[np.float32]) -> float:
    """Mean square of what changes in the mouth and is not explained, less that of the surroundings."""
    places = np.arange(SIDE_PX, dtype=np.float32)
    for step in range(_MOST_STEPS):
        mean_NN = (first_NN + second_NN) / 2
        down_NN, right_NN = np.gradient(mean_NN)
        # offset, gain, then the shift to the right and down, each constant, growing with x, and with y
        ways = (
            np.ones_like(mean_NN), mean_NN, right_NN, _X * right_NN, _Y * right_NN, down_NN, _X * down_NN, _Y * down_NN,
        )  # fmt: skip
        basis = np.stack(ways, axis=-1).astype(np.float64)
        around = basis[_SURROUNDINGS]
        change_NN = second_NN - first_NN
        # a trace of ridge: flat surroundings tell nothing of motion
        normal = around.T @ around + 1e-3 * np.eye(len(ways))
        fit = np.linalg.solve(normal, around.T @ change_NN[_SURROUNDINGS])
        right_px, down_px = (fit[i] + fit[i + 1] * _X + fit[i + 2] * _Y for i in (2, 5))
        if step + 1 == _MOST_STEPS or max(np.abs(right_px).max(), np.abs(down_px).max()) < _LEAST_SHIFT_PX:
            break
        # a picture that changes by its slope to the right has moved to the left
        from_x = (places[None] - right_px).astype(np.float32)
        from_y = (places[:, None] - down_px).astype(np.float32)
        second_NN = np.asarray(
            cv2.remap(second_NN, from_x, from_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
            np.float32,
        )
    left_NN = (change_NN - basis @ fit) ** 2
    return float(left_NN[_MOUTH].mean() - left_NN[_SURROUNDINGS].mean())
