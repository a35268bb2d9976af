"""Counts the characters in the labels of each split, and those that the train split does not have.

Also counts the annotations of sound in the transcripts ([noise]) of each split.
"""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.annotations import ANNOTATION_HINT
from model.settings import TextParams
from model.text import in_brackets, normaliser_from_metadata
from model.vocabulary import Vocabulary
from shards.catalogue import batches
from shards.enums import TRAIN_SPLIT, UNLABELLED_SPLIT
from stages.corpora.transcript import split_rank

HEAD = 50
"""Characters listed in vocabulary.json: the most frequent, and the most frequent outside the vocabulary."""
ROWS_AT_ONCE = 20_000
"""Their characters fit into a core's cache; batches of 100,000 rows take 1.5 times as long."""
_NUM_CODE_POINTS = 0x110000

Characters = Mapping[str, Counter[str]]
"""Split → how often each character occurs in its labels."""


def characters_by_split(connection: duckdb.DuckDBPyConnection, has_crops: bool) -> Characters:
    """Counts each character (code point) in the labels of the kept clips; every split has an entry.

    Split unlabelled has no characters: its labels are hidden.
    """
    counts = {
        split: np.zeros(_NUM_CODE_POINTS, np.int64)
        for (split,) in connection.execute("SELECT DISTINCT split FROM clips").fetchall()
    }
    # joins the few clips that are left out, not the many that are kept
    left_out = "SEMI JOIN (SELECT clip_id FROM crops WHERE status <> 'ok') USING (clip_id)"
    for join, sign in (("", 1), (left_out, -1)) if has_crops else (("", 1),):
        labels = connection.sql(
            f"SELECT split, label FROM clips {join} WHERE split <> $1", params=[UNLABELLED_SPLIT]
        )
        for batch in batches(labels, ROWS_AT_ONCE):
            # mostly one split: tables are sorted by split
            for split in pc.unique(batch["split"]).to_pylist():
                of_split = batch.filter(pc.equal(batch["split"], split))["label"]
                found = _code_points(of_split)
                counts[split][: len(found)] += sign * found
    return {
        split: Counter({chr(code): int(count_C[code]) for code in np.flatnonzero(count_C)})
        for split, count_C in counts.items()
    }


def _code_points(labels: pa.StringArray) -> np.ndarray:
    """Counts each code point in `labels`, up to the highest of them.

    Counted on whole buffers: a Python loop over the characters of 10 million labels takes minutes.
    """
    if not len(labels):
        return np.zeros(0, np.int64)
    _, offsets, utf8 = labels.buffers()
    ends = np.frombuffer(offsets, np.int32)[labels.offset : labels.offset + len(labels) + 1]
    text = b"" if utf8 is None else memoryview(utf8)[ends[0] : ends[-1]]
    return np.bincount(np.frombuffer(str(text, "utf-8").encode("utf-32-le"), np.uint32))


def num_distinct(characters: Characters) -> int:
    return len(_sum(characters))


def _sum(characters: Characters) -> Counter[str]:
    return sum(characters.values(), Counter())


def vocabulary(characters: Characters) -> dict[str, Any]:
    """Compares the characters of each split with train: a model trained on train cannot write the others."""
    known = characters.get(TRAIN_SPLIT)
    splits = {}
    for split in sorted(characters.keys() - {UNLABELLED_SPLIT}, key=split_rank):
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


def units_of_train(
    connection: duckdb.DuckDBPyConnection, has_crops: bool, text: TextParams
) -> dict[str, Any]:
    """Returns the units that a model learns from the train split, and their number.

    Empty for characters, because `vocabulary` has their number. Raises ConfigError and MachineError like
    `Splitting.learnt`.
    """
    if text.units == "characters" and text.hangul == "syllables":
        return {}
    left_out = (
        "ANTI JOIN (SELECT clip_id FROM crops WHERE status <> 'ok') USING (clip_id)" if has_crops else ""
    )
    train = connection.sql(f"SELECT label FROM clips {left_out} WHERE split = $1", params=[TRAIN_SPLIT])
    labels = (label for batch in batches(train, ROWS_AT_ONCE) for label in batch["label"].to_pylist())
    found = Vocabulary.of_labels(labels, text.units == "pinyin", text)
    table = found.syllables or found.characters
    return {"units": {"of": str(table.splitting), "size": len(table.units)}}


def _share(count: int, total: int) -> float:
    return round(count / total, 6) if total else 0.0


def _head(characters: Counter[str], total: int) -> list[dict[str, Any]]:
    """Returns the HEAD most frequent, ties in code point order."""
    ranked = sorted(characters.items(), key=lambda item: (-item[1], item[0]))
    return [{"character": c, "count": n, "share": _share(n, total)} for c, n in ranked[:HEAD]]


def annotations(connection: duckdb.DuckDBPyConnection, clips_path: Path) -> dict[str, Any]:
    """Counts the annotations of each split and the clips that have them, and lists the HEAD most frequent.

    `kept` lists other texts in brackets, which `text.drop_annotations` keeps. `dropped` says whether the labels are
    without annotations; null where the table does not say how its labels were made.
    """
    mark = normaliser_from_metadata(pq.read_schema(clips_path).metadata, clips_path)
    text = mark[0] if mark else TextParams()
    names = connection.execute("SELECT DISTINCT split FROM clips").fetchall()
    splits = {
        split: {"clips": 0, "annotations": 0}
        for (split,) in sorted(names, key=lambda row: split_rank(row[0]))
    }
    every: Counter[str] = Counter()
    stay: Counter[str] = Counter()
    for batch in batches(
        connection.sql(
            "SELECT split, text FROM clips WHERE regexp_matches(text, $1)", params=[ANNOTATION_HINT]
        ),
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
        "most_frequent": _top(every),
        "kept": _top(stay),
    }


def _top(counts: Counter[str]) -> list[dict[str, Any]]:
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [{"annotation": one, "count": count} for one, count in ranked[:HEAD]]
