"""Stage stats: what a corpus holds, split by split, as JSON, plot data and printed tables."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shards.errors import TableError
from shards.files import read_table, write_json, write_text
from shards.schema import CLIPS, CROPS, SAMPLES
from shards.terms import TRAIN_SPLIT
from stages.corpora.transcript import split_rank

_log = logging.getLogger(__name__)

HEAD = 50
"""Characters listed in vocabulary.json, of the most frequent and of those outside the vocabulary."""
FRAME_BIN = 10
"""Width of the bins of clip_frames.csv, frames."""
UNKNOWN = "(unknown)"
"""Topic of clips without one."""
ROWS_AT_ONCE = 100_000

# One row a group; NULL where the table that would tell is missing. `kept`: what a model is trained and
# scored on, the ok clips, or every clip while there is no ledger.
_FIGURES = """
    count(*) AS clips,
    CASE WHEN $has_crops THEN count(*) FILTER (status = 'ok') END AS ok,
    CASE WHEN $has_crops THEN count(*) FILTER (status = 'rejected') END AS rejected,
    CASE WHEN $has_samples THEN count(*) FILTER (packed) END AS packed,
    CASE WHEN $has_crops THEN round(coalesce(sum(duration_s) FILTER (kept), 0) / 3600, 4) END AS hours,
    count(DISTINCT speaker) AS speakers,
    coalesce(sum(num_chars) FILTER (kept), 0)::BIGINT AS characters,
    round(avg(num_chars) FILTER (kept), 3) AS mean_chars,
    median(num_chars) FILTER (kept) AS median_chars,
    max(num_chars) FILTER (kept) AS max_chars,
    round(avg(num_frames) FILTER (kept), 3) AS mean_frames
"""
_JOINED = """
    CREATE TEMP TABLE joined AS
    SELECT c.clip_id, c.split, c.speaker, coalesce(c.topic, $unknown) AS topic, c.label, c.num_chars,
        r.status, r.reason, r.duration_s::DOUBLE AS duration_s, r.num_frames,
        s.clip_id IS NOT NULL AS packed, (NOT $has_crops OR r.status = 'ok') AS kept
    FROM clips c LEFT JOIN crops r USING (clip_id) LEFT JOIN samples s USING (clip_id)
