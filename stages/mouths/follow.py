"""Follows the faces of a video: landmarks on few frames, optical flow between, more landmarks where that is unsure.

A video is taken in stretches of at most STRETCH_S. Both ends of a stretch are landmarked; from its begin the kept
points are followed forward by sparse optical flow on the luma plane (Lucas and Kanade 1981, in pyramids). What the
flow is off by at the far end is taken back along the way in proportion to time, so it agrees with the landmarks at
both ends. How far it may be off between is judged by two figures, in pixels of the 96-px crop: by how much it missed
the far end, and how far the mouth moved within the face on the way. Weighed by the part of the smoothing window that
the stretch fills, since an error that is short against the window is averaged away, their sum must stay below
`crop.tolerance_px`; else the frame in the middle, furthest from what is known, is landmarked and both halves are
judged anew. Where the ends do not show the same faces, or the flow loses them, the stretch is halved down to
neighbouring frames. A face that goes and comes back within a stretch is taken to have been there.

Shapes: F frames of a stretch, K kept landmarks, P corners of the crop and its centre.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shards.terms import Transfer
from stages.mouths.flow import ANCHORS, HEAD, LIPS, Face, Flow
from stages.mouths.geometry import CANONICAL_WINDOW_PX, Doubles, apply, matrices, mouth_windows
from stages.mouths.landmarker import FindFaces, face_finder
from stages.mouths.landmarks import Landmarks, match_faces
from stages.mouths.mesh_points import KEPT
from stages.mouths.patches import MouthPatches
from stages.settings import CropParams
from stages.videos.media import Media
from stages.videos.picture import SourceFrame
from stages.videos.video import decode

STRETCH_S = 0.64
"""Longest stretch without landmarks: sixteen frames of 25, some three syllables."""

STRETCH_BYTES = 250_000_000
"""Its pictures are all held; of large or very fast ones fewer."""

EMPTY_S = 0.16
"""Longest stretch whose ends show no face and which is taken to show none: a detector misses now and then."""

# Weights of the two figures, and sizes of the flow, were chosen on GRID (two speakers) and the hard videos so that the
# error stays below the bound that tests/test_follow.py holds; docs/decisions.md has the trials.
MISS_WEIGHT = 0.4
MOTION_WEIGHT = 0.3

_CROP_P2 = CANONICAL_WINDOW_PX * np.array([(0.5, 0.5), (0, 0), (1, 0), (0, 1), (1, 1)])
CORNER_WEIGHT = 0.5
"""A corner of the crop may be off by twice as much as its centre."""


def follow_video(media: Media, params: CropParams, patches: MouthPatches | None = None) -> Landmarks:
    """Every face of every frame, up to `max_faces` at once.

    The surroundings of the largest face's mouth go to `patches`. Raises ClipRejected as `video.decode` does,
    MachineError where the landmarker cannot run.
    """
    with face_finder(params.landmarker, params.max_faces) as find:
        follower = Follower(find, params, patches)
        for frame in decode(media, params):
            follower.add(frame)
        return follower.landmarks()


@dataclass(frozen=True)
class _Way:
    """One face through neighbouring frames."""

    points_FK3: Doubles
    box_F4: Doubles


class Follower:
    """Takes the frames of a video one by one; what is settled of it can be taken away meanwhile."""

    def __init__(self, find: FindFaces, params: CropParams, patches: MouthPatches | None) -> None:
        self._find, self._params, self._patches = find, params, patches
        self._stretch: list[SourceFrame] = []
        self._first: list[Face] = []
        """The faces of the stretch's first frame."""
        self._times_s: list[float] = []
        self._landmarked: list[int] = []
        self._settled: list[tuple[NDArray[np.int32], _Way]] = []
        """Source frames and the way of a face through them."""
        self._size = (0, 0)
        self._transfer = Transfer.SDR
        self._num_taken = 0

    def add(self, frame: SourceFrame) -> None:
        self._size, self._transfer = frame.size, frame.transfer
        self._times_s.append(frame.time_s)
        self._stretch.append(frame)
        begin_s = self._stretch[0].time_s
        if len(self._stretch) == 1:
            self._first = self._look(frame)
        elif (
            self._params.tolerance_px == 0
            or frame.time_s - begin_s >= STRETCH_S - 1e-6
            or len(self._stretch) * frame.num_bytes >= STRETCH_BYTES
        ):
            self._close()

    @property
    def num_settled(self) -> int:
        """Frames that `take_settled` would give."""
        return self._stretch[0].index - self._num_taken if self._stretch else 0

    def take_settled(self) -> Landmarks:
        """The faces of the frames settled since the last call, which are forgotten here.

        Frames are counted from the first of them; times stay those of the video.
        """
        return self._take(self.num_settled)

    def landmarks(self) -> Landmarks:
        """The faces of all frames that were not taken before; the video is at its end."""
        if len(self._stretch) > 1:
            self._close()
        self._settle(self._stretch, [_way(face) for face in self._first])
        self._stretch = []
        return self._take(len(self._times_s))

    def _take(self, num_frames: int) -> Landmarks:
        begin, end = self._num_taken, self._num_taken + num_frames
        frame_M = np.concatenate([np.zeros(0, np.int32), *(frame_F for frame_F, _ in self._settled)])
        points_MK3 = np.concatenate(
            [np.zeros((0, len(KEPT), 3)), *(way.points_FK3 for _, way in self._settled)]
        )
        box_M4 = np.concatenate([np.zeros((0, 4)), *(way.box_F4 for _, way in self._settled)])
        order = np.argsort(frame_M, kind="stable")
        taken = Landmarks(
            *self._size,
            np.array(self._times_s[:num_frames], np.float64),
            np.array(sorted(index for index in self._landmarked if index < end), np.int32) - begin,
            frame_M[order] - begin,
            points_MK3[order].astype(np.float32),
            box_M4[order].astype(np.float32),
            self._transfer,
        )
        self._num_taken, self._settled = end, []
        self._times_s = self._times_s[num_frames:]
        self._landmarked = [index for index in self._landmarked if index >= end]
        return taken

    def _look(self, frame: SourceFrame) -> list[Face]:
        self._landmarked.append(frame.index)
        return [
            Face(
                mesh[list(KEPT)].astype(np.float64),
                np.concatenate([mesh[:, :2].min(axis=0), mesh[:, :2].max(axis=0)]).astype(np.float64),
                mesh[list(ANCHORS), :2].astype(np.float64),
            )
            for mesh in self._find(frame)
        ]

    def _settle(self, frames: Sequence[SourceFrame], ways: Sequence[_Way]) -> None:
        frame_F = np.array([frame.index for frame in frames], np.int32)
        self._settled += [(frame_F, way) for way in ways]
        if self._patches is not None:
            self._patches.keep_settled(frames)
        if ways and self._patches is not None:
            sizes_WF = np.array([np.prod(way.box_F4[:, 2:] - way.box_F4[:, :2], axis=1) for way in ways])
            largest_F = sizes_WF.argmax(axis=0)
            points_WFK3 = np.array([way.points_FK3 for way in ways])
            self._patches.keep_mouths(frames, points_WFK3[largest_F, np.arange(len(frames))])

    def _close(self) -> None:
        """Settles every frame of the stretch but the last, which begins the next one."""
        frames = self._stretch
        known = {0: self._first, len(frames) - 1: self._look(frames[-1])}
        flow: Flow | None = None
        open_parts = [(0, len(frames) - 1)]
        while open_parts:
            begin, end = open_parts.pop()
            if flow is None and (seen := [face for faces in known.values() for face in faces]):
                flow = Flow(frames, seen)
            ways = self._ways(flow, begin, end, known[begin], known[end])
            if ways is None:
                middle = (begin + end) // 2
                known[middle] = self._look(frames[middle])
                open_parts += [(middle, end), (begin, middle)]
            else:
                self._settle(frames[begin:end], ways)
        self._stretch, self._first = [frames[-1]], known[len(frames) - 1]

    def _ways(
        self, flow: Flow | None, begin: int, end: int, first: list[Face], last: list[Face]
    ) -> list[_Way] | None:
        """The ways of all faces from frame `begin` to before `end`; None where they cannot be told well enough."""
        if end - begin < 2:
            return [_way(face) for face in first]
        frames = self._stretch[begin : end + 1]
        duration_s = frames[-1].time_s - frames[0].time_s
        if flow is None or not (first or last):
            return [] if duration_s <= EMPTY_S + 1e-6 else None
        pairs = match_faces(_boxes(first), _boxes(last))
        if not len(pairs) == len(first) == len(last):
            return None
        ways = []
        for i, j in pairs:
            path_FK2 = flow.path(begin, end, i, first[i])
            if path_FK2 is None:
                return None
            missed_K2 = last[j].points_K3[:, :2] - path_FK2[-1]
            miss_px = _distance_px(path_FK2[-1], last[j].points_K3[:, :2])
            share_F = _shares(frames)
            path_FK2 = path_FK2 + share_F[:, None, None] * missed_K2
            unsure_px = MISS_WEIGHT * miss_px + MOTION_WEIGHT * _motion_px(path_FK2, share_F, last[j])
            if unsure_px * self._share_of_smoothing(duration_s) > self._params.tolerance_px:
                return None
            ways.append(_joined(path_FK2[:-1], share_F[:-1], first[i], last[j]))
        return ways

    def _share_of_smoothing(self, duration_s: float) -> float:
        # neighbouring stretches may err alike, so a window longer than a stretch averages no more away than one does
        window_s = min(self._params.smoothing_s, STRETCH_S)
        return min(1.0, duration_s / window_s) if window_s > 0 else 1.0


