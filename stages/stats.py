"""Stage stats: measures a corpus split by split, and writes JSON, Parquet, plot data and a picture."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import duckdb

from model.settings import TextParams
from shards.catalogue import MEMORY_LIMIT, damaged_table_error, interruptible, open_catalogue
from shards.enums import UNLABELLED_SPLIT
from shards.errors import MachineError
from shards.files import check_table, json_bytes, write_all_or_none
from stages.corpora.transcript import are_apart, split_rank
from stages.pages.stats_picture import stats_picture
from stages.statistics.characters import (
    Characters,
    annotations,
    characters_by_split,
    num_distinct,
    units_of_train,
    vocabulary,
)
from stages.statistics.join_tables import TABLES, UNKNOWN, copies_across_splits, join_tables, num_parts_of
from stages.statistics.tables import stats_table

FRAME_BIN = 10
"""Width of the bins of clip lengths, frames."""
# One row for each group; NULL where the table that a figure needs is missing. `kept`: the clips for training and
# scoring, that is the ok clips, or every clip while there is no ledger. Microseconds are added as integers: a sum of
# fractions depends on the order of the threads.
_FIGURES = """
    count(*) AS clips,
    CASE WHEN $has_crops THEN count(*) FILTER (is_ok) END AS ok,
    CASE WHEN $has_crops THEN count(*) FILTER (NOT is_ok) END AS rejected,
    CASE WHEN $has_samples THEN count(*) FILTER (packed) END AS packed,
    count(*) FILTER (media_kind = 'face') AS face_videos,
    count(*) FILTER (media_kind = 'mouth') AS ready_mouths,
    CASE WHEN $has_crops THEN round(coalesce(sum(duration_us) FILTER (kept), 0) / 3.6e9, 4) END AS hours,
    count(DISTINCT speaker) AS speakers,
    coalesce(sum(num_chars) FILTER (kept), 0)::BIGINT AS characters,
    round(avg(num_chars) FILTER (kept), 3) AS mean_chars,
    median(num_chars) FILTER (kept) AS median_chars,
    max(num_chars) FILTER (kept) AS max_chars,
    round(avg(num_frames) FILTER (kept), 3) AS mean_frames
"""


def stats(
    clips_path: Path,
    crops_path: Path | None,
    samples_path: Path | None,
    stats_folder: Path,
    *,
    leave_out_others: bool = False,
    text: TextParams | None = None,
) -> dict[str, Any]:
    """Writes what `measure` finds into `stats_folder`, all files or none; returns the JSON values by file stem.

    `splits.json`, `rejections.json`, `topics.json`, `vocabulary.json`, `annotations.json`, `overlap.json`,
    `histograms.json` and `shards.json`; all of them, one row for each figure, in `stats.parquet`; the plot data
    `label_lengths.csv` and `clip_frames.csv`; and the picture `stats.svg`.

    Hours, frames and characters are of the `ok` clips, or of all clips where `crops_path` is None
    (`splits.json` says which under `counted`); hours are of source video. Figures that need a missing table
    are null, or an empty plot. Raises TableError where a table is missing, damaged, or not of these clips; with
    `leave_out_others`, logs a table of other clips (another corpus was ingested since) and treats it as missing.
    """
    summary, characters = measure(
        clips_path, crops_path, samples_path, leave_out_others=leave_out_others, text=text
    )
    files = {f"{name}.json": json_bytes(value) for name, value in summary.items()} | {
        "label_lengths.csv": _plot_data("num_chars", summary["histograms"]["label_lengths"]),
        "clip_frames.csv": _plot_data("num_frames", summary["histograms"]["clip_frames"]),
        "stats.parquet": stats_table(summary, characters),
        "stats.svg": stats_picture(summary, characters),
    }
    write_all_or_none(stats_folder, files)
    return summary


def measure(
    clips_path: Path,
    crops_path: Path | None,
    samples_path: Path | None,
    *,
    leave_out_others: bool = False,
    text: TextParams | None = None,
) -> tuple[dict[str, Any], Characters]:
    """Returns the figures, see `stats`, and how often each character occurs in the labels of each split.

    `text` says which units a model would learn from train; default: characters.
    """
    paths = {"clips": clips_path, "crops": crops_path, "samples": samples_path}
    files = {name: (path, TABLES[name][1]) for name, path in paths.items() if path}
    for name, (path, verb) in files.items():
        check_table(path, TABLES[name][0], verb)
    with open_catalogue(files) as connection, _database_errors(files):
        ask = partial(
            _measured,
            connection,
            clips_path,
            paths,
            leave_out_others=leave_out_others,
            text=text or TextParams(),
        )
        return interruptible(connection, "stats", ask)


def _measured(
    connection: duckdb.DuckDBPyConnection,
    clips_path: Path,
    paths: Mapping[str, Path | None],
    *,
    leave_out_others: bool,
    text: TextParams,
) -> tuple[dict[str, Any], Characters]:
    for name, path in paths.items():
        if path is None:
            connection.register(name, TABLES[name][0].empty_table())
    has = join_tables(connection, paths, leave_out_others=leave_out_others)
    characters = characters_by_split(connection, has["has_crops"])
    summary = {
        "splits": _splits(connection, has, characters),
        "rejections": _rejections(connection, has["has_crops"]),
        "topics": _by(connection, f"coalesce(topic::VARCHAR, '{UNKNOWN}')", has),
        "vocabulary": vocabulary(characters) | units_of_train(connection, has["has_crops"], text),
        "annotations": annotations(connection, clips_path),
        "overlap": _overlap(connection, has["has_crops"]),
        "histograms": {
            "label_lengths": _histogram(connection, "num_chars", 1),
            "clip_frames": _histogram(connection, "num_frames", FRAME_BIN),
        },
        "shards": _shards(connection, has["has_samples"]),
    }
    return summary, characters


@contextmanager
def _database_errors(files: Mapping[str, tuple[Path, str]]) -> Iterator[None]:
    """Raises DuckDB's errors as TableError or MachineError, where the tables or the machine are the cause."""
    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise MachineError(f"stats of {files['clips'][0]} need more than {MEMORY_LIMIT}: {error}") from error
    except duckdb.Error as error:
        if damaged := damaged_table_error(error, files):
            raise damaged from error
        raise


