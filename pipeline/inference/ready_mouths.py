"""Cuts a video of any length that shows only the mouth into pieces while it is decoded.

Shapes: F source frames of the window.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from pipeline.inference.pauses import Piece, frame_step_s, gap_piece, longest_step_s
from shards.errors import ClipRejected
from shards.schema import Transfer
from stages.mouths.cropping import Figures, cut_mouth
from stages.mouths.mouth_pictures import MouthPatches
from stages.settings import CropParams, InferenceParams
from stages.videos.media import Source
from stages.videos.picture import SourceFrame, Window


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
