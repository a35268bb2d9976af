"""Computes one steady mouth window from face landmarks: similarity, bridging, smoothing, and quality figures.

A similarity z -> a z + t of the plane is two complex numbers, stored as the four reals a_x, a_y, t_x, t_y.
The position of a transformed point is linear in these four, so their mean over time puts every point at its mean
position. So they can be interpolated and smoothed one by one; angles and scales cannot.

Shapes: F source frames, T output frames, N frames with the face, K kept landmarks.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from shards.errors import ClipRejected
from shards.schema import Reason
from stages.mouths.landmarks import (
    INNER_LIPS,
    KEPT_INDEX,
    LEFT_EYE_CORNERS,
    MOUTH_CORNERS,
    NOSE_BASE,
    OUTER_LIPS,
    RIGHT_EYE_CORNERS,
    FaceTrack,
)
from stages.settings import CropParams

Doubles = NDArray[np.float64]

# The mean face on 256x256 that auto_avsr, the multilingual VSR zoo and CNVSRC share: right and left eye centre,
# nose base (points 31 to 35 of 68), mouth centre (points 48 to 67). Their window is 96 px around the mouth centre.
CANONICAL_42 = np.array([(102.07, 94.27), (156.36, 93.58), (129.00, 135.90), (129.31, 157.82)])
CANONICAL_WINDOW_PX = 96
EYES_PX = float(np.linalg.norm(CANONICAL_42[1] - CANONICAL_42[0]))
"""Distance between the eyes of that face, in crop pixels."""

HEAD_SMOOTHING_S = 0.28
"""Window of the parabolas that follow a fast head: 7 frames at 25 fps. They keep 97 % of a nod of 2 Hz, and as much
noise as a mean over 3 frames, which keeps 91 % of the nod."""
LAG_PLACES_P2 = np.array([(48.0, 48.0), (24.0, 48.0), (72.0, 48.0)])
"""Points of the 96-px crop at which the lag of the window is measured: the middle of the mouth and its corners."""

INSIDE_SHARE = 0.75
"""Least share of the crop that must lie in the picture. An edge just below a resting lip leaves 0.65 to 0.7 of it, an
edge through the chin 0.8 and more."""
NO_SPREAD = 1e-6
"""A face smaller than a thousandth of a pixel does not count as a face: its scale would be noise."""

GRID_POINTS = 16
"""Number of points across and down at which a crop is probed for INSIDE_SHARE."""


@cache
def _kept_indices(indices: tuple[int, ...]) -> NDArray[np.intp]:
    return np.array([KEPT_INDEX[i] for i in indices])


def _mean(points_NKC: Doubles, indices: tuple[int, ...]) -> Doubles:
    return points_NKC[:, _kept_indices(indices)].mean(axis=1)


def _landmark(points_NKC: Doubles, index: int) -> Doubles:
    return points_NKC[:, KEPT_INDEX[index]]


def stable_points(points_NKC: Doubles) -> Doubles:
    """Returns right eye, left eye, nose base and mouth centre of each face, (N, 4, 2), in the order of CANONICAL_42.

    The mouth centre is the mean of all twenty lip points, as in the canonical face. It sinks by half of the opening of
    the jaw; the smoothing over time removes that.
    """
    parts = (RIGHT_EYE_CORNERS, LEFT_EYE_CORNERS, NOSE_BASE, OUTER_LIPS + INNER_LIPS)
    return np.stack([_mean(points_NKC, part)[:, :2] for part in parts], axis=1)


def similarity(points_NP2: Doubles, target_P2: Doubles) -> Doubles:
    """Fits rotation, scale and shift from each `points_P2` to `target_P2` by least squares, without mirroring.

    Returns (N, 4): a_x, a_y, t_x, t_y. Raises ClipRejected (unstable_track) if the points coincide.
    Umeyama 1991, eq. 40 to 43; in the plane they reduce to a regression on one complex variable.
    """
    source = points_NP2[..., 0] + 1j * points_NP2[..., 1]
    target = target_P2[:, 0] + 1j * target_P2[:, 1]
    source_mean, target_mean = source.mean(axis=1), target.mean()
    centred = source - source_mean[:, None]
    spread = (np.abs(centred) ** 2).sum(axis=1)
    if not np.all(spread > NO_SPREAD):
        raise ClipRejected(Reason.UNSTABLE_TRACK, "the landmarks of a face lie on one point")
    factor = (centred.conj() * (target - target_mean)).sum(axis=1) / spread
    shift = target_mean - factor * source_mean
    return np.stack([factor.real, factor.imag, shift.real, shift.imag], axis=1)


def matrices(parameters_N4: Doubles) -> Doubles:
    """Returns the (N, 2, 3) affine matrices of similarities given as a_x, a_y, t_x, t_y."""
    a_x, a_y, t_x, t_y = parameters_N4.T
    return np.stack([np.stack([a_x, -a_y, t_x], -1), np.stack([a_y, a_x, t_y], -1)], axis=1)


def apply(matrices_N23: Doubles, points_NP2: Doubles) -> Doubles:
    return points_NP2 @ matrices_N23[:, :, :2].transpose(0, 2, 1) + matrices_N23[:, None, :, 2]


def mouth_windows(points_NK3: Doubles, size_px: int) -> Doubles:
    """Returns the similarity from each face to a crop of `size_px`: canonical scale, mouth centre in the middle.

    (N, 4), source pixel to crop pixel. Rotation and scale come from all four stable points, the shift only from the
    mouth centre, since faces differ in length.
    """
    scale = size_px / CANONICAL_WINDOW_PX
    points = stable_points(points_NK3)
    parameters = similarity(points, CANONICAL_42 * scale)
    factor = parameters[:, 0] + 1j * parameters[:, 1]
    mouth = points[:, 3, 0] + 1j * points[:, 3, 1]
    shift = size_px / 2 * (1 + 1j) - factor * mouth
    return np.stack([factor.real, factor.imag, shift.real, shift.imag], axis=1)


def head_windows(points_NK3: Doubles, size_px: int) -> Doubles:
    """Like `mouth_windows`, but centred between the mouth's corners: they move more with the head than with speech."""
    points_NK3 = points_NK3.copy()
    points_NK3[:, _kept_indices(OUTER_LIPS + INNER_LIPS)] = _mean(points_NK3, MOUTH_CORNERS)[:, None]
    return mouth_windows(points_NK3, size_px)


