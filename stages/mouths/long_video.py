"""Mouth clips of a video of any length, one after the other, in memory that does not grow with the length.

Faces are tracked while frames are decoded. As soon as a segment of at most `longest_s` is complete, its mouth is
cropped from the stored parts of its pictures, and both are freed. The main face is chosen again for each segment. A
video that needs no cut gives exactly the clip of preprocessing.

Shapes: F source frames, M faces in frames, T output frames.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from shards.errors import ClipRejected
from shards.schema import MediaKind, Reason
from stages.mouths.cropping import Figures, cut_mouth
from stages.mouths.face_search import DetectFaces
from stages.mouths.face_tracking import FaceTracker
from stages.mouths.landmarker import face_finder
from stages.mouths.landmarks import Landmarks
from stages.mouths.main_face import main_face
from stages.mouths.media_kind import MOUTH_MAX_PX, media_kind_of
from stages.mouths.mouth_pictures import MouthPatches
from stages.mouths.pieces import (
    Cut,
    Piece,
    ReadyMouthStream,
    decode_through_gaps,
    frame_step_s,
    gap_piece,
    longest_step_s,
    next_cut,
    oversized,
    rests_throughout,
    runs,
)
from stages.settings import CropParams, InferenceParams, KindSetting
from stages.videos.media import Source
from stages.videos.picture import SourceFrame
from stages.videos.video import MAX_SOURCE_FPS, TRUNCATION_TOLERANCE_S, Header


def mouth_pieces(
    source: Source,
    header: Header,
    crop: CropParams,
    params: InferenceParams,
    kind_setting: KindSetting = "auto",
) -> Iterator[Piece]:
    """Yields the pieces of a whole video, in order; a piece may begin before the end of an earlier one.

    `header` is the source's, `kind_setting` is `corpus.media_kind`. If there are no pictures for longer than
    `crop.max_gap_s` (recordings of screens and calls have none while nothing moves), a rejected piece covers that
    time. The last piece is rejected if the video is truncated, or too long without saying so in its header. Raises
    ClipRejected if nothing of the video can be used.
    """
    # the limits of preprocessing do not apply to videos that are only read
    longest_frames = math.ceil(params.longest_s * crop.target_fps) + 1
    crop = crop.model_copy(
        update={"max_source_s": math.inf, "max_frames": max(crop.max_frames, longest_frames)}
    )
    if header.duration_s is not None and header.duration_s > params.max_video_s:
        raise oversized(source, header.duration_s, params)
    if kind_setting == "mouth" and max(header.width, header.height) > MOUTH_MAX_PX:
        # the corpus consists of mouth crops, but this video need not belong to it
        kind_setting = "auto"
    if media_kind_of(source, header, kind_setting, crop) is MediaKind.MOUTH:
        yield from _all_pieces(
            ReadyMouthStream(source, crop, params, header.fps), source, header, crop, params
        )
        return
    with face_finder(crop.landmarker, crop.max_faces) as find:
        stream = MouthStream(source, find, crop, params, fps=header.fps)
        yield from _all_pieces(stream, source, header, crop, params)


def _all_pieces(
    stream: "MouthStream | ReadyMouthStream",
    source: Source,
    header: Header,
    crop: CropParams,
    params: InferenceParams,
) -> Iterator[Piece]:
    """Yields the pieces of all pictures that can be decoded, and a rejected piece for the rest of a truncated video."""
    last: SourceFrame | None = None
    error: ClipRejected | None = None
    try:
        for frame in decode_through_gaps(source, crop):
            if frame.time_s > params.max_video_s or frame.index > params.max_video_s * MAX_SOURCE_FPS:
                raise oversized(source, frame.time_s, params)
            yield from stream.add(frame)
            last = frame
    except ClipRejected as rejected:
        if last is None:
            raise
        error = rejected
    assert last is not None, "decode_through_gaps gives a picture or raises"
    file_end_s = header.max_duration_s or 0.0
    end_s = last.time_s
    for piece in stream.end():
        # times do not say how long the last picture is shown; players use the file's length, if it is plausible
        if max(piece.start_s, last.time_s - TRUNCATION_TOLERANCE_S) < file_end_s:
            piece = replace(piece, end_s=min(piece.end_s, file_end_s))
        end_s = piece.end_s
        yield piece
    if error is not None:
        yield Piece(end_s, max(end_s, file_end_s), None, error)


class MouthStream:
    """Turns frames into pieces. `patches` decide what can be cropped without `source`, which a camera lacks.

    `fps` is the source's frame rate, if known.
    """

    def __init__(
        self,
        source: Source,
        find: DetectFaces,
        crop: CropParams,
        params: InferenceParams,
        patches: MouthPatches | None = None,
        live: bool = False,
        fps: float | None = None,
    ) -> None:
        self._source, self._crop, self._params, self._live = source, crop, params, live
        self._longest_step_s = longest_step_s(crop, fps)
        self._last_s: float | None = None
        self._patches = MouthPatches() if patches is None else patches
        self._tracker = FaceTracker(find, crop, self._patches)
        self._known: Landmarks | None = None
        """Landmarks of the frames since the last cut."""
        self._first = 0
        """Number of the first of these frames in the video."""
        self._ended = False

    def add(self, frame: SourceFrame) -> Iterator[Piece]:
        """Yields the pieces that this frame completes, and frees their frames."""
        if self._last_s is not None and frame.time_s - self._last_s > self._longest_step_s:
            yield from self._break(self._last_s, frame)
        self._last_s = frame.time_s
        self._tracker.add(frame)
        if self._tracker.num_settled:
            self._append(self._tracker.take_settled())
            yield from self._complete()

    def end(self) -> Iterator[Piece]:
        """Yields the remaining pieces."""
        self._ended = True
        self._append(self._tracker.landmarks())
        yield from self._complete(to_the_end=True)

    def _break(self, last_s: float, frame: SourceFrame) -> Iterator[Piece]:
        """Yields the pieces before a gap in time, and the gap."""
        start_s = last_s
        self._append(self._tracker.landmarks())
        for piece in self._complete(to_the_end=True):
            start_s = piece.end_s
            yield piece
        yield gap_piece(self._source, start_s, frame.time_s, self._crop, frame.index)

    @property
    def open_s(self) -> tuple[float, float]:
        """Start and end of the piece that is not complete yet; both the same if there is none."""
        if self._known is None:
            return 0.0, 0.0
        return float(self._known.times_s_F[0]), float(self._known.times_s_F[-1])

    def open_piece(self) -> Piece | None:
        """Returns the frames so far of the piece that is not complete yet."""
        if self._known is None:
            return None
        return self._piece(self._known, 0, len(self._known.times_s_F))

    def _append(self, settled: Landmarks) -> None:
        if len(settled.times_s_F):
            self._known = settled if self._known is None else _concatenated(self._known, settled)

    def _complete(self, to_the_end: bool = False) -> Iterator[Piece]:
        while self._known is not None:
            cut = next_cut(self._known, self._crop, self._params, to_the_end, self._live)
            if cut is None:
                return
            yield from self._cut_off(self._known, cut)

    def _cut_off(self, known: Landmarks, cut: Cut) -> Iterator[Piece]:
        begin = cut.begin
        for piece in self._pieces(known, 0, cut.end):
            yield piece
            # if a window has several parts, only the last one overlaps the next window: no word is read twice
            begin = max(cut.begin, piece.first_frame - self._first)
        num_frames = len(known.times_s_F)
        self._known = None if begin == num_frames else _part(known, begin, num_frames)
        self._first += begin
        self._patches.forget_before(self._first)

    def _pieces(self, known: Landmarks, begin: int, end: int) -> Iterator[Piece]:
        """Yields one piece; if the speaker is visible for a part of the time, that part and those before and after."""
        if begin == end:
            return
        piece = self._piece(known, begin, end)
        part, run = _part(known, begin, end), None
        if piece.rejected is not None and piece.rejected.reason in (
            Reason.LOW_DETECTION,
            Reason.MOUTH_OUTSIDE,
        ):
            run = _longest_run(part, self._crop)
        if run is None:
            # a piece that is too short may be the end of a longer rest
            is_seen = piece.rejected is None or piece.rejected.reason is Reason.TOO_SHORT
            if is_seen and rests_throughout(part, self._crop, self._params.min_pause_s):
                piece = replace(piece, mouth=None, rejected=None, is_rest=True)
            yield piece
            return
        yield from self._pieces(known, begin, begin + run[0])
        yield from self._pieces(known, begin + run[0], begin + run[1])
        yield from self._pieces(known, begin + run[1], end)

    def _piece(self, known: Landmarks, begin: int, end: int) -> Piece:
        start_s, end_s = float(known.times_s_F[begin]), _end_s(known, end, self._crop)
        stretch = Piece(start_s, end_s, None, None, self._first + begin)
        part = _part(known, begin, end)
        is_last = self._ended and end == len(known.times_s_F)
        source = replace(
            self._source,
            start_s=None if stretch.first_frame == 0 else stretch.start_s,
            end_s=None if is_last else stretch.end_s,
        )
        figures = Figures(source_width=part.width, source_height=part.height, num_faces=part.num_faces)
        figures.landmarked_frames, figures.source_transfer = len(part.landmarked), part.transfer
        patches = self._patches.part(stretch.first_frame, stretch.first_frame + end - begin)
        times_s_F = part.times_s_F - part.times_s_F[0]
        try:
            mouth = cut_mouth(
                source, replace(part, times_s_F=times_s_F), times_s_F, self._crop, patches, figures
            )
        except ClipRejected as error:
            return replace(stretch, rejected=error)
        return replace(stretch, mouth=mouth)


def _end_s(known: Landmarks, end: int, crop: CropParams) -> float:
    """Returns the end of the piece whose last frame is `end - 1`."""
    times_s_F = known.times_s_F
    if end < len(times_s_F):
        return float(times_s_F[end])
    return float(times_s_F[-1] + frame_step_s(times_s_F, crop))


def _longest_run(part: Landmarks, crop: CropParams) -> tuple[int, int] | None:
    """Returns the longest run of frames with the speaker's mouth; None if that is all frames, or too short to read."""
    face = main_face(part, crop)
    if face is None:
        return None
    num_frames = len(part.times_s_F)
    is_there_F = np.zeros(num_frames, bool)
    is_there_F[face.frame_N] = True
    step_s = frame_step_s(part.times_s_F, crop)
    # short absences are bridged
    for begin, end in runs(~is_there_F):
        if begin > 0 and end < num_frames:
            is_there_F[begin:end] = (end - begin) * step_s <= crop.max_gap_s + 1e-6
    longest = max(runs(is_there_F), key=lambda run: run[1] - run[0], default=(0, 0))
    length_s = (longest[1] - longest[0]) * step_s
    if longest == (0, num_frames) or length_s < crop.min_frames / crop.target_fps:
        return None
    return longest


