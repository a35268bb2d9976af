"""Reads any corpus from one CSV or Parquet table: clip_id, media, text, and optional columns.

| column | content; empty where it is not known |
|---|---|
| split | train, valid, test or any name of that form; without the column the clips are split by a seed |
| speaker | a name or number |
| gender | of the speaker, as shown in reports: F and M in Chinese-LiPS |
| age | of the speaker, whole years |
| topic | of the clip |
| start, end | the part of the video that says the text: seconds (72.5) or [hours:]minutes:seconds (00:01:12.500) |
| times | a transcript with times (.align, .srt, .vtt, .TextGrid), relative to the root |
| audio | a file with the clip's sound, relative to the root, if it is not the video's own sound track |
| confidence | how certain the text is, 0 to 1; weighs the loss |

start_s and end_s are other names of start and end.

Accepts times and ages as texts, as spreadsheets' numbers, and in the types of Parquet.
"""

import hashlib
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from shards.enums import TRAIN_SPLIT, UNLABELLED_SPLIT
from shards.errors import CorpusError
from shards.pipes import refuse_pipe
from stages.corpora.csv_rows import read_csv
from stages.corpora.transcript import Transcript, relative_media, videos_of, with_one_spelling
from stages.settings import CorpusParams

_log = logging.getLogger(__name__)

REQUIRED = ("clip_id", "media", "text")
OPTIONAL = ("split", "speaker", "gender", "age", "topic", "start", "end", "times", "audio", "confidence")
# as clips.parquet calls them
_SAME = {"start_s": "start", "end_s": "end"}
_KNOWN = (*REQUIRED, *OPTIONAL, *_SAME)
# names in other tools; if start and end were ignored, each text would be that of the whole video
LIKE_TIMES = re.compile(
    "(?:t|time|clip|segment|seg|utterance|utt|sentence|speech|part|cue|video)?"
    "(?:(?P<start>start|begin|beginning|onset|开始|起始)|(?P<length>duration|length|时长)|end|stop|offset|结束|终止)"
    "(?:time|times|timestamp|at|s|sec|secs|second|seconds|ms|msec|milliseconds|frame|时间|秒)?"
)
_CANDIDATES = re.compile(r"(candidate|share)_\d+")
"""Columns that `pipeline label` writes for people."""
UNSPLIT = "unsplit"

# a column of ages with gaps may have become floating point
_AGE = re.compile(r"(\d{1,3})(\.0*)?", re.ASCII)
_SECONDS = re.compile(r"(\d{1,30}(\.\d{0,30})?|\.\d{1,30})([eE][-+]?\d{1,3})?", re.ASCII)
_CLOCK = re.compile(r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2}(?:[.,]\d{1,30})?)", re.ASCII)
_MAX_S = 1e9
_UNKNOWN = frozenset({"", "nan", "nat", "none", "null", "na", "n/a", "<na>"})
"""Values that programs write for an unknown number."""

_UNITS_PER_S = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def read_transcript_table(corpus: CorpusParams) -> list[Transcript]:
    """Returns the rows of `corpus.table`; ignores and logs columns other than REQUIRED and OPTIONAL.

    Without a column `split` the clips are split by `seeded_split`. Raises CorpusError where the table is
    wrong; a Parquet row counts as a line, the first is line 1.
    """
    root = Path(corpus.root)
    path = root / corpus.table
    if not path.is_file():
        raise CorpusError(f"{path} is missing; set corpus.table to a CSV or Parquet file below corpus.root")
    rows = (
        _read_parquet(path) if path.suffix.lower() == ".parquet" else read_csv(path, _check_header, REQUIRED)
    )
    transcripts, has_splits = [], True
    for where, named in rows:
        row = {_SAME.get(name, name): text for name, text in named.items()}
        has_splits = "split" in row
        start_s, end_s = (time_s(name, row.get(name, "").strip(), where) for name in ("start", "end"))
        if end_s is not None and end_s <= (start_s or 0):
            raise CorpusError(f"{where}: end {row['end']} is not after start {row.get('start') or 0}")
        transcripts.append(
            Transcript(
                clip_id=row["clip_id"].strip(),
                split=_split_of(row, corpus) if has_splits else UNSPLIT,
                speaker=row.get("speaker", "").strip() or None,
                gender=row.get("gender", "").strip() or None,
                age=age(row.get("age", "").strip(), where),
                topic=row.get("topic", "").strip() or None,
                media=relative_media(row["media"].strip(), root),
                text=row["text"],
                where=where,
                times=relative_media(row.get("times", "").strip(), root) or None,
                # 0 is the start of the video
                start_s=start_s or None,
                end_s=end_s,
                audio=relative_media(row.get("audio", "").strip(), root) or None,
                confidence=confidence(row.get("confidence", "").strip(), where),
            )
        )
    return transcripts if has_splits else with_seeded_split(with_one_spelling(transcripts), corpus, path)


