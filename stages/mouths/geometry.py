"""From face landmarks to one steady mouth window: similarity, bridging, smoothing, and figures of quality.

A similarity z -> a z + t of the plane is two complex numbers, stored as the four reals a_x, a_y, t_x, t_y.
Where a point lands is linear in those four, so their mean over time puts every point at the mean of its places:
they can be interpolated and smoothed one by one, which angles and scales cannot.

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
    LEFT_EYE_CORNERS,
    MOUTH_CORNERS,
    NOSE_BASE,
    OUTER_LIPS,
    PLACES,
    RIGHT_EYE_CORNERS,
    FaceTrack,
)
from stages.videos.settings import CropParams

Doubles = NDArray[np.float64]

# The mean face on 256x256 that auto_avsr, the multilingual VSR zoo and CNVSRC share: right and left eye centre,
# nose base (points 31 to 35 of 68), mouth centre (points 48 to 67). Their window is 96 px round the last.
CANONICAL_42 = np.array([(102.07, 94.27), (156.36, 93.58), (129.00, 135.90), (129.31, 157.82)])
CANONICAL_WINDOW_PX = 96
EYES_PX = float(np.linalg.norm(CANONICAL_42[1] - CANONICAL_42[0]))
"""Distance between the eyes of that face, in crop pixels."""

HEAD_SMOOTHING_S = 0.28
"""Window of the parabolas that follow a fast head: 7 frames of 25. They keep 97 % of a nod of 2 Hz and as much noise as
a mean over 3 frames, which keeps 91 %."""
LAG_PLACES_P2 = np.array([(48.0, 48.0), (24.0, 48.0), (72.0, 48.0)])
"""Where in the 96-px crop the lag of the window is measured: at the middle of the mouth and at its corners."""

INSIDE_SHARE = 0.75
"""Least share of the crop that must lie in the picture. An edge just below a resting lip leaves 0.65 to 0.7 of it, an
edge through the chin 0.8 and more."""
NO_SPREAD = 1e-6
"""A face of less than a thousandth of a pixel is no face; its scale would be noise."""

GRID_POINTS = 16
"""A crop is probed at so many points across and down for INSIDE_SHARE."""


@cache
def _places(indices: tuple[int, ...]) -> NDArray[np.intp]:
    return np.array([PLACES[i] for i in indices])


def _mean(points_NKC: Doubles, indices: tuple[int, ...]) -> Doubles:
    return points_NKC[:, _places(indices)].mean(axis=1)


def _one(points_NKC: Doubles, index: int) -> Doubles:
    return points_NKC[:, PLACES[index]]


def stable_points(points_NKC: Doubles) -> Doubles:
    """Right eye, left eye, nose base and mouth centre of each face, (N, 4, 2), in the order of CANONICAL_42.

    The mouth centre is the mean of all twenty lip points, as in the canonical face; it sinks by half of what the
    jaw opens, which the smoothing over time takes out again.
    """
    parts = (RIGHT_EYE_CORNERS, LEFT_EYE_CORNERS, NOSE_BASE, OUTER_LIPS + INNER_LIPS)
    return np.stack([_mean(points_NKC, part)[:, :2] for part in parts], axis=1)


def similarity(points_NP2: Doubles, target_P2: Doubles) -> Doubles:
    """Least-squares rotation, scale and shift that carries each `points_P2` onto `target_P2`, without mirroring.

    Returns (N, 4): a_x, a_y, t_x, t_y. Raises ClipRejected (unstable_track) where the points coincide.
    Umeyama 1991, eq. 40 to 43; in the plane they reduce to a regression on one complex variable.
    """
    source = points_NP2[..., 0] + 1j * points_NP2[..., 1]
    target = target_P2[:, 0] + 1j * target_P2[:, 1]
    source_mean, target_mean = source.mean(axis=1), target.mean()
    centred = source - source_mean[:, None]
    spread = (np.abs(centred) ** 2).sum(axis=1)
    if not np.all(spread > NO_SPREAD):
        raise ClipRejected(Reason.UNSTABLE_TRACK, "the landmarks of a face fall on one point")
    factor = (centred.conj() * (target - target_mean)).sum(axis=1) / spread
    shift = target_mean - factor * source_mean
    return np.stack([factor.real, factor.imag, shift.real, shift.imag], axis=1)


def matrices(parameters_N4: Doubles) -> Doubles:
    """The (N, 2, 3) affine matrices of similarities given as a_x, a_y, t_x, t_y."""
    a_x, a_y, t_x, t_y = parameters_N4.T
    return np.stack([np.stack([a_x, -a_y, t_x], -1), np.stack([a_y, a_x, t_y], -1)], axis=1)


def apply(matrices_N23: Doubles, points_NP2: Doubles) -> Doubles:
    return points_NP2 @ matrices_N23[:, :, :2].transpose(0, 2, 1) + matrices_N23[:, None, :, 2]


def mouth_windows(points_NK3: Doubles, size_px: int) -> Doubles:
    """Similarity of each face to a crop of `size_px` with canonical scale and the mouth centre in its middle.

    (N, 4), source pixel to crop pixel. Rotation and scale come from all four stable points; the shift from the
    mouth centre alone, since faces differ in how long they are.
    """
    scale = size_px / CANONICAL_WINDOW_PX
    points = stable_points(points_NK3)
    parameters = similarity(points, CANONICAL_42 * scale)
    factor = parameters[:, 0] + 1j * parameters[:, 1]
    mouth = points[:, 3, 0] + 1j * points[:, 3, 1]
    shift = size_px / 2 * (1 + 1j) - factor * mouth
    return np.stack([factor.real, factor.imag, shift.real, shift.imag], axis=1)


def head_windows(points_NK3: Doubles, size_px: int) -> Doubles:
    """Like `mouth_windows`, but centred between the mouth's corners, which move more with the head than with speech."""
    points_NK3 = points_NK3.copy()
    points_NK3[:, _places(OUTER_LIPS + INNER_LIPS)] = _mean(points_NK3, MOUTH_CORNERS)[:, None]
    return mouth_windows(points_NK3, size_px)


