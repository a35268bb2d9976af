"""How much a mouth moves in its crop, beyond what its surroundings explain: of a still picture next to nothing.

Shapes: T frames, H height, W width of the crop; N side of the shrunk crop, P of its pixels, A of them around the
mouth.
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
_PLACES = np.concatenate([np.flatnonzero(_SURROUNDINGS), np.flatnonzero(_MOUTH)])
"""The pixels that are looked at: first the surroundings, then the mouth; none at the edge of the crop."""
_NUM_AROUND = int(_SURROUNDINGS.sum())
_AFFINE_3P = np.stack([np.ones(len(_PLACES)), _X.flat[_PLACES], _Y.flat[_PLACES]])


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
    basis_8P = np.ones((8, len(_PLACES)))
    for step in range(_MOST_STEPS):
        mean_N = ((first_NN + second_NN) / 2).ravel()
        right_P, down_P = ((mean_N[_PLACES + far] - mean_N[_PLACES - far]) / 2 for far in (1, SIDE_PX))
        # offset, gain, then the shift to the right and down, each constant, growing with x, and with y
        basis_8P[1] = mean_N[_PLACES]
        basis_8P[2:5], basis_8P[5:] = right_P * _AFFINE_3P, down_P * _AFFINE_3P
        around_8A = basis_8P[:, :_NUM_AROUND]
        change_P = (second_NN - first_NN).ravel()[_PLACES]
        # a trace of ridge: flat surroundings tell nothing of motion
        normal_88 = around_8A @ around_8A.T + 1e-3 * np.eye(8)
        fit_8 = np.linalg.solve(normal_88, around_8A @ change_P[:_NUM_AROUND])
        right_px, down_px = (fit_8[i] + fit_8[i + 1] * _X + fit_8[i + 2] * _Y for i in (2, 5))
        if step + 1 == _MOST_STEPS or max(np.abs(right_px).max(), np.abs(down_px).max()) < _LEAST_SHIFT_PX:
            break
        # a picture that changes by its slope to the right has moved to the left
        from_x = (places[None] - right_px).astype(np.float32)
        from_y = (places[:, None] - down_px).astype(np.float32)
        second_NN = np.asarray(
            cv2.remap(second_NN, from_x, from_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
            np.float32,
        )
    left_P = (change_P - fit_8 @ basis_8P) ** 2
    return float(left_P[_NUM_AROUND:].mean() - left_P[:_NUM_AROUND].mean())
