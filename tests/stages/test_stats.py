"""Stage stats, with collections.Counter and plain sums as referees."""

import os
import signal
import statistics
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.synthetic_catalogue import write_catalogue
from shards.errors import Interrupted
from shards.files import table_from_rows, write_table
from shards.schema import CLIPS
from stages import stats as stats_module
from stages.stats import FRAME_BIN, UNKNOWN, measure
from tests.support.stats_tables import (
    CLIP_ROWS,
    CROP_ROWS,
    clip,
    crop,
    plot,
    printed,
    run,
    sample,
    write,
)


def test_every_figure_of_a_small_corpus(tmp_path: Path) -> None:
    samples = [sample(row) for row in CLIP_ROWS if row["clip_id"] in "abd"]
    summary = run(tmp_path, CLIP_ROWS, CROP_ROWS, samples)
    splits = summary["splits"]
    assert splits["counted"] == "ok clips"
    assert list(splits["splits"]) == ["train", "valid", "test", "unseen"]
    assert splits["splits"]["train"] == {
        "clips": 3,
        "ok": 2,
        "rejected": 1,
        "packed": 2,
        "face_videos": 1,
        "ready_mouths": 1,
        "hours": round((75 + 100) / 25 / 3600, 4),
        "speakers": 2,
        "characters": 6,
        "distinct_characters": 3,
        "mean_chars": 3.0,
        "median_chars": 3.0,
        "max_chars": 3,
        "mean_frames": 87.5,
    }
    # a split whose clips were all rejected is counted, not left out
    assert splits["splits"]["unseen"]["rejected"] == splits["splits"]["unseen"]["clips"] == 1
    assert splits["splits"]["unseen"]["hours"] == 0
    assert splits["splits"]["unseen"]["mean_frames"] is None
    assert splits["total"]["clips"] == splits["total"]["ok"] + splits["total"]["rejected"] == 7
    assert splits["total"]["packed"] == 3
    assert (splits["total"]["face_videos"], splits["total"]["ready_mouths"]) == (4, 2)
    assert splits["total"]["distinct_characters"] == len(set("今天好罕见e\u0301"))
    assert summary["rejections"] == {
        "rejected": 2,
        "by_reason": {"empty_text": 1, "too_short": 1},
        "by_split": {"train": {"too_short": 1}, "unseen": {"empty_text": 1}},
    }
    assert {topic: figures["clips"] for topic, figures in summary["topics"].items()} == {
        "KJ": 3,
        "TY": 2,
        UNKNOWN: 2,
    }
    assert summary["overlap"] == {
        "num_speakers": 1,
        "speakers": {"s1": {"train": 1, "test": 1}},
        "copies": {"num_videos": 0, "clips": {}, "examples": []},
    }
    assert plot(tmp_path / "stats" / "label_lengths.csv") == {1: 1, 3: 4}
    assert plot(tmp_path / "stats" / "clip_frames.csv") == {50: 1, 70: 3, 100: 1}


def test_hours_with_and_without_labels_are_counted_and_hidden_labels_are_not(tmp_path: Path) -> None:
    """A speaker or video of train and unlabelled is no leak, of unlabelled and test it is."""
    clips = [*CLIP_ROWS, clip("u", "unlabelled", "藏藏", "s2"), clip("v", "unlabelled", "", "s3")]
    crops = [row | {"clip_key": row["clip_id"]} for row in [*CROP_ROWS, crop("u", 400), crop("v", 600)]]
    for row, key in zip(crops[-2:], "ae", strict=True):
        row["clip_key"] = key
    summary = run(tmp_path, clips, crops, None)
    total, unlabelled = summary["splits"]["total"], summary["splits"]["splits"]["unlabelled"]
    assert (total["labelled_hours"], total["unlabelled_hours"]) == (
        round((75 + 100 + 75 + 50 + 79) / 25 / 3600, 4),
        round(1000 / 25 / 3600, 4),
    )
    assert (unlabelled["clips"], unlabelled["ok"], unlabelled["characters"]) == (2, 2, 0)
    assert unlabelled["mean_chars"] is None and total["characters"] == 13
    assert "unlabelled" not in summary["histograms"]["label_lengths"]["splits"]
    assert "unlabelled" not in summary["vocabulary"]["splits"]
    assert "藏" not in {row["character"] for row in summary["vocabulary"]["most_frequent"]}
    assert summary["overlap"]["speakers"].keys() == {"s1", "s3"}
    assert summary["overlap"]["copies"]["examples"] == [["e", "v"]]
    assert "0.0042 hours with labels, 0.0111 without (split unlabelled)" in printed(summary)
    picture = (tmp_path / "stats" / "stats.svg").read_text("utf-8")
    assert "Hours of video: 0.0042 with labels, 0.0111 without" in picture and ">unlabelled, " in picture
    figures = {
        (row["figure"], row["value"])
        for row in pq.read_table(tmp_path / "stats" / "stats.parquet").to_pylist()
        if row["report"] == "splits" and row["split"] is None
    }
    assert {("labelled_hours", 0.0042), ("unlabelled_hours", 0.0111)} <= figures


