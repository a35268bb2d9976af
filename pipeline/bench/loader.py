"""`pipeline bench loader`: clips a second at the consumer, ours and others', from the same clips in the same run.

Every measurement is a fresh process held to one core (training: two); rounds in turns, medians. Epochs are planned
before the clock starts.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline.bench.loader_material import CODECS, Material, prepare
from pipeline.bench.loader_measure import Figures, Task
from pipeline.bench.machine import machine_told
from shards.files import write_json

PACKAGES = ("torch", "webdataset", "opencv-python", "simplejpeg", "av", "pyarrow", "numpy")
CATALOGUE_ROWS = 200_000
TRAINING_EPOCHS = 4

Run = Callable[[Task, Material], Figures]


def speed_tasks(seconds: float) -> dict[str, Task]:
    """Every reader that is compared, by the name it has in the tables."""
    readers = {
        **{f"ours, {codec}": Task("speed", codec) for codec in CODECS},
        **{f"ours, {codec}, 1 thread": Task("speed", codec, num_workers=1) for codec in CODECS},
        **{f"plain webdataset, {codec}": Task("speed", codec, "webdataset") for codec in ("raw", "jpeg")},
        "mp4 by OpenCV": Task("speed", "raw", "mp4"),
        # left alone it starts a thread a core for each file, which costs more than it brings
        "mp4 by OpenCV, a thread a core": Task("speed", "raw", "mp4", cores=2),
        **{f"1 process, {codec}": Task("speed", codec, "process") for codec in ("raw", "jpeg")},
        "readinto, one buffer": Task("speed", "raw", "readinto"),
        "readinto, new tensors": Task("speed", "raw", "readinto_fresh"),
    }
    return {name: Task(**asdict(task) | {"seconds": seconds}) for name, task in readers.items()}


def memory_tasks(pause: float) -> dict[str, Task]:
    """Both kinds of batches, of a codec that decodes and one that does not."""
    return {
        f"{codec}, {batches}": Task("memory", codec, seconds=pause, full_batches=full)
        for codec in ("raw", "jpeg")
        for batches, full in (("recipe's batches", False), ("batches of the whole frame budget", True))
    }


@dataclass
class LoaderBench:
    """Everything that was measured; speeds are medians over the rounds."""

    machine: dict[str, str]
    num_clips: int
    mean_frames: float
    clips_per_s: dict[str, float] = field(default_factory=dict)
    clips_per_cpu_s: dict[str, float] = field(default_factory=dict)
    """The same by processor time: what a busy machine stretches less."""
    codecs: dict[str, Figures] = field(default_factory=dict)
    memory: dict[str, Figures] = field(default_factory=dict)
    catalogue: Figures = field(default_factory=dict)
    training: Figures = field(default_factory=dict)
    profile: str = ""

    def ratios(self) -> dict[str, float]:
        """The figures the goals are about, and the reason for threads."""
        speed = self.clips_per_s
        against = {
            f"{codec}, against plain webdataset": f"plain webdataset, {codec}" for codec in ("raw", "jpeg")
        }
        for peer in ("mp4 by OpenCV", "mp4 by OpenCV, a thread a core"):
            against |= {f"{codec}, against {peer}": peer for codec in ("raw", "jpeg")}
        ratios = {
            name: speed[f"ours, {name.partition(',')[0]}"] / speed[peer] for name, peer in against.items()
        }
        return ratios | {
            f"{codec}, 1 thread against 1 process": speed[f"ours, {codec}, 1 thread"]
            / speed[f"1 process, {codec}"]
            for codec in ("raw", "jpeg")
        }

    def worker_mb(self) -> float:
        """Most memory of a loader thread over all ways it was measured."""
        return max(one["peak_mb"] / one["workers"] for one in self.memory.values())

    def goals(self) -> dict[str, tuple[float, float, str]]:
        """Figure, goal and `≥` or `≤`, of everything that has a goal."""
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


def in_process_of_its_own(task: Task, material: Material) -> Figures:
    """The figures of a task that ran in a fresh interpreter, held to its cores."""
    command = [sys.executable, "-m", "pipeline.bench.loader_measure", json.dumps(asdict(task))]
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
    tell: Callable[[str], None],
    *,
    with_profile: bool = False,
    seconds: float = 1.0,
    catalogue_rows: int = CATALOGUE_ROWS,
    training_epochs: int = TRAINING_EPOCHS,
    run: Run = in_process_of_its_own,
) -> LoaderBench:
    """Measures on the mouth clips of the folders' videos, kept below `out`, which also gets results.json.

    `seconds` is how long each speed is measured in each round, at least. Raises ConfigError where a folder holds no
    video.
    """
    tell(f"cropping and packing {num_clips} clips")
    material = prepare(folders, out, num_clips)
    num_frames = material.samples("raw")["num_frames"].to_numpy()
    result = LoaderBench(machine_told(PACKAGES), len(num_frames), float(num_frames.mean()))
    speeds = speed_tasks(seconds)
    measured = _rounds(
        speeds | {codec: Task("codec", codec) for codec in CODECS}, material, rounds, run, tell
    )
    for name in speeds:
        result.clips_per_s[name] = measured[name]["clips_per_s"]
        result.clips_per_cpu_s[name] = measured[name]["clips_per_cpu_s"]
    result.codecs = {codec: measured[codec] for codec in CODECS}
    for name, task in memory_tasks(seconds).items():
        result.memory[name] = run(task, material)
        tell(f"memory, {name}: {result.memory[name]['peak_mb']:.0f} MB")
    result.catalogue = run(Task("catalogue", num_rows=catalogue_rows), material)
    result.training = run(Task("training", num_workers=2, num_epochs=training_epochs, cores=2), material)
    tell(f"training: {result.training}")
    if with_profile:
        result.profile = run(Task("profile"), material)["profile"]
    write_json(out / "results.json", asdict(result) | {"ratios": result.ratios(), "goals": result.goals()})
    return result


def _rounds(
    tasks: Mapping[str, Task], material: Material, rounds: int, run: Run, tell: Callable[[str], None]
) -> dict[str, Figures]:
    """The median of each figure of each task, all in turns."""
    seen: dict[str, list[Figures]] = {name: [] for name in tasks}
    for turn in range(rounds):
        for name, task in tasks.items():
            seen[name].append(run(task, material))
            told = ", ".join(f"{figure} {value:,.4g}" for figure, value in seen[name][-1].items())
            tell(f"round {turn + 1} of {rounds}, {name}: {told}")
    return {name: _medians(turns) for name, turns in seen.items()}


def _medians(turns: Sequence[Mapping[str, Any]]) -> Figures:
    return {figure: statistics.median(turn[figure] for turn in turns) for figure in turns[0]}
