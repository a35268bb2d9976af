"""Cuts a video of any length into clips: where no face is visible, where the mouth rests, else by windows.

A video that shows only the mouth is cut by windows while it is decoded. Also decodes without the limits of
preprocessing on length and gaps.

Shapes: F source frames (of the window), N frames of one face.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shards.errors import ClipRejected
from shards.schema import Reason, Transfer
from stages.mouths.cropping import Figures, MouthClip, cut_mouth
from stages.mouths.landmarks import Landmarks
from stages.mouths.main_face import lip_gap, main_face
from stages.mouths.mouth_pictures import MouthPatches
from stages.settings import CropParams, InferenceParams
from stages.videos.media import Source
from stages.videos.picture import SourceFrame, Window
from stages.videos.video import decode

PIECES_VERSION = 1
"""Increase it when the same video gives other pieces. Versions of tracking and cropping count too."""

MAX_REST_CHANGE = 0.03
"""A mouth rests while the gap between its lips changes by at most this, in units of the distance between the eyes.

One speaker of GRID rests with open lips: the change shows a pause, the width does not."""

MIN_CLIP_SHARE = 0.25
"""A pause before this share of `longest_s` does not end a clip."""

LIVE_MIN_CLIP_S = 1.0
"""In live reading a clip of at least this length ends at the first pause."""

LEAD_S = 0.2
"""In live reading the clip keeps this much of the rest before speech: lips part before a sound is heard."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The clip ends before frame `end`; the next clip starts with frame `begin`, earlier than `end` if they overlap."""

    end: int
    begin: int


