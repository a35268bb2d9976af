"""A stretch of a video of any length, and how pictures come where lengths and gaps of preprocessing bound nothing."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from shards.errors import ClipRejected
from shards.schema import Reason
from stages.mouths.cropping import MouthClip
from stages.settings import CropParams, InferenceParams
from stages.videos.media import Source
from stages.videos.picture import SourceFrame
from stages.videos.video import decode


@dataclass(frozen=True)
class Piece:
    """A stretch of a video: its mouth, or why there is none."""

    start_s: float
    end_s: float
    mouth: MouthClip | None
    rejected: ClipRejected | None = None
    first_frame: int = 0
    """Source frame that the clip's frame_index counts from."""
    is_rest: bool = False
    """The mouth only rested: there is nothing to read, and no mouth here."""


def as_it_comes(source: Source, crop: CropParams) -> Iterator[SourceFrame]:
    """Also behind a gap, which ends preprocessing's clips."""
    return decode(source, crop.model_copy(update={"max_gap_s": math.inf}))


def longest_step_s(crop: CropParams, fps: float | None) -> float:
    """From one picture to the next; what is longer is a gap."""
    return max(crop.max_gap_s, 2 / (fps or crop.target_fps))


def gap_piece(source: Source, start_s: float, end_s: float, crop: CropParams, first_frame: int) -> Piece:
    error = ClipRejected(
        Reason.TRUNCATED,
        f"{source.name} has no pictures there for {end_s - start_s:.2f} s; crop.max_gap_s is {crop.max_gap_s:g}",
    )
    return Piece(start_s, end_s, None, error, first_frame)


def oversized(source: Source, duration_s: float, params: InferenceParams) -> ClipRejected:
    return ClipRejected(
        Reason.OVERSIZED,
        f"{source.name} lasts {duration_s:.0f} s or more; inference.max_video_s is {params.max_video_s:g}",
    )
