"""Stage ingest: the transcripts of a corpus become clips.parquet."""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from model.settings import TextParams
from model.text import normalise, normaliser_mark
from shards.errors import ClipRejected, CorpusError
from shards.files import table_from_rows, write_table
from shards.schema import CLIP_ID_PATTERN, CLIPS, Reason
from stages.corpora import Transcript, read_corpus, split_rank
from stages.corpora.long_clips import cut_long_clip
from stages.settings import CorpusParams, CropParams
from stages.videos.media import resolve_media
from stages.videos.video import sniff_media_kind

_log = logging.getLogger(__name__)

NAMES_SHOWN = 5
# opening a file waits for the disk more than it computes
SNIFFING_THREADS = 8


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """What ingest wrote to `clips_path`, in the split order of the table.

    `num_missing` counts the clips without a file below the root (crop makes rejected rows of them), some of
    them named in `first_missing`; `shared_speakers` maps a speaker to the two or more splits it stands in;
    `num_split` long videos became `num_parts` clips.
    """

    clips_path: Path
    clips_by_split: Mapping[str, int]
    speakers_by_split: Mapping[str, int]
    num_missing: int
    first_missing: tuple[str, ...]
    shared_speakers: Mapping[str, tuple[str, ...]]
    num_split: int
    num_parts: int


@dataclass(frozen=True, slots=True)
class _Clip:
    """A row to be: a transcript, which part of its video it is, and what a look at the file told."""

    transcript: Transcript
    media_kind: str | None
    is_missing: bool
    start_s: float | None = None
    end_s: float | None = None


def ingest(corpus: CorpusParams, text: TextParams, crop: CropParams, clips_path: Path) -> IngestSummary:
    """Writes clips.parquet: one row per transcript line, by split (train, valid, test, others), then clip id.

    With `crop.split_long`, a video that is too long and has a transcript with times is a row for each of its parts,
    `<clip id>_000` and so on. `num_chars` counts every character of the label, the spaces between words of other
    scripts than Han included: they are what the model has to say. `media_kind` comes from each file's own header
    and is null where that cannot be read; crop finds the reason.

    Raises CorpusError where the corpus tables are untrue, or where speakers stand in several splits and
    `corpus.speaker_overlap` is `error`.
    """
    transcripts = read_corpus(corpus)
    shared = _shared_speakers(transcripts)
    if shared:
        _report_overlap(shared, corpus.speaker_overlap == "error")
    root = Path(corpus.root)
    # of a part a frame less: rounding to pictures may add one. Files tell times in milliseconds
    max_s, longest_s = (crop.max_frames - 1) / crop.target_fps, crop.max_frames / crop.target_fps + 1e-3
    with ThreadPoolExecutor(SNIFFING_THREADS) as pool:
        clips = list(pool.map(partial(_look, root, crop), transcripts))
        num_split = num_parts = 0
        if crop.split_long:
            parted = list(pool.map(partial(_parts, root, text, max_s, longest_s), clips))
            num_split = sum(parts is not None for parts in parted)
            num_parts = sum(len(parts) for parts in parted if parts is not None)
            clips = [part for clip, parts in zip(clips, parted, strict=True) for part in parts or [clip]]
            _check_part_names(clips)
    clips.sort(key=lambda clip: (split_rank(clip.transcript.split), clip.transcript.clip_id))
    rows = [_row(clip, normalise(clip.transcript.text, text)) for clip in clips]
    marked = CLIPS.with_metadata(CLIPS.metadata | normaliser_mark(text))
    write_table(clips_path, table_from_rows(rows, CLIPS), marked)
    missing = [clip.transcript.clip_id for clip in clips if clip.is_missing]
    if missing:
        _log.warning(
            "%d of %d clips have no file below the corpus root; crop will reject them",
            len(missing),
            len(clips),
        )
    return _summary([clip.transcript for clip in clips], missing, shared, clips_path, num_split, num_parts)