def _distance_px(points_K2: Doubles, other_K2: Doubles) -> float:
    """How far apart the crops lie that two sets of points ask for, in crop pixels."""
    flat = np.zeros((2, len(points_K2), 3))
    flat[:, :, :2] = points_K2, other_K2
    one_23, other_23 = matrices(mouth_windows(flat, CANONICAL_WINDOW_PX))
    to_crop_33 = np.vstack([other_23, [0, 0, 1]])
    places_P2 = apply(np.linalg.inv(to_crop_33)[None, :2], _CROP_P2[None])
    off_P = np.linalg.norm(apply(one_23[None], places_P2)[0] - _CROP_P2, axis=1)
    return float(max(off_P[0], CORNER_WEIGHT * off_P[1:].max()))


def _shares(frames: Sequence[SourceFrame]) -> Doubles:
    """How far in time each frame stands from the first (0) to the last (1)."""
    times_s = np.array([frame.time_s for frame in frames])
    return np.asarray((times_s - times_s[0]) / (times_s[-1] - times_s[0]))


def _motion_px(path_FK2: Doubles, share_F: Doubles, face: Face) -> float:
    """How far the mouth strays from a straight way within the face, crop px: speech, which flow follows badly."""
    mouth_F2 = path_FK2[:, LIPS].mean(axis=1) - path_FK2[:, HEAD].mean(axis=1)
    strayed_F2 = mouth_F2 - mouth_F2[0] - share_F[:, None] * (mouth_F2[-1] - mouth_F2[0])
    scale = np.hypot(*mouth_windows(face.points_K3[None], CANONICAL_WINDOW_PX)[0, :2])
    return float(np.linalg.norm(strayed_F2, axis=1).max() * scale)


def _joined(path_FK2: Doubles, share_F: Doubles, first: Face, last: Face) -> _Way:
    """Depth and boxes go straight from one end to the other."""
    share_F1 = share_F[:, None]
    depth_FK = (1 - share_F1) * first.points_K3[:, 2] + share_F1 * last.points_K3[:, 2]
    box_F4 = (1 - share_F1) * first.box_4 + share_F1 * last.box_4
    return _Way(np.concatenate([path_FK2, depth_FK[..., None]], axis=2), box_F4)


def _way(face: Face) -> _Way:
    return _Way(face.points_K3[None], face.box_4[None])


def _boxes(faces: Sequence[Face]) -> NDArray[np.float32]:
    return np.array([face.box_4 for face in faces], np.float32).reshape(-1, 4)