def _by(
    connection: duckdb.DuckDBPyConnection, column: str, has: Mapping[str, bool]
) -> dict[str, dict[str, Any]]:
    """Returns `_FIGURES` for each value of `column`, sorted by it."""
    result = connection.execute(
        f"SELECT {column} AS name, {_FIGURES} FROM joined GROUP BY name ORDER BY name", has
    )
    names = [entry[0] for entry in result.description or ()][1:]
    return {row[0]: dict(zip(names, row[1:], strict=True)) for row in result.fetchall()}


def _splits(
    connection: duckdb.DuckDBPyConnection, has: Mapping[str, bool], characters: Characters
) -> dict[str, Any]:
    splits = _ranked(_by(connection, "split", has))
    for split, figures in splits.items():
        figures["distinct_characters"] = len(characters[split])
    total = _by(connection, "'total'", has)["total"] | {"distinct_characters": num_distinct(characters)}
    if UNLABELLED_SPLIT in splits:
        hours, unlabelled = total["hours"], splits[UNLABELLED_SPLIT]["hours"]
        labelled = None if hours is None else round(hours - unlabelled, 4)
        total |= {"labelled_hours": labelled, "unlabelled_hours": unlabelled}
    return {
        "counted": "ok clips" if has["has_crops"] else "all clips",
        "splits": splits,
        "total": total,
    }


def _rejections(connection: duckdb.DuckDBPyConnection, has_crops: bool) -> dict[str, Any]:
    """Returns the rejected clips by split and reason, and over all splits; null without a ledger."""
    if not has_crops:
        return {"rejected": None, "by_reason": None, "by_split": None}
    rows = connection.execute(
        "SELECT split, reason, count(*) FROM joined WHERE NOT is_ok GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    by_reason: dict[str, int] = {}
    by_split: dict[str, dict[str, int]] = {}
    for split, reason, count in rows:
        by_reason[reason] = by_reason.get(reason, 0) + count
        by_split.setdefault(split, {})[reason] = count
    return {
        "rejected": sum(by_reason.values()),
        "by_reason": dict(sorted(by_reason.items())),
        "by_split": _ranked(by_split),
    }


def _overlap(connection: duckdb.DuckDBPyConnection, has_crops: bool) -> dict[str, Any]:
    """Returns the speakers in several splits, with their clips in each; `copies` is null without a ledger."""
    rows = connection.execute(
        "SELECT speaker, split, count(*) FROM joined WHERE speaker IS NOT NULL GROUP BY speaker, split "
        "QUALIFY count(*) OVER (PARTITION BY speaker) > 1 ORDER BY ALL"
    ).fetchall()
    clips: dict[str, dict[str, int]] = {}
    for speaker, split, count in rows:
        clips.setdefault(speaker, {})[split] = count
    shared = {speaker: _ranked(by_split) for speaker, by_split in clips.items() if are_apart(by_split)}
    copies = copies_across_splits(connection, num_parts_of(connection)) if has_crops else None
    return {"num_speakers": len(shared), "speakers": shared, "copies": copies}


def _histogram(connection: duckdb.DuckDBPyConnection, column: str, width: int) -> dict[str, Any]:
    """Returns the kept clips of each split by `column`, in bins of `width` named by their lower edge."""
    rows = connection.execute(
        f"SELECT split, {column} // {width} * {width} AS edge, count(*) FROM joined "
        "WHERE kept AND edge IS NOT NULL GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    splits: dict[str, dict[str, int]] = {}
    for split, edge, count in rows:
        # JSON keys are strings
        splits.setdefault(split, {})[str(edge)] = count
    return {"of": column, "bin_width": width, "splits": _ranked(splits)}


def _shards(connection: duckdb.DuckDBPyConnection, has_samples: bool) -> dict[str, Any] | None:
    """Returns the shards of each split by codec; `bytes` are of samples, without the end of a tar. Null if unpacked."""
    if not has_samples:
        return None
    rows = connection.execute(
        "SELECT split, codec, count(DISTINCT shard), count(*), sum(sample_size)::BIGINT, sum(clip_size)::BIGINT "
        "FROM samples GROUP BY ALL ORDER BY ALL"
    ).fetchall()
    splits: dict[str, dict[str, dict[str, int]]] = {}
    for split, codec, *figures in rows:
        splits.setdefault(split, {})[codec] = dict(
            zip(("shards", "samples", "bytes", "clip_bytes"), figures, strict=True)
        )
    return _ranked(splits)


def _ranked(by_split: Mapping[str, Any]) -> dict[str, Any]:
    return {split: by_split[split] for split in sorted(by_split, key=split_rank)}


def _plot_data(column: str, histogram: Mapping[str, Any]) -> bytes:
    total: dict[int, int] = {}
    for by_edge in histogram["splits"].values():
        for edge, count in by_edge.items():
            total[int(edge)] = total.get(int(edge), 0) + count
    return (f"{column},clips\n" + "".join(f"{edge},{total[edge]}\n" for edge in sorted(total))).encode()