def bridge(known_at_s_N: Doubles, values_NC: Doubles, times_s_F: Doubles) -> Doubles:
    """Values at every time (F, C): linear between the known, held before the first and after the last."""
    return np.stack([np.interp(times_s_F, known_at_s_N, column) for column in values_NC.T], axis=1)


def smooth(values_TC: Doubles, window: int) -> Doubles:
    """Mean over an odd `window` of frames; the ends follow the straight line through the first and last window.

    The lines keep a steady motion as it is, where repeating or mirroring the ends would shift the crop there, and
    join without a jump. The same as scipy.signal.savgol_filter(polyorder=1, mode="interp").
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
    """Smoothed windows (T, 4): calm over `smoothing_s`, and never more than `max_lag_px` behind a moving head.

    A mean over half a second takes out speech and noise, and with them every nod. What it takes out of the head's
    motion, and `quick_T4` (parabolas over HEAD_SMOOTHING_S) keeps, is the lag; the part of it beyond `max_lag_px` is
    put back. Heads that move slowly lag less, and get the plain mean, bit for bit.
    """
    num_smoothed = smoothed_frames(params.smoothing_s, params.target_fps)
    calm_T4, slow_T4 = (smooth(values, num_smoothed) for values in (mouth_T4, head_T4))
    lag_T4 = quick_T4 - slow_T4
    # how far the places of the crop that the lag is measured at would move, in pixels of the 96-px crop
    to_source_T22 = np.linalg.inv(matrices(calm_T4)[:, :, :2])
    places_P2 = LAG_PLACES_P2 * (params.size_px / CANONICAL_WINDOW_PX)
    source_TP2 = (places_P2 - calm_T4[:, None, 2:]) @ to_source_T22.transpose(0, 2, 1)
    moved_TP = np.linalg.norm(apply(matrices(lag_T4), source_TP2), axis=2)
    lag_px_T = moved_TP.max(axis=1) * (CANONICAL_WINDOW_PX / params.size_px)
    share_T = np.maximum(0.0, 1 - params.max_lag_px / np.maximum(lag_px_T, 1e-9))
    return np.where(share_T[:, None] > 0, calm_T4 + share_T[:, None] * lag_T4, calm_T4)


def follow(values_TC: Doubles, window: int) -> Doubles:
    """Each value from the parabola through an odd `window` of frames; the ends lie on the first and last parabola.

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
    """Frames of the window of `smooth`: the odd number next to so many seconds, since an even mean would lag."""
    # 2.32 s of 25 frames are 58, and by floats a hair less
    return 2 * int(round(smoothing_s * fps / 2, 6)) + 1


@dataclass(frozen=True)
class MouthTrack:
    """The steady window of a clip and how good it is."""

    transform_T23: NDArray[np.float32]
    mouth_width_px: float
    yaw_deg: float
    jitter_px: float


def misfit_px(stable_N42: Doubles) -> Doubles:
    """How far the stable points lie from the mean face's after the best similarity: (N), px of the 96-px crop, rms.

    Not a number where the points coincide.
    """
    source = stable_N42[..., 0] + 1j * stable_N42[..., 1]
    target = CANONICAL_42[:, 0] + 1j * CANONICAL_42[:, 1]
    source = source - source.mean(axis=1, keepdims=True)
    target = target - target.mean()
    spread_N = (np.abs(source) ** 2).sum(axis=1)
    factor_N = (source.conj() * target).sum(axis=1) / np.where(spread_N > NO_SPREAD, spread_N, np.nan)
    return np.asarray(np.sqrt((np.abs(factor_N[:, None] * source - target) ** 2).mean(axis=1)))


