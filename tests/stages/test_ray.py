"""The crop stage on a real Ray cluster: the same tables, also when a machine is lost on the way."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shards.errors import ConfigError
from shards.settings import MachineParams
from stages.clips.clip_work import Clip, Done
from tests.support.crop_runs import Run, clip_row, trapped_run, write_clips
from tests.support.restarts import Corpus, disturbed
from tests.support.videos import write_face, write_mouth

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0
"""How long Ray's log may come after its results."""
pytestmark = [
    pytest.mark.slow,
    # Ray's own code: sockets and subprocesses it leaves to the garbage collector, and what it will do differently
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


class TwoMachines:
    """A Ray cluster of two nodes with one core each, on this machine."""

    def __init__(self) -> None:
        cluster_utils = pytest.importorskip("ray.cluster_utils")
        self.cluster = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        self.second = self.cluster.add_node(num_cpus=1)
        self.cluster.wait_for_nodes()

    def lose_one(self) -> None:
        """Kills one node, with all its processes, and waits until Ray has noticed."""
        import ray

        assert sum(node["Alive"] for node in ray.nodes()) == 2
        self.cluster.remove_node(self.second, allow_graceful=False)
        patience_s = time.monotonic() + 60
        while sum(node["Alive"] for node in ray.nodes()) > 1:
            assert time.monotonic() < patience_s
            time.sleep(0.1)


@pytest.fixture
def two_machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[TwoMachines]:
    # workers find this checkout, and tests/ in it, wherever the package is installed from
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    machines = TwoMachines()
    yield machines
    machines.cluster.shutdown()


def on(machines: TwoMachines, run: Run, **changes: Any) -> MachineParams:
    address = machines.cluster.address
    return MachineParams(executor="ray", ray_address=address, cache_dir=str(run.folder / "cache"), **changes)


def test_a_machine_lost_on_the_way_loses_nothing(
    tmp_path: Path, two_machines: TwoMachines, capfd: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    for number in range(4):
        write_face(run.root / f"face{number}.mp4", 12 + number)
    for number in range(40):
        write_mouth(run.root / f"mouth{number}.mp4", 50, number)
    (run.root / "garbage.mp4").write_bytes(b"garbage" * 999)
    kinds = {"face": "face", "mout": "mouth", "garb": "face"}
    names = sorted(path.stem for path in run.root.iterdir())
    rows = [clip_row(name, f"{name}.mp4", media_kind=kinds[name[:4]]) for name in names]
    write_clips(tmp_path / "clips.parquet", [*rows, clip_row("gone", "nowhere.mp4")])

    def lose_one_midway(done: int, total: int) -> None:
        if done == 8:
            two_machines.lose_one()

    summary = run(machine=on(two_machines, run), on_progress=lose_one_midway)
    # the log shows that Ray was working on clips of the lost machine
    log, deadline_s = "", time.monotonic() + PATIENCE_S
    while "the task will be retried" not in log and time.monotonic() < deadline_s:
        log += "".join(capfd.readouterr())
        time.sleep(0.1)
    assert "the task will be retried" in log
    assert (summary.num_ok, dict(summary.rejected)) == (44, {"unreadable": 1, "missing_file": 1})
    tables = run.tables()
    run.forget()
    assert run().num_from_cache == 0
    assert run.tables() == tables, "as on one machine"


def test_a_clip_that_kills_or_hangs_its_process_is_one_row(
    tmp_path: Path, two_machines: TwoMachines, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["a", "poison", "b", "stuck", "c"]
    run = trapped_run(tmp_path, names)
    traps = f"{tmp_path / 'traps'}{os.pathsep}{os.environ['PYTHONPATH']}"
    monkeypatch.setenv("PYTHONPATH", traps)
    import ray

    # Ray's workers have the environment of their node, not of this test
    ray.init(
        address=two_machines.cluster.address,
        runtime_env={"env_vars": {"PYTHONPATH": traps}},
        log_to_driver=False,
        include_dashboard=False,
    )
    try:
        run(machine=on(two_machines, run), timeout_s=8.0)
    finally:
        ray.shutdown()
    assert list(run.rows()) == names
    assert {name: row["reason"] for name, row in run.rows().items() if row["reason"]} == {
        "poison": "crashed",
        "stuck": "timeout",
    }


def test_the_command_stops_at_ctrl_c_and_goes_on(tmp_path: Path) -> None:
    """With a cluster of its own, on this machine."""
    pytest.importorskip("ray")
    corpus = Corpus(tmp_path)
    code, output = disturbed(
        corpus, lambda process: os.killpg(process.pid, signal.SIGINT), "--executor", "ray"
    )
    assert (code, "cropping mouths: stopped. Finished work is kept" in output) == (1, True), output
    assert "Traceback" not in output
    num_cached = corpus.num_cached()
    assert f"; {num_cached} from the cache" in corpus.pipeline("crop", "--executor", "ray")
    corpus.pipeline("pack")
    assert corpus.made() == corpus.undisturbed


def buggy(clip: Clip) -> Done:
    raise ZeroDivisionError(clip.clip_id)


def test_a_bug_ends_the_run_and_names_the_clip(tmp_path: Path, two_machines: TwoMachines) -> None:
    from stages.clips.ray_pool import RayPool

    machine = MachineParams(executor="ray", ray_address=two_machines.cluster.address)
    with (
        pytest.raises(ZeroDivisionError) as caught,
        RayPool(buggy, machine, 60.0, tmp_path / "native.log") as pool,
    ):
        list(pool.run([Clip("x", "root", "x.mp4", "face", "字", 1)]))
    assert "while cropping clip x (x.mp4)" in caught.value.__notes__


def test_an_address_where_no_cluster_is(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    program = """
import sys
import time
from shards.errors import MachineError
from shards.settings import MachineParams
from stages.clips.ray_pool import RayPool
try:
    RayPool(len, MachineParams(executor="ray", ray_address="auto"), 60.0, "log").__enter__()
except MachineError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=120, check=False
    )
    assert "machine.ray_address auto" in done.stdout, done.stderr


def test_without_ray_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "stages.clips.ray_pool", raising=False)
    run = Run(tmp_path)
    write_clips(tmp_path / "clips.parquet", [])
    with pytest.raises(ConfigError, match=r"pip install '\.\[ray\]'"):
        run(machine=MachineParams(executor="ray", cache_dir=str(tmp_path / "cache")))
