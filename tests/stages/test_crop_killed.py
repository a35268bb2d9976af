"""The crop stage whose processes die or hang: a row is lost at most, and the next run goes on."""

import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest

from shards.errors import TableError
from shards.settings import MachineParams, PackParams
from shards.store import FolderStore
from stages.crop import CropSummary
from stages.pack import pack
from stages.settings import CorpusParams, CropParams
from tests.support import forked
from tests.support.crop_runs import Run, clip_row, forked_workers, trapped_run, write_clips
from tests.support.videos import write_face


def test_videos_that_kill_or_stop_their_process_cost_one_row_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole stage with real kills: by a video each time, or one time only (the machine's fault); and a hang."""
    names = ["a", "stuck", "b", "once", "poison", "c"]
    lost = {"poison": "crashed", "stuck": "timeout"}
    run = trapped_run(tmp_path, names)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "traps"))
    assert run(timeout_s=6.0).num_ok == 4
    assert list(run.rows()) == names
    assert {name: row["reason"] for name, row in run.rows().items() if row["reason"]} == lost
    assert all(f"{name}.mp4" in run.rows()[name]["detail"] for name in lost)
    assert (run.root / "once.mp4.seen").exists()
    monkeypatch.delenv("PYTHONPATH")
    with forked_workers():
        healed = run()  # crashes and hangs are not kept: tried again
        assert (healed.num_ok, healed.num_from_cache) == (6, 4)
        tables = run.tables()
        run.forget()
        assert run().num_from_cache == 0
    assert run.tables() == tables, "as if nothing had been"


def test_a_killed_run_leaves_no_process_and_the_next_goes_on(tmp_path: Path) -> None:
    run = trapped_run(tmp_path, ["a", "b", "stuck", "c"])
    program = """
import sys
from pathlib import Path
from tests.support.crop_runs import Run
Run.__init__ = lambda self, folder: vars(self).update(folder=folder, root=folder / "corpus", progress=[])
Run(Path(sys.argv[1]))(workers=1)
"""
    paths = {"PYTHONPATH": str(tmp_path / "traps")}
    parent = forked.Forked(tmp_path, [tmp_path], source=program, environment=paths)
    workers: list[psutil.Process] = []
    try:
        while len(list((tmp_path / "cache" / "clips").rglob("*.npz"))) < 2:
            assert parent.poll() is None, "the run ended early"
            time.sleep(0.02)
        workers = psutil.Process(parent.pid).children(recursive=True)
        assert workers
        parent.send_signal(signal.SIGKILL)
        assert parent.wait().returncode == -signal.SIGKILL
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert not alive
    finally:
        if psutil.pid_exists(parent.pid):
            parent.kill()
        for process in workers:
            if process.is_running():
                process.kill()
    assert not (tmp_path / "crops.parquet").exists()
    with forked_workers():
        after = run()
        assert (after.num_ok, after.num_from_cache) == (4, 2)
        tables = run.tables()
        shutil.rmtree(tmp_path / "cache")
        assert run().num_from_cache == 0
    assert run.tables() == tables, "as if never killed"


@pytest.mark.parametrize("table", ["tracks", "crops"])
def test_killed_between_the_tables(tmp_path: Path, table: str, forked_workers: None) -> None:
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
from tests.support.crop_runs import Run
write_table = crop.write_table
def write(path, *arguments):
    if path.name == "{table}.parquet":
        os.kill(os.getpid(), 9)
    write_table(path, *arguments)
crop.write_table = write
run = object.__new__(Run)
run.folder, run.root, run.progress = Path(sys.argv[1]), Path(sys.argv[1]) / "corpus", []
run()
"""
    done = forked.python(code, tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "crops.parquet").exists()
    tables = [tmp_path / f"{name}.parquet" for name in ("clips", "crops", "tracks")]
    machine = MachineParams(cache_dir=str(tmp_path / "cache"))
    made = (FolderStore(tmp_path / "shards"), tmp_path / "samples.parquet")
    with pytest.raises(TableError, match=r"crops.parquet is missing; run `pipeline crop`"):
        pack(CorpusParams(root=str(run.root)), CropParams(), PackParams(), machine, *tables, *made)
    assert run().frames_made == 0
    assert run.tables() == whole


def test_the_summary_tells_how_to_retry() -> None:
    message = str(CropSummary(3, {"crashed": 2, "no_face": 4, "timeout": 1}, 0, 0, 0, 0, 1.0))
    assert message.endswith("; run `pipeline crop` again to retry the 3 crashed or timeout")
    assert "again" not in str(CropSummary(3, {"no_face": 4}, 0, 0, 0, 0, 1.0))
