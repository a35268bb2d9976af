"""Stage ingest: clips.parquet against the csv module, and real GRID."""

import csv
import logging
import re
import sys
from collections import Counter
from pathlib import Path

import av
import cv2
import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest

from model.settings import TextParams
from model.text import describe_normaliser, describe_stored_normaliser
from shards.errors import CorpusError
from shards.files import read_table
from shards.schema import CLIPS
from stages.ingest import ingest
from stages.mouths import media_kind
from stages.settings import CorpusParams, CropParams
from stages.videos.media import resolve_media
from stages.videos.video import decode
from tests.support.ingested import CROP, TEXT, corpus_of
from tests.support.sources import gray_HW
from tests.support.videos import number_of, numbered, write_mouth
from tests.support.videos import write_video as write_numbered

ingest_module = sys.modules[ingest.__module__]


def write_video(path: Path, width: int, height: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8))
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_a_file_above_the_cap_is_not_opened(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    write_video(root / "a.mp4", 160, 120)
    corpus = corpus_of(root, [("a", "train", "s1", "a.mp4", "一")])
    for max_mb, kind in ((1.0, "face"), (1e-6, None)):
        ingest(corpus, TEXT, CROP.model_copy(update={"max_source_mb": max_mb}), tmp_path / "clips.parquet")
        assert read_table(tmp_path / "clips.parquet", CLIPS, "ingest")["media_kind"].to_pylist() == [kind]


def test_rows_labels_and_kinds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "corpus"
    # the folder's name says mouth, the file says face, and the other way round
    write_video(root / "mouths" / "a.mp4", 160, 120)
    write_video(root / "faces" / "black.mp4", 96, 96)
    write_mouth(root / "faces" / "b.mp4", 3)
    (root / "truncated.mp4").write_bytes(b"\x00" * 100)
    write_video(tmp_path / "outside.mp4", 96, 96)
    rows = [
        ("z1", "unseen", "s9", "truncated.mp4", "一"),
        ("b", "train", "s1", "faces/b.mp4", "Hello, World 你好!"),
        ("a", "train", "s1", "mouths/a.mp4", "今天，天气很好。"),
        ("t", "test", "s2", "../outside.mp4", "二"),
        ("v", "valid", "", "gone.mp4", ""),
        ("u", "test", "s2", str(tmp_path / "outside.mp4"), "三"),
        ("w", "test", "s2", "", "四"),
        ("x", "test", "s2", "faces", "五"),
        ("y", "unseen", "s9", "faces/black.mp4", "六"),
    ]
    path = tmp_path / "data" / "clips.parquet"
    with caplog.at_level(logging.WARNING):
        summary = ingest(corpus_of(root, rows), TEXT, CROP, path)
    table = read_table(path, CLIPS, "pipeline ingest").to_pylist()
    assert [row["clip_id"] for row in table] == ["a", "b", "v", "t", "u", "w", "x", "y", "z1"]
    by_id = {row["clip_id"]: row for row in table}
    kinds = {clip_id: row["media_kind"] for clip_id, row in by_id.items()}
    assert kinds == dict.fromkeys("tuvwx") | {"a": "face", "b": "mouth", "y": "face", "z1": None}
    assert by_id["b"]["label"] == "hello world你好"
    assert by_id["b"]["num_chars"] == len("hello world你好")
    assert by_id["a"]["text"] == "今天，天气很好。"
    assert by_id["a"]["label"] == "今天天气很好"
    assert by_id["t"]["media"] == "../outside.mp4"
    assert summary.clips_path == path
    assert summary.clips_by_split == {"train": 2, "valid": 1, "test": 4, "unseen": 2}
    assert summary.clips_by_kind == {"face": 2, "mouth": 1}
    assert summary.speakers_by_split == {"train": 1, "valid": 0, "test": 1, "unseen": 1}
    assert (summary.num_missing, summary.num_outside) == (3, 2)
    warnings = [record.getMessage() for record in caplog.records if "crop will reject" in record.getMessage()]
    assert [[line.rpartition(": ")[2] for line in one.split("\n")[-3:]] for one in warnings] == [
        ["v", "w", "x"],
        ["t, u"],
        ["z1"],
    ]
    assert ["no file below" in one for one in warnings] == [True, False, False]
    assert summary.shared_speakers == {}
    assert describe_stored_normaliser(pq.read_schema(path).metadata, path) == describe_normaliser(TEXT)


def test_each_kind_of_fault_is_reported_with_its_count_and_its_first_clip(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "corpus of 2"
    (root / "a 1").mkdir(parents=True)
    (tmp_path / "far").mkdir()
    rows = []
    for number in range(40):
        names = {
            f"empty{number:02d}": f"a 1/clip {number}.mp4",
            f"noise{number:02d}": f"noise{number}.mp4",
            f"zip{number:02d}": f"{number}.zip!inner {number}.mp4",
            f"link{number:02d}": f"link{number}.mp4",
            f"up{number:02d}": f"../far/{number}.mp4",
        }
        (root / names[f"empty{number:02d}"]).touch()
        (root / names[f"noise{number:02d}"]).write_bytes(bytes(100))
        (root / f"{number}.zip").write_bytes(b"PK" + bytes(100))
        (tmp_path / "far" / f"{number}.mp4").touch()
        (root / f"link{number}.mp4").symlink_to(tmp_path / "far" / f"{number}.mp4")
        # as many of each kind as its place in the row
        rows += [
            (clip_id, "train", "s1", media, "一")
            for place, (clip_id, media) in enumerate(names.items(), start=1)
            if number < 8 * place
        ]
    with caplog.at_level(logging.WARNING):
        ingest(corpus := corpus_of(root, rows), TEXT, CROP, tmp_path / "clips.parquet")
    outside, unreadable = (one for one in caplog.messages if "crop will reject" in one)
    kinds = {
        "zip": "is damaged or not a zip",
        "noise": "is not a video file that FFmpeg can read",
        "empty": "is empty",
    }
    lines = [
        rf"  {count} \(\S+.*/clips\.csv:\d+: .*{kinds[kind]}.*\): {kind}00, {kind}01, {kind}02, {kind}03, {kind}04, …"
        for count, kind in ((24, "zip"), (16, "noise"), (8, "empty"))
    ]
    head = "48 of 120 clips have a file that cannot be read; crop will reject them:"
    assert re.fullmatch("\n".join([head, *lines]), unreadable), unreadable
    assert re.fullmatch(
        r"72 of 120 clips .*:\n  40 \(.*far/0\.mp4 leads out .*\): up00, .*\n  32 \(.*link0\.mp4 .*\): link00, .*",
        outside,
    ), outside
    caplog.clear()
    monkeypatch.setattr(ingest_module, "NAMES_SHOWN", 2)
    with caplog.at_level(logging.WARNING):
        ingest(corpus, TEXT, CROP, tmp_path / "clips.parquet")
    assert caplog.messages[-1].split("\n")[-1] == "  8 for 1 other reasons"


@pytest.mark.parametrize("setting", ["face", "mouth"])
def test_the_setting_is_the_kind_of_all_that_can_be_read(tmp_path: Path, setting: str) -> None:
    root = tmp_path / "corpus"
    rows = [(name, "train", "s1", f"{name}.mp4", "一") for name in ("face", "gone", "mouth")]
    corpus = corpus_of(root, rows)
    write_video(root / "face.mp4", 640, 360)
    write_mouth(root / "mouth.mp4", 3)
    path = tmp_path / "clips.parquet"
    summary = ingest(corpus.model_copy(update={"media_kind": setting}), TEXT, CROP, path)
    assert read_table(path, CLIPS, "ingest")["media_kind"].to_pylist() == [setting, None, setting]
    assert summary.clips_by_kind == {setting: 2}


def test_a_picture_that_opencv_refuses_ends_no_ingest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise cv2.error("an odd picture")

    monkeypatch.setattr(media_kind, "mouth_score", refuse)
    corpus = corpus_of(tmp_path / "c", [("a", "train", "s1", "a.mp4", "一")])
    write_mouth(tmp_path / "c" / "a.mp4", 3)
    ingest(corpus, TEXT, CROP, tmp_path / "clips.parquet")
    assert read_table(tmp_path / "clips.parquet", CLIPS, "ingest")["media_kind"].to_pylist() == [None]


def test_the_table_hangs_on_the_rows_and_not_on_their_order(tmp_path: Path) -> None:
    rows = [(f"c{i}", "train" if i % 2 else "test", f"s{i % 2}", f"{i}.mp4", "字" * i) for i in range(9)]
    ingest(corpus_of(tmp_path / "a", rows), TEXT, CROP, tmp_path / "a.parquet")
    ingest(corpus_of(tmp_path / "b", rows[::-1]), TEXT, CROP, tmp_path / "b.parquet")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def parts_of(root: Path, rows: list[tuple[str, ...]]) -> CorpusParams:
    """A table of clip_id, split, media, start, end, text."""
    root.mkdir(parents=True, exist_ok=True)
    lines = [",".join(row) for row in (("clip_id", "split", "media", "start", "end", "text"), *rows)]
    (root / "clips.csv").write_text("\n".join(lines), "utf-8")
    return CorpusParams(kind="table", root=str(root))


@pytest.mark.parametrize("split_long", [False, True])
def test_parts_of_a_video_are_clips_of_their_own(tmp_path: Path, split_long: bool) -> None:
    root = tmp_path / "corpus"
    root.mkdir()
    write_numbered(root / "a.mp4", map(numbered, range(50)))
    (root / "a.srt").write_text("1\n00:00:00,000 --> 00:00:02,000\n一二三\n", "utf-8")
    rows = [
        ("first", "train", "a.mp4", "", "0.4", "一"),
        ("middle", "train", "a.mp4", "00:00:00.400", "00:00:01", "二"),
        ("last", "train", "a.mp4", "1", "", "三"),
    ]
    path = tmp_path / "clips.parquet"
    # the whole is too long, which asks for no cuts where the parts are given
    ingest(parts_of(root, rows), TEXT, CropParams(split_long=split_long, max_frames=30), path)
    found = {row["clip_id"]: row for row in read_table(path, CLIPS, "ingest").to_pylist()}
    assert {name: (row["start_s"], row["end_s"], row["label"]) for name, row in found.items()} == {
        "first": (None, 0.4, "一"),
        "middle": (0.4, 1.0, "二"),
        "last": (1.0, None, "三"),
    }
    shown = {
        name: [
            number_of(gray_HW(frame))
            for frame in decode(resolve_media(root, row["media"], row["start_s"], row["end_s"]), CROP)
        ]
        for name, row in found.items()
    }
    assert shown == {"first": [*range(10)], "middle": [*range(10, 25)], "last": [*range(25, 50)]}


@pytest.mark.parametrize(
    ("rows", "is_refused"),
    [
        ([("a.mp4", "", "", "你好"), ("a.mp4", "", "", "再见")], True),
        ([("a.mp4", "", "", "你好"), ("./a.mp4", "0", "", "再见")], True),
        ([("é.mp4", "", "", "你好"), ("e\u0301.mp4", "", "", "再见")], True),
        ([("a.mp4", "1", "2", "你好"), ("a.mp4", "1.0", "0:02", "再见")], True),
        # the same label, or none
        ([("a.mp4", "", "", "你好"), ("a.mp4", "", "", "你好。")], False),
        ([("a.mp4", "", "", "你好"), ("a.mp4", "", "", "")], False),
        ([("a.mp4", "", "1", "你好"), ("a.mp4", "1", "", "再见")], False),
        ([("a.mp4", "", "", "你好"), ("b.mp4", "", "", "再见")], False),
        ([("", "", "", "你好"), ("", "", "", "再见")], False),
    ],
)
def test_two_texts_of_one_stretch_of_video_stop(
    rows: list[tuple[str, ...]], is_refused: bool, tmp_path: Path
) -> None:
    corpus = parts_of(tmp_path, [(f"c{i}", "train", *row) for i, row in enumerate(rows)])
    path = tmp_path / "clips.parquet"
    if not is_refused:
        ingest(corpus, TEXT, CROP, path)
        return
    with pytest.raises(
        CorpusError,
        match=r"clips\.csv:3: .*\.mp4 has another text here \('再见'\) than at .*clips\.csv:2 "
        r"\('你好'\): .* columns start and end",
    ):
        ingest(corpus, TEXT, CROP, path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (("1500", "2500"), "from 1500 s to 2500 s of a.mp4, which lasts 2.00 s"),
        (("1", "99"), "from 1 s to 99 s of a.mp4"),
        (("50", ""), "from 50 s to its end of a.mp4"),
        (("2", "2.1"), "from 2 s to 2.1 s of a.mp4"),
        # as much as headers round
        (("1", "2.2"), None),
        (("1.9", ""), None),
        (("", ""), None),
    ],
)
def test_times_after_the_end_of_the_video_are_reported(
    tmp_path: Path, times: tuple[str, str], expected: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    write_numbered(tmp_path / "a.mp4", map(numbered, range(50)))
    rows = [("fine", "train", "a.mp4", "0", "1", "一"), ("late", "train", "a.mp4", *times, "二")]
    with caplog.at_level(logging.WARNING):
        ingest(parts_of(tmp_path, rows), TEXT, CROP, tmp_path / "clips.parquet")
    found = [record.getMessage() for record in caplog.records if "after the end of" in record.getMessage()]
    assert len(found) == (expected is not None)
    if expected is not None:
        assert "1 of 2 clips" in found[0] and f"clips.csv:3: {expected}" in found[0]
        assert found[0].endswith("times must be in seconds, check that these are not milliseconds): late")


ANNOTATED = [
    ("a", "train", "s1", "a.mp4", "[noise] 你好(笑)(中国)"),
    ("b", "train", "s1", "b.mp4", "[Noise]"),
]


def test_annotations_are_dropped_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "clips.parquet"
    params = TextParams(drop_annotations=True)
    summary = ingest(corpus_of(tmp_path / "c", ANNOTATED), params, CROP, path)
    assert summary.annotations == {"[noise]": 2, "(笑)": 1}
    assert summary.kept_in_brackets == {"(中国)": 1}
    assert read_table(path, CLIPS, "ingest")["label"].to_pylist() == ["你好中国", ""]
    assert "annotations in the transcripts" not in caplog.text


def test_annotations_that_become_letters_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "clips.parquet"
    summary = ingest(corpus_of(tmp_path / "c", ANNOTATED), TEXT, CROP, path)
    assert summary.annotations == {"[noise]": 2, "(笑)": 1}
    assert read_table(path, CLIPS, "ingest")["label"].to_pylist() == ["noise你好笑中国", "noise"]
    assert (
        "3 annotations in the transcripts become part of the labels: [noise] (2), (笑) (1); to drop them, set"
        in caplog.text
    )


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