"""


def stats(
    clips_path: Path,
    crops_path: Path | None,
    samples_path: Path | None,
    stats_folder: Path,
    *,
    leave_out_others: bool = False,
) -> dict[str, Any]:
    """Writes `splits.json`, `rejections.json`, `topics.json`, `vocabulary.json`, `overlap.json` and the plot
    data `label_lengths.csv` and `clip_frames.csv` into `stats_folder`; gives the JSON values by file stem.

    Hours, frames and characters are of the `ok` clips, or of all clips where `crops_path` is None
    (`splits.json` says which under `counted`); hours are of source video. What a missing table would tell
    is null, or an empty plot. Raises TableError where a table is missing, damaged, or not of these clips; with
    `leave_out_others`, one of other clips (another corpus was ingested since) is told of and taken as missing.
    """
    tables = {
        "clips": read_table(clips_path, CLIPS, "pipeline ingest"),
        "crops": read_table(crops_path, CROPS, "pipeline crop") if crops_path else CROPS.empty_table(),
        "samples": read_table(samples_path, SAMPLES, "pipeline pack")
        if samples_path
        else SAMPLES.empty_table(),
    }
    if not tables["clips"].num_rows:
        raise TableError(f"{clips_path} holds no clip; run `pipeline ingest` on a corpus that has some")
    with duckdb.connect(":memory:") as connection:
        for name, table in tables.items():
            connection.register(name, table)
        has = {
            "has_crops": crops_path is not None
            and is_of_clips(connection, "crops", crops_path, CROPS, leave_out=leave_out_others),
            "has_samples": samples_path is not None
            and is_of_clips(connection, "samples", samples_path, SAMPLES, leave_out=leave_out_others),
        }
        connection.execute(_JOINED, {"has_crops": has["has_crops"], "unknown": UNKNOWN})
        characters = _characters_by_split(connection)
        summary = {
            "splits": _splits(connection, has, characters),
            "rejections": _rejections(connection, has["has_crops"]),
            "topics": _by(connection, "topic", has),
            "vocabulary": _vocabulary(characters),
            "overlap": _overlap(connection),
        }
        lengths = connection.execute(
            "SELECT num_chars, count(*) AS clips FROM joined WHERE kept GROUP BY ALL ORDER BY ALL"
        ).fetchall()
        frames = connection.execute(
            f"SELECT num_frames // {FRAME_BIN} * {FRAME_BIN}, count(*) FROM joined "
            "WHERE kept AND num_frames IS NOT NULL GROUP BY ALL ORDER BY ALL"
        ).fetchall()
    for name, value in summary.items():
        write_json(stats_folder / f"{name}.json", value)
    _write_plot(stats_folder / "label_lengths.csv", "num_chars", lengths)
    _write_plot(stats_folder / "clip_frames.csv", "num_frames", frames)
    return summary


def is_of_clips(
    connection: duckdb.DuckDBPyConnection, name: str, path: Path, schema: pa.Schema, *, leave_out: bool
) -> bool:
    """Whether table `name` is of the clips; one that is not is an error, or emptied where it may be left out."""
    verb, is_whole = {"crops": ("pipeline crop", True), "samples": ("pipeline pack", False)}[name]
    ((foreign, absent, doubled),) = connection.execute(
        f"SELECT (SELECT count(*) FROM {name} ANTI JOIN clips USING (clip_id)), "
        f"(SELECT count(*) FROM clips ANTI JOIN {name} USING (clip_id)), "
        f"(SELECT count(*) - count(DISTINCT clip_id) FROM {name})"
    ).fetchall()
    is_other = foreign or (is_whole and absent)
    if not is_other and not doubled:
        return True
    told = f"{path} is not of these clips ({foreign} unknown, {doubled} doubled"
    told += f", {absent} missing)" if is_whole else ")"
    if doubled or not leave_out:
        raise TableError(f"{told}; run `{verb}` again")
    _log.warning("%s: left out of these figures; `%s` makes it anew", told, verb)
    connection.register(name, schema.empty_table())
    return False


def _by(
    connection: duckdb.DuckDBPyConnection, column: str, has: Mapping[str, bool]
) -> dict[str, dict[str, Any]]:
    """`_FIGURES` for each value of `column`, in its order."""
    result = connection.execute(
        f"SELECT {column} AS name, {_FIGURES} FROM joined GROUP BY name ORDER BY name", has
    )
    names = [entry[0] for entry in result.description or ()][1:]
    return {row[0]: dict(zip(names, row[1:], strict=True)) for row in result.fetchall()}


def _splits(
    connection: duckdb.DuckDBPyConnection, has: Mapping[str, bool], characters: Mapping[str, Counter[str]]
) -> dict[str, Any]:
    by_split = _by(connection, "split", has)
    total = _by(connection, "'total'", has)["total"]
    for split, figures in by_split.items():
        figures["distinct_characters"] = len(characters[split])
    total["distinct_characters"] = len(_sum(characters))
    return {
        "counted": "ok clips" if has["has_crops"] else "all clips",
        "splits": {split: by_split[split] for split in sorted(by_split, key=split_rank)},
        "total": total,
    }


def _rejections(connection: duckdb.DuckDBPyConnection, has_crops: bool) -> dict[str, Any]:
    """Rejected clips by split and reason, and over all splits; null without a ledger."""
    if not has_crops:
        return {"rejected": None, "by_reason": None, "by_split": None}
    rows = connection.execute(
        "SELECT split, reason, count(*) FROM joined WHERE status = 'rejected' GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    by_reason: dict[str, int] = {}
    by_split: dict[str, dict[str, int]] = {}
    for split, reason, count in rows:
        by_reason[reason] = by_reason.get(reason, 0) + count
        by_split.setdefault(split, {})[reason] = count
    return {
        "rejected": sum(by_reason.values()),
        "by_reason": dict(sorted(by_reason.items())),
        "by_split": {split: by_split[split] for split in sorted(by_split, key=split_rank)},
    }


def _characters_by_split(connection: duckdb.DuckDBPyConnection) -> dict[str, Counter[str]]:
    """How often each character (code point) stands in the labels of the kept clips."""
    counts: dict[str, Counter[str]] = {
        split: Counter() for (split,) in connection.execute("SELECT DISTINCT split FROM joined").fetchall()
    }
    # counted by numpy: a Python loop over the characters of 10 million labels takes minutes
    for split, counter in counts.items():
        result = connection.execute(
            "SELECT label FROM joined WHERE kept AND split = $split", {"split": split}
        )
        while rows := result.fetchmany(ROWS_AT_ONCE):
            text = "".join(label for (label,) in rows)
            histogram = np.bincount(np.frombuffer(text.encode("utf-32-le"), np.uint32))
            for code in np.flatnonzero(histogram):
                counter[chr(code)] += int(histogram[code])
    return counts


def _sum(characters: Mapping[str, Counter[str]]) -> Counter[str]:
    return sum(characters.values(), Counter())


def _vocabulary(characters: Mapping[str, Counter[str]]) -> dict[str, Any]:
    """Each split's characters against those of train: what a model trained on train cannot write."""
    known = characters.get(TRAIN_SPLIT)
    splits = {}
    for split in sorted(characters, key=split_rank):
        own = characters[split]
        figures: dict[str, Any] = {"characters": own.total(), "distinct": len(own)}
        if split != TRAIN_SPLIT:
            unknown = Counter() if known is None else Counter({c: own[c] for c in own.keys() - known.keys()})
            figures |= {
                "out_of_vocabulary": None if known is None else unknown.total(),
                "out_of_vocabulary_distinct": None if known is None else len(unknown),
                "out_of_vocabulary_rate": None if known is None else _share(unknown.total(), own.total()),
                "out_of_vocabulary_head": None if known is None else _head(unknown, own.total()),
            }
        splits[split] = figures
    every = _sum(characters)
    return {
        "reference": None if known is None else TRAIN_SPLIT,
        "splits": splits,
        "most_frequent": _head(every, every.total()),
    }


