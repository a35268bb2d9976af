"""Stage ingest: speakers and videos in several splits, and the names of speakers and splits."""

import logging
from pathlib import Path

import pytest

from shards.errors import CorpusError
from shards.files import read_table
from shards.schema import CLIPS
from stages.ingest import ingest
from tests.support.ingested import CROP, TEXT, corpus_of


def test_speaker_overlap_stops_or_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [(f"c{i}", split, "li", f"{i}.mp4", "字") for i, split in enumerate(["test", "train"])]
    path = tmp_path / "clips.parquet"
    with pytest.raises(CorpusError, match=r"li in train, test; .* set corpus.speaker_overlap to warn"):
        ingest(corpus_of(tmp_path / "c", rows), TEXT, CROP, path)
    assert not path.exists()
    with caplog.at_level(logging.WARNING):
        summary = ingest(corpus_of(tmp_path / "c", rows, "warn"), TEXT, CROP, path)
    assert summary.shared_speakers == {"li": ("train", "test")}
    assert "li in train, test" in caplog.text


def test_names_that_differ_in_case_or_width_are_one_speaker(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = {"s1": "train", "S1": "valid", "Ｓ1": "test", "S2": "test", "s-2": "train", "s\u200b1": "train"}
    rows = [(f"c{i}", split, name, f"{i}.mp4", "字") for i, (name, split) in enumerate(names.items())]
    path = tmp_path / "clips.parquet"
    with pytest.raises(CorpusError, match=r"^1 speaker is in several splits: S1 in train, valid, test;"):
        ingest(corpus_of(tmp_path / "c", rows), TEXT, CROP, path)
    assert "are treated as one person: S1 = s1 = s\u200b1 = Ｓ1;" in caplog.text
    summary = ingest(corpus_of(tmp_path / "c", rows, "warn"), TEXT, CROP, path)
    assert summary.shared_speakers == {"S1": ("train", "valid", "test")}
    assert summary.speakers_by_split == {"train": 2, "valid": 1, "test": 2}
    assert set(read_table(path, CLIPS, "ingest")["speaker"].to_pylist()) == {"S1", "S2", "s-2"}


@pytest.mark.parametrize("speakers", [("", ""), ("li", "wang"), ("li", "")])
def test_one_video_in_two_splits_stops_or_warns(
    speakers: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its test clip is learnt by heart, whoever is said to speak."""
    rows = [
        ("a", "train", speakers[0], "v/m.mp4", "字"),
        ("b", "test", speakers[1], "./v//m.mp4", "字"),
        ("c", "train", "", "v/n.mp4", "字"),
        ("d", "train", "", "v/n.mp4", "字"),
        ("e", "test", "", "", "没"),
        ("f", "train", "", "", "没"),
    ]
    path = tmp_path / "clips.parquet"
    with pytest.raises(
        CorpusError, match=r"^1 video is in .*: v/m\.mp4 in train, test; .* corpus.speaker_overlap"
    ):
        ingest(corpus_of(tmp_path / "c", rows), TEXT, CROP, path)
    assert not path.exists()
    with caplog.at_level(logging.WARNING):
        summary = ingest(corpus_of(tmp_path / "c", rows, "warn"), TEXT, CROP, path)
    assert summary.shared_videos == {"v/m.mp4": ("train", "test")}
    assert "v/m.mp4 in train, test" in caplog.text
    assert path.exists()


@pytest.mark.parametrize(
    ("splits", "speakers", "is_said"),
    [
        (("train", "test"), ("", ""), True),
        (("train", "test"), ("li", ""), False),
        (("train", "train"), ("", ""), False),
    ],
)
def test_that_nobody_is_named_is_said_where_splits_could_share_people(
    splits: tuple[str, str],
    speakers: tuple[str, str],
    is_said: bool,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pairs = zip(splits, speakers, strict=True)
    rows = [(f"c{i}", split, speaker, f"{i}.mp4", "字") for i, (split, speaker) in enumerate(pairs)]
    with caplog.at_level(logging.WARNING):
        ingest(corpus_of(tmp_path / "c", rows), TEXT, CROP, tmp_path / "clips.parquet")
    assert ("no clip names its speaker" in caplog.text) == is_said


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        (("TRAIN", "dev"), "no split is named train or valid"),
        (("train", "dev"), "no split is named valid"),
        (("Train", "valid"), "no split is named train"),
        (("train", "valid"), None),
    ],
)
def test_splits_of_other_names_are_reported_before_cropping(
    splits: tuple[str, str], expected: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [(f"c{i}", split, f"s{i}", f"{i}.mp4", "字") for i, split in enumerate(splits)]
    with caplog.at_level(logging.WARNING):
        ingest(corpus_of(tmp_path / "c", rows), TEXT, CROP, tmp_path / "clips.parquet")
    if expected is None:
        assert "no split" not in caplog.text
    else:
        assert expected in caplog.text
        assert all(split in caplog.text for split in splits)
