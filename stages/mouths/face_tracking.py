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

Where the video cuts to another shot, no face is followed: the frames before and after are landmarked.

Shapes: F frames of a stretch, K kept landmarks, P corners of the crop and its centre.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shards.enums import Transfer
from stages.mouths.cuts import Look as FaceLook
from stages.mouths.cuts import cut_frames
from stages.mouths.face_search import Look, box_of, find_faces
from stages.mouths.flow import ANCHORS, HEAD, LIPS, Face, Flow
from stages.mouths.geometry import CANONICAL_WINDOW_PX, Doubles, apply, matrices, mouth_inside, mouth_windows
from stages.mouths.landmarker import face_finder
from stages.mouths.landmarks import KEPT, Landmarks, match_faces
from stages.mouths.patches import MouthPatches
from stages.videos.media import Media
from stages.videos.picture import SourceFrame
from stages.videos.settings import CropParams
from stages.videos.video import decode

STRETCH_S = 0.64
"""Longest stretch without landmarks: sixteen frames of 25, some three syllables."""

STRETCH_BYTES = 250_000_000
"""Its pictures are all held; of large or very fast ones fewer."""

TILE_TRIES, TILE_EVERY = 16, 4
"""After so many ends of stretches without a face, ten seconds, only every fourth one is searched in tiles."""

EMPTY_S = 0.16
"""Longest stretch whose ends show no face and which is taken to show none: a detector misses now and then."""

# Weights of the two figures, and sizes of the flow, were chosen on GRID (two speakers) and the hard videos so that the
# error stays below the bound that tests/stages/mouths/test_face_tracking.py holds; docs/decisions.md has the trials.
MISS_WEIGHT = 0.4
MOTION_WEIGHT = 0.3

STRAYS = 2.0
"""A head that strays from a straight way by so many times `crop.max_lag_px` within a stretch is a fast one: the mean
over half a second would lag behind a nod of 2 Hz by all of it, behind a slow turn by a fifth."""

EDGE_MARGIN = 0.15
"""Share of the face's height by which the crop of its mouth reaches beyond the mesh's box, at most."""

HEAD_WINDOW_S = 0.12
"""What the smoothing of a fast head (geometry.HEAD_SMOOTHING_S) averages away, as the window of a mean."""

_CROP_P2 = CANONICAL_WINDOW_PX * np.array([(0.5, 0.5), (0, 0), (1, 0), (0, 1), (1, 1)])
CORNER_WEIGHT = 0.5
"""A corner of the crop may be off by twice as much as its centre."""


