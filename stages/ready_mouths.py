"""Pieces of a video of any length that shows nothing but the mouth.

Shapes: F source frames.
"""

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from shards.errors import ClipRejected
from shards.schema import MediaKind
from stages.cropping import crop_video
from stages.media import Source
from stages.pauses import frame_step_s
from stages.pieces import Piece, as_it_comes, gap_piece, longest_step_s, oversized
from stages.settings import CropParams, InferenceParams


def ready_pieces(
    source: Source, crop: CropParams, params: InferenceParams, fps: float | None
) -> Iterator[Piece]:
    """Windows of a video that shows nothing but the mouth, whose pauses nobody looks for."""
    times_s_F = np.array([frame.time_s for frame in as_it_comes(source, crop)])
    frame_s = frame_step_s(times_s_F, crop)
    if times_s_F[-1] + frame_s > params.max_video_s:
        raise oversized(source, float(times_s_F[-1]) + frame_s, params)
    begins = [0, *(np.flatnonzero(np.diff(times_s_F) > longest_step_s(crop, fps)) + 1).tolist()]
    for begin, end in zip(begins, [*begins[1:], len(times_s_F)], strict=True):
        stretch_s = float(times_s_F[begin]), float(times_s_F[end - 1]) + frame_s
        for start_s, stop_s in _windows(*stretch_s, frame_s / 2, params):
            first = int(np.searchsorted(times_s_F, start_s - 1e-6))
            part = replace(
                source,
                start_s=None if first == 0 else start_s,
                end_s=None if end == len(times_s_F) and stop_s == stretch_s[1] else stop_s,
            )
            try:
                yield Piece(start_s, stop_s, crop_video(part, MediaKind.MOUTH, crop), None, first)
            except ClipRejected as error:
                yield Piece(start_s, stop_s, None, error, first)
        if end < len(times_s_F):
            yield gap_piece(source, stretch_s[1], float(times_s_F[end]), crop, end)


def _windows(
    start_s: float, end_s: float, slack_s: float, params: InferenceParams
) -> list[tuple[float, float]]:
    """From and to of windows of `longest_s` that share `overlap_s`."""
    step_s = params.longest_s - params.overlap_s
    count = 1 + max(0, math.ceil((end_s - start_s - params.longest_s - slack_s) / step_s))
    starts_s = [start_s + number * step_s for number in range(count)]
    ends_s = [*(each_s + params.longest_s for each_s in starts_s[:-1]), end_s]
    return list(zip(starts_s, ends_s, strict=True))