def bridge(known_at_s_N: Doubles, values_NC: Doubles, times_s_F: Doubles) -> Doubles:
    """Returns values at every time (F, C): linear between known ones, constant before the first and after the last."""
    return np.stack([np.interp(times_s_F, known_at_s_N, column) for column in values_NC.T], axis=1)


def smooth(values_TC: Doubles, window: int) -> Doubles:
    """Returns the mean over an odd `window` of frames; the ends follow the line through the first and last window.

    The lines keep a steady motion and join without a jump. Repeating or mirroring the ends would shift the crop there.
    The same as scipy.signal.savgol_filter(polyorder=1, mode="interp").
    """
    num = len(values_TC)
    window = min(window, num - 1 + num % 2)
    if window < 3:
        return values_TC.copy()
    half = window // 2
    sums = np.cumsum(np.concatenate([np.zeros((1, values_TC.shape[1])), values_TC]), axis=0)
    result = np.empty_like(values_TC)
    result[half : num - half] = (sums[window:] - sums[:-window]) / window
    at = np.arange(window) - half
    for part, end in (
        (slice(0, window), slice(0, half)),
        (slice(num - window, num), slice(half + 1, window)),
    ):
        values = values_TC[part]
        slope = (at[:, None] * values).sum(axis=0) / (at**2).sum()
        line = values.mean(axis=0) + at[:, None] * slope
        result[part][end] = line[end]
    return result


