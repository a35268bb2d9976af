"""`python -m benchmarks.train`: clips per second of training and reading, ours and plain eager torch, in the same run.

Every measurement runs in a fresh process with its own settings and peak memory; the median of all rounds is reported.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.options import Rounds, print_progress, run
from benchmarks.tables import figures_table
from benchmarks.train_material import write_pack
from benchmarks.train_measure import BAD_CONFIG, Figures, Task, task_to_json
from benchmarks.versions import machine_facts
from model.presets import PRESET_SIZES, ConformerSizes
from shards.errors import ConfigError, PipelineError
from shards.files import write_json
from shards.machine import usable_cores

PACKAGES = ("torch", "numpy")
BASELINE, LARGE, SMALL = "cnn3d_bilstm_attention", "conformer_large", "conformer_tiny"
BATCHES = 16
"""Number of batches in the synthetic pack."""
GROUPS = ("training", "inference", "conformer", "loop", "sound")
CONFORMERS = tuple(name for name, sizes in PRESET_SIZES.items() if isinstance(sizes, ConformerSizes))
SHOWN_LINES = 5
"""Number of last lines that a message shows of a failed measurement."""

Run = Callable[[Task], Figures]


@dataclass
class TrainBench:
    """All results; medians over the rounds."""

    machine: dict[str, str]
    on_gpu: bool
    preset: str
    """The conformer that is measured with our settings and with plain eager ones."""
    batch: int
    frames: int
    """Frames per clip; 0: the clips come from a given pack."""
    figures: dict[str, Figures] = field(default_factory=dict)
    """Figures by the name of the task."""

    def speed(self, name: str) -> float | None:
        return self.figures[name]["clips_per_s"] if name in self.figures else None

    def ratios(self) -> dict[str, float]:
        """Returns ratios of clips per second, only of pairs that were both measured."""
        pairs = {
            "baseline training against plain eager float32": ("training", "training, plain"),
            "baseline training against the same with freed memory kept": (
                "training",
                "training, plain, kept",
            ),
            f"{self.preset} training against plain eager float32": ("conformer", "conformer, plain"),
            "loop over shards against one cached batch": ("loop, shards", "loop, cached"),
            "training with sound against without": ("sound, on", "sound, off"),
        }
        speeds = {name: (self.speed(ours), self.speed(theirs)) for name, (ours, theirs) in pairs.items()}
        return {name: ours / theirs for name, (ours, theirs) in speeds.items() if ours and theirs}

    def goals(self) -> list["Goal"]:
        """Returns the project's goals in its order; a figure is None if it was not measured here."""
        ratios, plain = self.ratios(), "against plain eager float32"
        training, conformer = self.figures.get("training", {}), self.figures.get("conformer", {})
        gpu_training = training if self.on_gpu else {}
        large = conformer if self.on_gpu and self.preset == LARGE else {}
        large_ratio = ratios.get(f"{LARGE} training {plain}") if self.on_gpu else None
        cpu_ratio = None if self.on_gpu else ratios.get(f"baseline training {plain}")
        gpu_inference = self.speed("inference, ctc") if self.on_gpu else None
        loop = "loop over shards against one cached batch"
        return [
            Goal("GPU: baseline training, clips/s", gpu_training.get("clips_per_s"), 1_500, "≥", "training"),
            Goal("GPU: baseline inference, clips/s", gpu_inference, 5_000, "≥", "inference"),
            Goal(f"GPU: {LARGE} training {plain}", large_ratio, 3.0, "≥", "conformer"),
            Goal(f"GPU: {LARGE}, FLOP utilisation", large.get("flop_utilisation"), 0.35, "≥", "conformer"),
            Goal(loop, ratios.get(loop), 0.97, "≥", "loop"),
            Goal(f"CPU: baseline training {plain}", cpu_ratio, 2.2, "≥", "training"),
            Goal(
                "training with sound against without",
                ratios.get("training with sound against without"),
                0.95,
                "≥",
                "sound",
            ),
            Goal("peak memory of baseline training, MB", training.get("peak_mb"), 4_000, "≤", "training"),
        ]