def _split_of(row: Mapping[str, str], corpus: CorpusParams) -> str:
    split = row["split"].strip()
    return UNLABELLED_SPLIT if not (split or row["text"].strip()) and corpus.unlabelled == "keep" else split


def _check_header(header: Sequence[str]) -> str | None:
    if doubled := sorted(name for name, count in Counter(header).items() if name and count > 1):
        return f"column {', '.join(doubled)} occurs twice; remove or rename one"
    for name, same in _SAME.items():
        if name in header and same in header:
            return f"columns {same} and {name} are the same; remove one of them"
    if missing := [name for name in REQUIRED if name not in header]:
        lower = "names are lower case; " if set(missing) <= {name.lower() for name in header} else ""
        return (
            f"header {','.join(header)} lacks {', '.join(missing)}; {lower}"
            f"needed are {','.join(REQUIRED)}, known are also {','.join(OPTIONAL)}"
        )
    given = {_SAME.get(name, name) for name in header}
    for name in header:
        match = LIKE_TIMES.fullmatch(re.sub(r"[\W_]", "", name).casefold())
        if name in _KNOWN or match is None or (match["length"] and "start" not in given):
            continue
        meant = "start" if match["start"] else "end"
        if meant not in given:
            seen = "length" if match["length"] else meant
            return (
                f"column {name} may be the {seen} of a part of the video: name the columns start and end, in "
                "seconds, as 72.5, or as 00:01:12.500; give a column of other content another name"
            )
    if ignored := [
        name for name in header if name and name not in _KNOWN and not _CANDIDATES.fullmatch(name)
    ]:
        _log.warning("columns %s are not known and are ignored", ", ".join(ignored))
    return None