def _part(landmarks: Landmarks, begin: int, end: int) -> Landmarks:
    """Returns the landmarks of frames `begin` to `end - 1`, counted from `begin`."""
    members = (landmarks.frame_M >= begin) & (landmarks.frame_M < end)
    searched, cuts = landmarks.landmarked, landmarks.cut_frame_C
    # a cut at the first frame is not within the part
    is_within_C = (cuts > begin) & (cuts < end)
    return replace(
        landmarks,
        times_s_F=landmarks.times_s_F[begin:end],
        landmarked=searched[(searched >= begin) & (searched < end)] - begin,
        frame_M=landmarks.frame_M[members] - begin,
        points_MK3=landmarks.points_MK3[members],
        box_M4=landmarks.box_M4[members],
        cut_frame_C=cuts[is_within_C] - begin,
        cut_box_C4=landmarks.cut_box_C4[is_within_C],
    )


def _concatenated(first: Landmarks, second: Landmarks) -> Landmarks:
    shift = len(first.times_s_F)
    return replace(
        first,
        times_s_F=np.concatenate([first.times_s_F, second.times_s_F]),
        landmarked=np.concatenate([first.landmarked, second.landmarked + shift]),
        frame_M=np.concatenate([first.frame_M, second.frame_M + shift]),
        points_MK3=np.concatenate([first.points_MK3, second.points_MK3]),
        box_M4=np.concatenate([first.box_M4, second.box_M4]),
        cut_frame_C=np.concatenate([first.cut_frame_C, second.cut_frame_C + shift]),
        cut_box_C4=np.concatenate([first.cut_box_C4, second.cut_box_C4]),
    )
