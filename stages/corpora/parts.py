"""Long videos become several clips: cut by a transcript with times, or without a text at pauses of the mouth."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from model.settings import TextParams
from model.text import normalise
from shards.enums import UNLABELLED_SPLIT
from shards.errors import CorpusError
from shards.files import Progress
from shards.schema import CLIP_ID_PATTERN, Reason
from shards.settings import MachineParams
from stages.clips.clip_work import Clip
from stages.clips.long_videos import piece_params, pieces_of
from stages.corpora.long_clips import ClipPart, cut_long_clip
from stages.corpora.transcript import Transcript
from stages.settings import CorpusParams, CropParams, InferenceParams

_log = logging.getLogger(__name__)

# opening a file mostly waits for the disk
HEADER_THREADS = 8

LongClips = dict[str, list["InspectedClip"]]
"""Clip id of a long video → the clips that it is cut into."""


@dataclass(frozen=True, slots=True)
class InspectedClip:
    """A future row: a transcript, and what the file's header says."""

    transcript: Transcript
    media_kind: str | None
    problem: tuple[Reason, str] | None = None
    """Why it will be rejected, and the detail."""
    length_s: float | None = None
    """The longest duration of the whole video that its header allows; None where it does not say."""
    duration_s: float | None = None
    """The duration of the pictures; None where the header does not say."""


def parts_by_transcript(
    clips: Sequence[InspectedClip], corpus: CorpusParams, text: TextParams, crop: CropParams
) -> LongClips:
    """Cuts long videos that have a transcript with times at pauses between words."""
    # parts are one frame shorter: rounding to frames may add one
    max_s = (crop.max_frames - 1) / crop.target_fps

    def parts(clip: InspectedClip) -> list[ClipPart] | None:
        is_silent = clip.transcript.split == UNLABELLED_SPLIT and not clip.transcript.text.strip()
        if clip.media_kind is None or is_silent:
            return None
        return cut_long_clip(
            Path(corpus.root),
            clip.transcript,
            lambda words: normalise(words, text),
            max_s,
            _longest_s(crop),
            corpus.follow_links,
        )

    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        found = zip(clips, pool.map(parts, clips), strict=True)
        return {clip.transcript.clip_id: _named(clip, parts) for clip, parts in found if parts is not None}


def _longest_s(crop: CropParams) -> float:
    # files give times in milliseconds
    return crop.max_frames / crop.target_fps + 1e-3


def _named(clip: InspectedClip, parts: Sequence[ClipPart]) -> list[InspectedClip]:
    transcript = clip.transcript
    return [
        replace(
            clip,
            transcript=replace(
                transcript,
                clip_id=f"{transcript.clip_id}_{number:03d}",
                text=part.text,
                start_s=part.start_s,
                end_s=part.end_s,
            ),
        )
        for number, part in enumerate(parts)
    ]


def parts_by_pauses(
    clips: Sequence[InspectedClip],
    corpus: CorpusParams,
    crop: CropParams,
    inference: InferenceParams,
    machine: MachineParams,
    on_progress: Progress | None,
) -> LongClips:
    """Cuts long videos of split unlabelled at pauses of the mouth.

    A video without a piece that can be read is not cut, and crop finds the reason. The parts have no text: a
    transcript without times does not say which part says what.
    """
    long = {
        clip.transcript.clip_id: clip
        for clip in clips
        if clip.transcript.split == UNLABELLED_SPLIT
        and clip.media_kind is not None
        and (clip.transcript.start_s, clip.transcript.end_s) == (None, None)
        and _seconds(clip) > _longest_s(crop)
    }
    params = piece_params(crop, inference)
    if not long:
        return {}
    work = [
        Clip(
            clip_id,
            corpus.root,
            clip.transcript.media,
            clip.media_kind,
            "",
            0,
            follow_links=corpus.follow_links,
            split=UNLABELLED_SPLIT,
        )
        for clip_id, clip in long.items()
    ]
    lengths_s = [_seconds(clip) for clip in long.values()]
    found = pieces_of(work, max(lengths_s), crop, params, machine, on_progress)
    cut = {
        clip_id: _named(clip, [ClipPart(start_s, end_s, "") for start_s, end_s in found[clip_id]])
        for clip_id, clip in long.items()
        if found[clip_id]
    }
    used_s = sum((end_s or 0) - (start_s or 0) for parts in found.values() for start_s, end_s in parts)
    _log.info(
        "%d of %d long unlabelled videos were cut into %d clips of %.2f of %.2f hours; the rest shows no mouth, or one "
        "at rest",
        *(len(cut), len(long), sum(map(len, cut.values())), used_s / 3600, sum(lengths_s) / 3600),
    )
    return cut


def _seconds(clip: InspectedClip) -> float:
    return clip.duration_s or clip.length_s or 0.0


def check_part_names(clips: Sequence[InspectedClip]) -> None:
    seen: dict[str, str] = {}
    for transcript in (clip.transcript for clip in clips):
        clip_id, where = transcript.clip_id, transcript.where
        if clip_id in seen or not CLIP_ID_PATTERN.fullmatch(clip_id):
            fault = f"is also the id of the clip at {seen[clip_id]}" if clip_id in seen else "is too long"
            raise CorpusError(
                f"{where}: {clip_id}, the id of a part of this long clip, {fault}; rename the clip"
            )
        seen[clip_id] = where