def _read_parquet(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    number = num_empty = 0
    refuse_pipe(path)
    try:
        file = pq.ParquetFile(path)
        if problem := _check_header(file.schema_arrow.names):
            raise CorpusError(f"{path}:1: {problem}")
        columns = [name for name in file.schema_arrow.names if name in _KNOWN]
        for name in columns:
            if _SAME.get(name, name) in ("start", "end") and not is_time(
                kind := file.schema_arrow.field(name).type
            ):
                raise CorpusError(
                    f"{path}: column {name} is of type {kind}, which is not a time in a video; convert it to seconds"
                )
        for batch in file.iter_batches(columns=columns):
            strings = pa.table([as_texts(column) for column in batch.columns], names=columns)
            # Parquet readers do not check the bytes of a string column
            strings.validate(full=True)
            for row in strings.to_pylist():
                number += 1
                texts = {name: value or "" for name, value in row.items()}
                if any(text.strip() for text in texts.values()):
                    yield f"{path}:{number}", texts
                else:
                    num_empty += 1
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise CorpusError(
            f"{path}:{number + 1}: from here on this is not a Parquet table of strings: {error}"
        ) from error
    if num_empty:
        _log.warning("%s: %d empty rows are skipped", path, num_empty)


def seeded_split(
    groups: Mapping[str, int], valid_fraction: float, test_fraction: float, seed: int
) -> dict[str, str]:
    """Returns group → train, valid or test, for groups of `groups[name]` clips each.

    A whole group goes into one split, the largest always into train. Groups are taken in the order of a
    seeded hash of their names, so the result depends only on names and sizes, not on their order. Valid and
    test get one group each, then more as long as that brings them nearer to their fraction of all clips.
    Raises ValueError where there are fewer groups than splits.
    """
    total = sum(groups.values())
    fractions = {"valid": valid_fraction, "test": test_fraction}
    wanted = {name: fraction * total for name, fraction in fractions.items() if fraction > 0}
    if len(groups) <= len(wanted):
        raise ValueError(f"{len(groups)} groups are too few for {len(wanted) + 1} splits")

    def rank(name: str) -> bytes:
        return hashlib.sha256(f"{seed}:{name}".encode()).digest()

    ranked = sorted(groups, key=rank)
    chosen = {max(ranked, key=lambda name: groups[name]): "train"}
    taken = dict.fromkeys(wanted, 0)

    def give(group: str, split: str) -> None:
        chosen[group] = split
        taken[split] += groups[group]

    # the smallest split first: few groups are small enough for it
    for split in sorted(wanted, key=lambda split: wanted[split]):
        rest = [group for group in ranked if group not in chosen]
        fitting = (group for group in rest if groups[group] / 2 <= wanted[split])
        give(next(fitting, min(rest, key=lambda group: groups[group])), split)
    for group in ranked:
        for split, target in wanted.items():
            if group not in chosen and taken[split] + groups[group] / 2 <= target:
                give(group, split)
    return {group: chosen.get(group, "train") for group in groups}


def with_seeded_split(
    transcripts: Sequence[Transcript], corpus: CorpusParams, path: Path
) -> list[Transcript]:
    """Returns the clips with splits by `seeded_split`; raises CorpusError, which names `path`, if that fails."""
    keys = _groups(transcripts, videos_of(corpus, transcripts))
    counted = keys
    if corpus.unlabelled == "keep":
        # a group without any text is for training, and needs no share of valid and test
        counted = [key for t, key in zip(transcripts, keys, strict=True) if t.text.strip()]
    try:
        splits = seeded_split(Counter(counted), corpus.valid_fraction, corpus.test_fraction, corpus.seed)
    except ValueError as error:
        raise CorpusError(
            f"{path} cannot be split without sharing a speaker or video between splits ({error}); give each clip "
            f"a split, in a table by a column split, or set corpus.valid_fraction or corpus.test_fraction to 0"
        ) from error
    return [replace(t, split=splits.get(key, TRAIN_SPLIT)) for t, key in zip(transcripts, keys, strict=True)]


def _groups(transcripts: Sequence[Transcript], video_of: Mapping[str, str]) -> list[str]:
    """For each clip the name of its group: clips of one speaker, and clips of one video, stay together.

    A group is called after its first name in the order of the alphabet, so that the split does not hang on the
    order of rows, and a clip with a video of its own is its own group.
    """
    names = [f"speaker {one.speaker}" if one.speaker else f"clip {one.clip_id}" for one in transcripts]
    first_of = {name: name for name in names}

    def first(name: str) -> str:
        while first_of[name] != name:
            first_of[name] = first_of[first_of[name]]
            name = first_of[name]
        return name

    of_video: dict[str, str] = {}
    for name, one in zip(names, transcripts, strict=True):
        if one.media:
            low, high = sorted((first(name), first(of_video.setdefault(video_of[one.media], name))))
            first_of[high] = low
    return [first(name) for name in names]


def time_s(name: str, text: str, where: str) -> float | None:
    """Returns seconds, rounded to microseconds, since computed times differ in the last bit. Raises CorpusError."""
    if text.casefold() in _UNKNOWN:
        return None
    value: float | None = None
    if _SECONDS.fullmatch(text):
        value = float(text)
    elif match := _CLOCK.fullmatch(text):
        hours, minutes, seconds = int(match[1] or 0), int(match[2]), float(match[3].replace(",", "."))
        if seconds < 60 and (minutes < 60 or match[1] is None):
            value = hours * 3600 + minutes * 60 + seconds
    if value is None or value >= _MAX_S:
        raise CorpusError(
            f"{where}: {name} {text[:40]!r} is not a time; write seconds, as 72.5, or hours:minutes:seconds, as "
            "00:01:12.500, or leave it empty at the video's own start or end"
        )
    return round(value, 6)


def age(text: str, where: str) -> int | None:
    if text.casefold() in _UNKNOWN:
        return None
    if (match := _AGE.fullmatch(text)) is None:
        raise CorpusError(
            f"{where}: age {text[:40]!r} is not a number of years; leave it empty where it is not known"
        )
    return int(match[1])


def confidence(text: str, where: str) -> float | None:
    if text.casefold() in _UNKNOWN:
        return None
    if _SECONDS.fullmatch(text) is None or (value := float(text)) > 1:
        raise CorpusError(
            f"{where}: confidence {text[:40]!r} is not between 0 and 1; divide percents by 100, or leave it empty "
            "where it is not known"
        )
    return value


def is_time(kind: pa.DataType) -> bool:
    """Returns whether values of a Parquet type can be times in a video: times, durations, numbers or texts."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    known = (
        *(pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null),
        *(pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
        *(pa.types.is_time, pa.types.is_duration),
    )
    return any(is_it(kind) for is_it in known)


def as_texts(column: pa.Array) -> pa.Array:
    """Returns a Parquet column as the texts of a CSV: durations in seconds, and null for a NaN."""
    if pa.types.is_duration(column.type):
        counts = column.cast(pa.int64()).cast(pa.float64(), safe=False)
        column = pc.divide(counts, float(_UNITS_PER_S[column.type.unit]))
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    return column.cast(pa.string())
