"""Stage ingest: writes the transcripts of a corpus to clips.parquet."""

import logging
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from model.settings import TextParams
from model.text import in_brackets, normalise, normaliser_metadata
from shards.enums import TRAIN_SPLIT, UNLABELLED_SPLIT
from shards.errors import ClipRejected
from shards.files import Progress, table_from_rows, write_table
from shards.schema import CLIPS, Reason
from shards.settings import MachineParams
from stages.clips.clip_work import DATA_ERRORS
from stages.corpora import Transcript, read_corpus, split_rank
from stages.corpora.parts import (
    HEADER_THREADS,
    InspectedClip,
    check_part_names,
    parts_by_pauses,
    parts_by_transcript,
)
from stages.corpora.transcript import (
    NAMES_SHOWN,
    Shared,
    check_texts,
    report_overlap,
    shared_speakers,
    shared_videos,
    videos_of,
    warn_of_splits,
)
from stages.mouths.media_kind import media_kind_of
from stages.settings import CorpusParams, CropParams, InferenceParams
from stages.videos.media import resolve_media
from stages.videos.video import TRUNCATION_TOLERANCE_S, read_header

_log = logging.getLogger(__name__)

INGEST_VERSION = 3
"""Increase it when the same corpus gives different rows. It is a DVC parameter."""


@dataclass(frozen=True, slots=True)
class IngestSummary:
    """What ingest wrote to `clips_path`, in the split order of the table.

    `num_missing` counts the clips without a file, `num_outside` the clips whose path leads out of the root (crop
    rejects both); `num_split` long videos were split into `num_parts` clips.
    """

    clips_path: Path
    clips_by_split: Mapping[str, int]
    speakers_by_split: Mapping[str, int]
    num_missing: int
    num_outside: int
    shared_speakers: Shared
    shared_videos: Shared
    num_split: int
    num_parts: int
    clips_by_kind: Mapping[str, int]
    """Of the clips whose file can be read, sorted by kind."""
    annotations: Mapping[str, int]
    """Annotations of the sound in the transcripts ([noise]), the most frequent first. `text.drop_annotations` decides
    whether labels contain them."""
    kept_in_brackets: Mapping[str, int]
    """Other texts in brackets, the most frequent first. Labels contain them."""


def ingest(
    corpus: CorpusParams,
    text: TextParams,
    crop: CropParams,
    clips_path: Path,
    inference: InferenceParams | None = None,
    machine: MachineParams | None = None,
    on_progress: Progress | None = None,
) -> IngestSummary:
    """Writes clips.parquet: one row per transcript line, by split (train, valid, test, others), then clip id.

    With `crop.split_long`, a video that is too long and has a transcript with times gets a row for each of its parts,
    `<clip id>_000` and so on. A video of split unlabelled that is too long is cut at pauses of the mouth, with the
    parameters `inference` and in processes of `machine`; `on_progress` counts these videos. `num_chars` counts every
    character of the label, including the spaces between words of scripts other than Han: the model has to write them.
    `media_kind` is `corpus.media_kind`, or is found from each file's header and frames. It is null where the file
    cannot be read; crop finds the reason.

    Raises CorpusError where the corpus tables are wrong, where one video has two texts in a split, or where a speaker
    or video is in several splits and `corpus.speaker_overlap` is `error`.
    """
    transcripts = _with_unlabelled_split(read_corpus(corpus), corpus, text)
    video_of = videos_of(corpus, transcripts)
    check_texts(transcripts, video_of, text)
    warn_of_splits(transcripts)
    speakers, videos = shared_speakers(transcripts), shared_videos(transcripts, video_of)
    report_overlap(speakers, videos, is_error=corpus.speaker_overlap == "error")
    with ThreadPoolExecutor(HEADER_THREADS) as pool:
        clips = list(pool.map(partial(_inspect, corpus, crop), transcripts))
    num_split = num_parts = 0
    if crop.split_long:
        parts = parts_by_transcript(clips, corpus, text, crop)
        parts |= parts_by_pauses(
            [clip for clip in clips if clip.transcript.clip_id not in parts],
            corpus,
            crop,
            inference or InferenceParams(),
            machine or MachineParams(),
            on_progress,
        )
        num_split, num_parts = len(parts), sum(map(len, parts.values()))
        clips = [part for clip in clips for part in parts.get(clip.transcript.clip_id, [clip])]
        check_part_names(clips)
    clips.sort(key=lambda clip: (split_rank(clip.transcript.split), clip.transcript.clip_id))
    rows = [_row(clip, normalise(clip.transcript.text, text)) for clip in clips]
    marked = CLIPS.with_metadata(CLIPS.metadata | normaliser_metadata(text))
    write_table(clips_path, table_from_rows(rows, CLIPS), marked)
    num_missing = _warn_of(clips, Reason.MISSING_FILE, "have no file below corpus.root")
    num_outside = _warn_of(clips, Reason.UNSAFE_PATH, "have a path or link that leads out of corpus.root")
    _warn_of(clips, Reason.UNREADABLE, "have a file that cannot be read")
    _warn_of_times(clips)
    annotations, kept = _annotations(clips, text)
    return IngestSummary(
        clips_path=clips_path,
        clips_by_split=dict(Counter(clip.transcript.split for clip in clips)),
        speakers_by_split=_speakers_by_split(transcripts),
        num_missing=num_missing,
        num_outside=num_outside,
        shared_speakers=speakers,
        shared_videos=videos,
        num_split=num_split,
        num_parts=num_parts,
        annotations=annotations,
        kept_in_brackets=kept,
        clips_by_kind=dict(sorted(Counter(clip.media_kind for clip in clips if clip.media_kind).items())),
    )


