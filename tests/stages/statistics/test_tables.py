"""The tidy table of stage stats, and the tables that it prints."""

from collections import Counter
from io import StringIO
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from rich.console import Console

from stages.statistics.tables import print_stats
from tests.support.stats_tables import CLIP_ROWS, CROP_ROWS, Row, clip, printed, run, sample


def test_copies_and_unknown_speakers_are_reported(tmp_path: Path) -> None:
    clips = [row | {"speaker": None} for row in CLIP_ROWS]
    crops = [row | {"clip_key": "k" if row["clip_id"] in "ad" else row["clip_id"]} for row in CROP_ROWS]
    text = printed(run(tmp_path / "a", clips, crops, None))
    assert "The same video in several splits: 1 (train 1 clips, test 1 clips)" in text
    assert "a = d" in text
    assert "No clip names its speaker: it is not known whether the splits share people." in text
    other = printed(run(tmp_path / "b", CLIP_ROWS, CROP_ROWS, None))
    assert "The same video" not in other and "No clip names" not in other
    alone = printed(run(tmp_path / "c", [clip("a", "train", "好")], None, None))
    assert "No clip names" not in alone, "one split shares nobody with another"


@pytest.mark.parametrize("crops", [None, CROP_ROWS])
def test_printed_tables_tell_the_figures_and_what_is_not_known(
    tmp_path: Path, crops: list[Row] | None
) -> None:
    clips = [*CLIP_ROWS[:-1], clip("g", "valid", "好", "[red]x", "KJ")]
    out = StringIO()
    print_stats(run(tmp_path, clips, crops, None), Console(file=out, width=100))
    text = out.getvalue()
    assert all(split in text for split in ("train", "valid", "test", "unseen", "total"))
    assert ("No crops.parquet yet" in text) == (crops is None)
    assert ("too_short" in text.replace(" ", "_")) == (crops is not None)
    assert "No samples.parquet yet" in text
    assert "Speakers in several splits (1)" in text


def test_the_tidy_table_tells_every_figure(tmp_path: Path) -> None:
    samples = [
        sample(row) | {"sample_size": 100, "clip_size": 60} for row in CLIP_ROWS if row["clip_id"] in "abd"
    ]
    samples[1]["shard"] = "train/train-000001.tar"
    summary = run(tmp_path, CLIP_ROWS, CROP_ROWS, samples)
    assert summary["shards"] == {
        "train": {"raw": {"shards": 2, "samples": 2, "bytes": 200, "clip_bytes": 120}},
        "test": {"raw": {"shards": 1, "samples": 1, "bytes": 100, "clip_bytes": 60}},
    }
    table = pq.read_table(tmp_path / "stats" / "stats.parquet")
    found = {tuple(row.values())[:5]: row["value"] for row in table.to_pylist()}
    assert len(found) == table.num_rows
    assert found["splits", "train", None, None, "hours"] == round(175 / 25 / 3600, 4)
    assert found["splits", None, None, None, "rejected"] == 2
    assert found["splits", "unseen", None, None, "mean_frames"] is None
    assert found["topics", None, "KJ", None, "clips"] == 3
    assert found["rejections", "train", "too_short", None, "clips"] == 1
    assert found["vocabulary", "test", None, None, "out_of_vocabulary_rate"] == round(5 / 6, 6)
    assert found["overlap", "test", "s1", None, "clips"] == 1
    assert found["clip_frames", "train", None, 70, "clips"] == 1
    assert found["shards", "train", "raw", None, "bytes"] == 200
    text = "".join(row["label"] for row in CLIP_ROWS if row["split"] == "train" and row["clip_id"] != "c")
    of_train = {key[2]: value for key, value in found.items() if key[:2] == ("characters", "train")}
    assert of_train == Counter(text)
