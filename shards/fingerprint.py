"""Fingerprints of mouth clips: the same video has nearly the same one after re-encoding, other videos do not.

A fingerprint is the motion of each frame's pattern of light and dark. Codecs, size, brightness and contrast of the
source hardly change it, and neither does a crop that is off by a few pixels. Thresholds are measured with
`python -m benchmarks.copies`. Shapes: T frames of the clip, H and W px, F frames of the fingerprint, M modes.
"""

from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

FINGERPRINT_VERSION = 1
"""Increase it when the same clip gets another fingerprint."""

FPS = 25.0
"""Frames a second of a fingerprint; clips with another rate are interpolated."""
MIN_FRAMES = 21
"""Two clips with fewer common frames are not compared."""
_COMMON_FRAMES, _SIMILARITIES = (30, 60, 120, 240), (0.965, 0.905, 0.8, 0.7)
"""Common frames, and the least similarity of copies: short parts of two sentences may have the same words.

The most similar of different GRID clips have 0.902 (63 frames), of two such clips in a row 0.74, of four 0.54.
"""
_MIN_MOTION = 0.02
"""Root mean square of the motion; less is a still picture with the noise of its codec. GRID has 0.039 and more."""

_REACH, _HOPELESS = 2, 0.6
"""The largest error of a lag between anchors, in frames; the similarity below which a pair is given up at once.

A copy has 0.7 and more at a lag that is wrong by one frame.
"""

_ROW_MODES, _COLUMN_MODES = range(5), (0, 2, 4)  # a mouth is symmetric: odd columns are mostly noise
NUM_MODES = len(_ROW_MODES) * len(_COLUMN_MODES) - 1
_SIGMA_FRAMES = 2.0
_OFFSET_K = np.arange(-6, 7)
_DERIVATIVE_K = _OFFSET_K * np.exp(-(_OFFSET_K**2) / (2 * _SIGMA_FRAMES**2))
_MOST_RMS, _MOST_INT8 = 5.0, 127
_LEAST_CONTRAST = 1.0
"""Contrast of a frame's modes, in gray levels; faces have 5. A frame with less shows nothing, or only noise."""


def fingerprint_of(clip_THW: NDArray[np.uint8], fps: float) -> NDArray[np.int8]:
    """Returns the fingerprint, F×M; F is 0 for a clip that is too short or shows a still picture."""
    pattern_TM = _at_rate(_pattern(clip_THW), fps)
    if len(pattern_TM) < len(_OFFSET_K) + MIN_FRAMES - 1:
        return np.empty((0, NUM_MODES), np.int8)
    motion_FM = (
        sliding_window_view(pattern_TM, len(_OFFSET_K), axis=0) @ _DERIVATIVE_K / np.abs(_DERIVATIVE_K).sum()
    )
    power_M = np.square(motion_FM).mean(axis=0)
    if power_M.sum() < _MIN_MOTION**2:
        return np.empty((0, NUM_MODES), np.int8)
    # between equal weights, which make codec noise count, and none, which makes all mouths that open look alike
    motion_FM = motion_FM / (power_M + 0.02 * power_M.mean()) ** 0.25
    limit = _MOST_RMS * np.sqrt(np.square(motion_FM).mean())  # so that no cut or flash decides
    return np.rint(np.clip(motion_FM / limit, -1, 1) * _MOST_INT8).astype(np.int8)


def similarity(one_FM: NDArray[np.int8], other_FM: NDArray[np.int8], lag: int) -> tuple[float, int]:
    """Returns the correlation of two fingerprints, and their number of common frames.

    Frame `lag` of `one` is frame 0 of `other`, or up to _REACH frames earlier or later: the best lag counts. The
    correlation is 0 where they have too few frames in common: less than MIN_FRAMES, or than half of the shorter one.
    """
    least = max(MIN_FRAMES, min(len(one_FM), len(other_FM)) // 2)
    if (nearly := _correlation(one_FM, other_FM, lag, least - _REACH)) < _HOPELESS:
        return nearly, least
    lags = range(lag - _REACH - 1, lag + _REACH + 2)
    at_lag = [_correlation(one_FM, other_FM, tried, least) for tried in lags]
    best = 1 + int(np.argmax(at_lag[1:-1]))
    num_frames = min(len(one_FM), len(other_FM) + lags[best]) - max(lags[best], 0)
    before, here, after = at_lag[best - 1 : best + 2]
    if min(before, after) > 0 and here >= max(before, after):
        # the peak of a parabola: frame rates such as 24 and 30 shift by parts of a frame
        here = min(1.0, here + (after - before) ** 2 / (8 * max(2 * here - before - after, 1e-6)))
    return here, num_frames


def least_similarity(num_frames: int) -> float:
    """Returns the similarity from which two clips with so many common frames show the same video."""
    return float(np.interp(num_frames, _COMMON_FRAMES, _SIMILARITIES))


def _correlation(one_FM: NDArray[np.int8], other_FM: NDArray[np.int8], lag: int, least: int) -> float:
    one = one_FM[max(lag, 0) : len(other_FM) + lag].ravel().astype(np.float32)
    other = other_FM[max(-lag, 0) : len(one_FM) - lag].ravel().astype(np.float32)
    if len(one) < least * NUM_MODES:
        return 0.0
    return float(one @ other / np.sqrt(max(float(one @ one) * float(other @ other), 1e-9)))


def _pattern(clip_THW: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns the coarse pattern of each frame, T×M, without its brightness and contrast."""
    num_frames, height, width = clip_THW.shape
    rows_HR, columns_WC = _modes(height, _ROW_MODES), _modes(width, _COLUMN_MODES)
    along_THC = (clip_THW.reshape(-1, width).astype(np.float32) @ columns_WC).reshape(num_frames, height, -1)
    modes_TM = (rows_HR.T @ along_THC).reshape(num_frames, -1)
    of_white_M = np.outer(rows_HR.sum(axis=0), columns_WC.sum(axis=0)).ravel()
    modes_TM = modes_TM[:, 1:] - modes_TM[:, :1] * (of_white_M[1:] / of_white_M[0])
    contrast_T = np.sqrt(np.square(modes_TM).sum(axis=1))
    # a black frame repeats the frame before it
    shown_T = np.maximum.accumulate(np.where(contrast_T >= _LEAST_CONTRAST, np.arange(num_frames), 0))
    return np.asarray(
        modes_TM[shown_T] / np.maximum(contrast_T[shown_T], _LEAST_CONTRAST)[:, None], np.float32
    )


def _modes(num_px: int, modes: Sequence[int]) -> NDArray[np.float32]:
    """Returns cosines of a line of pixels that fade at its ends, where a shifted crop differs most."""
    place_N1 = ((np.arange(num_px) + 0.5) / num_px)[:, None]
    return (np.sin(np.pi * place_N1) * np.cos(np.pi * np.array(modes) * place_N1) / num_px).astype(np.float32)


def _at_rate(pattern_TM: NDArray[np.float32], fps: float) -> NDArray[np.float32]:
    if fps == FPS:
        return pattern_TM
    place_F = np.arange(0, len(pattern_TM) - 1, fps / FPS)
    before_F = place_F.astype(int)
    share_F1 = (place_F - before_F)[:, None]
    return np.asarray(pattern_TM[before_F] * (1 - share_F1) + pattern_TM[before_F + 1] * share_F1, np.float32)
