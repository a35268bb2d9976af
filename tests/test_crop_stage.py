"""The crop stage: every clip one row, nothing done twice, nothing lost."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import psutil
import pyarrow.parquet as pq
import pytest

from shards import schema
from shards.errors import ClipRejected, MachineError, TableError
from shards.files import Progress, read_table, table_from_rows, write_table
from shards.schema import Reason
from shards.settings import MachineParams, PackParams
from shards.store import FolderStore
from stages.cache import ClipCache
from stages.clip_work import Clip, crop_one
from stages.crop import CropSummary, crop
from stages.media import resolve_media
from stages.pack import pack
from stages.parts import Part
from stages.settings import CorpusParams, CropParams
from tests.videos import write_audio, write_face, write_mouth


def clip_row(clip_id: str, media: str, **changes: Any) -> dict[str, Any]:
    row = dict.fromkeys(schema.CLIPS.names) | {
        "clip_id": clip_id,
        "split": "train",
        "media": media,
        "media_kind": "face",
        "text": "你好",
        "label": "你好",
    }
    return row | {"num_chars": len(changes.get("label", "你好"))} | changes


def write_clips(path: Path, rows: list[dict[str, Any]]) -> None:
    write_table(path, table_from_rows(rows, schema.CLIPS), schema.CLIPS)


class Run:
    """A corpus, its tables and a cache in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "corpus"
        self.root.mkdir()
        self.progress: list[tuple[int, int]] = []

    def __call__(
        self,
        workers: int = 2,
        timeout_s: float = 600.0,
        machine: MachineParams | None = None,
        part: Part | None = None,
        on_progress: Progress | None = None,
    ) -> CropSummary:
        self.progress.clear()
        return crop(
            CorpusParams(root=str(self.root)),
            CropParams(timeout_s=timeout_s),
            machine or MachineParams(workers=workers, cache_dir=str(self.folder / "cache")),
            self.folder / "clips.parquet",
            self.folder / "crops.parquet",
            self.folder / "tracks.parquet",
            on_progress or (lambda done, total: self.progress.append((done, total))),
            part,
        )

    def forget(self) -> None:
        """Removes all that runs have made."""
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        for name in ("crops", "tracks"):
            (self.folder / f"{name}.parquet").unlink(missing_ok=True)

    def rows(self, table: str = "crops") -> dict[str, dict[str, Any]]:
        rows = pq.read_table(self.folder / f"{table}.parquet").to_pylist()
        return {row["clip_id"]: row for row in rows}

    def tables(self) -> list[bytes]:
        return [(self.folder / f"{name}.parquet").read_bytes() for name in ("crops", "tracks")]


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


# -- processes that die -------------------------------------------------------------------------------


TRAPS = """
import os, sys, time
if "spawn_main" in " ".join(sys.orig_argv):
    def trap(event, args):
        if event != "open" or not isinstance(args[0], str):
            return
        name = os.path.basename(args[0])
        if name == "poison.mp4":
            os.kill(os.getpid(), 9)
        if name == "once.mp4" and not os.path.exists(args[0] + ".seen"):
            open(args[0] + ".seen", "x").close()
            os.kill(os.getpid(), 9)
        if name == "stuck.mp4":
            time.sleep(600)
    sys.addaudithook(trap)
"""
"""Python runs a sitecustomize.py on PYTHONPATH at its start: workers die, or hang, as they open certain videos."""


def trapped_run(folder: Path, names: list[str]) -> Run:
    (folder / "traps").mkdir()
    (folder / "traps" / "sitecustomize.py").write_text(TRAPS)
    run = Run(folder)
    for seed, name in enumerate(names):
        write_mouth(run.root / f"{name}.mp4", 12, seed)
    write_clips(folder / "clips.parquet", [clip_row(n, f"{n}.mp4", media_kind="mouth") for n in names])
    return run


@pytest.mark.parametrize(
    ("killer", "lost"), [("poison", {"poison": "crashed"}), ("once", {}), ("stuck", {"stuck": "timeout"})]
)
def test_a_video_that_kills_or_stops_its_process_costs_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killer: str, lost: dict[str, str]
) -> None:
    """The whole stage with real kills: by a video each time, or one time only (the machine's fault); and a hang."""
    names = ["a", "b", killer, "c", "d"]
    run = trapped_run(tmp_path, names)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "traps"))
    assert run(timeout_s=6.0).num_ok == 5 - len(lost)
    assert list(run.rows()) == names
    assert {name: row["reason"] for name, row in run.rows().items() if row["reason"]} == lost
    assert all(f"{name}.mp4" in run.rows()[name]["detail"] for name in lost)
    assert (run.root / "once.mp4.seen").exists() == (killer == "once")
    monkeypatch.delenv("PYTHONPATH")
    healed = run()  # crashes and hangs are not kept: tried again
    assert (healed.num_ok, healed.num_from_cache) == (5, 5 - len(lost))
    tables = run.tables()
    run.forget()
    assert run().num_from_cache == 0
    assert run.tables() == tables, "as if nothing had been"