@dataclass(frozen=True)
class Goal:
    """A figure and its goal."""

    name: str
    figure: float | None
    """None: not run."""
    goal: float
    sense: str
    group: str
    """Value of --only that measures it."""

    @property
    def is_reached(self) -> bool | None:
        if self.figure is None:
            return None
        return self.figure >= self.goal if self.sense == "≥" else self.figure <= self.goal

    @property
    def command(self) -> str:
        """Command that measures the figure, on a machine with the device in its name."""
        return f"python -m benchmarks.train --only {self.group}"


def tasks_of(task: Task, preset: str, on_gpu: bool, only: Collection[str]) -> dict[str, Task]:
    """Returns every measurement of the groups by its name in the tables; `task` has the shared fields."""
    groups = {
        "training": {
            "training": task,
            "training, plain": replace(task, settings="plain"),
            # torch manages the memory of a GPU itself
            **({} if on_gpu else {"training, plain, kept": replace(task, settings="kept")}),
        },
        "inference": {
            f"inference, {decoder}": replace(task, kind="inference", decoder=decoder)
            for decoder in ("ctc", "attention")
        },
        "conformer": {
            "conformer": replace(task, preset=preset),
            "conformer, plain": replace(task, preset=preset, settings="plain"),
        },
        "loop": {"loop, cached": task, "loop, shards": replace(task, source="shards")},
        "sound": {
            "sound, off": replace(task, preset=preset, source="shards"),
            "sound, on": replace(task, preset=preset, source="shards", audio_weight=1.0),
        },
    }
    return {name: task for group in GROUPS if group in only for name, task in groups[group].items()}


