"""The crop stage: every clip one row, nothing done twice, nothing lost."""

import os
import shutil
from pathlib import Path

import cv2
import pytest

from shards import schema
from shards.errors import ClipRejected, MachineError, TableError
from shards.files import read_table
from shards.schema import Reason
from stages.clips.cache import ClipCache
from stages.clips.clip_work import Clip, crop_one
from stages.settings import CropParams
from stages.videos.media import resolve_media
from tests.support.crop_runs import Run, clip_row, forked_workers, write_clips
from tests.support.videos import write_audio, write_face, write_mouth

EXPECTED = {
    "face": None,
    "mouth": None,
    "kind_unknown": None,
    "same_video": None,
    "no_label": Reason.EMPTY_TEXT,
    "no_media": Reason.MISSING_FILE,
    "missing": Reason.MISSING_FILE,
    "folder": Reason.MISSING_FILE,
    "pipe": Reason.MISSING_FILE,
    "long_name": Reason.MISSING_FILE,
    "climbs": Reason.UNSAFE_PATH,
    "absolute": Reason.UNSAFE_PATH,
    "windows": Reason.UNSAFE_PATH,
    "link_out": Reason.UNSAFE_PATH,
    "empty": Reason.UNREADABLE,
    "garbage": Reason.UNREADABLE,
    "sound": Reason.NO_VIDEO,
    "cut": Reason.TRUNCATED,
    "dense": Reason.LABEL_TOO_LONG,
    "no_face": Reason.NO_FACE,
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run over every kind of row, cropped once."""
    run = Run(tmp_path_factory.mktemp("stage"))
    root = run.root
    write_face(root / "face.mp4", 15)
    write_mouth(root / "mouth.mp4", 15)
    write_mouth(root / "texture.mp4", 15, seed=1, size=140)
    (root / "empty.mp4").write_bytes(b"")
    (root / "garbage.mp4").write_bytes(b"garbage" * 999)
    write_audio(root / "sound.wav").rename(root / "sound.mp4")
    whole = write_mouth(root / "cut.mkv", 60).read_bytes()
    (root / "cut.mkv").write_bytes(whole[: len(whole) * 6 // 10])
    write_face(run.folder / "outside.mp4", 15)
    (root / "link.mp4").symlink_to(run.folder / "outside.mp4")
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe.mp4")
    rows = [
        clip_row("face", "face.mp4"),
        clip_row("no_label", "face.mp4", label=""),
        clip_row("mouth", "mouth.mp4", media_kind="mouth"),
        clip_row("missing", "nowhere.mp4", media_kind=None),
        clip_row("no_media", "", media_kind=None),
        clip_row("folder", "folder"),
        clip_row("pipe", "pipe.mp4"),
        clip_row("long_name", "x" * 5_000),
        clip_row("climbs", "../outside.mp4"),
        clip_row("absolute", str(root / "face.mp4")),
        clip_row("windows", "..\\outside.mp4"),
        clip_row("link_out", "link.mp4"),
        clip_row("empty", "empty.mp4", media_kind=None),
        clip_row("garbage", "garbage.mp4", media_kind=None),
        clip_row("sound", "sound.mp4"),
        clip_row("cut", "cut.mkv", media_kind="mouth"),
        clip_row("dense", "face.mp4", label="字" * 50),
        clip_row("kind_unknown", "mouth.mp4", media_kind=None),
        clip_row("no_face", "texture.mp4"),
        clip_row("same_video", "face.mp4"),
    ]
    write_clips(run.folder / "clips.parquet", rows)
    run.order = [row["clip_id"] for row in rows]  # type: ignore[attr-defined]
    with forked_workers():
        run.first = run()  # type: ignore[attr-defined]
    run.first_tables = run.tables()  # type: ignore[attr-defined]
    run.first_progress = list(run.progress)  # type: ignore[attr-defined]
    return run


def test_every_clip_is_one_row_in_the_order_of_the_clips(run: Run) -> None:
    rows = run.rows()
    assert list(rows) == run.order  # type: ignore[attr-defined]
    assert {name: row["reason"] for name, row in rows.items()} == EXPECTED
    first = run.first  # type: ignore[attr-defined]
    assert first.num_ok + sum(first.rejected.values()) == len(EXPECTED)
    assert first.num_ok == 4
    assert sorted(run.first_progress) == [(i + 1, 20) for i in range(20)]  # type: ignore[attr-defined]
    assert "4 of 20 clips ok" in str(first)


def test_rejections_say_what_a_person_needs(run: Run) -> None:
    for name, row in run.rows().items():
        assert (row["status"] == "ok") == (row["reason"] is None) == (row["detail"] is None)
        if row["reason"] is not None:
            assert len(row["detail"]) > 15, name
            assert row["bytes"] is None or name == "dense"
    rows = run.rows()
    assert "nowhere.mp4" in rows["missing"]["detail"]
    assert rows["no_face"]["source_width"] == 140
    assert rows["no_face"]["detection_rate"] == 0
    assert rows["dense"]["num_frames"] == 15


def test_figures_of_the_clips_that_are_ok(run: Run) -> None:
    face, mouth = run.rows()["face"], run.rows()["mouth"]
    assert [name for name, value in face.items() if value is None] == ["reason", "detail"]
    assert (face["num_frames"], face["num_faces"]) == (15, 1)
    assert 2 <= face["landmarked_frames"] < 15, "a face that does not move is not searched in each frame"
    assert mouth["track_key"] is None
    assert mouth["num_faces"] is None
    assert mouth["clip_key"] != face["clip_key"] == run.rows()["same_video"]["clip_key"]
    assert mouth["bytes"] == 128 + 15 * 96 * 96


def test_tracks(run: Run) -> None:
    tracks = run.rows("tracks")
    assert list(tracks) == ["face", "same_video"]
    assert len(tracks["face"]["transform"]) == 6 * 15
    assert tracks["face"]["frame_index"] == list(range(15))
    assert len(tracks["face"]["landmarked"]) == run.rows()["face"]["landmarked_frames"]
    read_table(run.folder / "tracks.parquet", schema.TRACKS, "pipeline crop")


def test_a_rerun_takes_all_from_the_cache_and_writes_the_same_bytes(run: Run) -> None:
    (run.folder / "crops.parquet").unlink()
    again = run(workers=1)
    assert run.tables() == run.first_tables  # type: ignore[attr-defined]
    # rejections for what a file holds are kept as well; those for its path or header are looked at anew
    assert again.num_from_cache == 4 + len({"sound", "cut", "dense", "no_face"})
    assert not {p.suffix for p in (run.folder / "cache").rglob("*") if p.is_file()} - {
        ".npz",
        ".sqlite",
        ".log",
    }


def test_a_lost_cache_gives_the_same_tables(run: Run) -> None:
    shutil.rmtree(run.folder / "cache")
    with forked_workers():
        assert run().num_from_cache <= 4  # videos named twice
    assert run.tables() == run.first_tables  # type: ignore[attr-defined]


def test_no_clips_at_all(tmp_path: Path) -> None:
    run = Run(tmp_path)
    write_clips(tmp_path / "clips.parquet", [])
    assert run().num_ok == 0
    assert run.rows() == {}


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="pipeline ingest"):
        Run(tmp_path)()


def test_links_inside_the_corpus_are_fine(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.mp4").touch()
    (tmp_path / "b.mp4").symlink_to(tmp_path / "a" / "x.mp4")
    root = tmp_path / "linked_root"
    root.symlink_to(tmp_path, target_is_directory=True)
    assert resolve_media(root, "b.mp4").path.is_file()
    assert resolve_media(tmp_path, "a/x.mp4").path.is_file()
    for media in ("a/../../x.mp4", "/etc/hostname", "C:\\x.mp4", "a\0b", "loop"):
        (tmp_path / "loop").unlink(missing_ok=True)
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(ClipRejected):
            resolve_media(tmp_path, media)


@pytest.mark.parametrize("error", [cv2.error("bad size"), ValueError("nan"), IndexError("7")])
def test_an_error_over_odd_pixels_costs_one_row(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(ClipCache, "crop", fails)
    clip = Clip("a", str(run.root), "face.mp4", "face", "字", 1)
    done = crop_one(clip, CropParams(), tmp_path)
    assert done.crop_row["reason"] == Reason.CRASHED
    assert type(error).__name__ in done.crop_row["detail"]
    assert "test_crop.py" in caplog.text, "the way there is in the log"


@pytest.mark.parametrize("error", [TypeError("x"), MachineError("x"), AssertionError("x")])
def test_a_fault_of_ours_or_the_machine_ends_the_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(ClipCache, "crop", fails)
    with pytest.raises(type(error)):
        crop_one(Clip("a", str(run.root), "face.mp4", "face", "字", 1), CropParams(), tmp_path)
