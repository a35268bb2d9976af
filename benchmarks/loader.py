"""`python -m benchmarks.loader`: clips per second of our loader and others, with the same clips in the same run.

Every measurement runs in a fresh process on one core (training: two), in alternating rounds; the median is reported.
Epochs are planned before the measurement starts.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.loader_formats import PEERS, installed_peers
from benchmarks.loader_material import CODECS, Material, prepare
from benchmarks.loader_measure import Figures, Task
from benchmarks.options import Rounds, folder_argument, print_progress, run
from benchmarks.tables import figures_table
from benchmarks.versions import machine_facts
from shards.files import write_json

PACKAGES = ("torch", "webdataset", "opencv-python", "simplejpeg", "av", "pyarrow", "numpy")
CATALOGUE_ROWS = 200_000
TRAINING_EPOCHS = 4

Run = Callable[[Task, Material], Figures]


def speed_tasks(seconds: float) -> dict[str, Task]:
    """Returns every compared reader by its name in the tables."""
    readers = {
        **{f"ours, {codec}": Task("speed", codec) for codec in CODECS},
        **{f"ours, {codec}, 1 thread": Task("speed", codec, num_workers=1) for codec in CODECS},
        **{f"plain webdataset, {codec}": Task("speed", codec, "webdataset") for codec in ("raw", "jpeg")},
        **{f"shards.dataset, {codec}": Task("speed", codec, "shards_dataset") for codec in CODECS},
        **{f"shards.webdataset, {codec}": Task("speed", codec, "shards_webdataset") for codec in CODECS},
        **{
            f"{name}, {codec}": Task("speed", codec, name)
            for name, codecs in installed_peers().items()
            for codec in codecs
        },
        "mp4 by OpenCV": Task("speed", "raw", "mp4"),
        # by default OpenCV starts one thread per core for each file, which costs more than it saves
        "mp4 by OpenCV, a thread a core": Task("speed", "raw", "mp4", cores=2),
        **{f"1 process, {codec}": Task("speed", codec, "process") for codec in ("raw", "jpeg")},
        "readinto, one buffer": Task("speed", "raw", "readinto"),
        "readinto, new tensors": Task("speed", "raw", "readinto_fresh"),
    }
    return {name: Task(**asdict(task) | {"seconds": seconds}) for name, task in readers.items()}


def memory_tasks(pause: float) -> dict[str, Task]:
    """Returns both kinds of batches for a codec with decoding and one without."""
    return {
        f"{codec}, {batches}": Task("memory", codec, seconds=pause, full_batches=full)
        for codec in ("raw", "jpeg")
        for batches, full in (("recipe's batches", False), ("batches of the whole frame budget", True))
    }


@dataclass
class LoaderBench:
    """All results; speeds are medians over the rounds."""

    machine: dict[str, str]
    num_clips: int
    mean_frames: float
    clips_per_s: dict[str, float] = field(default_factory=dict)
    clips_per_cpu_s: dict[str, float] = field(default_factory=dict)
    """Clips per second of processor time, which depends less on other work on the machine."""
    codecs: dict[str, Figures] = field(default_factory=dict)
    memory: dict[str, Figures] = field(default_factory=dict)
    catalogue: Figures = field(default_factory=dict)
    training: Figures = field(default_factory=dict)
    profile: str = ""

    def ratios(self) -> dict[str, float]:
        """Returns the figures that have goals, and threads compared with processes."""
        speed = self.clips_per_s
        against = {
            f"{codec}, against plain webdataset": f"plain webdataset, {codec}" for codec in ("raw", "jpeg")
        }
        against |= {
            f"{codec}, against {name}": f"{name}, {codec}"
            for name, codecs in installed_peers().items()
            for codec in codecs
        }
        for peer in ("mp4 by OpenCV", "mp4 by OpenCV, a thread a core"):
            against |= {f"{codec}, against {peer}": peer for codec in ("raw", "jpeg")}
        ratios = {
            name: speed[f"ours, {name.partition(',')[0]}"] / speed[peer] for name, peer in against.items()
        }
        plain = speed["plain webdataset, raw"]
        ratios |= {
            f"raw, {name} against plain webdataset": speed[f"{name}, raw"] / plain
            for name in ("shards.dataset", "shards.webdataset")
        }
        return ratios | {
            f"{codec}, 1 thread against 1 process": speed[f"ours, {codec}, 1 thread"]
            / speed[f"1 process, {codec}"]
            for codec in ("raw", "jpeg")
        }

    def worker_mb(self) -> float:
        """Returns the largest memory of a loader thread over all measurements."""
        return max(figures["peak_mb"] / figures["workers"] for figures in self.memory.values())

    def goals(self) -> dict[str, tuple[float, float, str]]:
        """Returns figure, goal and `≥` or `≤` of everything that has a goal."""
        ratios = self.ratios()
        return {
            "raw, clips/s a core": (self.clips_per_s["ours, raw"], 8_000, "≥"),
            "jpeg, clips/s a core": (self.clips_per_s["ours, jpeg"], 550, "≥"),
            **{
                name: (ratios[name], goal, "≥")
                for name, goal in (
                    ("raw, against plain webdataset", 3.5),
                    ("jpeg, against plain webdataset", 1.0),
                    ("raw, against mp4 by OpenCV", 80),
                    ("raw, against mp4 by OpenCV, a thread a core", 80),
                    ("jpeg, against mp4 by OpenCV", 6),
                    ("jpeg, against mp4 by OpenCV, a thread a core", 6),
                )
            },
            "share of training spent waiting for data, first epoch": (
                self.training["data_wait"][0],
                0.02,
                "≤",
            ),
            "share of training spent waiting for data, later ones": (
                statistics.fmean(self.training["data_wait"][1:] or self.training["data_wait"]),
                0.02,
                "≤",
            ),
            "memory of a loader worker, MB": (self.worker_mb(), 500, "≤"),
        }


def run_in_fresh_process(task: Task, material: Material) -> Figures:
    """Returns the figures of a task, measured in a fresh interpreter on its cores only."""
    command = [sys.executable, "-m", "benchmarks.loader_measure", json.dumps(asdict(task))]
    environment = os.environ | {"OMP_NUM_THREADS": str(task.cores)}
    done = subprocess.run(
        [*command, str(material.folder)], stdout=subprocess.PIPE, text=True, check=True, env=environment
    )
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def bench_loader(
    folders: Sequence[Path],
    out: Path,
    num_clips: int,
    rounds: int,
    progress: Callable[[str], None],
    *,
    with_profile: bool = False,
    seconds: float = 1.0,
    catalogue_rows: int = CATALOGUE_ROWS,
    training_epochs: int = TRAINING_EPOCHS,
    run: Run = run_in_fresh_process,
) -> LoaderBench:
    """Measures on mouth clips of the folders' videos, which are stored in `out` together with results.json.

    `seconds` is the minimum time of each speed measurement in each round. Raises ConfigError if a folder has no video.
    """
    for name in PEERS.keys() - installed_peers().keys():
        progress(f"{name} is not installed, so it is left out (pip install {name})")
    progress(f"cropping and packing {num_clips} clips")
    material = prepare(folders, out, num_clips)
    num_frames = material.samples("raw")["num_frames"].to_numpy()
    result = LoaderBench(machine_facts(PACKAGES), len(num_frames), float(num_frames.mean()))
    speeds = speed_tasks(seconds)
    measured = _rounds(
        speeds | {codec: Task("codec", codec) for codec in CODECS}, material, rounds, run, progress
    )
    for name in speeds:
        result.clips_per_s[name] = measured[name]["clips_per_s"]
        result.clips_per_cpu_s[name] = measured[name]["clips_per_cpu_s"]
    result.codecs = {codec: measured[codec] for codec in CODECS}
    for name, task in memory_tasks(seconds).items():
        result.memory[name] = run(task, material)
        progress(f"memory, {name}: {result.memory[name]['peak_mb']:.0f} MB")
    result.catalogue = run(Task("catalogue", num_rows=catalogue_rows), material)
    result.training = run(Task("training", num_workers=2, num_epochs=training_epochs, cores=2), material)
    progress(f"training: {result.training}")
    if with_profile:
        result.profile = run(Task("profile"), material)["profile"]
    write_json(out / "results.json", asdict(result) | {"ratios": result.ratios(), "goals": result.goals()})
    return result


def _rounds(
    tasks: Mapping[str, Task], material: Material, rounds: int, run: Run, progress: Callable[[str], None]
) -> dict[str, Figures]:
    """Runs all tasks in turns; returns the median of each figure of each task."""
    seen: dict[str, list[Figures]] = {name: [] for name in tasks}
    for turn in range(rounds):
        for name, task in tasks.items():
            seen[name].append(run(task, material))
            shown = ", ".join(f"{figure} {value:,.4g}" for figure, value in seen[name][-1].items())
            progress(f"round {turn + 1} of {rounds}, {name}: {shown}")
    return {name: _medians(turns) for name, turns in seen.items()}


def _medians(turns: Sequence[Mapping[str, Any]]) -> Figures:
    return {figure: statistics.median(turn[figure] for turn in turns) for figure in turns[0]}


def print_loader_bench(result: LoaderBench, console: Console) -> None:
    """Prints the figures with their goals, then all speeds, codecs and memories."""
    console.print(", ".join(f"{name} {value}" for name, value in result.machine.items()), style="dim")
    console.print(_goals(result))
    console.print(_speeds(result))
    console.print(_codecs(result))
    console.print(_memory(result))
    console.print(
        f"a catalogue of a million rows takes {result.catalogue['table_mb']:.0f} MB, a stream over it another "
        f"{result.catalogue['stream_mb']:.0f} MB"
    )
    waits = ", ".join(f"{share:.2%}" for share in result.training["data_wait"])
    console.print(
        f"share of each training epoch spent waiting for data: {waits}, at "
        f"{result.training['clips_per_s'][-1]:.1f} clips/s"
    )
    if result.profile:
        console.print(result.profile, highlight=False, markup=False)


def _goals(result: LoaderBench) -> Table:
    table = figures_table("goals", "", "here", "goal", "")
    for name, (figure, goal, sense) in result.goals().items():
        reached = figure >= goal if sense == "≥" else figure <= goal
        table.add_row(name, _short(figure), f"{sense} {_short(goal)}", "" if reached else "missed")
    for name, ratio in result.ratios().items():
        if name not in result.goals():
            table.add_row(name, _short(ratio), "", "")
    return table


def _speeds(result: LoaderBench) -> Table:
    title = f"{result.num_clips} clips of {result.mean_frames:.1f} frames on one core, in padded uint8 batches of 16"
    table = figures_table(title, "", "clips/s", "clips per processor second")
    for name, speed in result.clips_per_s.items():
        table.add_row(name, f"{speed:,.0f}", f"{result.clips_per_cpu_s[name]:,.0f}")
    return table


def _codecs(result: LoaderBench) -> Table:
    table = figures_table(
        "codecs, one thread", "", "KB/clip", "encoded clips/s", "decoded clips/s", "mean error", "max error"
    )
    for codec, figures in result.codecs.items():
        speeds = (f"{figures[name]:,.0f}" for name in ("encoded_per_s", "decoded_per_s"))
        table.add_row(
            codec,
            f"{figures['kb_a_clip']:.1f}",
            *speeds,
            f"{figures['mean_error']:.2f}",
            f"{figures['max_error']:g}",
        )
    return table


def _memory(result: LoaderBench) -> Table:
    table = figures_table(
        "memory in addition to that after imports, MB",
        "",
        "largest batch",
        "peak",
        "per loader worker",
        "middle pass",
        "last pass",
    )
    for name, figures in result.memory.items():
        values = (
            figures["batch_mb"],
            figures["peak_mb"],
            figures["peak_mb"] / figures["workers"],
            figures["pass_mb"][len(figures["pass_mb"]) // 2],
            figures["pass_mb"][-1],
        )
        table.add_row(name, *(f"{value:.0f}" for value in values))
    return table


def _short(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.2f}" if figure >= 1 else f"{figure:.2%}"


def command(
    videos: Annotated[
        list[Path],
        folder_argument("FOLDER...", "folders of talking-face videos; their mouth clips are stored in --out"),
    ],
    out: Annotated[Path, typer.Option(help="results.json and the clips", metavar="DIR")] = Path(
        "bench-loader"
    ),
    clips: Annotated[int, typer.Option(min=1, help="total number of clips")] = 200,
    rounds: Rounds = 3,
    profile: Annotated[bool, typer.Option("--profile", help="also profile our loader")] = False,
) -> None:
    """Compare the clips per second from shards with plain webdataset, mp4 by OpenCV and bare reading; also memory.

    Example: python -m benchmarks.loader /data/grid/video --clips 200
    """
    from pipeline.console import show_logs, stdout

    show_logs()
    out.mkdir(parents=True, exist_ok=True)
    result = bench_loader(videos, out, clips, rounds, print_progress, with_profile=profile)
    print_loader_bench(result, stdout)


if __name__ == "__main__":
    run(command)
