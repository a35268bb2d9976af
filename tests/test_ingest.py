"""Stage ingest: clips.parquet against the csv module, and real GRID."""

import csv
import logging
from collections import Counter
from pathlib import Path

import av
import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from model.settings import TextParams
from model.text import describe_mark, describe_normaliser
from shards.errors import CorpusError
from shards.files import read_table
from shards.schema import CLIPS
from stages.corpora import Transcript
from stages.ingest import _shared_speakers, ingest
from stages.settings import CorpusParams, CropParams

TEXT, CROP = TextParams(), CropParams()


def write_video(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8))
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def corpus_of(root: Path, rows: list[tuple[str, str, str, str, str]], overlap: str = "error") -> CorpusParams:
    root.mkdir(parents=True, exist_ok=True)
    with (root / "clips.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("clip_id", "split", "speaker", "media", "text"))
        writer.writerows(rows)
    return CorpusParams.model_validate({"kind": "table", "root": str(root), "speaker_overlap": overlap})


def test_a_file_above_the_cap_is_not_opened(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    write_video(root / "a.mp4", 160, 120)
    corpus = corpus_of(root, [("a", "train", "s1", "a.mp4", "一")])
    for max_mb, kind in ((1.0, "face"), (1e-6, None)):
        ingest(corpus, TEXT, CROP.model_copy(update={"max_source_mb": max_mb}), tmp_path / "clips.parquet")
        assert read_table(tmp_path / "clips.parquet", CLIPS, "ingest")["media_kind"].to_pylist() == [kind]


def test_rows_labels_and_kinds(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    # the folder's name says mouth, the file says face, and the other way round
    write_video(root / "mouths" / "a.mp4", 160, 120)
    write_video(root / "faces" / "b.mp4", 96, 96)
    (root / "torso.mp4").write_bytes(b"\x00" * 100)
    write_video(tmp_path / "outside.mp4", 96, 96)
    rows = [
        ("z1", "unseen", "s9", "torso.mp4", "一"),
        ("b", "train", "s1", "faces/b.mp4", "Hello, World 你好!"),
        ("a", "train", "s1", "mouths/a.mp4", "今天，天气很好。"),
        ("t", "test", "s2", "../outside.mp4", "二"),
        ("v", "valid", "", "gone.mp4", ""),
        ("u", "test", "s2", str(tmp_path / "outside.mp4"), "三"),
        ("w", "test", "s2", "", "四"),
        ("x", "test", "s2", "faces", "五"),
    ]
    path = tmp_path / "data" / "clips.parquet"
    summary = ingest(corpus_of(root, rows), TEXT, CROP, path)
    table = read_table(path, CLIPS, "pipeline ingest").to_pylist()
    assert [row["clip_id"] for row in table] == ["a", "b", "v", "t", "u", "w", "x", "z1"]
    by_id = {row["clip_id"]: row for row in table}
    kinds = {clip_id: row["media_kind"] for clip_id, row in by_id.items()}
    assert kinds == dict.fromkeys("tuvwx") | {"a": "face", "b": "mouth", "z1": None}
    assert by_id["b"]["label"] == "hello world你好"
    assert by_id["b"]["num_chars"] == len("hello world你好")
    assert by_id["a"]["text"] == "今天，天气很好。"
    assert by_id["a"]["label"] == "今天天气很好"
    assert by_id["t"]["media"] == "../outside.mp4"
    assert summary.clips_path == path
    assert summary.clips_by_split == {"train": 2, "valid": 1, "test": 4, "unseen": 1}
    assert summary.speakers_by_split == {"train": 1, "valid": 0, "test": 1, "unseen": 1}
    assert (summary.num_missing, summary.first_missing) == (5, ("v", "t", "u", "w", "x"))
    assert summary.shared_speakers == {}
    assert describe_mark(pq.read_schema(path).metadata, path) == describe_normaliser(TEXT)


def test_the_table_hangs_on_the_rows_and_not_on_their_order(tmp_path: Path) -> None:
    rows = [(f"c{i}", "train" if i % 2 else "test", f"s{i % 2}", "m.mp4", "字" * i) for i in range(9)]
    ingest(corpus_of(tmp_path / "a", rows), TEXT, CROP, tmp_path / "a.parquet")
    ingest(corpus_of(tmp_path / "b", rows[::-1]), TEXT, CROP, tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_speaker_overlap_stops_or_warns(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [(f"c{i}", split, "li", "m.mp4", "字") for i, split in enumerate(["test", "train"])]
    path = tmp_path / "clips.parquet"
    with pytest.raises(CorpusError, match=r"li in train, test; .* set corpus.speaker_overlap to warn"):
        ingest(corpus_of(tmp_path / "c", rows), TEXT, CROP, path)
    assert not path.exists()
    with caplog.at_level(logging.WARNING):
        summary = ingest(corpus_of(tmp_path / "c", rows, "warn"), TEXT, CROP, path)
    assert summary.shared_speakers == {"li": ("train", "test")}
    assert "li in train, test" in caplog.text


def test_clips_of_unknown_speakers_do_not_overlap() -> None:
    clips = [
        Transcript(str(i), split, None, None, None, None, "m", "t", "f:1") for i, split in enumerate("ab")
    ]
    assert _shared_speakers(clips) == {}


def test_a_corpus_that_stops_leaves_the_old_table(tmp_path: Path) -> None:
    path = tmp_path / "clips.parquet"
    row = ("a", "train", "s", "m.mp4", "字")
    ingest(corpus_of(tmp_path / "c", [row]), TEXT, CROP, path)
    before = path.read_bytes()
    with pytest.raises(CorpusError, match=r"clips.csv:3"):
        ingest(corpus_of(tmp_path / "c", [row, row]), TEXT, CROP, path)
    assert path.read_bytes() == before


@pytest.mark.realdata
def test_all_of_grid_is_ingested(realdata: Path, tmp_path: Path) -> None:
    path = tmp_path / "clips.parquet"
    corpus = CorpusParams(kind="grid", root=str(realdata / "grid"), speaker_overlap="warn")
    summary = ingest(corpus, TEXT, CROP, path)
    with (realdata / "grid" / "splits.csv").open(encoding="utf-8") as file:
        expected = Counter(row["split"] for row in csv.DictReader(file))
    assert summary.clips_by_split == expected == {"train": 800, "valid": 50, "test": 50, "unseen": 10}
    assert summary.num_missing == 0
    assert summary.shared_speakers == {"s1": ("train", "valid", "test")}
    with duckdb.connect() as connection:
        found = connection.execute(
            "SELECT count(*), count(DISTINCT clip_id), count(*) FILTER (media_kind = 'face'), min(num_chars) > 10 "
            "FROM read_parquet(?)",
            [str(path)],
        ).fetchone()
    assert found == (910, 910, 910, True)
    rows = {row["clip_id"]: row for row in pq.read_table(path).to_pylist()}
    assert rows["s1_bbaf2n"]["text"] == rows["s1_bbaf2n"]["label"] == "bin blue at f two now"
    assert rows["s1_bbaf2n"]["num_chars"] == 21