def test_a_corpus_only_ingested(tmp_path: Path) -> None:
    summary = run(tmp_path, CLIP_ROWS, None, None)
    train = summary["splits"]["splits"]["train"]
    assert summary["splits"]["counted"] == "all clips"
    assert [train[name] for name in ("ok", "rejected", "packed", "hours", "mean_frames")] == [None] * 5
    assert (train["clips"], train["characters"], train["distinct_characters"]) == (3, 7, 4)
    assert summary["rejections"] == {"rejected": None, "by_reason": None, "by_split": None}
    assert (tmp_path / "stats" / "clip_frames.csv").read_text() == "num_frames,clips\n"
    assert sum(plot(tmp_path / "stats" / "label_lengths.csv").values()) == 7


CLIPS_DRAWN = st.lists(
    st.tuples(
        st.sampled_from(["train", "valid", "test", "odd"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
        st.sampled_from([None, "s1", "s2", "s3"]),
        st.integers(0, 300),
        st.sampled_from([None, None, None, "no_face", "crashed"]),
    ),
    min_size=1,
    max_size=25,
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=CLIPS_DRAWN)
def test_figures_agree_with_plain_python(tmp_path: Path, drawn: list[tuple[Any, ...]]) -> None:
    clips = [clip(f"c{i}", split, label, speaker) for i, (split, label, speaker, _, _) in enumerate(drawn)]
    crops = [crop(f"c{i}", frames, reason) for i, (*_, frames, reason) in enumerate(drawn)]
    clips_path, crops_path, _ = write(tmp_path, clips, crops[::-1], None)
    assert clips_path is not None
    summary, _ = measure(clips_path, crops_path, None)
    assert set(summary["splits"]["splits"]) == {row[0] for row in drawn}
    known = set("".join(label for split, label, _, _, reason in drawn if split == "train" and not reason))
    for split, figures in summary["splits"]["splits"].items():
        rows = [row for row in drawn if row[0] == split]
        kept = [row for row in rows if row[4] is None]
        text = "".join(row[1] for row in kept)
        assert (figures["clips"], figures["ok"]) == (len(rows), len(kept))
        assert figures["speakers"] == len({row[2] for row in rows} - {None})
        assert (figures["characters"], figures["distinct_characters"]) == (len(text), len(set(text)))
        assert figures["hours"] == pytest.approx(sum(row[3] for row in kept) / 25 / 3600, abs=1e-4)
        assert figures["median_chars"] == (statistics.median([len(row[1]) for row in kept]) if kept else None)
        if split != "train" and any(row[0] == "train" for row in drawn):
            found = summary["vocabulary"]["splits"][split]["out_of_vocabulary"]
            assert found == sum(c not in known for c in text)
    for name, bins in (
        ("clip_frames", Counter((r[0], r[3] // FRAME_BIN * FRAME_BIN) for r in drawn if r[4] is None)),
        ("label_lengths", Counter((r[0], len(r[1])) for r in drawn if r[4] is None)),
    ):
        found = summary["histograms"][name]["splits"]
        assert {(s, int(edge)): n for s, by in found.items() for edge, n in by.items()} == bins


def test_the_same_tables_give_the_same_bytes(tmp_path: Path) -> None:
    run(tmp_path / "a", CLIP_ROWS, CROP_ROWS, None)
    run(tmp_path / "b", CLIP_ROWS[::-1], CROP_ROWS, None)
    for path in sorted((tmp_path / "a" / "stats").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / "stats" / path.name).read_bytes(), path.name


def test_figures_of_a_synthetic_catalogue_are_those_of_plain_loops(tmp_path: Path) -> None:
    write_catalogue(tmp_path, 3_000, seed=1)
    paths = [tmp_path / f"{name}.parquet" for name in ("clips", "crops", "samples")]
    summary, characters = measure(paths[0], paths[1], paths[2])
    clips, crops = (pq.read_table(path).to_pylist() for path in paths[:2])
    for split in ("train", "valid", "test"):
        kept = [
            (c, r) for c, r in zip(clips, crops, strict=True) if c["split"] == split and r["status"] == "ok"
        ]
        figures = summary["splits"]["splits"][split]
        assert figures["ok"] == figures["packed"] == len(kept)
        assert figures["hours"] == round(sum(r["duration_s"] for _, r in kept) / 3600, 4)
        assert figures["median_chars"] == statistics.median(c["num_chars"] for c, _ in kept)
        assert characters[split] == Counter("".join(c["label"] for c, _ in kept))
    topics = Counter(c["topic"] for c in clips)
    assert {topic: figures["clips"] for topic, figures in summary["topics"].items()} == topics


def test_ctrl_c_stops_stats_while_duckdb_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of its questions is replaced by one that takes hours; the signal comes while DuckDB is at it."""
    write_table(tmp_path / "clips.parquet", table_from_rows([clip("a", "train", "字")], CLIPS), CLIPS)
    endless = "SELECT count(*) FROM range(100000000) a, range(100000) b WHERE (a.range * b.range) % 7 = 3"
    monkeypatch.setattr(stats_module, "_shards", lambda connection, _: connection.execute(endless).fetchall())
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    begin_s = time.monotonic()
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(Interrupted, match=r"^stats: stopped$"):
            measure(tmp_path / "clips.parquet", None, None)
    finally:
        timer.cancel()
        signal.signal(signal.SIGINT, former)
    assert time.monotonic() - begin_s < 30
