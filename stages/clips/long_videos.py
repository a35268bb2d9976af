"""Cuts long videos that have no transcript at pauses of the mouth, as `pipeline inference` does.

Times are kept in the cache: only the first run decodes the videos. Shapes: P pieces.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shards.errors import ClipRejected
from shards.files import Progress
from shards.schema import MediaKind
from shards.settings import MachineParams
from stages.clips.cache import ClipCache
from stages.clips.clip_work import Clip, Done, crop_row
from stages.clips.executors import run_clips
from stages.mouths.cropping import Figures
from stages.mouths.landmarker import NATIVE_LOG
from stages.mouths.long_video import mouth_pieces
from stages.settings import CropParams, InferenceParams
from stages.videos.media import resolve_media
from stages.videos.video import read_header


@dataclass(frozen=True)
class PieceWork:
    """Finds the pieces of one long video that show a speaking mouth; runs in a worker."""

    crop: CropParams
    inference: InferenceParams
    cache_folder: Path

    def __call__(self, clip: Clip) -> Done:
        assert clip.media_kind is not None, "a video of unknown kind cannot be read"
        source = resolve_media(Path(clip.root), clip.media, follow_links=clip.follow_links)
        kind = MediaKind(clip.media_kind)

        def find() -> np.ndarray:
            pieces = mouth_pieces(source, read_header(source), self.crop, self.inference, kind.value)
            times = [(piece.start_s, piece.end_s) for piece in pieces if piece.mouth is not None]
            return np.round(np.array(times, np.float64).reshape(-1, 2), 6)

        cache = ClipCache(self.cache_folder)
        try:
            times_P2, from_cache = cache.piece_times(source, kind, self.crop, self.inference, find)
        except ClipRejected as error:
            return Done(crop_row(clip, Figures(), error.reason, error.detail), None, from_cache=False)
        parts = tuple((float(start_s) or None, float(end_s)) for start_s, end_s in times_P2)
        row = crop_row(clip, Figures(), None, None)
        return Done(row, None, from_cache, cache.num_damaged, parts)


def piece_params(crop: CropParams, inference: InferenceParams) -> InferenceParams:
    """Returns `inference` with pieces that are not longer than a clip may be."""
    # parts are one frame shorter: rounding to frames may add one
    longest_s = min(inference.longest_s, (crop.max_frames - 1) / crop.target_fps)
    return inference.model_copy(
        update={
            "longest_s": longest_s,
            "overlap_s": min(inference.overlap_s, longest_s / 2),
            "times": "auto",  # changes no piece
        }
    )


def pieces_of(
    clips: Sequence[Clip],
    longest_s: float,
    crop: CropParams,
    inference: InferenceParams,
    machine: MachineParams,
    on_progress: Progress | None,
) -> Mapping[str, tuple[tuple[float | None, float | None], ...]]:
    """Returns for each clip id start and end of each piece of its video; of none if nothing can be read.

    `inference` is the result of `piece_params`. `longest_s` is the length of the longest video: `crop.timeout_s` is the
    time for each `crop.max_frames` of it.
    """
    work = PieceWork(crop, inference, Path(machine.cache_dir))
    timeout_s = crop.timeout_s * max(1, math.ceil(longest_s * crop.target_fps / crop.max_frames))
    done = run_clips(work, clips, machine, timeout_s, Path(machine.cache_dir) / NATIVE_LOG, on_progress)
    return {clip_id: result.parts_s for clip_id, result in done.items()}
