"""`python -m benchmarks.train`: a tiny run gives every figure that this machine can measure, and names the others."""

import functools
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from rich.console import Console
from torch._dynamo.utils import counters
from typer.testing import CliRunner

from benchmarks import train_measure
from benchmarks.train import (
    BASELINE,
    GROUPS,
    LARGE,
    SHOWN_LINES,
    TrainBench,
    bench_train,
    command,
    print_train_bench,
    run_in_fresh_process,
)
from benchmarks.train_material import write_pack
from benchmarks.train_measure import Figures, Task, figures
from shards.enums import TRAIN_SPLIT
from shards.errors import ConfigError, PipelineError
from shards.samples import read_samples
from shards.store import FolderStore
from shards.stream import read_sample
from tests.support import forked

BATCH, FRAMES = 2, 12
CNN3D = {"channels": (2, 2, 2, 4), "hidden_dim": 8, "num_heads": 2}
CONFORMER = {
    "channels": (2, 2, 2, 4),
    "hidden_dim": 8,
    "num_heads": 2,
    "feed_forward_dim": 8,
    "num_encoder_layers": 1,
    "num_decoder_layers": 1,
}
CPU_TASKS = (
    *("training", "training, plain", "training, plain, kept", "inference, ctc", "inference, attention"),
    *("conformer", "conformer, plain", "loop, cached", "loop, shards"),
    *("sound, off", "sound, on"),
)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    shards, samples = write_pack(tmp_path_factory.mktemp("pack"), 3 * BATCH, FRAMES)
    return Task(
        "training", str(shards), str(samples), BASELINE, BATCH, CNN3D, device="cpu", threads=1, seconds=0.01
    )


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def help_text() -> str:
    cli = typer.Typer()
    cli.command()(command)
    return CliRunner().invoke(cli, ["--help"]).stdout


def here(task: Task) -> Figures:
    """Runs in this process, with small networks."""
    return figures(replace(task, sizes=CNN3D if task.preset == BASELINE else CONFORMER))


@pytest.fixture(scope="module")
def result(out: Path) -> TrainBench:
    lines: list[str] = []
    return bench_train(
        out, lines.append, on_gpu=False, batch=BATCH, frames=FRAMES, rounds=1, seconds=0.01, threads=1, run=here
    )  # fmt: skip


def test_a_tiny_run_gives_every_figure(result: TrainBench, out: Path) -> None:
    assert tuple(result.figures) == CPU_TASKS
    for one in result.figures.values():
        assert min(one["clips_per_s"], one["clips_per_cpu_s"], one["peak_mb"]) > 0
    assert result.figures["training"]["parameters"] == result.figures["training, plain"]["parameters"]
    assert len(result.ratios()) == 5
    written = json.loads((out / "results.json").read_text("utf-8"))
    assert written["figures"] == result.figures
    assert written["ratios"] == result.ratios()
    assert [goal["figure"] for goal in written["goals"]] == [goal.figure for goal in result.goals()]


def test_goals_use_the_named_figures(result: TrainBench) -> None:
    goals, speed = result.goals(), result.figures
    assert [goal.figure is None for goal in goals] == [True] * 4 + [False] * 4
    loop, cpu, sound, memory = goals[4:]
    assert loop.figure == speed["loop, shards"]["clips_per_s"] / speed["loop, cached"]["clips_per_s"]
    assert cpu.figure == speed["training"]["clips_per_s"] / speed["training, plain"]["clips_per_s"]
    assert sound.figure == speed["sound, on"]["clips_per_s"] / speed["sound, off"]["clips_per_s"]
    assert (memory.figure, memory.sense) == (speed["training"]["peak_mb"], "≤")


def test_on_a_gpu_the_goals_for_gpus_have_figures() -> None:
    figures = {name: {"clips_per_s": 2.0, "peak_mb": 5.0} for name in CPU_TASKS}
    figures["conformer"] |= {"clips_per_s": 8.0, "flop_utilisation": 0.4}
    result = TrainBench({}, True, LARGE, 8, 75, figures)
    assert [goal.figure for goal in result.goals()] == [2.0, 2.0, 4.0, 0.4, 1.0, None, 1.0, 5.0]
    assert [goal.is_reached for goal in result.goals()] == [False, False, True, True, True, None, True, True]
    small = replace(result, preset="conformer_small")
    assert [goal.figure for goal in small.goals()][2:4] == [None, None], "the goal is for another network"


def test_the_tables_show_the_command_for_figures_that_were_not_run(result: TrainBench) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    print_train_bench(result, console)
    printed = console.export_text()
    assert all(name in printed for name in (*result.figures, *result.ratios()))
    assert printed.count("not run") == 4
    assert printed.count("python -m benchmarks.train --only conformer") == 2
    assert printed.count("missed") == sum(goal.is_reached is False for goal in result.goals())


