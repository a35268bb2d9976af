"""Chooses the face of a clip: joins the faces of a video through time, and finds the one that speaks.

Shapes: F source frames, M faces in frames (one face in one frame), K kept landmarks, N frames of one face.
"""

from dataclasses import dataclass, field
from functools import partial
from itertools import groupby, pairwise
from operator import itemgetter

import numpy as np
from numpy.typing import NDArray

from stages.mouths.face_search import overlap
from stages.mouths.geometry import EYES_PX, misfit_px, mouth_inside, stable_points
from stages.mouths.landmarks import (
    KEPT_INDEX,
    LEFT_EYE_CORNERS,
    LIP_GAP,
    LIPS_TOP_AND_BOTTOM,
    MIN_OVERLAP,
    RIGHT_EYE_CORNERS,
    FaceTrack,
    Landmarks,
    match_faces,
)
from stages.mouths.voice import MIN_AGREEMENT, Loudness, agreement
from stages.settings import CropParams

SPEAKER_MIN_SIZE = 0.4
SPEAKER_MIN_PRESENCE = 0.5
"""The speaker is chosen among faces with at least this share of the largest size and of the most frames."""

SPEAKING = 0.02
"""Standard deviation of the gap between the lips above which a mouth moves, in distances between the eyes."""

UNLIKE_FACE_PX = 8.0
"""Misfit to the mean face above which a mesh may not be a face. Real faces have 0.6 to 3.7 px (GRID), at most 5.7 px in
a moving car. A mesh of half the height has 11 px, a face turned by 45 degrees 8 px."""

JUMP_PX = 8.0
"""A larger move of eyes, nose or mouth between two frames is a jump; in pixels of the 96-px crop."""


@dataclass
class _Track:
    """One face through time: its indices in M, and the frames of the cuts at which it begins or ends."""

    members: list[int]
    cut_frames: list[int]
    ended: bool = False
    outside: list[int] = field(default_factory=list)
    implausible: list[int] = field(default_factory=list)


def main_face(landmarks: Landmarks, params: CropParams, loudness: Loudness | None = None) -> FaceTrack | None:
    """Returns the face of the clip: among large and long visible faces, the one whose lips move most, if any move.

    With `loudness`, which is called only if the lips of several such faces move, it is the face whose lips follow the
    sound best, if any do. If nobody speaks, returns the face with the largest sum of its size over its frames. Frames
    with an implausible mesh, or without the whole mouth in the picture, do not count. A face without other frames is
    returned only if there is no better face. Faces are tracked by the overlap of their boxes; a track ends after
    `max_gap_s` and at cuts.
    Returns None if there is no face at all.
    """
    tracks = _join_frames(landmarks, params.max_gap_s)
    if not tracks:
        return None
    is_inside_M = mouth_inside(landmarks.points_MK3.astype(np.float64), landmarks.width, landmarks.height)
    for track in tracks:
        implausible = _implausible(landmarks, track.members, params.max_gap_s)
        track.implausible = [m for m in track.members if m in implausible]
        track.outside = [m for m in track.members if m not in implausible and not is_inside_M[m]]
        track.members = [m for m in track.members if m not in implausible and is_inside_M[m]]
    track, sound_agreement = _choose(
        landmarks, [t for t in tracks if t.members] or tracks, params.target_fps, loudness
    )
    return FaceTrack(
        landmarks.frame_M[track.members],
        landmarks.points_MK3[track.members],
        track.cut_frames,
        landmarks.frame_M[track.outside].tolist(),
        landmarks.frame_M[track.implausible].tolist(),
        sound_agreement,
    )


def _choose(
    landmarks: Landmarks, tracks: list[_Track], fps: float, loudness: Loudness | None
) -> tuple[_Track, float | None]:
    """Returns the face that speaks, and how well it agrees with the sound if the sound decided."""
    sizes_M = np.sqrt(np.prod(landmarks.box_M4[:, 2:] - landmarks.box_M4[:, :2], axis=1, dtype=np.float64))
    # the sum over frames prefers presence to closeness; max() keeps the first of equals
    largest = max(tracks, key=lambda track: float(sizes_M[track.members or track.outside].sum()))
    if not largest.members:
        return largest, None
    median_size = [float(np.median(sizes_M[track.members])) for track in tracks]
    most_frames = max(len(track.members) for track in tracks)
    likely = [
        track
        for track, size in zip(tracks, median_size, strict=True)
        if size >= SPEAKER_MIN_SIZE * max(median_size)
        and len(track.members) >= SPEAKER_MIN_PRESENCE * most_frames
    ]
    motion = [lip_motion(landmarks.points_MK3[track.members]) for track in likely]
    moving = [track for track, how_much in zip(likely, motion, strict=True) if how_much > SPEAKING]
    if len(moving) > 1 and loudness is not None and (loudness_T := loudness()) is not None:
        agreements = [
            agreement(
                landmarks.times_s_F[landmarks.frame_M[track.members]],
                lip_height(landmarks.points_MK3[track.members]),
                loudness_T,
                fps,
            )
            for track in moving
        ]
        best = int(np.argmax(agreements))
        if agreements[best] >= MIN_AGREEMENT:
            return moving[best], agreements[best]
    return (likely[int(np.argmax(motion))] if moving else largest), None


