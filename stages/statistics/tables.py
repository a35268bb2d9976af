"""The figures of stage stats as tables: one tidy table for SQL and data frames, and tables on the terminal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from shards.enums import TRAIN_SPLIT
from shards.files import table_bytes, table_from_rows
from shards.safe_text import one_line
from stages.corpora.transcript import split_rank
from stages.statistics.characters import Characters
from stages.statistics.join_tables import UNKNOWN


def _field(name: str, kind: pa.DataType, about: str, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable=nullable, metadata={"about": about})


STATS = pa.schema(
    [
        _field("report", pa.string(), "splits, topics, rejections, vocabulary, ...", nullable=False),
        _field("split", pa.string(), "null: all splits"),
        _field("name", pa.string(), "topic, reason, speaker, codec or character; null: no such part"),
        _field("bin", pa.int64(), "lower edge, in the unit of the histogram; null: no histogram"),
        _field("figure", pa.string(), "what was counted or measured", nullable=False),
        _field("value", pa.float64(), "null: not known, as a table is missing"),
    ],
    metadata={"table": "stats"},
)


def stats_table(summary: Mapping[str, Any], characters: Characters) -> bytes:
    """Returns `stats.parquet`: the result of `stats`, and the count of every character of every split.

    `SELECT split, value FROM 'stats.parquet' WHERE report = 'splits' AND figure = 'hours'` reads it.
    """
    rows = [dict(zip(STATS.names, row, strict=True)) for row in _rows(summary, characters)]
    return table_bytes(table_from_rows(rows, STATS), STATS)


_Row = tuple[str, str | None, str | None, int | None, str, float | None]


def _rows(summary: Mapping[str, Any], characters: Characters) -> Iterator[_Row]:
    splits = summary["splits"]
    for split, figures in [*splits["splits"].items(), (None, splits["total"])]:
        for figure, value in figures.items():
            yield "splits", split, None, None, figure, value
    for topic, figures in summary["topics"].items():
        for figure, value in figures.items():
            yield "topics", None, topic, None, figure, value
    for split, by_reason in (summary["rejections"]["by_split"] or {}).items():
        for reason, count in by_reason.items():
            yield "rejections", split, reason, None, "clips", count
    for split, figures in summary["vocabulary"]["splits"].items():
        for figure, value in figures.items():
            if not isinstance(value, list):
                yield "vocabulary", split, None, None, figure, value
    for split, figures in summary["annotations"]["splits"].items():
        for figure, value in figures.items():
            yield "annotations", split, None, None, figure, value
    for split in sorted(characters, key=split_rank):
        for character, count in sorted(characters[split].items(), key=lambda item: (-item[1], item[0])):
            yield "characters", split, character, None, "count", count
    for speaker, by_split in summary["overlap"]["speakers"].items():
        for split, count in by_split.items():
            yield "overlap", split, speaker, None, "clips", count
    for split, count in (summary["overlap"]["copies"] or {"clips": {}})["clips"].items():
        yield "overlap", split, None, None, "copied_clips", count
    for report, histogram in summary["histograms"].items():
        for split, by_edge in histogram["splits"].items():
            for edge, count in by_edge.items():
                yield report, split, None, int(edge), "clips", count
    for split, by_codec in (summary["shards"] or {}).items():
        for codec, figures in by_codec.items():
            for figure, value in figures.items():
                yield "shards", split, codec, None, figure, value


def print_stats(summary: Mapping[str, Any], console: Console) -> None:
    """Prints the result of `stats` as tables; `-` means not known yet."""
    splits = summary["splits"]
    rows = [*splits["splits"].items(), ("total", splits["total"])]
    # several tables, so that each fits into 80 columns
    _print_figures(
        console, "Splits", "split", rows, ("clips", "ok", "rejected", "packed", "hours", "speakers")
    )
    if "unlabelled_hours" in (total := splits["total"]) and total["hours"] is not None:
        console.print(
            f"{total['labelled_hours']:g} hours with labels, {total['unlabelled_hours']:g} without (split unlabelled)"
        )
    _print_figures(console, "Taken as", "split", rows, ("face_videos", "ready_mouths"))
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
    if summary["shards"]:
        packed = [
            (split, {"codec": codec} | figures | {"MB": round(figures["bytes"] / 1e6, 1)})
            for split, by_codec in summary["shards"].items()
            for codec, figures in by_codec.items()
        ]
        _print_figures(console, "Shards", "split", packed, ("codec", "shards", "samples", "MB"))
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
    if units := summary["vocabulary"].get("units"):
        console.print(
            f"A model trained on split train writes {units['size']:,} units: {units['of']} (text.units)",
            markup=False,
        )
    if most := summary["annotations"]["most_frequent"]:
        counted = list(summary["annotations"]["splits"].items())
        _print_figures(console, "Annotations", "split", counted, ("clips", "annotations"))
        title = "Dropped from the labels:" if summary["annotations"]["dropped"] else "The most frequent:"
        _print_annotations(console, title, most)
    # listed for people to check: brackets may also contain speech
    if kept := summary["annotations"]["kept"]:
        _print_annotations(console, "In brackets and part of the labels:", kept)
    if shared := summary["overlap"]["speakers"]:
        names = Text(one_line(", ".join(list(shared)[:20])))
        console.print(f"Speakers in several splits ({len(shared)}), so scores are too good:", names)
    if len(splits["splits"]) > 1 and not splits["total"]["speakers"]:
        console.print("No clip names its speaker: it is not known whether the splits share people.")
    if (copies := summary["overlap"]["copies"]) and copies["num_videos"]:
        counts = ", ".join(f"{split} {count} clips" for split, count in copies["clips"].items())
        same = "; ".join(" = ".join(clip_ids) for clip_ids in copies["examples"])
        console.print(
            f"The same video in several splits: {copies['num_videos']} ({counts}), so scores on them say nothing:",
            Text(same),
        )


def _print_annotations(console: Console, title: str, counted: Sequence[Mapping[str, Any]]) -> None:
    console.print(
        title, Text(one_line(", ".join(f"{row['annotation']} {row['count']}" for row in counted[:20])))
    )


def _print_figures(
    console: Console,
    title: str,
    name: str,
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    columns: Sequence[str],
) -> None:
    table = Table(name, title=title, title_justify="left")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right", overflow="fold")
    for key, figures in rows:
        # Text: names of the corpus are no markup
        values = ("-" if figures[column] is None else str(figures[column]) for column in columns)
        table.add_row(Text(one_line(key)), *values)
    console.print(table)