def _share(count: int, total: int) -> float:
    return round(count / total, 6) if total else 0.0


def _head(characters: Counter[str], total: int) -> list[dict[str, Any]]:
    """The HEAD most frequent, ties in code point order."""
    ranked = sorted(characters.items(), key=lambda item: (-item[1], item[0]))
    return [{"character": c, "count": n, "share": _share(n, total)} for c, n in ranked[:HEAD]]


def _overlap(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Speakers that stand in several splits, and how many clips each has there."""
    rows = connection.execute(
        "SELECT speaker, split, count(*) FROM joined WHERE speaker IS NOT NULL GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    clips: dict[str, dict[str, int]] = {}
    for speaker, split, count in rows:
        clips.setdefault(speaker, {})[split] = count
    shared = {
        speaker: {split: by_split[split] for split in sorted(by_split, key=split_rank)}
        for speaker, by_split in clips.items()
        if len(by_split) > 1
    }
    return {"num_speakers": len(shared), "speakers": shared}


def _write_plot(path: Path, column: str, rows: Iterable[tuple[int, int]]) -> None:
    write_text(path, f"{column},clips\n" + "".join(f"{value},{count}\n" for value, count in rows))


def print_stats(summary: Mapping[str, Any], console: Console) -> None:
    """Prints what `stats` gave as tables; `-` stands for what is not known yet."""
    splits = summary["splits"]
    rows = [*splits["splits"].items(), ("total", splits["total"])]
    # two tables, so that either fits into 80 columns
    _print_figures(
        console, "Splits", "split", rows, ("clips", "ok", "rejected", "packed", "hours", "speakers")
    )
    _print_figures(
        console,
        f"Labels and frames of {splits['counted']}",
        "split",
        rows,
        ("characters", "distinct_characters", "mean_chars", "median_chars", "max_chars", "mean_frames"),
    )
    if splits["total"]["ok"] is None:
        console.print("No crops.parquet yet: hours, frames and rejections come with `pipeline crop`.")
    if splits["total"]["packed"] is None:
        console.print("No samples.parquet yet: packed clips come with `pipeline pack`.")
    if by_split := summary["rejections"]["by_split"]:
        reasons = list(summary["rejections"]["by_reason"])
        counted = [
            (split, {reason: found.get(reason, 0) for reason in reasons}) for split, found in by_split.items()
        ]
        _print_figures(console, "Rejected clips", "split", counted, reasons)
    if list(summary["topics"]) != [UNKNOWN]:
        figures = ("clips", "hours", "speakers", "characters")
        _print_figures(console, "Topics", "topic", summary["topics"].items(), figures)
    if others := [item for item in summary["vocabulary"]["splits"].items() if item[0] != TRAIN_SPLIT]:
        _print_figures(
            console,
            "Characters that train lacks",
            "split",
            others,
            ("out_of_vocabulary", "out_of_vocabulary_distinct", "out_of_vocabulary_rate"),
        )
    if shared := summary["overlap"]["speakers"]:
        names = Text(", ".join(list(shared)[:20]))
        console.print(f"Speakers in several splits ({len(shared)}), whose scores flatter the model:", names)


def _print_figures(
    console: Console,
    title: str,
    name: str,
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    columns: Sequence[str],
) -> None:
    table = Table(name, title=title, title_justify="left")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for key, figures in rows:
        # Text: names of the corpus are no markup
        values = ("-" if figures[column] is None else str(figures[column]) for column in columns)
        table.add_row(Text(key), *values)
    console.print(table)