def follow_video(media: Media, params: CropParams, patches: MouthPatches | None = None) -> Landmarks:
    """Every face of every frame, up to `max_faces` at once.

    The surroundings of the largest face's mouth go to `patches`. Raises ClipRejected as `video.decode` does,
    MachineError where the landmarker cannot run.
    """
    with face_finder(params.landmarker, params.max_faces) as look:
        follower = Follower(look, params, patches)
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

    def __init__(self, look: Look, params: CropParams, patches: MouthPatches | None) -> None:
        self._look_in, self._params, self._patches = look, params, patches
        self._stretch: list[SourceFrame] = []
        """The last frame is one ahead of the stretch: it distinguishes a cut from a flash."""
        self._before: list[SourceFrame] = []
        """The frame before the stretch, for the same purpose."""
        self._first: list[Face] = []
        """The faces of the stretch's first frame."""
        self._times_s: list[float] = []
        self._landmarked: list[int] = []
        self._settled: list[tuple[NDArray[np.int32], _Way]] = []
        """Source frames and the way of a face through them."""
        self._cuts: list[tuple[int, Doubles]] = []
        """First source frame after a cut, and the face's box where it was seen."""
        self._is_lively = False
        """Whether a head in this stretch moves faster than the calm smoothing follows."""
        self._before_gap: list[FaceLook] = []
        """Looks of the faces just before the last sudden change to a picture without a face."""
        self._num_empty = 0
        """Ends of stretches without a face that shows its mouth, since the last such face."""
        self._size = (0, 0)
        self._transfer = Transfer.SDR
        self._num_taken = 0

    def add(self, frame: SourceFrame) -> None:
        self._size, self._transfer = frame.size, frame.transfer
        self._times_s.append(frame.time_s)
        self._stretch.append(frame)
        if len(self._stretch) == 1:
            self._first = self._look(frame, [], is_deep=True)
        elif len(self._stretch) > 2 and self._is_whole(self._stretch[:-1]):
            self._close(self._stretch[:-1], frame)

    def _is_whole(self, stretch: Sequence[SourceFrame]) -> bool:
        return (
            self._params.tolerance_px == 0
            or stretch[-1].time_s - stretch[0].time_s >= STRETCH_S - 1e-6
            or len(stretch) * stretch[-1].num_bytes >= STRETCH_BYTES
        )

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
            self._close(self._stretch, None)
        self._settle(self._stretch, [_way(face) for face in self._first])
        self._stretch, self._before = [], []
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
            np.array([index for index, _ in self._cuts if index < end], np.int32) - begin,
            np.array([box_4 for index, box_4 in self._cuts if index < end], np.float32).reshape(-1, 4),
            self._transfer,
        )
        self._cuts = [cut for cut in self._cuts if cut[0] >= end]
        self._num_taken, self._settled = end, []
        self._times_s = self._times_s[num_frames:]
        self._landmarked = [index for index in self._landmarked if index >= end]
        return taken

    def _look(self, frame: SourceFrame, known: Sequence[Face], is_deep: bool = False) -> list[Face]:
        """The faces of a frame; `known` ones are searched for where they were, others in tiles if `is_deep`."""
        self._landmarked.append(frame.index)
        is_deep = is_deep and (self._num_empty < TILE_TRIES or self._num_empty % TILE_EVERY == 0)
        meshes = find_faces(
            self._look_in,
            frame,
            [face.box_4 for face in known],
            self._params.min_mouth_width_px if is_deep else None,
            self._params.max_faces,
            lambda mesh: _shows_mouth(box_of(mesh), mesh[list(KEPT)], frame.size),
        )
        return [
            Face(
                mesh[list(KEPT)].astype(np.float64),
                box_of(mesh),
                mesh[list(ANCHORS), :2].astype(np.float64),
            )
            for mesh in meshes
        ]

    def _settle(self, frames: Sequence[SourceFrame], ways: Sequence[_Way]) -> None:
        frame_F = np.array([frame.index for frame in frames], np.int32)
        assert all(len(way.points_FK3) == len(frames) for way in ways), "a way has a place in every frame"
        self._settled += [(frame_F, way) for way in ways]
        if self._patches is not None:
            self._patches.keep_settled(frames)
        if ways and self._patches is not None:
            sizes_WF = np.array([np.prod(way.box_F4[:, 2:] - way.box_F4[:, :2], axis=1) for way in ways])
            largest_F = sizes_WF.argmax(axis=0)
            points_WFK3 = np.array([way.points_FK3 for way in ways])
            self._patches.keep_mouths(frames, points_WFK3[largest_F, np.arange(len(frames))])

    def _close(self, frames: Sequence[SourceFrame], ahead: SourceFrame | None) -> None:
        """Settles every frame of the stretch but the last, which begins the next one."""
        last = len(frames) - 1
        known = {0: self._first, last: self._look(frames[last], self._first, is_deep=True)}
        is_seen = any(_shows_mouth(face.box_4, face.points_K3, self._size) for face in known[last])
        self._num_empty = 0 if is_seen else self._num_empty + 1
        stops = {0, last}
        for cut, boxes_4 in self._find_cuts(frames, ahead, known[0], known[last]).items():
            for number, near in ((cut - 1, known[0]), (cut, known[last])):
                if number not in known:
                    known[number] = self._look(frames[number], near)
            stops |= {cut - 1, cut}
            if not self._goes_on_behind_gap(frames[cut - 1], known[cut - 1], frames[cut], known[cut]):
                self._cuts += [(frames[cut].index, box_4) for box_4 in boxes_4]
        flow: Flow | None = None
        self._is_lively = False
        open_parts = list(pairwise(sorted(stops)))[::-1]
        while open_parts:
            begin, end = open_parts.pop()
            if flow is None and (seen := [face for faces in known.values() for face in faces]):
                flow = Flow(frames, seen)
            ways = self._ways(flow, begin, end, known[begin], known[end])
            if ways is None:
                middle = (begin + end) // 2
                known[middle] = self._look(frames[middle], known[begin] + known[end])
                open_parts += [(middle, end), (begin, middle)]
            else:
                self._settle(frames[begin:end], ways)
        self._before, self._first = [frames[last - 1]], known[last]
        self._stretch = [frames[last], *([] if ahead is None else [ahead])]

    def _goes_on_behind_gap(
        self, last: SourceFrame, last_faces: list[Face], first: SourceFrame, first_faces: list[Face]
    ) -> bool:
        """Whether a sudden change between two frames only begins or ends a gap without faces, which may be bridged.

        Black, a slide or what a decoder makes of lost bytes is no other shot, but another person behind it is one.
        """
        if last_faces and first_faces:
            return False
        if last_faces:
            self._before_gap = [FaceLook(last, face.box_4) for face in last_faces]
            return True
        looks = [FaceLook(first, face.box_4) for face in first_faces]
        is_other = (
            looks and self._before_gap and not any(a.is_alike(b) for a in self._before_gap for b in looks)
        )
        return not is_other

    def _find_cuts(
        self, frames: Sequence[SourceFrame], ahead: SourceFrame | None, first: list[Face], last: list[Face]
    ) -> dict[int, list[Doubles]]:
        """The frames of the stretch before which the picture around a face changes, rising, each with these boxes."""
        pairs = match_faces(_boxes(first), _boxes(last))
        ends = [(first[i].box_4, last[j].box_4) for i, j in pairs]
        ends += [(face.box_4, face.box_4) for i, face in enumerate(first) if i not in {i for i, _ in pairs}]
        ends += [(face.box_4, face.box_4) for j, face in enumerate(last) if j not in {j for _, j in pairs}]
        context = [*self._before, *frames, *([] if ahead is None else [ahead])]
        begin = len(self._before)
        share_F1 = np.clip((np.arange(len(context)) - begin) / (len(frames) - 1), 0, 1)[:, None]
        cuts: dict[int, list[Doubles]] = {}
        for begin_4, end_4 in ends:
            box_F4 = (1 - share_F1) * begin_4 + share_F1 * end_4
            for number in cut_frames(context, box_F4, begin, begin + len(frames) - 1):
                cuts.setdefault(number - begin, []).append(box_F4[number])
        return dict(sorted(cuts.items()))

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
            miss_px, crop_px = _distance_px(path_FK2[-1], last[j].points_K3[:, :2])
            share_F = _shares(frames)
            path_FK2 = path_FK2 + share_F[:, None, None] * missed_K2
            mouth_px, head_px = (crop_px * stray for stray in _strays(path_FK2, share_F))
            self._is_lively |= head_px > STRAYS * self._params.max_lag_px
            unsure_px = MISS_WEIGHT * miss_px + MOTION_WEIGHT * mouth_px
            if unsure_px * self._share_of_smoothing(duration_s) > self._params.tolerance_px:
                return None
            ways.append(_joined(path_FK2[:-1], share_F[:-1], first[i], last[j]))
        return ways

    def _share_of_smoothing(self, duration_s: float) -> float:
        # neighbouring stretches may err alike, so a window longer than a stretch averages no more away than one does
        window_s = min(self._params.smoothing_s, HEAD_WINDOW_S if self._is_lively else STRETCH_S)
        return min(1.0, duration_s / window_s) if window_s > 0 else 1.0


