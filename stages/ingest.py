"""Stage ingest: the transcripts of a corpus become clips.parquet."""

import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from model.settings import TextParams
from model.text import normalise
from shards.errors import ClipRejected, CorpusError
from shards.files import table_from_rows, write_table
from shards.schema import CLIPS
from stages.corpora import Transcript, read_corpus, split_rank
from stages.corpora.transcript import leaves_root
from stages.settings import CorpusParams
from stages.video import sniff_media_kind

_log = logging.getLogger(__name__)

NAMES_SHOWN = 5
# opening a file waits for the disk more than it computes
SNIFFING_THREADS = 8


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """What ingest wrote to `clips_path`, in the split order of the table.

    `num_missing` counts the clips without a file below the root (crop makes rejected rows of them), some of
    them named in `first_missing`; `shared_speakers` maps a speaker to the two or more splits it stands in.
    """

    clips_path: Path
    clips_by_split: Mapping[str, int]
    speakers_by_split: Mapping[str, int]
    num_missing: int
    first_missing: tuple[str, ...]
    shared_speakers: Mapping[str, tuple[str, ...]]


def ingest(corpus: CorpusParams, text: TextParams, clips_path: Path) -> IngestSummary:
    """Writes clips.parquet: one row per transcript line, by split (train, valid, test, others), then clip id.

    `num_chars` counts every character of the label, the spaces between words of other scripts than Han
    included: they are what the model has to say. `media_kind` comes from each file's own header and is null
    where that cannot be read; crop finds the reason.

    Raises CorpusError where the corpus tables are untrue, or where speakers stand in several splits and
    `corpus.speaker_overlap` is `error`.
    """
    transcripts = sorted(read_corpus(corpus), key=lambda t: (split_rank(t.split), t.clip_id))
    shared = _shared_speakers(transcripts)
    if shared:
        _report_overlap(shared, corpus.speaker_overlap == "error")
    files = [_safe_file(Path(corpus.root), t.media) for t in transcripts]
    with ThreadPoolExecutor(SNIFFING_THREADS) as pool:
        kinds = list(pool.map(_media_kind, files))
    labels = [normalise(t.text, text) for t in transcripts]
    rows = [
        {
            "clip_id": t.clip_id,
            "split": t.split,
            "speaker": t.speaker,
            "gender": t.gender,
            "age": t.age,
            "topic": t.topic,
            "media": t.media,
            "media_kind": kind,
            "start_s": None,
            "end_s": None,
            "text": t.text,
            "label": label,
            "num_chars": len(label),
        }
        for t, kind, label in zip(transcripts, kinds, labels, strict=True)
    ]
    write_table(clips_path, table_from_rows(rows, CLIPS), CLIPS)
    missing = [t.clip_id for t, file in zip(transcripts, files, strict=True) if file is None]
    if missing:
        _log.warning(
            "%d of %d clips have no file below the corpus root; crop will reject them",
            len(missing),
            len(transcripts),
        )
    return _summary(transcripts, missing, shared, clips_path)


def _media_kind(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        return sniff_media_kind(file).value
    except ClipRejected as error:
        _log.debug("%s: %s", file, error)
        return None


def _safe_file(root: Path, media: str) -> Path | None:
    """The file that `media` names below `root`; None where there is none, or its path leaves the root."""
    if not media or leaves_root(media):
        return None
    path = root / media
    return path if path.is_file() else None


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
    )