def run_in_fresh_process(task: Task) -> Figures:
    """Returns the figures of a task from a fresh interpreter. Raises PipelineError with its last lines if it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.train_measure", task_to_json(task)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last_lines = "\n  ".join(done.stderr.strip().splitlines()[-SHOWN_LINES:])
        if done.returncode == BAD_CONFIG:
            raise ConfigError(last_lines)
        raise PipelineError(
            f"measuring {task.preset} ({task.kind}, {task.settings}) failed (exit code {done.returncode}): {last_lines}"
        )
    sys.stderr.write(done.stderr)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def bench_train(
    out: Path,
    progress: Callable[[str], None],
    *,
    on_gpu: bool,
    preset: str = "",
    batch: int = 8,
    frames: int = 75,
    rounds: int = 3,
    only: Sequence[str] = GROUPS,
    threads: int = 0,
    seconds: float = 10.0,
    pack: tuple[str, Path] | None = None,
    run: Run = run_in_fresh_process,
) -> TrainBench:
    """Measures, and writes results.json into `out`.

    `pack` names shards and samples.parquet to train on; None: synthetic clips of noise are written into `out`. An empty
    `preset` means the largest conformer on a GPU, the smallest on a CPU. Raises ConfigError if `only` has an unknown
    group or `preset` is not a conformer, PipelineError if a measurement fails.
    """
    if unknown := [group for group in only if group not in GROUPS]:
        raise ConfigError(f"--only {unknown[0]} is not a group; choose from {', '.join(GROUPS)}")
    preset = preset or (LARGE if on_gpu else SMALL)
    if preset not in CONFORMERS:
        raise ConfigError(f"--model-preset {preset}: choose one of {', '.join(CONFORMERS)}")
    if pack is None:
        progress(f"writing {BATCHES * batch} synthetic clips of {frames} frames")
        folder, samples = write_pack(out / "material", BATCHES * batch, frames)
        pack = (str(folder), samples)
    elif "sound" in only and "audio_sha256" not in pq.read_schema(pack[1]).names:
        progress("the pack has no sound, so training with sound is not measured (pack.audio)")
        only = [group for group in only if group != "sound"]
    device = "cuda" if on_gpu else "cpu"
    task = Task(
        "training",
        pack[0],
        str(pack[1]),
        BASELINE,
        batch,
        compile=on_gpu,
        device=device,
        threads=threads,
        seconds=seconds,
    )
    tasks = tasks_of(task, preset, on_gpu, only)
    machine = machine_facts(PACKAGES) | _gpu_facts(on_gpu) | {"threads": str(threads or usable_cores())}
    result = TrainBench(machine, on_gpu, preset, batch, frames)
    seen: dict[str, list[Figures]] = {name: [] for name in tasks}
    for turn in range(rounds):
        for name, each in tasks.items():
            seen[name].append(run(each))
            shown = ", ".join(f"{figure} {value:,.4g}" for figure, value in seen[name][-1].items())
            progress(f"round {turn + 1} of {rounds}, {name}: {shown}")
    result.figures = {
        name: {figure: statistics.median(turn[figure] for turn in turns) for figure in turns[0]}
        for name, turns in seen.items()
    }
    goals = [asdict(goal) | {"is_reached": goal.is_reached} for goal in result.goals()]
    write_json(out / "results.json", asdict(result) | {"ratios": result.ratios(), "goals": goals})
    return result


def _gpu_facts(on_gpu: bool) -> dict[str, str]:
    if not on_gpu:
        return {"gpu": "none"}
    import torch

    return {"gpu": torch.cuda.get_device_name(), "cuda": str(torch.version.cuda)}


def print_train_bench(result: TrainBench, console: Console) -> None:
    """Prints the figures with their goals, then all results."""
    console.print(", ".join(f"{name} {value}" for name, value in result.machine.items()), style="dim")
    console.print(_goals(result))
    console.print(_figures(result))


def _goals(result: TrainBench) -> Table:
    table = figures_table("goals", "", "here", "goal", "")
    for goal in result.goals():
        reached = {True: "", False: "missed", None: goal.command}[goal.is_reached]
        here = "not run" if goal.figure is None else _short(goal.figure)
        table.add_row(goal.name, here, f"{goal.sense} {_short(goal.goal)}", reached)
    named = {goal.name for goal in result.goals()}
    for name, ratio in result.ratios().items():
        if name not in named:
            table.add_row(name, _short(ratio), "", "")
    return table


def _figures(result: TrainBench) -> Table:
    clips = f"clips of {result.frames} frames" if result.frames else "clips of the given pack"
    title = f"{clips}, batches of {result.batch}; conformer: {result.preset}"
    table = figures_table(
        title, "", "clips/s", "clips per processor second", "peak MB", "parameters", "FLOP utilisation"
    )
    for name, figures in result.figures.items():
        utilisation, parameters = figures.get("flop_utilisation"), figures.get("parameters")
        table.add_row(
            name,
            _short(figures["clips_per_s"]),
            _short(figures["clips_per_cpu_s"]),
            f"{figures['peak_mb']:,.0f}",
            "" if parameters is None else f"{parameters:,.0f}",
            "" if utilisation is None else f"{utilisation:.1%}",
        )
    return table


def _short(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.2f}"


def command(
    out: Annotated[Path, typer.Option(help="results.json and the synthetic clips", metavar="DIR")] = Path(
        "bench-train"
    ),
    params: Annotated[
        Path | None,
        typer.Option(help="a params.yaml with the paths of a pack to train on, instead of synthetic clips"),
    ] = None,
    model_preset: Annotated[
        str,
        typer.Option(help="a conformer; default: conformer_large on a GPU, conformer_tiny on a CPU"),
    ] = "",
    batch: Annotated[int, typer.Option(min=1, help="clips per batch")] = 8,
    frames: Annotated[int, typer.Option(min=10, help="frames of each synthetic clip")] = 75,
    rounds: Rounds = 3,
    threads: Annotated[
        int, typer.Option(min=0, help="number of CPU threads; 0: one per core, slow on a busy machine")
    ] = 0,
    only: Annotated[
        list[str] | None, typer.Option(help="training, inference, conformer, loop or sound; repeatable")
    ] = None,
) -> None:
    """Compare the clips per second of training and reading with plain eager torch, on the GPU if any; also peak memory.

    Example: python -m benchmarks.train --rounds 5 --only training --only loop
    """
    from model.device import choose_device
    from pipeline.console import stdout
    from pipeline.params import load_params

    out.mkdir(parents=True, exist_ok=True)
    pack = None
    if params:
        paths = load_params(params).paths
        pack, frames = (paths.shards, Path(paths.samples)), 0
    result = bench_train(
        out,
        print_progress,
        on_gpu=choose_device("auto").type == "cuda",
        preset=model_preset,
        batch=batch,
        frames=frames,
        rounds=rounds,
        only=only or GROUPS,
        threads=threads,
        pack=pack,
    )
    print_train_bench(result, stdout)


if __name__ == "__main__":
    run(command)