def next_cut(
    landmarks: Landmarks, crop: CropParams, params: InferenceParams, ended: bool, live: bool = False
) -> Cut | None:
    """Returns the end of the first clip of these frames; None if more frames are needed.

    `ended`: there are no more frames. `live`: end at the first pause instead of the best one, and separate a long rest
    from speech.
    """
    times_s_F = landmarks.times_s_F
    num_frames = len(times_s_F)
    step_s = frame_step_s(times_s_F, crop)
    # half a frame of tolerance: timestamps are ratios in floating point
    num_longest = int(np.searchsorted(times_s_F, times_s_F[0] + params.longest_s - step_s / 2))
    cut_frame = _first_scene_cut(landmarks, crop)
    gap = _first_gap(landmarks, crop.max_gap_s, step_s)
    if 0 < cut_frame <= num_longest and (gap is None or cut_frame <= gap[0]):
        return Cut(cut_frame, cut_frame)
    if gap is not None and gap[0] <= num_longest:
        begin, end = gap
        if begin > 0:
            return Cut(begin, begin)
        if end < num_frames or ended or num_frames > num_longest:
            return Cut(end, end)
        return None
    if num_frames <= num_longest and not live:
        return Cut(num_frames, num_frames) if ended else None
    rests = _rests(landmarks, crop, params.min_pause_s, min(num_longest, num_frames))
    if live:
        cut = _live_cut(rests, times_s_F, params.min_pause_s)
        if cut is None and ended and num_frames <= num_longest:
            cut = Cut(num_frames, num_frames)
        if cut is not None or num_frames <= num_longest:
            return cut
    middles = [(begin + end) // 2 for begin, end in rests]
    earliest_s = times_s_F[0] + MIN_CLIP_SHARE * params.longest_s
    likely = [
        (times_s_F[end - 1] - times_s_F[begin], middle)
        for (begin, end), middle in zip(rests, middles, strict=True)
        if times_s_F[middle] >= earliest_s
    ]
    if likely:
        _, middle = max(likely)
        return Cut(middle, middle)
    again = int(np.searchsorted(times_s_F, times_s_F[num_longest] - params.overlap_s - step_s / 2))
    return Cut(num_longest, max(again, 1))


def _first_scene_cut(landmarks: Landmarks, crop: CropParams) -> int:
    """Returns the first frame after a scene cut at the speaker; 0 if there is none."""
    if not (landmarks.cut_frame_C > 0).any():
        return 0
    face = main_face(landmarks, crop)
    return min((frame for frame in (face.cut_frames if face else []) if frame > 0), default=0)


def frame_step_s(times_s_F: NDArray[np.float64], crop: CropParams) -> float:
    """Returns the median time between frames; that of the target rate if there is only one frame."""
    return float(np.median(np.diff(times_s_F))) if len(times_s_F) > 1 else 1 / crop.target_fps


def _first_gap(landmarks: Landmarks, max_gap_s: float, step_s: float) -> tuple[int, int] | None:
    """Returns the first run of frames without a face that is too long to bridge, as (begin, end), end excluded."""
    times_s_F = landmarks.times_s_F
    for begin, end in runs(np.bincount(landmarks.frame_M, minlength=len(times_s_F)) == 0):
        if times_s_F[end - 1] - times_s_F[begin] + step_s > max_gap_s + 1e-6:
            return begin, end
    return None


def _rests(
    landmarks: Landmarks, crop: CropParams, min_pause_s: float, num_frames: int
) -> list[tuple[int, int]]:
    """Returns runs of frames, end excluded, in which the speaker's mouth rests for at least `min_pause_s`."""
    face = main_face(landmarks, crop)
    if face is None or not len(face.frame_N):
        return []
    times_s_F = landmarks.times_s_F[:num_frames]
    gap_F = np.interp(times_s_F, landmarks.times_s_F[face.frame_N], lip_gap(face.points_NK3))
    still_F = np.zeros(num_frames, bool)
    end = 0
    for begin in range(num_frames):
        end = max(end, begin + 1)
        low, high = gap_F[begin:end].min(), gap_F[begin:end].max()
        while end < num_frames and max(high, gap_F[end]) - min(low, gap_F[end]) <= MAX_REST_CHANGE:
            low, high = min(low, gap_F[end]), max(high, gap_F[end])
            end += 1
        if times_s_F[end - 1] - times_s_F[begin] >= min_pause_s - 1e-6:
            still_F[begin:end] = True
    # unknown where the face is not visible at either end
    still_F[: face.frame_N[0]] = False
    still_F[face.frame_N[-1] + 1 :] = False
    return runs(still_F)


def rests_throughout(landmarks: Landmarks, crop: CropParams, min_pause_s: float) -> bool:
    """Returns whether the speaker's mouth rests from the first to the last frame that shows it.

    The remainder of a rest may be shorter than a pause.
    """
    face = main_face(landmarks, crop)
    if face is None or not len(face.frame_N):
        return False
    first, last = int(face.frame_N[0]), int(face.frame_N[-1])
    seen_s = float(landmarks.times_s_F[last] - landmarks.times_s_F[first])
    rests = _rests(landmarks, crop, min(min_pause_s, seen_s), len(landmarks.times_s_F))
    return rests == [(first, last + 1)]


def _live_cut(rests: list[tuple[int, int]], times_s_F: NDArray[np.float64], min_pause_s: float) -> Cut | None:
    for begin, end in rests:
        if begin == 0:
            lead = int(np.searchsorted(times_s_F, times_s_F[end - 1] - LEAD_S))
            is_long = lead > 0 and times_s_F[lead] - times_s_F[0] >= LIVE_MIN_CLIP_S
            # a shorter part would not count as a rest by itself
            if is_long and times_s_F[lead - 1] - times_s_F[0] >= min_pause_s - 1e-6:
                return Cut(lead, lead)
        elif times_s_F[begin] - times_s_F[0] >= LIVE_MIN_CLIP_S:
            return Cut((begin + end) // 2, (begin + end) // 2)
    return None


def runs(are_F: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Returns the runs of true values as (begin, end), end excluded."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], are_F, [False]]).astype(np.int8)))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


@dataclass(frozen=True)
class Piece:
    """A part of a video: its mouth clip, or the reason why there is none."""

    start_s: float
    end_s: float
    mouth: MouthClip | None
    rejected: ClipRejected | None = None
    first_frame: int = 0
    """Source frame with index 0 in the clip's frame_index."""
    is_rest: bool = False
    """The mouth only rests: there is nothing to read, and `mouth` is None."""


def decode_through_gaps(source: Source, crop: CropParams) -> Iterator[SourceFrame]:
    """Decodes past gaps, which end a clip in preprocessing."""
    return decode(source, crop.model_copy(update={"max_gap_s": math.inf}))


def longest_step_s(crop: CropParams, fps: float | None) -> float:
    """Returns the longest time between two pictures that is not a gap."""
    return max(crop.max_gap_s, 2 / (fps or crop.target_fps))


def gap_piece(source: Source, start_s: float, end_s: float, crop: CropParams, first_frame: int) -> Piece:
    error = ClipRejected(
        Reason.TRUNCATED,
        f"{source.name} has no pictures for {end_s - start_s:.2f} s; crop.max_gap_s is {crop.max_gap_s:g}",
    )
    return Piece(start_s, end_s, None, error, first_frame)


def oversized(source: Source, duration_s: float, params: InferenceParams) -> ClipRejected:
    return ClipRejected(
        Reason.OVERSIZED,
        f"{source.name} is {duration_s:.0f} s or longer; inference.max_video_s is {params.max_video_s:g}",
    )


class ReadyMouthStream:
    """Turns frames into windows of `longest_s` that overlap by `overlap_s`; does not search for pauses.

    `fps` is the source's frame rate, if known.
    """

    def __init__(self, source: Source, crop: CropParams, params: InferenceParams, fps: float | None) -> None:
        self._source, self._crop, self._params = source, crop, params
        self._longest_step_s = longest_step_s(crop, fps)
        self._patches = MouthPatches()
        self._times_s: list[float] = []
        self._transfer: Transfer | None = None
        self._first = 0
        """Number of the window's first frame in the video."""

    def add(self, frame: SourceFrame) -> Iterator[Piece]:
        """Yields the window that this frame completes, if any; frees the frames that the next window does not need."""
        if self._times_s and frame.time_s - self._times_s[-1] > self._longest_step_s:
            start_s = self._end_s()
            yield from self.end()
            yield gap_piece(self._source, start_s, frame.time_s, self._crop, frame.index)
        elif self._times_s and self._is_full(frame.time_s):
            yield self._piece(frame.time_s)
            self._forget_before(frame.time_s - self._params.overlap_s)
        self._times_s.append(frame.time_s)
        self._transfer = frame.transfer
        self._patches.keep(frame, Window(0, 0, *frame.size))

    def end(self) -> Iterator[Piece]:
        """Yields the last window."""
        yield self._piece(self._end_s())
        self._forget_before(np.inf)

    def _is_full(self, next_s: float) -> bool:
        until_s = self._times_s[0] + self._params.longest_s
        # half a frame of tolerance: timestamps are rounded; the step comes last, since it reads all times
        return next_s > until_s - self._longest_step_s and next_s >= until_s - self._step_s() / 2

    def _forget_before(self, time_s: float) -> None:
        num_done = int(np.searchsorted(self._times_s, time_s - self._step_s() / 2))
        del self._times_s[:num_done]
        self._first += num_done
        self._patches.forget_before(self._first)

    def _piece(self, end_s: float) -> Piece:
        stretch = Piece(self._times_s[0], end_s, None, None, self._first)
        times_s_F = np.array(self._times_s) - self._times_s[0]
        part = replace(self._source, start_s=stretch.start_s if self._first else None)
        patches = self._patches.part(self._first, self._first + len(times_s_F))
        width, height = self._patches.picture_size or (None, None)
        figures = Figures(source_width=width, source_height=height, source_transfer=self._transfer)
        try:
            mouth = cut_mouth(part, None, times_s_F, self._crop, patches, figures)
        except ClipRejected as error:
            return replace(stretch, rejected=error)
        return replace(stretch, mouth=mouth)

    def _end_s(self) -> float:
        return self._times_s[-1] + self._step_s()

    def _step_s(self) -> float:
        return frame_step_s(np.array(self._times_s), self._crop)
