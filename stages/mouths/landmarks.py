"""The faces of a video, frame by frame, and whose mouth the clip is about.

Shapes: F source frames, M faces in frames (one face in one frame), K kept landmarks, N frames of one face.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.terms import Transfer
from stages.mouths.mesh_points import LEFT_EYE_CORNERS, LIP_GAP, PLACES, RIGHT_EYE_CORNERS
from stages.settings import CropParams

TRACK_VERSION = 5
"""Raise it when the same video and parameters would give other landmarks: it is part of `track_key`."""

MIN_OVERLAP = 0.1
"""Intersection over union by which a face is the one of the frame before: heads move by less than their size."""

SPEAKER_MIN_SIZE = 0.4
SPEAKER_MIN_PRESENCE = 0.5
"""Who speaks is looked for among faces of at least this share of the largest's size, and of the longest's time."""

SPEAKING = 0.02
"""Standard deviation of the lips' gap, in distances between the eyes, from which on a mouth moves."""


@dataclass(frozen=True)
class Landmarks:
    """Every face in every frame of one video, as cached under `track_key`."""

    width: int
    height: int
    times_s_F: NDArray[np.float64]
    landmarked: NDArray[np.int32]
    """Source frames that were searched for faces; in the others faces were followed."""
    frame_M: NDArray[np.int32]
    points_MK3: NDArray[np.float32]
    """x and y in source pixels, z (towards the back of the head) in the same unit."""
    box_M4: NDArray[np.float32]
    """Left, top, right, bottom of the whole mesh, source pixels."""
    transfer: Transfer = Transfer.SDR

    @property
    def num_faces(self) -> int:
        """The most faces seen in one frame."""
        return int(np.bincount(self.frame_M).max()) if len(self.frame_M) else 0


@dataclass(frozen=True)
class FaceTrack:
    """One face through the video."""

    frame_N: NDArray[np.int32]
    points_NK3: NDArray[np.float32]


def main_face(landmarks: Landmarks, params: CropParams) -> FaceTrack | None:
    """The face the clip is about: of those large and present enough the one whose lips move most, if any move.

    Where nobody speaks, the one with the most size summed over its frames; None without a face. Faces are followed
    by the overlap of their boxes and lost after `max_gap_s`.
    """
    tracks = _follow(landmarks, params.max_gap_s)
    if not tracks:
        return None
    sizes_M = np.sqrt(np.prod(landmarks.box_M4[:, 2:] - landmarks.box_M4[:, :2], axis=1, dtype=np.float64))
    # the sum of lengths weighs presence above mere closeness; max() keeps the first among equals
    largest = max(tracks, key=lambda members: float(sizes_M[members].sum()))
    likely = [
        members
        for members in tracks
        if np.median(sizes_M[members]) >= SPEAKER_MIN_SIZE * max(np.median(sizes_M[t]) for t in tracks)
        and len(members) >= SPEAKER_MIN_PRESENCE * max(map(len, tracks))
    ]
    motion = [lip_motion(landmarks.points_MK3[members]) for members in likely]
    chosen = likely[int(np.argmax(motion))] if max(motion, default=0) > SPEAKING else largest
    return FaceTrack(landmarks.frame_M[chosen], landmarks.points_MK3[chosen])


def lip_motion(points_NK3: NDArray[np.float32]) -> float:
    """Standard deviation over time of the gap between the lips, in distances between the eyes."""
    return float(lip_gap(points_NK3).std())


def lip_gap(points_NK3: NDArray[np.float32]) -> NDArray[np.float64]:
    """The gap between the lips in each frame (N), in distances between the eyes."""
    points = points_NK3.astype(np.float64)
    upper, lower = (points[:, PLACES[index], :2] for index in LIP_GAP)
    right, left = (
        points[:, [PLACES[i] for i in eye]].mean(axis=1) for eye in (RIGHT_EYE_CORNERS, LEFT_EYE_CORNERS)
    )
    # in space, so that turning the head does not count as opening the mouth
    between_eyes = np.linalg.norm(left - right, axis=1)
    return np.asarray(np.linalg.norm(lower - upper, axis=1) / np.maximum(between_eyes, 1e-6))


def _follow(landmarks: Landmarks, max_gap_s: float) -> list[list[int]]:
    """Faces through time, each as its members of M in the order of frames."""
    tracks: list[list[int]] = []
    times, boxes = landmarks.times_s_F, landmarks.box_M4
    for frame in np.unique(landmarks.frame_M):
        found = np.flatnonzero(landmarks.frame_M == frame)
        alive = [t for t in tracks if times[frame] - times[landmarks.frame_M[t[-1]]] <= max_gap_s + 1e-6]
        joined = match_faces(boxes[[track[-1] for track in alive]], boxes[found])
        for i, j in joined:
            alive[i].append(int(found[j]))
        known = {j for _, j in joined}
        tracks.extend([int(m)] for j, m in enumerate(found) if j not in known)
    return tracks


def match_faces(boxes_A4: NDArray[np.float32], boxes_B4: NDArray[np.float32]) -> list[tuple[int, int]]:
    """Which faces of two frames are the same: the best overlaps are joined first, each face once."""
    pairs = sorted(
        ((_overlap(a, b), -i, -j) for i, a in enumerate(boxes_A4) for j, b in enumerate(boxes_B4)),
        reverse=True,
    )
    joined: list[tuple[int, int]] = []
    for overlap, i, j in pairs:
        if overlap < MIN_OVERLAP:
            break
        if -i not in {a for a, _ in joined} and -j not in {b for _, b in joined}:
            joined.append((-i, -j))
    return joined


def _overlap(box: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    if (sides <= 0).any():
        return 0.0
    shared = float(np.prod(sides))
    return shared / (float(np.prod(box[2:] - box[:2])) + float(np.prod(other[2:] - other[:2])) - shared)
