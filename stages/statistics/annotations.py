"""What the transcripts say of their sound ([noise]), split by split."""

from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from model.annotations import MAY_HOLD
from model.settings import TextParams
from model.text import in_brackets, read_mark
from shards.catalogue import batches
from stages.corpora.transcript import split_rank
from stages.statistics.characters import HEAD, ROWS_AT_ONCE


def annotations(connection: duckdb.DuckDBPyConnection, clips_path: Path) -> dict[str, Any]:
    """How many stand in the transcripts of each split, in how many clips, and the HEAD most frequent; and of what else
    stands in brackets, which `text.drop_annotations` keeps.

    `dropped` says whether the labels are without them; null where the table does not say how its labels were made.
    """
    mark = read_mark(pq.read_schema(clips_path).metadata, clips_path)
    text = mark[0] if mark else TextParams()
    names = connection.execute("SELECT DISTINCT split FROM clips").fetchall()
    splits = {
        split: {"clips": 0, "annotations": 0}
        for (split,) in sorted(names, key=lambda row: split_rank(row[0]))
    }
    every: Counter[str] = Counter()
    stay: Counter[str] = Counter()
    for batch in batches(
        connection.sql("SELECT split, text FROM clips WHERE regexp_matches(text, $1)", params=[MAY_HOLD]),
        ROWS_AT_ONCE,
    ):
        for row in batch.to_pylist():
            found, kept = in_brackets(row["text"], text)
            splits[row["split"]]["clips"] += bool(found)
            splits[row["split"]]["annotations"] += len(found)
            every.update(found)
            stay.update(kept)
    return {
        "dropped": text.drop_annotations if mark else None,
        "splits": splits,
        "most_frequent": _head(every),
        "kept": _head(stay),
    }


def _head(counts: Counter[str]) -> list[dict[str, Any]]:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [{"annotation": one, "count": count} for one, count in ranked[:HEAD]]