def steady_windows(mouth_T4: Doubles, head_T4: Doubles, quick_T4: Doubles, params: CropParams) -> Doubles:
    """Returns smoothed windows (T, 4): the mean over `smoothing_s`, never more than `max_lag_px` behind a moving head.

    A mean over half a second removes speech and noise, and with them every nod. The lag is the head motion that the
    mean removes and `quick_T4` (parabolas over HEAD_SMOOTHING_S) keeps. The part of the lag beyond `max_lag_px` is
    added back. Slow heads lag less and get the plain mean, bit for bit.
    """
    num_smoothed = smoothed_frames(params.smoothing_s, params.target_fps)
    calm_T4, slow_T4 = (smooth(values, num_smoothed) for values in (mouth_T4, head_T4))
    lag_T4 = quick_T4 - slow_T4
    # how far the lag moves the measured points of the crop, in pixels of the 96-px crop
    to_source_T22 = np.linalg.inv(matrices(calm_T4)[:, :, :2])
    places_P2 = LAG_PLACES_P2 * (params.size_px / CANONICAL_WINDOW_PX)
    source_TP2 = (places_P2 - calm_T4[:, None, 2:]) @ to_source_T22.transpose(0, 2, 1)
    moved_TP = np.linalg.norm(apply(matrices(lag_T4), source_TP2), axis=2)
    lag_px_T = moved_TP.max(axis=1) * (CANONICAL_WINDOW_PX / params.size_px)
    share_T = np.maximum(0.0, 1 - params.max_lag_px / np.maximum(lag_px_T, 1e-9))
    return np.where(share_T[:, None] > 0, calm_T4 + share_T[:, None] * lag_T4, calm_T4)


def fit_parabolas(values_TC: Doubles, window: int) -> Doubles:
    """Fits a parabola to an odd `window` around each frame; the ends lie on the first and last parabola.

    The same as scipy.signal.savgol_filter(polyorder=2, mode="interp"): Savitzky and Golay 1964.
    """
    num = len(values_TC)
    window = min(window, num - 1 + num % 2)
    if window < 5:
        return values_TC.copy()
    half = window // 2
    powers_W3 = (np.arange(window) - half)[:, None] ** np.arange(3.0)
    fit_WW = powers_W3 @ np.linalg.pinv(powers_W3)
    result = np.empty_like(values_TC)
    parts_NWC = np.lib.stride_tricks.sliding_window_view(values_TC, window, axis=0)
    result[half : num - half] = parts_NWC @ fit_WW[half]
    result[:half] = fit_WW[:half] @ values_TC[:window]
    result[num - half :] = fit_WW[half + 1 :] @ values_TC[num - window :]
    return result


def smoothed_frames(smoothing_s: float, fps: float) -> int:
    """Returns the window of `smooth` in frames: the odd number nearest to `smoothing_s`: an even mean would lag."""
    # 2.32 s at 25 fps are 58 frames, but slightly less in floating point
    return 2 * int(round(smoothing_s * fps / 2, 6)) + 1


@dataclass(frozen=True)
class MouthTrack:
    """The steady window of a clip and its quality figures."""

    transform_T23: NDArray[np.float32]
    mouth_width_px: float
    yaw_deg: float
    jitter_px: float


def misfit_px(stable_N42: Doubles) -> Doubles:
    """Returns the rms distance (N) of the stable points from the mean face's after the best similarity.

    In pixels of the 96-px crop; NaN if the points coincide.
    """
    source = stable_N42[..., 0] + 1j * stable_N42[..., 1]
    target = CANONICAL_42[:, 0] + 1j * CANONICAL_42[:, 1]
    source = source - source.mean(axis=1, keepdims=True)
    target = target - target.mean()
    spread_N = (np.abs(source) ** 2).sum(axis=1)
    factor_N = (source.conj() * target).sum(axis=1) / np.where(spread_N > NO_SPREAD, spread_N, np.nan)
    return np.asarray(np.sqrt((np.abs(factor_N[:, None] * source - target) ** 2).mean(axis=1)))


