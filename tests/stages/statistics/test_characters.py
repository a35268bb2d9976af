"""The characters and annotations of the labels, with collections.Counter as referee."""

from collections import Counter
from io import StringIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from model.settings import TextParams
from model.text import normaliser_metadata
from shards.files import table_from_rows, write_table
from shards.schema import CLIPS
from stages.statistics.tables import print_stats
from stages.stats import stats
from tests.support.stats_tables import CLIP_ROWS, CROP_ROWS, clip, run


def test_characters_of_rejected_training_clips_are_out_of_vocabulary(tmp_path: Path) -> None:
    summary = run(tmp_path, CLIP_ROWS, CROP_ROWS, None)
    test = summary["vocabulary"]["splits"]["test"]
    train = Counter("今天好今天天")
    unknown = Counter(c for c in "罕见好见e\u0301" if c not in train)
    assert test["out_of_vocabulary"] == unknown.total() == 5
    assert test["out_of_vocabulary_distinct"] == len(unknown) == 4
    assert test["out_of_vocabulary_rate"] == round(5 / 6, 6)
    assert test["out_of_vocabulary_head"][0] == {"character": "见", "count": 2, "share": round(2 / 6, 6)}
    assert summary["vocabulary"]["splits"]["unseen"]["out_of_vocabulary_rate"] == 0.0
    assert summary["vocabulary"]["most_frequent"][0]["character"] == "天"


def test_without_train_there_is_no_vocabulary_to_be_out_of(tmp_path: Path) -> None:
    vocabulary = run(tmp_path, [clip("a", "night", "好")], None, None)["vocabulary"]
    assert vocabulary["reference"] is None
    assert vocabulary["splits"]["night"]["out_of_vocabulary_rate"] is None


@pytest.mark.parametrize("is_on", [True, False])
def test_annotations_are_counted_by_split_whether_they_are_dropped_or_not(
    tmp_path: Path, is_on: bool
) -> None:
    texts = {
        "a": "[noise]一",
        "b": "二(笑)［ＮＯＩＳＥ］",
        "c": "三（四）",
        "d": "[red]五",
        "e": "六",
        "f": "",
        "g": "<unk>",
    }
    rows = [row | {"text": texts[row["clip_id"]]} for row in CLIP_ROWS]
    marked = CLIPS.with_metadata(CLIPS.metadata | normaliser_metadata(TextParams(drop_annotations=is_on)))
    write_table(tmp_path / "clips.parquet", table_from_rows(rows, CLIPS), marked)
    summary = stats(tmp_path / "clips.parquet", None, None, tmp_path / "stats")
    assert summary["annotations"] == {
        "dropped": is_on,
        "splits": {
            "train": {"clips": 2, "annotations": 3},
            "valid": {"clips": 1, "annotations": 1},
            "test": {"clips": 1, "annotations": 1},
            "unseen": {"clips": 0, "annotations": 0},
        },
        "most_frequent": [
            {"annotation": "[noise]", "count": 2},
            {"annotation": "(笑)", "count": 1},
            {"annotation": "<unk>", "count": 1},
            {"annotation": "[red]", "count": 1},
        ],
        "kept": [{"annotation": "(四)", "count": 1}],
    }
    table = pq.read_table(tmp_path / "stats" / "stats.parquet").to_pylist()
    assert [row["value"] for row in table if row["report"] == "annotations" and row["split"] == "train"] == [
        2,
        3,
    ]
    out = StringIO()
    print_stats(summary, Console(file=out, width=100))
    printed = "Dropped from the labels" if is_on else "The most frequent"
    assert f"{printed}: [noise] 2, (笑) 1, <unk> 1, [red] 1" in out.getvalue()
    assert "In brackets and part of the labels: (四) 1" in out.getvalue()