def test_a_killed_run_leaves_no_process_and_the_next_goes_on(tmp_path: Path) -> None:
    run = trapped_run(tmp_path, ["a", "b", "stuck", "c"])
    program = """
import sys
from tests.test_crop_stage import Path, Run
Run.__init__ = lambda self, folder: vars(self).update(folder=folder, root=folder / "corpus", progress=[])
Run(Path(sys.argv[1]))(workers=1)
"""
    paths = {"PYTHONPATH": os.pathsep.join([str(tmp_path / "traps"), str(Path(__file__).parent.parent)])}
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=os.environ | paths)
    workers: list[psutil.Process] = []
    try:
        while len(list((tmp_path / "cache" / "clips").rglob("*.npz"))) < 2:
            assert parent.poll() is None, "the run ended early"
            time.sleep(0.02)
        workers = psutil.Process(parent.pid).children(recursive=True)
        assert workers
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert not alive
    finally:
        for process in (parent, *workers):
            if process.is_running() if isinstance(process, psutil.Process) else process.poll() is None:
                process.kill()
    assert not (tmp_path / "crops.parquet").exists()
    after = run()
    assert (after.num_ok, after.num_from_cache) == (4, 2)
    tables = run.tables()
    shutil.rmtree(tmp_path / "cache")
    assert run().num_from_cache == 0
    assert run.tables() == tables, "as if never killed"


# -- paths --------------------------------------------------------------------------------------------


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
    assert "test_crop_stage" in caplog.text, "the way there is in the log"


@pytest.mark.parametrize("error", [TypeError("x"), MachineError("x"), AssertionError("x")])
def test_a_fault_of_ours_or_the_machine_ends_the_run(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(ClipCache, "crop", fails)
    with pytest.raises(type(error)):
        crop_one(Clip("a", str(run.root), "face.mp4", "face", "字", 1), CropParams(), tmp_path)


@pytest.mark.parametrize("table", ["tracks", "crops"])
def test_killed_between_the_tables(tmp_path: Path, table: str) -> None:
    """Of a ledger and tracks of two runs nothing is packed; the rerun heals."""
    run = Run(tmp_path)
    write_face(run.root / "face.mp4", 12)
    write_face(run.root / "other.mp4", 14)
    write_clips(tmp_path / "clips.parquet", [clip_row("a", "face.mp4"), clip_row("b", "other.mp4")])
    run()
    whole = run.tables()
    away = (run.root / "other.mp4").rename(run.root / "away.mp4")
    run()
    assert len(run.rows("tracks")) == 1
    away.rename(run.root / "other.mp4")
    code = f"""
import os, sys
from pathlib import Path
from stages import crop
from tests.test_crop_stage import Run
write_table = crop.write_table
def write(path, *arguments):
    if path.name == "{table}.parquet":
        os.kill(os.getpid(), 9)
    write_table(path, *arguments)
crop.write_table = write
if __name__ == "__main__":
    run = object.__new__(Run)
    run.folder, run.root, run.progress = Path(sys.argv[1]), Path(sys.argv[1]) / "corpus", []
    run()
"""
    (tmp_path / "killed.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, str(tmp_path / "killed.py"), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "crops.parquet").exists()
    tables = [tmp_path / f"{name}.parquet" for name in ("clips", "crops", "tracks")]
    machine = MachineParams(cache_dir=str(tmp_path / "cache"))
    made = (FolderStore(tmp_path / "shards"), tmp_path / "samples.parquet")
    with pytest.raises(TableError, match=r"crops.parquet is missing; `pipeline crop` makes it"):
        pack(CorpusParams(root=str(run.root)), CropParams(), PackParams(), machine, *tables, *made)
    assert run().frames_made == 0
    assert run.tables() == whole


def test_the_summary_tells_how_to_retry() -> None:
    told = str(CropSummary(3, {"crashed": 2, "no_face": 4, "timeout": 1}, 0, 0, 0, 1.0))
    assert told.endswith("; `pipeline crop` again tries the 3 crashed or timeout once more")
    assert "again" not in str(CropSummary(3, {"no_face": 4}, 0, 0, 0, 1.0))