def lip_motion(points_NK3: NDArray[np.float32]) -> float:
    """Returns the standard deviation over time of the gap between the lips, in distances between the eyes."""
    return float(lip_gap(points_NK3).std())


def lip_gap(points_NK3: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the gap between the lips in each frame (N), in distances between the eyes."""
    return _apart(points_NK3, LIP_GAP)


def lip_height(points_NK3: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the height of both lips and their gap in each frame (N), in distances between the eyes."""
    return _apart(points_NK3, LIPS_TOP_AND_BOTTOM)


def _apart(points_NK3: NDArray[np.float32], pair: tuple[int, int]) -> NDArray[np.float64]:
    """Returns the distance in the picture of two landmarks in each frame (N), in distances between the eyes."""
    points = points_NK3.astype(np.float64)
    upper, lower = (points[:, KEPT_INDEX[index], :2] for index in pair)
    right, left = (
        points[:, [KEPT_INDEX[i] for i in eye]].mean(axis=1) for eye in (RIGHT_EYE_CORNERS, LEFT_EYE_CORNERS)
    )
    # in three dimensions, so that turning the head does not count as opening the mouth
    between_eyes = np.linalg.norm(left - right, axis=1)
    return np.asarray(np.linalg.norm(lower - upper, axis=1) / np.maximum(between_eyes, 1e-6))


def _join_frames(landmarks: Landmarks, max_gap_s: float) -> list[_Track]:
    """Returns faces through time, each with its members of M in the order of frames."""
    tracks: list[_Track] = []
    times_s, boxes = landmarks.times_s_F.tolist(), landmarks.box_M4.tolist()
    frame_of = landmarks.frame_M.tolist()
    cuts: dict[int, list[list[float]]] = {}
    for frame, box in zip(landmarks.cut_frame_C.tolist(), landmarks.cut_box_C4.tolist(), strict=True):
        cuts.setdefault(frame, []).append(box)
    members = {frame: [m for m, _ in group] for frame, group in groupby(enumerate(frame_of), itemgetter(1))}
    for frame in sorted(members.keys() | cuts.keys()):
        found = members.get(frame, [])
        alive = [
            t
            for t in tracks
            if not t.ended and times_s[frame] - times_s[frame_of[t.members[-1]]] <= max_gap_s + 1e-6
        ]
        new: list[int] = []
        if frame in cuts:
            is_cut = partial(_overlaps_any, cuts[frame])
            for track in alive:
                if is_cut(boxes[track.members[-1]]):
                    track.ended = True
                    track.cut_frames.append(frame)
            alive = [track for track in alive if not track.ended]
            new = [m for m in found if is_cut(boxes[m])]
            found = [m for m in found if m not in new]
        pairs = match_faces([boxes[track.members[-1]] for track in alive], [boxes[m] for m in found])
        for i, j in pairs:
            alive[i].members.append(found[j])
        known = {j for _, j in pairs}
        tracks.extend(_Track([m], []) for j, m in enumerate(found) if j not in known)
        tracks.extend(_Track([m], [frame] if frame else []) for m in new)
    return tracks


def _overlaps_any(cut_boxes: list[list[float]], box: list[float]) -> bool:
    return any(overlap(box, cut_box) >= MIN_OVERLAP for cut_box in cut_boxes)


def _implausible(landmarks: Landmarks, members: list[int], max_gap_s: float) -> set[int]:
    """Returns the members whose meshes are unlike a face and jump away from the frames before and after.

    A head that turns away is also unlike the mean face, but moves there without a jump.
    """
    stable_N42 = stable_points(landmarks.points_MK3[members].astype(np.float64))
    misfit_N = misfit_px(stable_N42)
    if (misfit_N <= UNLIKE_FACE_PX).all():
        return set()
    # the median size of the face, since the size of a wrong mesh is wrong too
    eyes_px = float(np.median(np.linalg.norm(stable_N42[:, 1] - stable_N42[:, 0], axis=1)))
    moved_px = np.linalg.norm(np.diff(stable_N42, axis=0), axis=2).max(axis=1) * (
        EYES_PX / max(eyes_px, 1e-6)
    )
    starts = [0, *(np.flatnonzero(~(moved_px <= JUMP_PX)) + 1).tolist(), len(members)]
    times_N = landmarks.times_s_F[landmarks.frame_M[members]]
    dropped: set[int] = set()
    for begin, end in pairwise(starts):
        is_short = times_N[end - 1] - times_N[begin] <= max_gap_s
        if is_short and end - begin < len(members) and not (misfit_N[begin:end] <= UNLIKE_FACE_PX).any():
            dropped.update(members[begin:end])
    return dropped