def mouth_inside(points_MK3: Doubles, width: int, height: int) -> NDArray[np.bool_]:
    """Which of these faces show the whole mouth: lips within the picture, and INSIDE_SHARE of the crop too.

    The mesh goes on outside the picture, where it is a guess, and the crop repeats the picture's edge there.
    """
    is_inside_M = np.zeros(len(points_MK3), bool)
    is_face_M = np.isfinite(misfit_px(stable_points(points_MK3)))
    points_MK3 = points_MK3[is_face_M]
    # by the corners of the mouth, which do not sink where it opens
    windows_M23 = matrices(head_windows(points_MK3, CANONICAL_WINDOW_PX))

    def share_within(windows_M23: Doubles, side: Doubles) -> Doubles:
        """Of a grid of points of the crop, back in the picture."""
        grid_P2 = np.stack(np.meshgrid(side, side), axis=-1).reshape(1, -1, 2)
        to_source_M22 = np.linalg.inv(windows_M23[:, :, :2])
        grid_MP2 = (grid_P2 - windows_M23[:, None, :, 2]) @ to_source_M22.transpose(0, 2, 1)
        return np.asarray(((grid_MP2 >= 0) & (grid_MP2 < (width, height))).all(axis=2).mean(axis=1))

    share_M = share_within(windows_M23, np.array([0, CANONICAL_WINDOW_PX], np.float64))
    near_edge_M = share_M < 1
    middles = np.asarray((np.arange(GRID_POINTS) + 0.5) * (CANONICAL_WINDOW_PX / GRID_POINTS), np.float64)
    share_M[near_edge_M] = share_within(windows_M23[near_edge_M], middles)
    lips = points_MK3[:, _places(OUTER_LIPS), :2]
    lips_within_M = ((lips >= 0) & (lips < (width, height))).all(axis=(1, 2))
    is_inside_M[is_face_M] = lips_within_M & (share_M >= INSIDE_SHARE)
    return is_inside_M


def longest_gap(times_s_F: Doubles, frame_N: NDArray[np.int32], step_s: float) -> tuple[float, float]:
    """Begin and end in seconds of the longest time without the face, the clip's ends counted."""
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
    """The smoothed window for each output frame, and the figures that the ledger keeps."""
    points_NK3 = track.points_NK3.astype(np.float64)
    seen_s_N = times_s_F[track.frame_N]

    def per_frame(values_NC: Doubles) -> Doubles:
        return bridge(seen_s_N, values_NC, times_s_F)[frame_index_T]

    head_F4 = bridge(seen_s_N, head_windows(points_NK3, params.size_px), times_s_F)
    # in source frames: of a source of other than 25 fps, output frames show pictures that are unevenly apart in time
    source_fps = 1 / float(np.median(np.diff(times_s_F))) if len(times_s_F) > 1 else params.target_fps
    quick_F4 = follow(head_F4, smoothed_frames(min(HEAD_SMOOTHING_S, params.smoothing_s), source_fps))
    transform_T23 = matrices(
        steady_windows(
            per_frame(mouth_windows(points_NK3, params.size_px)),
            head_F4[frame_index_T],
            quick_F4[frame_index_T],
            params,
        )
    )

    # eyes and nose do not speak, so what moves of them in the crop is a head followed badly
    rigid_T6 = per_frame(stable_points(points_NK3)[:, :3].reshape(-1, 6))
    rigid_T32 = apply(transform_T23, rigid_T6.reshape(-1, 3, 2))
    steps = np.linalg.norm(np.diff(rigid_T32, axis=0), axis=2)
    widths = np.linalg.norm(np.subtract(*(_one(points_NK3, i)[:, :2] for i in MOUTH_CORNERS)), axis=1)
    return MouthTrack(
        transform_T23.astype(np.float32),
        mouth_width_px=float(np.median(widths)),
        yaw_deg=float(np.median(np.abs(yaw_deg(points_NK3)))),
        jitter_px=float(steps.mean()) if len(steps) else 0.0,
    )


def yaw_deg(points_NK3: Doubles) -> Doubles:
    """Turn of each head to the side in degrees, 0 towards the camera: the depth of the line between the eyes.

    mediapipe's z has the unit of its x.
    """
    across = _mean(points_NK3, LEFT_EYE_CORNERS) - _mean(points_NK3, RIGHT_EYE_CORNERS)
    return np.degrees(np.arctan2(across[:, 2], np.hypot(across[:, 0], across[:, 1])))
