"""From face landmarks to one steady mouth window: similarity, bridging, smoothing, and figures of quality.

A similarity z -> a z + t of the plane is two complex numbers, stored as the four reals a_x, a_y, t_x, t_y.
Where a point lands is linear in those four, so their mean over time puts every point at the mean of its places:
they can be interpolated and smoothed one by one, which angles and scales cannot.

Shapes: F source frames, T output frames, N frames with the face, K kept landmarks.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.errors import ClipRejected
from shards.schema import Reason
from stages.mouths.landmarks import FaceTrack
from stages.mouths.mesh_points import (
    INNER_LIPS,
    LEFT_EYE_CORNERS,
    MOUTH_CORNERS,
    NOSE_BASE,
    OUTER_LIPS,
    PLACES,
    RIGHT_EYE_CORNERS,
)
from stages.settings import CropParams

Doubles = NDArray[np.float64]

# The mean face on 256x256 that auto_avsr, the multilingual VSR zoo and CNVSRC share: right and left eye centre,
# nose base (points 31 to 35 of 68), mouth centre (points 48 to 67). Their window is 96 px round the last.
CANONICAL_42 = np.array([(102.07, 94.27), (156.36, 93.58), (129.00, 135.90), (129.31, 157.82)])
CANONICAL_WINDOW_PX = 96


def _mean(points_NKC: Doubles, indices: tuple[int, ...]) -> Doubles:
    return points_NKC[:, [PLACES[i] for i in indices]].mean(axis=1)


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
    # a face of less than a thousandth of a pixel is no face; its scale would be noise
    if not np.all(spread > 1e-6):
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


def inside(track: FaceTrack, width: int, height: int) -> FaceTrack:
    """The track without the frames where a corner of the mouth lies outside the picture: the mesh goes on there."""
    corners = track.points_NK3[:, [PLACES[i] for i in MOUTH_CORNERS], :2]
    within = ((corners >= 0) & (corners < (width, height))).all(axis=(1, 2))
    return FaceTrack(track.frame_N[within], track.points_NK3[within])


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
    windows_F4 = bridge(seen_s_N, mouth_windows(points_NK3, params.size_px), times_s_F)
    num_smoothed = smoothed_frames(params.smoothing_s, params.target_fps)
    transform_T23 = matrices(smooth(windows_F4[frame_index_T], num_smoothed))

    # eyes and nose do not speak, so what moves of them in the crop is a head followed badly
    rigid_F6 = bridge(seen_s_N, stable_points(points_NK3)[:, :3].reshape(-1, 6), times_s_F)
    rigid_T32 = apply(transform_T23, rigid_F6[frame_index_T].reshape(-1, 3, 2))
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
