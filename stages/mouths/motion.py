"""Measures how much a mouth moves in its crop, beyond the motion of its surroundings: almost 0 for a still picture.

Shapes: T frames, H height, W width of the crop; N side of the shrunk crop, P of its pixels, A of them around the
mouth.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

LAG_S = 0.12
"""Time between the compared pictures: the lips move by more than noise, the head moves little."""

SIDE_PX = 48
"""Crops are shrunk to this side and blurred, which removes the camera's noise and most of the codec's."""

_BLUR_PX = 0.6
_MOST_STEPS, _LEAST_SHIFT_PX = 3, 0.2
"""Surroundings are aligned until the shift is smaller, in at most this many steps."""
_LEAST_CONTRAST = 5.0
"""In gray levels. A crop with less contrast shows nothing, and its noise must not count as motion."""

_Y, _X = (np.mgrid[:SIDE_PX, :SIDE_PX] - (SIDE_PX - 1) / 2) / SIDE_PX
_MOUTH = (np.abs(_X) < 0.25) & (np.abs(_Y - 0.02) < 0.17)
"""As wide as a mouth in the canonical crop, and as high as an open one."""
_SURROUNDINGS = ((np.abs(_X) > 0.32) | (_Y < -0.22)) & (np.abs(_X) < 0.47) & (np.abs(_Y) < 0.47)
"""Nose and cheeks, without the chin, which moves with speech."""
_PIXELS = np.concatenate([np.flatnonzero(_SURROUNDINGS), np.flatnonzero(_MOUTH)])
"""The pixels that are compared: first the surroundings, then the mouth; none at the edge of the crop."""
_NUM_AROUND = int(_SURROUNDINGS.sum())
_AFFINE_3P = np.stack([np.ones(len(_PIXELS)), _X.flat[_PIXELS], _Y.flat[_PIXELS]])


def mouth_motion(clip_THW: NDArray[np.uint8], fps: float) -> float:
    """Returns the rms change of the mouth's gray levels within LAG_S, in standard deviations of the crop's gray levels.

    A change of light (gain and offset) and a motion of the whole crop (affine), fitted to the surroundings, are
    subtracted. So is the remaining change of the surroundings: noise, and motion that the fit cannot follow.
    """
    lag = min(max(1, round(LAG_S * fps)), len(clip_THW) - 1)
    if lag < 1:
        return 0.0
    # every other pair is enough, and half the work
    firsts, seconds = ([_shrunk(crop_HW) for crop_HW in clip_THW[start :: 2 * lag]] for start in (0, lag))
    beyond = [_change(first, second) for first, second in zip(firsts, seconds, strict=False)]
    contrast = max(_LEAST_CONTRAST, float(np.median([picture.std() for picture in firsts + seconds])))
    return float(np.sqrt(max(0.0, float(np.mean(beyond)))) / contrast)


def _shrunk(crop_HW: NDArray[np.uint8]) -> NDArray[np.float32]:
    small = cv2.resize(crop_HW, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.GaussianBlur(small.astype(np.float32), (0, 0), _BLUR_PX), np.float32)


def _change(first_NN: NDArray[np.float32], second_NN: NDArray[np.float32]) -> float:
    """Returns the mean square of the unexplained change of the mouth, minus that of the surroundings."""
    places = np.arange(SIDE_PX, dtype=np.float32)
    basis_8P = np.ones((8, len(_PIXELS)))
    for step in range(_MOST_STEPS):
        mean_N = ((first_NN + second_NN) / 2).ravel()
        right_P, down_P = ((mean_N[_PIXELS + far] - mean_N[_PIXELS - far]) / 2 for far in (1, SIDE_PX))
        # offset, gain, then the shift to the right and down, each constant, growing with x, and with y
        basis_8P[1] = mean_N[_PIXELS]
        basis_8P[2:5], basis_8P[5:] = right_P * _AFFINE_3P, down_P * _AFFINE_3P
        around_8A = basis_8P[:, :_NUM_AROUND]
        change_P = (second_NN - first_NN).ravel()[_PIXELS]
        # a small ridge term: flat surroundings carry no information on motion
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
