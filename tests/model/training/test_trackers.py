"""Trackers other than TensorBoard: each gets every figure of a run once, whatever fails, and is read back."""

import json
import os
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from model.progress import Progress
from model.runs import RunFolder
from model.training import metric_journal, trackers
from model.training.metric_journal import MetricJournal
from model.training.trackers import Row, TrackedRun
from model.training.training_data import TrainingJob
from pipeline.params import load_params
from shards.errors import ConfigError, Interrupted, TrainingError
from stages.train import train
from tests.support.forked import python
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.resuming import stopping_at
from tests.support.trackers import mlflow_figures, swanlab_figures, wandb_figures
from tests.support.trainings import job_in

Figures = dict[str, dict[int, list[float]]]
"""The values of each figure by step: a list, to see a step that was logged twice."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(12, 4))


class FileTracker:
    """A small real tracker, which appends rows to a file, and refuses while `is_down`."""

    package = "json"
    is_down: ClassVar[bool] = False

    def __init__(self, run: TrackedRun) -> None:
        self.run, self.file = run, run.folder / f"{run.id}.tracked"
        self.write({"config": dict(run.config)})

    def write(self, value: object) -> None:
        if FileTracker.is_down:
            raise ConnectionResetError("the server has gone away")
        with self.file.open("a") as file:
            file.write(json.dumps(value) + "\n")

    def log(self, rows: Sequence[Row]) -> None:
        self.write(list(rows))

    def finish(self, is_complete: bool) -> None:
        self.write({"complete": is_complete})


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> type[FileTracker]:
    monkeypatch.setitem(trackers.TRACKERS, "wandb", FileTracker)
    monkeypatch.setattr(metric_journal, "SEND_EVERY_S", 0.0)
    monkeypatch.setattr(metric_journal, "REST", 0)
    monkeypatch.setattr(FileTracker, "is_down", False)
    return FileTracker


def tracked(folder: Path) -> tuple[list[tuple[int, Mapping[str, float]]], list[dict[str, Any]]]:
    """Returns the rows that the only tracked run below `folder` was sent, and everything else."""
    (file,) = folder.rglob("*.tracked")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [(step, figures) for line in lines if isinstance(line, list) for step, figures in line]
    return rows, [line for line in lines if isinstance(line, dict)]


def journal_of(job: TrainingJob) -> list[tuple[int, Mapping[str, float]]]:
    (file,) = job.runs.glob("*/metrics.jsonl")
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [(row.pop("step"), row) for row in rows]


def with_trackers(job: TrainingJob, *names: str) -> TrainingJob:
    return replace(job, machine=job.machine.model_copy(update={"trackers": names}))


def exactly_once(figures: Mapping[str, Mapping[int, Sequence[float]]], job: TrainingJob) -> None:
    """Compares what was read back from a tracker with the journal."""
    wanted: Figures = {}
    for step, row in journal_of(job):
        for name, value in row.items():
            wanted.setdefault(name, {}).setdefault(step, []).append(value)
    assert {"step/loss", "valid/cer"} <= wanted.keys()
    for name, by_step in wanted.items():
        assert figures[name].keys() == by_step.keys(), name
        for step, values in by_step.items():
            assert list(figures[name][step]) == pytest.approx(values), (name, step)


def test_an_interrupted_training_logs_every_step_once_in_one_run(
    tmp_path: Path, packed: Packed, tracker: type[FileTracker]
) -> None:
    job = with_trackers(job_in(tmp_path, packed, num_epochs=2), "wandb")
    with pytest.raises(Interrupted):
        train(stopping_at(job, 1, 2))
    assert tracked(tmp_path)[1][-1] == {"complete": False}
    train(job)
    rows, others = tracked(tmp_path)
    assert rows == journal_of(job) and len(rows) == len({json.dumps(row) for row in rows}) > 4
    assert others[-1] == {"complete": True}
    assert others[0]["config"]["train"]["batch_size"] == 4
    assert not list(job.runs.glob("*/tensorboard")), "tensorboard was not chosen"


def test_steps_that_a_killed_run_has_sent_are_not_sent_again(
    tmp_path: Path, tracker: type[FileTracker]
) -> None:
    run = RunFolder(tmp_path, "0123456789abcdef")
    killed = MetricJournal(run, ["wandb"], {}, Progress())
    for step in range(1, 9):
        killed.add(step, {"step/loss": float(step)})
        if step == 4:
            killed.add(step, {"epoch/number": 0.0})
    killed.close(is_complete=False)
    # the checkpoint has step 5; the line of step 9 was cut
    with run.metrics.open("a") as file:
        file.write('{"step": 9, "step/lo')
    resumed = MetricJournal(run, ["wandb"], {}, Progress(epoch=1, steps=5))
    for step in range(6, 11):
        resumed.add(step, {"step/loss": float(step)})
    resumed.close(is_complete=True)
    rows, _ = tracked(tmp_path)
    assert [step for step, figures in rows if "step/loss" in figures] == list(range(1, 11))
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert lines == [{"step": step, **figures} for step, figures in rows]


KILLED = """
import os, signal, sys
from pathlib import Path
from model.progress import Progress
from model.runs import RunFolder
from model.training import metric_journal, trackers
from tests.model.training.test_trackers import FileTracker

class Killed(FileTracker):
    def log(self, rows):
        if rows[-1][0] == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        super().log(rows)

trackers.TRACKERS["wandb"] = Killed
metric_journal.SEND_EVERY_S = metric_journal.REST = 0
journal = metric_journal.MetricJournal(RunFolder(Path(sys.argv[1]), "run"), ["wandb"], {}, Progress())
for step in range(1, 10):
    journal.add(step, {"step/loss": 1.0 / step})