def _with_unlabelled_split(
    transcripts: Sequence[Transcript], corpus: CorpusParams, text: TextParams
) -> list[Transcript]:
    """Moves training clips without a label to the split unlabelled, if `corpus.unlabelled` is `keep`."""
    moved = [
        replace(one, split=UNLABELLED_SPLIT)
        if corpus.unlabelled == "keep" and one.split == TRAIN_SPLIT and not normalise(one.text, text)
        else one
        for one in transcripts
    ]
    if corpus.unlabelled == "keep" and not any(one.split == UNLABELLED_SPLIT for one in moved):
        _log.warning(
            "corpus.unlabelled is keep, but every clip of split %s has a text, and no clip has the split %s",
            TRAIN_SPLIT,
            UNLABELLED_SPLIT,
        )
    return moved


def _annotations(clips: Sequence[InspectedClip], text: TextParams) -> tuple[dict[str, int], dict[str, int]]:
    found, kept = Counter[str](), Counter[str]()
    for clip in clips:
        for counter, names in zip((found, kept), in_brackets(clip.transcript.text, text), strict=True):
            counter.update(names)
    if found and not text.drop_annotations:
        _log.warning(
            "%d annotations in the transcripts become part of the labels: %s; to drop them, set "
            "text.drop_annotations to true",
            found.total(),
            ", ".join(f"{name} ({count})" for name, count in found.most_common(NAMES_SHOWN)),
        )
    return dict(found.most_common()), dict(kept.most_common())


def _inspect(corpus: CorpusParams, crop: CropParams, transcript: Transcript) -> InspectedClip:
    try:
        source = resolve_media(Path(corpus.root), transcript.media, follow_links=corpus.follow_links)
        header = read_header(source, crop)
        kind = media_kind_of(source, header, corpus.media_kind, crop)
        return InspectedClip(transcript, kind.value, None, header.max_duration_s, header.duration_s)
    except ClipRejected as error:
        _log.debug("%s: %s", transcript.media, error)
        return InspectedClip(transcript, None, (error.reason, error.detail))
    except DATA_ERRORS:
        # crop reads the file again, and rejects the clip
        _log.exception("while reading the header of %s", transcript.media)
        return InspectedClip(transcript, None)


def _warn_of(clips: Sequence[InspectedClip], reason: Reason, fault: str) -> int:
    """Logs how many clips have `reason`, with the first clip of each kind of detail, the most frequent kind first."""
    alike: dict[str, list[tuple[Transcript, str]]] = defaultdict(list)
    for clip in clips:
        if clip.problem and clip.problem[0] is reason:
            detail = clip.problem[1]
            alike[_without_names(detail, clip.transcript.media)].append((clip.transcript, detail))
    kinds = sorted(alike.values(), key=len, reverse=True)
    num_found = sum(map(len, kinds))
    if kinds:
        lines = [
            (f"{len(kind)} " if len(kinds) > 1 else "")
            + f"({kind[0][0].where}: {kind[0][1]}): {_some([transcript.clip_id for transcript, _ in kind])}"
            for kind in kinds[:NAMES_SHOWN]
        ]
        if len(kinds) > NAMES_SHOWN:
            lines.append(f"{sum(map(len, kinds[NAMES_SHOWN:]))} for {len(kinds) - NAMES_SHOWN} other reasons")
        between = ":\n  " if len(kinds) > 1 else " "
        _log.warning(
            "%d of %d clips %s; crop will reject them%s%s",
            *(num_found, len(clips), fault, between, "\n  ".join(lines)),
        )
    return num_found


def _without_names(detail: str, media: str) -> str:
    """Returns the part of a detail that is the same for all clips with the same fault."""
    for name in (media, *media.split("!", 1), PurePosixPath(media).name):
        detail = detail.replace(name, "") if name else detail
    return re.sub(r"\S*/\S*|\d+", "", detail)


def _warn_of_times(clips: Sequence[InspectedClip]) -> None:
    late = [
        (clip.transcript, clip.length_s)
        for clip in clips
        if clip.length_s is not None
        and (
            (clip.transcript.start_s or 0.0) >= clip.length_s
            or (clip.transcript.end_s or 0.0) > clip.length_s + TRUNCATION_TOLERANCE_S
        )
    ]
    if late:
        first, length_s = late[0]
        end = "its end" if first.end_s is None else f"{first.end_s:g} s"
        _log.warning(
            "%d of %d clips begin or end after the end of their video; crop will reject them (%s: from %g s to %s of "
            "%s, which lasts %.2f s; times must be in seconds, check that these are not milliseconds): %s",
            *(len(late), len(clips), first.where, first.start_s or 0, end, first.media, length_s),
            _some([transcript.clip_id for transcript, _ in late]),
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")


def _row(clip: InspectedClip, label: str) -> dict[str, object]:
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
        "start_s": transcript.start_s,
        "end_s": transcript.end_s,
        "text": transcript.text,
        "label": label,
        "num_chars": len(label),
        "audio": transcript.audio,
        "confidence": transcript.confidence,
    }


def _speakers_by_split(transcripts: Sequence[Transcript]) -> dict[str, int]:
    speakers: dict[str, set[str]] = {transcript.split: set() for transcript in transcripts}
    for transcript in transcripts:
        if transcript.speaker is not None:
            speakers[transcript.split].add(transcript.speaker)
    return {split: len(known) for split, known in speakers.items()}
