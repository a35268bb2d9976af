"""Writes the figures of stage stats as one tidy table: one row for each figure, for SQL and data frames."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from shards.files import table_bytes, table_from_rows
from stages.corpora.transcript import split_rank
from stages.statistics.characters import Characters


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
