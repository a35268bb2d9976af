"""`pipeline label`: a model's texts become a table, a person corrects it, and ingest reads it as a corpus."""

import csv
import os
import re
import signal
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from model.settings import TextParams
from pipeline.cli import app
from pipeline.inference import labelling
from shards.errors import ConfigError
from shards.files import read_table
from shards.schema import CLIPS, CROPS
from shards.settings import MachineParams
from stages.crop import crop
from stages.ingest import ingest
from stages.settings import CorpusParams, CropParams
from stages.videos.video import read_header
from tests.support.crop_runs import forked_workers
from tests.support.odd_videos import with_sound
from tests.support.readers import CountingReader
from tests.support.videos import EACH_ALONE, face_pictures, placed, write_face, write_video

pytestmark = pytest.mark.usefixtures("networks_once")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two talks, one with a second without a face, and a file that is no video."""
    folder = tmp_path_factory.mktemp("talks")
    faces = list(face_pictures([placed()] * 75, speaking=True))
    faces[25:50] = [faces[0] * 0 + 90] * 25
    (folder / "第 1 天").mkdir()
    write_video(folder / "第 1 天" / "talk.mp4", faces, options=EACH_ALONE)
    write_face(folder / "b.mp4", 30, speaking=True)
    (folder / "notes.txt").write_text("no video")
    return folder


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> CountingReader:
    reader = CountingReader(texts=["we go", "so, we go", ""])
    monkeypatch.setattr(labelling, "open_reader", lambda *_: reader)
    return reader


def label(*arguments: str | Path, last: Sequence[str] = ()) -> Result:
    # any file: a test's reader opens none
    model = ["--checkpoint", str(ROOT / "README.md"), "--params", str(ROOT / "params.yaml")]
    return CliRunner().invoke(app, ["label", *map(str, arguments), *model, *last])


def rows_of(table: Path) -> list[dict[str, str]]:
    with table.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_label_correct_ingest_and_crop(recorded: Path, reader: CountingReader) -> None:
    table = recorded / "labels.csv"
    done = label(recorded, "--out", table)
    assert done.exit_code == 0, done.output
    assert "3 clips of 2 videos, 3 s" in done.output
    assert re.search(r"skipped 1 files .*notes\.txt", done.output)
    rows = rows_of(table)
    assert list(rows[0]) == [
        *("clip_id", "media", "split", "start", "end", "text", "confidence"),
        *("candidate_1", "share_1", "candidate_2", "share_2"),
    ]
    assert [(row["media"], row["start"], row["end"], row["text"]) for row in rows] == [
        ("b.mp4", "0.0", "1.2", "we go"),
        ("第 1 天/talk.mp4", "0.0", "1.0", "so, we go"),
        ("第 1 天/talk.mp4", "2.0", "3.0", ""),
    ]
    assert [row["clip_id"].rpartition("_")[2] for row in rows] == ["000", "000", "001"]
    assert rows[0]["confidence"] == "0.5" and rows[0]["candidate_2"] == "x"

    # as a person does in a spreadsheet: a correction is certain
    rows[1] |= {"text": "你好", "confidence": ""}
    corrected = recorded / "corrected.csv"
    with corrected.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    corpus = CorpusParams(kind="table", root=str(recorded), table="corrected.csv", unlabelled="keep")
    tables = [recorded / "out" / f"{name}.parquet" for name in ("clips", "crops", "tracks")]
    ingest(corpus, TextParams(), CropParams(), tables[0])
    clips = read_table(tables[0], CLIPS, "ingest").to_pylist()
    clips.sort(key=lambda clip: (clip["media"], clip["clip_id"]))
    assert [
        (clip["split"], clip["label"], clip["start_s"], clip["end_s"], clip["confidence"]) for clip in clips
    ] == [
        ("train", "we go", None, 1.2, 0.5),
        ("train", "你好", None, 1.0, None),
        ("unlabelled", "", 2.0, 3.0, 0.5),
    ]
    with forked_workers():
        crop(corpus, CropParams(), MachineParams(workers=1, cache_dir=str(recorded / "cache")), *tables)
    ledger = read_table(tables[1], CROPS, "crop").to_pylist()
    assert sorted((row["status"], row["num_frames"]) for row in ledger) == [
        ("ok", 25),
        ("ok", 25),
        ("ok", 30),
    ]


def test_a_parquet_table_is_read_back_too(recorded: Path, reader: CountingReader, tmp_path: Path) -> None:
    assert label(recorded / "b.mp4", "--out", tmp_path / "labels.parquet", "--root", recorded).exit_code == 0
    found = pq.read_table(tmp_path / "labels.parquet")
    assert found.to_pylist()[0]["end"] == 1.2 and found["share_1"].type == "double"
    (recorded / "labels.parquet").write_bytes((tmp_path / "labels.parquet").read_bytes())
    corpus = CorpusParams(kind="table", root=str(recorded), table="labels.parquet")
    ingest(corpus, TextParams(), CropParams(), tmp_path / "clips.parquet")
    (clip,) = read_table(tmp_path / "clips.parquet", CLIPS, "ingest").to_pylist()
    assert (clip["text"], clip["confidence"]) == ("we go", 0.5)


def test_times_count_from_the_first_picture_also_where_the_sound_begins_earlier(
    recorded: Path, reader: CountingReader, tmp_path: Path
) -> None:
    """Or the clip would be cut later than its text."""
    times_s = [0.48 + number / 25 for number in range(30)]
    silent = write_video(
        tmp_path / "silent.mp4",
        face_pictures([placed()] * 30, speaking=True),
        times_s=times_s,
        options=EACH_ALONE,
    )
    late = with_sound(silent, tmp_path / "late.mp4", "aac", 2)
    assert read_header(late).start_s > 0.4
    done = label(late, "--out", tmp_path / "labels.csv")
    assert done.exit_code == 0, done.output
    (row,) = rows_of(tmp_path / "labels.csv")
    assert float(row["start"]) == 0 and float(row["end"]) == pytest.approx(1.2, abs=0.02)


def test_a_table_that_may_hold_corrections_is_not_replaced(
    recorded: Path, reader: CountingReader, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("corrected for hours")
    done = label(recorded / "b.mp4", "--out", table, "--root", recorded)
    assert isinstance(done.exception, ConfigError) and "may hold corrections" in str(done.exception)
    assert table.read_text() == "corrected for hours"


@pytest.mark.parametrize(
    ("out", "message"),
    [("labels.xlsx", "must end in .csv or .parquet"), ("labels.csv", "is not below .*--root")],
)
def test_a_table_that_could_not_be_read_back_is_refused(
    out: str, message: str, recorded: Path, reader: CountingReader, tmp_path: Path
) -> None:
    done = label(recorded / "b.mp4", "--out", tmp_path / out)
    with pytest.raises(ConfigError, match=message):
        raise done.exception or AssertionError(done.output)
    assert not list(tmp_path.iterdir())


def test_a_video_that_cannot_be_read_is_reported_and_the_others_are_labelled(
    recorded: Path, reader: CountingReader, tmp_path: Path
) -> None:
    (tmp_path / "a b.mp4").write_bytes(b"garbage" * 99)
    (tmp_path / "a_b.mp4").write_bytes((recorded / "b.mp4").read_bytes())
    (tmp_path / "a-b.mp4").write_bytes((recorded / "b.mp4").read_bytes())
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.mp4").write_bytes((recorded / "b.mp4").read_bytes())
    done = label(tmp_path, "--out", tmp_path / "labels.csv")
    assert (
        done.exit_code == 1 and "a b.mp4: unreadable" in done.output and "1 could not be read" in done.output
    )
    rows = rows_of(tmp_path / "labels.csv")
    assert sorted(row["media"] for row in rows) == ["a-b.mp4", "a/b.mp4", "a_b.mp4"]
    assert len({row["clip_id"] for row in rows}) == 3


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of videos at which the process gets SIGTERM."""
    read_video, names = labelling.read_video, list[str]()

    def stopping(path: Path, *arguments: object) -> object:
        if path.name in names:
            os.kill(os.getpid(), signal.SIGTERM)
        return read_video(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(labelling, "read_video", stopping)
    return names


def test_an_interrupted_labelling_goes_on_as_if_it_had_not_been_interrupted(
    recorded: Path, reader: CountingReader, stop_at: list[str]
) -> None:
    assert label(recorded, "--out", recorded / "whole.csv").exit_code == 0
    reader.clips.clear()
    reader.texts = ["we go", "so, we go", ""]
    stop_at.append("talk.mp4")
    table, partial = recorded / "part.csv", recorded / "part.csv.partial.jsonl"
    done = label(recorded, "--out", table)
    assert "part.csv.partial.jsonl has the texts of 1 of 2 videos" in str(done.exception)
    assert not table.exists() and len(reader.clips) == 1
    # killed while it wrote the next line
    partial.write_bytes(partial.read_bytes() + b'{"media": "talk')
    stop_at.clear()
    assert label(recorded, "--out", table).exit_code == 0
    assert table.read_bytes() == (recorded / "whole.csv").read_bytes() and not partial.exists()
    assert len(reader.clips) == 3, "b.mp4 was read once"


def test_a_changed_video_is_read_again(
    recorded: Path, reader: CountingReader, stop_at: list[str], tmp_path: Path
) -> None:
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes((recorded / "b.mp4").read_bytes())
    stop_at.append("b.mp4")
    label(tmp_path, "--out", tmp_path / "labels.csv")
    stop_at.clear()
    (tmp_path / "a.mp4").write_bytes((recorded / "第 1 天" / "talk.mp4").read_bytes())
    reader.texts = ["one", "two", "three"]
    assert label(tmp_path, "--out", tmp_path / "labels.csv").exit_code == 0
    assert [row["text"] for row in rows_of(tmp_path / "labels.csv")] == ["one", "two", "three"]


def test_texts_of_two_models_or_settings_are_never_mixed(
    recorded: Path, reader: CountingReader, stop_at: list[str], tmp_path: Path
) -> None:
    stop_at.append("talk.mp4")
    table = tmp_path / "labels.csv"
    label(recorded, "--out", table, "--root", recorded)
    stop_at.clear()
    for other in (["--set", "decode.beam=3"], ["--set", "inference.longest_s=2"], ["--checkpoint", __file__]):
        done = label(recorded, "--out", table, "--root", recorded, last=other)
        assert isinstance(done.exception, ConfigError) and "remove the file" in str(done.exception), other
    partial = tmp_path / "labels.csv.partial.jsonl"
    for damaged in (
        b"[]\n",
        b'{"identity": 5}\n{"media": "x"}\n',
        b"\xff\n",
        partial.read_bytes() + b"[1]\n",
    ):
        partial.write_bytes(damaged)
        done = label(recorded, "--out", table, "--root", recorded)
        assert isinstance(done.exception, ConfigError) and "labels.csv.partial.jsonl" in str(done.exception)
        assert not table.exists() and partial.read_bytes() == damaged


@pytest.mark.parametrize("killed_in_first_line", [False, True])
def test_a_stop_before_the_first_video_loses_nothing(
    recorded: Path, reader: CountingReader, stop_at: list[str], killed_in_first_line: bool
) -> None:
    table = recorded / f"first-{killed_in_first_line}.csv"
    if killed_in_first_line:
        table.with_name(table.name + ".partial.jsonl").write_bytes(b'{"identi')
    stop_at.append("b.mp4")
    assert "stopped before a video was read" in str(label(recorded, "--out", table).exception)
    stop_at.clear()
    # another model has nothing to be mixed with
    done = label(recorded, "--out", table, last=["--checkpoint", __file__])
    assert done.exit_code == 0 and len(rows_of(table)) == 3


def test_a_stop_counts_only_videos_whose_texts_are_kept(
    recorded: Path, reader: CountingReader, stop_at: list[str], tmp_path: Path
) -> None:
    (tmp_path / "a.mp4").write_bytes(b"garbage" * 99)
    for name in ("b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes((recorded / "b.mp4").read_bytes())
    stop_at.append("c.mp4")
    assert "has the texts of 1 of 3 videos" in str(label(tmp_path, "--out", tmp_path / "x.csv").exception)
