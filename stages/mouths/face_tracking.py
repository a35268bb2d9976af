"""Tracks the faces of a video: landmarks on few frames, optical flow between, more landmarks where the flow is unsure.

A video is processed in stretches of at most STRETCH_S. Both ends of a stretch are landmarked. From its begin, sparse
optical flow on the luma plane (Lucas and Kanade 1981, in pyramids) tracks the kept points forward. The error of the
flow at the far end is subtracted along the path in proportion to time, so the path agrees with the landmarks at both
ends. Two figures, in pixels of the 96-px crop, estimate the error between the ends: the error at the far end, and how
far the mouth moved within the face. Their weighted sum is scaled by the share of the smoothing window that the stretch
fills, since smoothing averages short errors away. It must stay below `crop.tolerance_px`. Otherwise the middle frame,
furthest from known frames, is landmarked and both halves are judged again. If the ends do not show the same faces, or
the flow loses them, the stretch is halved down to neighbouring frames. If a face disappears and comes back within a
stretch, it counts as present.

Across a cut to another shot, no face is tracked: the frames before and after are landmarked.

Shapes: F frames of a stretch, K kept landmarks, P corners of the crop and its centre, N faces in a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from shards.enums import Transfer
from stages.mouths.cuts import FaceThumbnail, cut_frames
from stages.mouths.face_search import DetectFaces, box_of, find_faces
from stages.mouths.flow import ANCHORS, HEAD, LIPS, Face, Flow
from stages.mouths.geometry import CANONICAL_WINDOW_PX, Doubles, apply, matrices, mouth_inside, mouth_windows
from stages.mouths.landmarker import face_finder
from stages.mouths.landmarks import KEPT, Landmarks, match_faces
from stages.mouths.mouth_pictures import MouthPatches
from stages.settings import CropParams
from stages.videos.media import Media
from stages.videos.picture import SourceFrame
from stages.videos.video import decode

STRETCH_S = 0.64
"""Longest stretch without landmarks: 16 frames at 25 fps, about three syllables."""

STRETCH_BYTES = 250_000_000
"""Most memory for the pictures of one stretch: it is shorter for large pictures or high frame rates."""

TILE_TRIES, TILE_EVERY = 16, 4
"""After 16 ends of stretches without a face, ten seconds, only every fourth end is searched in tiles."""

EMPTY_S = 0.16
"""Longest stretch that counts as empty if no face is detected at its ends: detectors miss a face now and then."""

# Weights of the two figures, and sizes of the flow, were chosen on GRID (two speakers) and the hard videos. They keep
# the error below the bound that tests/stages/mouths/test_face_tracking.py checks; docs/decisions.md has the trials.
MISS_WEIGHT = 0.4
MOTION_WEIGHT = 0.3

FAST_HEAD_LAGS = 2.0
"""A head is fast if it leaves the straight path within a stretch by more than this multiple of `crop.max_lag_px`. The
mean over half a second would lag behind a nod of 2 Hz by all of that distance, behind a slow turn by a fifth."""

EDGE_MARGIN = 0.15
"""How far the crop of the mouth reaches beyond the mesh's box at most, as a share of the face's height."""

HEAD_WINDOW_S = 0.12
"""Window of a mean that averages as much away as the smoothing of a fast head (geometry.HEAD_SMOOTHING_S)."""

_CROP_P2 = CANONICAL_WINDOW_PX * np.array([(0.5, 0.5), (0, 0), (1, 0), (0, 1), (1, 1)])
CORNER_WEIGHT = 0.5
"""A corner of the crop may have twice the error of its centre."""


def track_faces(media: Media, params: CropParams, patches: MouthPatches | None = None) -> Landmarks:
    """Returns every face of every frame, up to `max_faces` at once.

    Keeps the surroundings of the largest face's mouth in `patches`. Raises ClipRejected as `video.decode` does, and
    MachineError if the landmarker cannot run.
    """
    with face_finder(params.landmarker, params.max_faces) as detect:
        tracker = FaceTracker(detect, params, patches)
        for frame in decode(media, params):
            tracker.add(frame)
        return tracker.landmarks()


@dataclass(frozen=True)
class _FacePath:
    """One face through neighbouring frames."""

    points_FK3: Doubles
    box_F4: Doubles


class FaceTracker:
    """Takes the frames of a video one by one. Faces of settled frames can be taken out meanwhile."""

    def __init__(self, detect: DetectFaces, params: CropParams, patches: MouthPatches | None) -> None:
        self._detect, self._params, self._patches = detect, params, patches
        self._stretch: list[SourceFrame] = []
        """Its last frame lies one frame after the stretch: it distinguishes a cut from a flash."""
        self._before: list[SourceFrame] = []
        """The frame before the stretch, for the same purpose."""
        self._first: list[Face] = []
        """The faces of the stretch's first frame."""
        self._times_s: list[float] = []
        self._landmarked: list[int] = []
        self._settled: list[tuple[NDArray[np.int32], _FacePath]] = []
        """Source frames and the path of a face through them."""
        self._cuts: list[tuple[int, Doubles]] = []
        """First source frame after a cut, and the box of the face around which the cut was found."""
        self._has_fast_head = False
        """Whether a head in this stretch moves faster than the normal smoothing can follow."""
        self._before_gap: list[FaceThumbnail] = []
        """Thumbnails of the faces just before the last sudden change to a picture without a face."""
        self._num_empty = 0
        """Number of ends of stretches since the last face with a visible mouth."""
        self._size = (0, 0)
        self._transfer = Transfer.SDR
        self._num_taken = 0

    def add(self, frame: SourceFrame) -> None:
        self._size, self._transfer = frame.size, frame.transfer
        self._times_s.append(frame.time_s)
        self._stretch.append(frame)
        if len(self._stretch) == 1:
            self._first = self._find_faces(frame, [], with_tiles=True)
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
        """Number of frames that `take_settled` would return."""
        return self._stretch[0].index - self._num_taken if self._stretch else 0

    def take_settled(self) -> Landmarks:
        """Returns the faces of the frames settled since the last call, and removes them from the tracker.

        Frames are counted from the first of these frames; times stay those of the video.
        """
        return self._take(self.num_settled)

    def landmarks(self) -> Landmarks:
        """Returns the faces of all frames that were not taken before. Call it at the end of the video."""
        if len(self._stretch) > 1:
            self._close(self._stretch, None)
        self._settle(self._stretch, [_path_of(face) for face in self._first])
        self._stretch, self._before = [], []
        return self._take(len(self._times_s))

    def _take(self, num_frames: int) -> Landmarks:
        begin, end = self._num_taken, self._num_taken + num_frames
        frame_M = np.concatenate([np.zeros(0, np.int32), *(frame_F for frame_F, _ in self._settled)])
        points_MK3 = np.concatenate(
            [np.zeros((0, len(KEPT), 3)), *(path.points_FK3 for _, path in self._settled)]
        )
        box_M4 = np.concatenate([np.zeros((0, 4)), *(path.box_F4 for _, path in self._settled)])
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

    def _find_faces(self, frame: SourceFrame, known: Sequence[Face], with_tiles: bool = False) -> list[Face]:
        """Returns the faces of a frame. Searches around `known` faces, and with `with_tiles` in tiles."""
        self._landmarked.append(frame.index)
        with_tiles = with_tiles and (self._num_empty < TILE_TRIES or self._num_empty % TILE_EVERY == 0)
        meshes = find_faces(
            self._detect,
            frame,
            [face.box_4 for face in known],
            self._params.min_mouth_width_px if with_tiles else None,
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

    def _settle(self, frames: Sequence[SourceFrame], paths: Sequence[_FacePath]) -> None:
        frame_F = np.array([frame.index for frame in frames], np.int32)
        assert all(len(path.points_FK3) == len(frames) for path in paths), "a path covers every frame"
        self._settled += [(frame_F, path) for path in paths]
        if self._patches is not None:
            self._patches.keep_settled(frames)
        if paths and self._patches is not None:
            sizes_NF = np.array([np.prod(path.box_F4[:, 2:] - path.box_F4[:, :2], axis=1) for path in paths])
            largest_F = sizes_NF.argmax(axis=0)
            points_NFK3 = np.array([path.points_FK3 for path in paths])
            self._patches.keep_mouths(frames, points_NFK3[largest_F, np.arange(len(frames))])

    def _close(self, frames: Sequence[SourceFrame], ahead: SourceFrame | None) -> None:
        """Settles every frame of the stretch except the last, which begins the next stretch."""
        last = len(frames) - 1
        known = {0: self._first, last: self._find_faces(frames[last], self._first, with_tiles=True)}
        is_seen = any(_shows_mouth(face.box_4, face.points_K3, self._size) for face in known[last])
        self._num_empty = 0 if is_seen else self._num_empty + 1
        stops = {0, last}
        for cut, boxes_4 in self._find_cuts(frames, ahead, known[0], known[last]).items():
            for number, near in ((cut - 1, known[0]), (cut, known[last])):
                if number not in known:
                    known[number] = self._find_faces(frames[number], near)
            stops |= {cut - 1, cut}
            if not self._is_edge_of_gap(frames[cut - 1], known[cut - 1], frames[cut], known[cut]):
                self._cuts += [(frames[cut].index, box_4) for box_4 in boxes_4]
        flow: Flow | None = None
        self._has_fast_head = False
        open_parts = list(pairwise(sorted(stops)))[::-1]
        while open_parts:
            begin, end = open_parts.pop()
            if flow is None and (seen := [face for faces in known.values() for face in faces]):
                flow = Flow(frames, seen)
            paths = self._paths(flow, begin, end, known[begin], known[end])
            if paths is None:
                middle = (begin + end) // 2
                known[middle] = self._find_faces(frames[middle], known[begin] + known[end])
                open_parts += [(middle, end), (begin, middle)]
            else:
                self._settle(frames[begin:end], paths)
        self._before, self._first = [frames[last - 1]], known[last]
        self._stretch = [frames[last], *([] if ahead is None else [ahead])]

    def _is_edge_of_gap(
        self, last: SourceFrame, last_faces: list[Face], first: SourceFrame, first_faces: list[Face]
    ) -> bool:
        """Returns whether a sudden change between two frames only begins or ends a gap without faces, to be bridged.

        Black, a slide or the pictures that a decoder makes of lost bytes are not another shot. Another person after the
        gap is another shot.
        """
        if last_faces and first_faces:
            return False
        if last_faces:
            self._before_gap = [FaceThumbnail(last, face.box_4) for face in last_faces]
            return True
        if not (first_faces and self._before_gap):
            return True
        after_gap = [FaceThumbnail(first, face.box_4) for face in first_faces]
        return any(a.is_alike(b) for a in self._before_gap for b in after_gap)

    def _find_cuts(
        self, frames: Sequence[SourceFrame], ahead: SourceFrame | None, first: list[Face], last: list[Face]
    ) -> dict[int, list[Doubles]]:
        """Returns the frames that begin a new shot around a face, in rising order, with the boxes of these faces."""
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

    def _paths(
        self, flow: Flow | None, begin: int, end: int, first: list[Face], last: list[Face]
    ) -> list[_FacePath] | None:
        """Returns the paths of all faces from frame `begin` to before `end`; None if they are not certain enough."""
        if end - begin < 2:
            return [_path_of(face) for face in first]
        frames = self._stretch[begin : end + 1]
        duration_s = frames[-1].time_s - frames[0].time_s
        if flow is None or not (first or last):
            return [] if duration_s <= EMPTY_S + 1e-6 else None
        pairs = match_faces(_boxes(first), _boxes(last))
        if not len(pairs) == len(first) == len(last):
            return None
        paths = []
        for i, j in pairs:
            path_FK2 = flow.path(begin, end, i, first[i])
            if path_FK2 is None:
                return None
            missed_K2 = last[j].points_K3[:, :2] - path_FK2[-1]
            miss_px, crop_px = _distance_px(path_FK2[-1], last[j].points_K3[:, :2])
            share_F = _shares(frames)
            path_FK2 = path_FK2 + share_F[:, None, None] * missed_K2
            mouth_px, head_px = (crop_px * off_px for off_px in _off_straight_px(path_FK2, share_F))
            self._has_fast_head |= head_px > FAST_HEAD_LAGS * self._params.max_lag_px
            unsure_px = MISS_WEIGHT * miss_px + MOTION_WEIGHT * mouth_px
            if unsure_px * self._share_of_smoothing(duration_s) > self._params.tolerance_px:
                return None
            paths.append(_path_between(path_FK2[:-1], share_F[:-1], first[i], last[j]))
        return paths

    def _share_of_smoothing(self, duration_s: float) -> float:
        # neighbouring stretches may have the same error, so a window longer than a stretch averages no more away
        window_s = min(self._params.smoothing_s, HEAD_WINDOW_S if self._has_fast_head else STRETCH_S)
        return min(1.0, duration_s / window_s) if window_s > 0 else 1.0


def _shows_mouth(box_4: Doubles, points_K3: NDArray[np.floating], size: tuple[int, int]) -> bool:
    """Returns whether the whole mouth is in the picture. Calls the slow `mouth_inside` only near the edge."""
    margin_px = EDGE_MARGIN * float(box_4[3] - box_4[1])
    if (box_4[:2] >= margin_px).all() and (box_4[2:] <= np.array(size) - margin_px).all():
        return True
    return bool(mouth_inside(points_K3[None].astype(np.float64), *size)[0])


def _distance_px(points_K2: Doubles, other_K2: Doubles) -> tuple[float, float]:
    """Returns how far apart the crops of two sets of points are, in crop pixels; and crop pixels per source pixel."""
    flat = np.zeros((2, len(points_K2), 3))
    flat[:, :, :2] = points_K2, other_K2
    one_23, other_23 = matrices(mouth_windows(flat, CANONICAL_WINDOW_PX))
    to_crop_33 = np.vstack([other_23, [0, 0, 1]])
    places_P2 = apply(np.linalg.inv(to_crop_33)[None, :2], _CROP_P2[None])
    off_P = np.linalg.norm(apply(one_23[None], places_P2)[0] - _CROP_P2, axis=1)
    return float(max(off_P[0], CORNER_WEIGHT * off_P[1:].max())), float(np.hypot(*other_23[:, 0]))


def _shares(frames: Sequence[SourceFrame]) -> Doubles:
    """Returns the place in time of each frame between the first (0) and the last (1)."""
    times_s = np.array([frame.time_s for frame in frames])
    return np.asarray((times_s - times_s[0]) / (times_s[-1] - times_s[0]))


def _off_straight_px(path_FK2: Doubles, share_F: Doubles) -> tuple[float, float]:
    """Returns how far the mouth leaves a straight path within the face, and the head in the picture, in source pixels.

    The first measures speech, which flow follows badly; the second a head that the normal smoothing would lag behind.
    """
    head_F2 = path_FK2[:, HEAD].mean(axis=1)
    off_px = []
    for middle_F2 in (path_FK2[:, LIPS].mean(axis=1) - head_F2, head_F2):
        off_F2 = middle_F2 - middle_F2[0] - share_F[:, None] * (middle_F2[-1] - middle_F2[0])
        off_px.append(float(np.linalg.norm(off_F2, axis=1).max()))
    return off_px[0], off_px[1]


def _path_between(path_FK2: Doubles, share_F: Doubles, first: Face, last: Face) -> _FacePath:
    """Returns the path; its depth and boxes are interpolated between the ends."""
    share_F1 = share_F[:, None]
    depth_FK = (1 - share_F1) * first.points_K3[:, 2] + share_F1 * last.points_K3[:, 2]
    box_F4 = (1 - share_F1) * first.box_4 + share_F1 * last.box_4
    return _FacePath(np.concatenate([path_FK2, depth_FK[..., None]], axis=2), box_F4)


def _path_of(face: Face) -> _FacePath:
    return _FacePath(face.points_K3[None], face.box_4[None])


def _boxes(faces: Sequence[Face]) -> list[list[float]]:
    return [face.box_4.tolist() for face in faces]