def mouth_inside(points_MK3: Doubles, width: int, height: int) -> NDArray[np.bool_]:
    """Returns which faces show the whole mouth: the lips lie in the picture, and at least INSIDE_SHARE of the crop.

    The mesh continues outside the picture, where it is a guess, and there the crop repeats the picture's edge.
    """
    is_inside_M = np.zeros(len(points_MK3), bool)
    is_face_M = np.isfinite(misfit_px(stable_points(points_MK3)))
    points_MK3 = points_MK3[is_face_M]
    # centred by the corners of the mouth, which do not sink when the mouth opens
    windows_M23 = matrices(head_windows(points_MK3, CANONICAL_WINDOW_PX))

    def share_within(windows_M23: Doubles, side: Doubles) -> Doubles:
        """Returns the share of a grid of crop points that lies in the picture."""
        grid_P2 = np.stack(np.meshgrid(side, side), axis=-1).reshape(1, -1, 2)
        to_source_M22 = np.linalg.inv(windows_M23[:, :, :2])
        grid_MP2 = (grid_P2 - windows_M23[:, None, :, 2]) @ to_source_M22.transpose(0, 2, 1)
        return np.asarray(((grid_MP2 >= 0) & (grid_MP2 < (width, height))).all(axis=2).mean(axis=1))

    share_M = share_within(windows_M23, np.array([0, CANONICAL_WINDOW_PX], np.float64))
    near_edge_M = share_M < 1
    middles = np.asarray((np.arange(GRID_POINTS) + 0.5) * (CANONICAL_WINDOW_PX / GRID_POINTS), np.float64)
    share_M[near_edge_M] = share_within(windows_M23[near_edge_M], middles)
    lips = points_MK3[:, _kept_indices(OUTER_LIPS), :2]
    lips_within_M = ((lips >= 0) & (lips < (width, height))).all(axis=(1, 2))
    is_inside_M[is_face_M] = lips_within_M & (share_M >= INSIDE_SHARE)
    return is_inside_M


def longest_gap(times_s_F: Doubles, frame_N: NDArray[np.int32], step_s: float) -> tuple[float, float]:
    """Returns begin and end in seconds of the longest time without the face, including the clip's ends."""
    seen = times_s_F[frame_N]
    begins = np.concatenate([[-step_s], seen])
    ends = np.concatenate([seen, [times_s_F[-1] + step_s]])
    worst = int(np.argmax(ends - begins))
    return max(0.0, float(begins[worst] + step_s)), float(ends[worst])


def mouth_track(
    track: FaceTrack,
    times_s_F: Doubles,
    frame_index_T: NDArray[np.int32],
    params: CropParams,
) -> MouthTrack:
    """Returns the smoothed window of each output frame, and the figures for crops.parquet."""
    points_NK3 = track.points_NK3.astype(np.float64)
    seen_s_N = times_s_F[track.frame_N]

    def per_frame(values_NC: Doubles) -> Doubles:
        return bridge(seen_s_N, values_NC, times_s_F)[frame_index_T]

    head_F4 = bridge(seen_s_N, head_windows(points_NK3, params.size_px), times_s_F)
    # in source frames: if the source does not have 25 fps, the pictures of output frames are unevenly spaced in time
    source_fps = 1 / float(np.median(np.diff(times_s_F))) if len(times_s_F) > 1 else params.target_fps
    quick_F4 = fit_parabolas(head_F4, smoothed_frames(min(HEAD_SMOOTHING_S, params.smoothing_s), source_fps))
    transform_T23 = matrices(
        steady_windows(
            per_frame(mouth_windows(points_NK3, params.size_px)),
            head_F4[frame_index_T],
            quick_F4[frame_index_T],
            params,
        )
    )

    # eyes and nose do not speak, so their motion in the crop is a tracking error
    rigid_T6 = per_frame(stable_points(points_NK3)[:, :3].reshape(-1, 6))
    rigid_T32 = apply(transform_T23, rigid_T6.reshape(-1, 3, 2))
    steps = np.linalg.norm(np.diff(rigid_T32, axis=0), axis=2)
    widths = np.linalg.norm(np.subtract(*(_landmark(points_NK3, i)[:, :2] for i in MOUTH_CORNERS)), axis=1)
    return MouthTrack(
        transform_T23.astype(np.float32),
        mouth_width_px=float(np.median(widths)),
        yaw_deg=float(np.median(np.abs(yaw_deg(points_NK3)))),
        jitter_px=float(steps.mean()) if len(steps) else 0.0,
    )


def yaw_deg(points_NK3: Doubles) -> Doubles:
    """Returns the sideways turn of each head in degrees, 0 towards the camera: the depth of the line between the eyes.

    mediapipe's z has the unit of its x.
    """
    across = _mean(points_NK3, LEFT_EYE_CORNERS) - _mean(points_NK3, RIGHT_EYE_CORNERS)
    return np.degrees(np.arctan2(across[:, 2], np.hypot(across[:, 0], across[:, 1])))