def _shows_mouth(box_4: Doubles, points_K3: NDArray[np.floating], size: tuple[int, int]) -> bool:
    """Whether the whole mouth is in the picture: `mouth_inside`, which is slow, is called only near the edge."""
    margin_px = EDGE_MARGIN * float(box_4[3] - box_4[1])
    if (box_4[:2] >= margin_px).all() and (box_4[2:] <= np.array(size) - margin_px).all():
        return True
    return bool(mouth_inside(points_K3[None].astype(np.float64), *size)[0])


def _distance_px(points_K2: Doubles, other_K2: Doubles) -> tuple[float, float]:
    """How far apart the crops lie that two sets of points ask for, in crop pixels; crop pixels in a source pixel."""
    flat = np.zeros((2, len(points_K2), 3))
    flat[:, :, :2] = points_K2, other_K2
    one_23, other_23 = matrices(mouth_windows(flat, CANONICAL_WINDOW_PX))
    to_crop_33 = np.vstack([other_23, [0, 0, 1]])
    places_P2 = apply(np.linalg.inv(to_crop_33)[None, :2], _CROP_P2[None])
    off_P = np.linalg.norm(apply(one_23[None], places_P2)[0] - _CROP_P2, axis=1)
    return float(max(off_P[0], CORNER_WEIGHT * off_P[1:].max())), float(np.hypot(*other_23[:, 0]))


def _shares(frames: Sequence[SourceFrame]) -> Doubles:
    """How far in time each frame stands from the first (0) to the last (1)."""
    times_s = np.array([frame.time_s for frame in frames])
    return np.asarray((times_s - times_s[0]) / (times_s[-1] - times_s[0]))


def _strays(path_FK2: Doubles, share_F: Doubles) -> tuple[float, float]:
    """How far the mouth strays from a straight way within the face, and the head in the picture, in source pixels.

    The first is speech, which flow follows badly; the second a head that the calm smoothing would lag behind.
    """
    head_F2 = path_FK2[:, HEAD].mean(axis=1)
    strays = []
    for way_F2 in (path_FK2[:, LIPS].mean(axis=1) - head_F2, head_F2):
        off_F2 = way_F2 - way_F2[0] - share_F[:, None] * (way_F2[-1] - way_F2[0])
        strays.append(float(np.linalg.norm(off_F2, axis=1).max()))
    return strays[0], strays[1]


def _joined(path_FK2: Doubles, share_F: Doubles, first: Face, last: Face) -> _Way:
    """Depth and boxes go straight from one end to the other."""
    share_F1 = share_F[:, None]
    depth_FK = (1 - share_F1) * first.points_K3[:, 2] + share_F1 * last.points_K3[:, 2]
    box_F4 = (1 - share_F1) * first.box_4 + share_F1 * last.box_4
    return _Way(np.concatenate([path_FK2, depth_FK[..., None]], axis=2), box_F4)


def _way(face: Face) -> _Way:
    return _Way(face.points_K3[None], face.box_4[None])


def _boxes(faces: Sequence[Face]) -> list[list[float]]:
    return [face.box_4.tolist() for face in faces]