def test_the_median_of_the_rounds_is_reported(out: Path) -> None:
    speeds = iter([1.0, 100.0, 3.0])

    def run(task: Task) -> Figures:
        return {"clips_per_s": next(speeds) if task.settings == "ours" else 1.0, "peak_mb": 1.0}

    pack = ("shards", Path("samples.parquet"))
    measured = bench_train(
        out / "m", lambda _: None, on_gpu=False, rounds=3, only=["training"], pack=pack, run=run
    )  # fmt: skip
    assert measured.figures["training"]["clips_per_s"] == 3.0
    assert measured.ratios()["baseline training against plain eager float32"] == 3.0


def test_synthetic_clips_form_a_pack(tmp_path: Path) -> None:
    shards, samples_path = write_pack(tmp_path, 5, 7)
    rows = read_samples(samples_path, TRAIN_SPLIT).to_pylist()
    assert len({row["clip_id"] for row in rows}) == 5
    clips = [read_sample(FolderStore(shards), row)[0] for row in rows]
    assert all(clip_THW.shape == (7, 96, 96) and clip_THW.dtype == np.uint8 for clip_THW in clips)
    assert not np.array_equal(clips[0], clips[1])


@pytest.mark.parametrize("source", ["cached", "shards"])
def test_the_loop_uses_full_batches(task: Task, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, ...]] = []
    step = train_measure.TrainingStep.__call__

    def recording(self, window, *rest):  # type: ignore[no-untyped-def]
        seen.append(window[0].clip_ids)
        return step(self, window, *rest)

    monkeypatch.setattr(train_measure.TrainingStep, "__call__", recording)
    measured = figures(replace(task, source=source, seconds=0.2))
    seen = seen[train_measure.WARM_UP_STEPS :]
    assert all(len(clip_ids) == BATCH for clip_ids in seen)
    assert len(seen) == measured["steps"]
    assert (len(set(seen)) == 1) == (source == "cached")


def test_plain_is_eager_float32_contiguous(task: Task) -> None:
    for settings, fused, precision in (("ours", True, None), ("plain", False, "float32")):
        step = train_measure._set_up(replace(task, settings=settings))
        state = step.state
        assert bool(state.optimizer.defaults["fused"]) == fused
        assert precision in (None, step.precision.name)
        assert all(parameter.is_contiguous() for parameter in state.network.parameters())
        learnt = {id(parameter) for group in state.optimizer.param_groups for parameter in group["params"]}
        assert learnt == {id(parameter) for parameter in state.network.parameters()}


# warnings of the compiler itself: its imports, and its access to tensors between two graphs
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:The .grad attribute:UserWarning")
def test_only_the_compiled_task_compiles(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    task = replace(task, preset="conformer_tiny", sizes=CONFORMER)
    graphs = []
    with torch._dynamo.config.patch(recompile_limit=8):  # restored afterwards
        for one in (task, replace(task, compile=True, settings="plain"), replace(task, compile=True)):
            torch._dynamo.reset()
            step = train_measure._set_up(one)
            counters.clear()  # those of the trial whether this machine can compile
            step([next(train_measure._batches(one, step.data))], 0, 0.5)
            graphs.append(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert graphs == [0, 0, 3]  # frontend, Conformer block, decoder block


def test_a_task_runs_in_a_fresh_process(task: Task) -> None:
    assert run_in_fresh_process(task)["clips_per_s"] > 0


def test_a_failed_process_is_reported_with_its_last_lines(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In forked processes; the test above starts a fresh interpreter."""

    def run(command: list[str], **_: bool) -> "subprocess.CompletedProcess[str]":
        assert command[:3] == [sys.executable, "-m", "benchmarks.train_measure"]
        return forked.python("from benchmarks.train_measure import main; main()", *command[3:])

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(PipelineError) as missing:
        run_in_fresh_process(replace(task, samples=str(tmp_path / "missing.parquet")))
    assert "missing.parquet" in str(missing.value) and "Traceback" not in str(missing.value)
    with pytest.raises(PipelineError, match=r"\(dreaming, ours\) failed \(exit code 1\): ") as crashed:
        run_in_fresh_process(replace(task, kind="dreaming"))
    lines = str(crashed.value).splitlines()
    assert lines[-1].strip() == "KeyError: 'dreaming'" and len(lines) <= SHOWN_LINES


def test_batches_larger_than_the_pack_are_refused(task: Task) -> None:
    with pytest.raises(ConfigError, match=f"--batch 400: choose at most {3 * BATCH},"):
        figures(replace(task, batch=400))


def test_an_unknown_preset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--model-preset cnn3d.* choose .*conformer_tiny, conformer_small"):
        bench_train(tmp_path, lambda _: None, on_gpu=False, preset=BASELINE, run=here)
    assert "--model-preset" in help_text()


def test_an_unknown_group_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--only tranining .*choose .*training"):
        bench_train(tmp_path, lambda _: None, on_gpu=False, only=["tranining"], run=here)
    assert all(group in help_text() for group in GROUPS)