"""


def test_a_process_killed_while_it_sends_logs_nothing_twice_and_keeps_the_curve(
    tmp_path: Path, tracker: type[FileTracker]
) -> None:
    assert python(KILLED, tmp_path).returncode == -signal.SIGKILL
    run = RunFolder(tmp_path, "run")
    resumed = MetricJournal(run, ["wandb"], {}, Progress(steps=6))
    for step in range(7, 10):
        resumed.add(step, {"step/loss": 1.0 / step})
    resumed.close(is_complete=True)
    steps = [step for step, _ in tracked(tmp_path)[0]]
    assert steps == [1, 2, 3, 4, 5, 6, 8, 9], "the row that was being sent is in the journal only"
    assert len(run.metrics.read_text().splitlines()) == 9


def test_a_tracker_that_fails_gets_its_rows_later(
    tmp_path: Path, packed: Packed, tracker: type[FileTracker], caplog: pytest.LogCaptureFixture
) -> None:
    job = with_trackers(job_in(tmp_path, packed, num_epochs=2), "wandb")

    def fail(epoch: int, batches_done: int, *_: float) -> None:
        FileTracker.is_down = FileTracker.is_down or (epoch, batches_done) == (0, 2)

    summary = train(replace(job, on_batch=fail))
    assert summary.epochs == 2, "training goes on"
    failures = [line for line in caplog.messages if "the server has gone away" in line]
    assert len(failures) == 1 and "wandb failed (ConnectionResetError" in failures[0], "reported once"
    assert any("wandb was not sent the last" in line and "metrics.jsonl" in line for line in caplog.messages)
    before = len(tracked(tmp_path)[0])
    assert 0 < before < len(journal_of(job))
    (log,) = job.runs.glob("*/training.log")
    assert "the server has gone away" in log.read_text()

    FileTracker.is_down = False
    assert train(job).already_done
    assert tracked(tmp_path)[0] == journal_of(job)


def test_a_tracker_works_again_in_the_same_training(tmp_path: Path, tracker: type[FileTracker]) -> None:
    run = RunFolder(tmp_path, "run")
    journal = MetricJournal(run, ["wandb"], {}, Progress())
    for step in range(1, 7):
        FileTracker.is_down = step in (3, 4)
        journal.add(step, {"step/loss": float(step)})
    journal.close(is_complete=True)
    assert [step for step, _ in tracked(tmp_path)[0]] == list(range(1, 7))


def test_a_tracker_added_later_gets_the_whole_curve_of_the_same_run(
    tmp_path: Path, packed: Packed, tracker: type[FileTracker]
) -> None:
    job = job_in(tmp_path, packed, num_epochs=1)
    train(job)
    assert not list(tmp_path.rglob("*.tracked"))
    assert train(with_trackers(job, "tensorboard", "wandb")).already_done, "the same fingerprint"
    rows, _ = tracked(tmp_path)
    assert rows == journal_of(job) and rows
    (run,) = job.runs.iterdir()
    before = sorted(path.name for path in run.iterdir())
    train(with_trackers(job, "tensorboard", "wandb"))
    assert tracked(tmp_path)[0] == rows
    assert sorted(path.name for path in run.iterdir()) == before


@pytest.mark.parametrize("name", ["wandb", "mlflow", "swanlab"])
def test_a_tracker_that_is_not_installed_is_an_error_before_training(
    tmp_path: Path, packed: Packed, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("wandb", "mlflow", "swanlab"):
        monkeypatch.setitem(__import__("sys").modules, package, None)
    job = with_trackers(job_in(tmp_path, packed), name)
    with pytest.raises(ConfigError, match=rf"machine.trackers: {name} is not installed .*\[{name}\]"):
        train(job)
    assert not list(job.runs.glob("*/last.pt")) and not list(job.runs.glob("*/metrics.jsonl"))


def test_a_tracker_that_cannot_start_is_an_error_before_training(
    tmp_path: Path, packed: Packed, tracker: type[FileTracker]
) -> None:
    FileTracker.is_down = True
    job = with_trackers(job_in(tmp_path, packed), "wandb")
    with pytest.raises(TrainingError, match=r"wandb cannot start .*the server has gone away"):
        train(job)
    assert not list(job.runs.glob("*/metrics.jsonl"))


def test_an_unknown_tracker_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"machine.trackers.*'comet'.*'tensorboard', 'wandb', 'mlflow'"):
        load_params(Path("params.yaml"), assignments=["machine.trackers=[comet]"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize("name", ["wandb", "mlflow", "swanlab"])
def test_a_real_tracker_shows_an_interrupted_training_once(
    tmp_path: Path, packed: Packed, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In each tracker's own local mode. What it stored is read back, not what it was given."""
    if (
        name == "swanlab"
    ):  # it conflicts with the protobuf of constraints.txt; `make test-slow` installs the others
        pytest.importorskip(name)
    for variable in [v for v in os.environ if v.startswith(("WANDB_", "MLFLOW_", "SWANLAB_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    lookups: list[object] = []
    resolve = socket.getaddrinfo

    def local_only(host: object, *arguments: Any, **options: Any) -> Any:
        lookups.extend([host] if host not in ("127.0.0.1", "localhost", "::1") else [])
        return resolve("127.0.0.1", *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", local_only)
    job = with_trackers(job_in(tmp_path, packed, num_epochs=2), name)
    with pytest.raises(Interrupted):
        train(stopping_at(job, 1, 2))
    train(job)
    assert lookups == [], "nothing asks the network"
    read = {"wandb": wandb_figures, "mlflow": mlflow_figures, "swanlab": swanlab_figures}[name]
    figures, run_ids, config = read(job.runs)
    exactly_once(figures, job)
    assert len(run_ids) == 1
    assert config["train.batch_size"] == 4