def _look(root: Path, crop: CropParams, transcript: Transcript) -> _Clip:
    try:
        source = resolve_media(root, transcript.media)
        return _Clip(transcript, sniff_media_kind(source, crop).value, is_missing=False)
    except ClipRejected as error:
        _log.debug("%s: %s", transcript.media, error)
        return _Clip(transcript, None, error.reason in (Reason.MISSING_FILE, Reason.UNSAFE_PATH))


def _parts(root: Path, text: TextParams, max_s: float, longest_s: float, clip: _Clip) -> list[_Clip] | None:
    """The clips that a long one becomes; None where it stays as it is."""
    if clip.media_kind is None:
        return None
    parts = cut_long_clip(root, clip.transcript, lambda words: normalise(words, text), max_s, longest_s)
    if parts is None:
        return None
    transcript = clip.transcript
    return [
        replace(
            clip,
            transcript=replace(transcript, clip_id=f"{transcript.clip_id}_{number:03d}", text=part.text),
            start_s=part.start_s,
            end_s=part.end_s,
        )
        for number, part in enumerate(parts)
    ]


def _check_part_names(clips: Sequence[_Clip]) -> None:
    seen: dict[str, str] = {}
    for transcript in (clip.transcript for clip in clips):
        clip_id, where = transcript.clip_id, transcript.where
        if clip_id in seen or not CLIP_ID_PATTERN.fullmatch(clip_id):
            fault = f"is the id of a clip at {seen[clip_id]} too" if clip_id in seen else "is too long an id"
            raise CorpusError(f"{where}: of the parts of this long clip, {clip_id} {fault}; rename the clip")
        seen[clip_id] = where


def _row(clip: _Clip, label: str) -> dict[str, object]:
    transcript = clip.transcript
    return {
        "clip_id": transcript.clip_id,
        "split": transcript.split,
        "speaker": transcript.speaker,
        "gender": transcript.gender,
        "age": transcript.age,
        "topic": transcript.topic,
        "media": transcript.media,
        "media_kind": clip.media_kind,
        "start_s": clip.start_s,
        "end_s": clip.end_s,
        "text": transcript.text,
        "label": label,
        "num_chars": len(label),
    }


def _shared_speakers(transcripts: Sequence[Transcript]) -> dict[str, tuple[str, ...]]:
    splits_of: dict[str, set[str]] = defaultdict(set)
    for transcript in transcripts:
        if transcript.speaker is not None:
            splits_of[transcript.speaker].add(transcript.split)
    return {
        speaker: tuple(sorted(splits, key=split_rank))
        for speaker, splits in sorted(splits_of.items())
        if len(splits) > 1
    }


def _report_overlap(shared: Mapping[str, tuple[str, ...]], is_error: bool) -> None:
    some = "; ".join(f"{speaker} in {', '.join(shared[speaker])}" for speaker in list(shared)[:NAMES_SHOWN])
    more = f" and {len(shared) - NAMES_SHOWN} more" if len(shared) > NAMES_SHOWN else ""
    message = f"{len(shared)} speakers stand in several splits: {some}{more}"
    if is_error:
        raise CorpusError(
            f"{message}; scores on a speaker seen in training flatter the model: move each speaker to one "
            f"split, or set corpus.speaker_overlap to warn"
        )
    _log.warning("%s (corpus.speaker_overlap: warn)", message)


def _summary(
    transcripts: Sequence[Transcript],
    missing: Sequence[str],
    shared: Mapping[str, tuple[str, ...]],
    clips_path: Path,
    num_split: int,
    num_parts: int,
) -> IngestSummary:
    speakers: dict[str, set[str]] = {t.split: set() for t in transcripts}
    for transcript in transcripts:
        if transcript.speaker is not None:
            speakers[transcript.split].add(transcript.speaker)
    return IngestSummary(
        clips_path=clips_path,
        clips_by_split=dict(Counter(t.split for t in transcripts)),
        speakers_by_split={split: len(known) for split, known in speakers.items()},
        num_missing=len(missing),
        first_missing=tuple(missing[:NAMES_SHOWN]),
        shared_speakers=shared,
        num_split=num_split,
        num_parts=num_parts,
    )
