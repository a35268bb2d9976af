"""Stage stats, with collections.Counter and plain sums as referees."""

import os
import signal
import statistics
import threading
import time
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from benchmarks.synthetic_catalogue import write_catalogue
from model.settings import TextParams
from model.text import normaliser_metadata
from shards.errors import Interrupted, TableError
from shards.files import table_from_rows, write_table
from shards.schema import CLIPS, CROPS, SAMPLES
from stages import stats as stats_module
from stages.statistics.tables import print_stats
from stages.stats import FRAME_BIN, UNKNOWN, measure, stats
from tests.support.stats_tables import CLIP_ROWS, CROP_ROWS, Row, clip, crop, plot, run, sample, write


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


@pytest.mark.parametrize("rows_a_pass", [2, 4_000_000])
def test_copies_of_a_video_in_several_splits_are_counted_under_whatever_names(
    tmp_path: Path, rows_a_pass: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.statistics.join_tables.ROWS_A_PASS", rows_a_pass)
    # a and d are one video, as are b, e and g, and c and f, of which only rejected clips show it
    keys = dict(zip("abcdefg", ("k1", "k2", "k3", "k1", "k2", "k3", "k2"), strict=True))
    crops = [row | {"clip_key": keys[row["clip_id"]]} for row in CROP_ROWS]
    copies = run(tmp_path, CLIP_ROWS, crops, None)["overlap"]["copies"]
    assert copies == {
        "num_videos": 2,
        "clips": {"train": 2, "valid": 1, "test": 2},
        "examples": [["a", "d"], ["b", "e", "g"]],
    }
    assert list(copies["clips"]) == ["train", "valid", "test"]
    table = pq.read_table(tmp_path / "stats" / "stats.parquet").to_pylist()
    of_test = [row for row in table if row["figure"] == "copied_clips" and row["split"] == "test"]
    assert [row["value"] for row in of_test] == [2]
    same_split = [row | {"clip_key": "k"} for row in CROP_ROWS[:2]]
    assert run(tmp_path, CLIP_ROWS[:2], same_split, None)["overlap"]["copies"]["num_videos"] == 0
    assert run(tmp_path, CLIP_ROWS, None, None)["overlap"]["copies"] is None


def printed(summary: dict[str, Any]) -> str:
    out = StringIO()
    print_stats(summary, Console(file=out, width=200))
    return out.getvalue()


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


def test_a_corpus_only_ingested(tmp_path: Path) -> None:
    summary = run(tmp_path, CLIP_ROWS, None, None)
    train = summary["splits"]["splits"]["train"]
    assert summary["splits"]["counted"] == "all clips"
    assert [train[name] for name in ("ok", "rejected", "packed", "hours", "mean_frames")] == [None] * 5
    assert (train["clips"], train["characters"], train["distinct_characters"]) == (3, 7, 4)
    assert summary["rejections"] == {"rejected": None, "by_reason": None, "by_split": None}
    assert (tmp_path / "stats" / "clip_frames.csv").read_text() == "num_frames,clips\n"
    assert sum(plot(tmp_path / "stats" / "label_lengths.csv").values()) == 7


def test_without_train_there_is_no_vocabulary_to_be_out_of(tmp_path: Path) -> None:
    vocabulary = run(tmp_path, [clip("a", "night", "好")], None, None)["vocabulary"]
    assert vocabulary["reference"] is None
    assert vocabulary["splits"]["night"]["out_of_vocabulary_rate"] is None


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


@pytest.mark.parametrize(
    ("crops", "message"),
    [
        (CROP_ROWS[1:], r"crops.parquet does not match the clips \(0 unknown, 0 duplicated, 1 missing\)"),
        ([*CROP_ROWS, crop("zz", 5)], r"1 unknown.*run `pipeline crop` again"),
        ([*CROP_ROWS, CROP_ROWS[0]], r"1 duplicated"),
    ],
)
def test_a_ledger_of_other_clips_is_refused(tmp_path: Path, crops: list[Row], message: str) -> None:
    with pytest.raises(TableError, match=message):
        run(tmp_path, CLIP_ROWS, crops, None)


def test_samples_of_other_clips_are_refused_and_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"samples.parquet .* run `pipeline pack` again"):
        run(tmp_path, CLIP_ROWS, CROP_ROWS, [sample(clip("zz", "train", "好"))])
    with pytest.raises(TableError, match=r"none.parquet is missing; run `pipeline ingest`"):
        stats(tmp_path / "none.parquet", None, None, tmp_path / "stats")


def test_tables_of_another_corpus_can_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As after `pipeline ingest` of another corpus: crops and samples are still of the one before."""
    alone = run(tmp_path / "alone", CLIP_ROWS, None, None)
    other = clip("zz", "train", "好")
    write_table(tmp_path / "clips.parquet", table_from_rows(CLIP_ROWS, CLIPS), CLIPS)
    write_table(tmp_path / "crops.parquet", table_from_rows([crop("zz", 5)], CROPS), CROPS)
    write_table(tmp_path / "samples.parquet", table_from_rows([sample(other)], SAMPLES), SAMPLES)
    paths = [tmp_path / f"{name}.parquet" for name in ("clips", "crops", "samples")]
    found = stats(paths[0], paths[1], paths[2], tmp_path / "stats", leave_out_others=True)
    assert found == alone
    assert [record.args[-1] for record in caplog.records] == ["pipeline crop", "pipeline pack"]  # type: ignore[index]
    doubled = table_from_rows([*CROP_ROWS, CROP_ROWS[0]], CROPS)
    write_table(paths[1], doubled, CROPS)
    with pytest.raises(TableError, match="1 duplicated"):
        stats(paths[0], paths[1], None, tmp_path / "stats", leave_out_others=True)


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


def test_figures_do_not_depend_on_the_parts_that_are_joined_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [sample(row) for row in CLIP_ROWS if row["clip_id"] in "abd"]
    whole = run(tmp_path / "whole", CLIP_ROWS, CROP_ROWS, samples)
    monkeypatch.setattr("stages.statistics.join_tables.ROWS_A_PASS", 2)
    assert run(tmp_path / "parts", CLIP_ROWS, CROP_ROWS[::-1], samples) == whole
    with pytest.raises(TableError, match=r"\(1 unknown, 1 duplicated, 1 missing\)"):
        run(tmp_path, CLIP_ROWS, [*CROP_ROWS[1:], CROP_ROWS[-1], crop("zz", 5)], None)
    doubled = [*samples, samples[0]]
    with pytest.raises(TableError, match=r"samples.parquet .*\(0 unknown, 1 duplicated\)"):
        run(tmp_path, CLIP_ROWS, CROP_ROWS, doubled)


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


@pytest.mark.parametrize("name", ["clips", "crops", "samples"])
def test_a_table_damaged_within_is_named(tmp_path: Path, name: str) -> None:
    write_catalogue(tmp_path, 3_000)
    path = tmp_path / f"{name}.parquet"
    payload = bytearray(path.read_bytes())
    payload[4:40_000] = bytes(39_996)
    path.write_bytes(payload)
    with pytest.raises(TableError, match=rf"(?s){name}.parquet is damaged .*again"):
        measure(*(tmp_path / f"{table}.parquet" for table in ("clips", "crops", "samples")))


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
