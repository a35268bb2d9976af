"""`python -m benchmarks.inference`: speed and memory of reading long 720p videos, each in a fresh process."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.material import lengthened, videos_of
from benchmarks.options import folder_argument, print_progress, run
from benchmarks.versions import machine_facts
from shards.files import write_json

SIZE = (1280, 720)
PACKAGES = ("torch", "ai-edge-litert", "av", "opencv-python", "numpy")


@dataclass(frozen=True, slots=True)
class Reading:
    """One reading of one video; seconds do not include opening the model."""

    video_s: float
    seconds: float
    cpu_seconds: float
    peak_mb: float
    num_segments: int
    num_gaps: int

    @property
    def real_time_factor(self) -> float:
        return self.seconds / self.video_s


@dataclass
class InferenceBench:
    """All results, by the minutes of the video."""

    machine: dict[str, str]
    model: str
    load: float
    """Load average of the machine before the first reading."""
    readings: dict[str, Reading] = field(default_factory=dict)


def bench_inference(
    folder: Path,
    model: Path,
    params_file: Path,
    out: Path,
    minutes: Sequence[float],
    progress: Callable[[str], None],
) -> InferenceBench:
    """Reads copies of the folder's first video, repeated to the given lengths; writes results.json.

    `model` is a checkpoint or an exported model.
    """
    result = InferenceBench(machine_facts(PACKAGES), str(model), os.getloadavg()[0])
    (source,) = videos_of(folder, 1)
    for length in minutes:
        progress(f"writing a video of {length:g} min at {SIZE[0]}x{SIZE[1]}")
        video = lengthened(source, out / f"{length:g}min.mp4", *SIZE, length)
        progress("reading it")
        result.readings[f"{length:g}"] = _run_in_fresh_process(video, model, params_file)
    write_json(out / "results.json", asdict(result))
    return result


def print_inference_bench(result: InferenceBench, console: Console) -> None:
    table = Table("minutes", "seconds", "real-time factor", "CPU seconds", "peak MB", "segments", "gaps")
    for length, reading in result.readings.items():
        table.add_row(
            length,
            f"{reading.seconds:.1f}",
            f"{reading.real_time_factor:.3f}",
            f"{reading.cpu_seconds:.1f}",
            f"{reading.peak_mb:.0f}",
            str(reading.num_segments),
            str(reading.num_gaps),
        )
    console.print(table)
    console.print(f"{result.model}; {result.machine}; load before: {result.load:.1f}")


def _run_in_fresh_process(video: Path, model: Path, params_file: Path) -> Reading:
    program = "import sys; from benchmarks.inference import main; main(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(video), str(model), str(params_file)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Reading(**json.loads(done.stdout.splitlines()[-1]))


def main(video: str, model: str, params_file: str) -> None:
    """Runs in the fresh process: reads the video, prints its figures as JSON."""
    from pipeline.inference.readers import open_reader
    from pipeline.inference.text_of_video import read_video
    from pipeline.params import load_params

    params = load_params(Path(params_file))
    reader = open_reader([Path(model)], params)
    begin_s, begin_cpu_s = time.perf_counter(), time.process_time()
    reading = read_video(Path(video), reader, params)
    seconds, cpu_seconds = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
    assert reading.reason is None, reading.reason
    # Linux counts in KiB, macOS in bytes
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    figures = Reading(
        reading.segments[-1].end_s,
        seconds,
        cpu_seconds,
        peak / (1e6 if sys.platform == "darwin" else 1e3 / 1.024),
        len(reading.segments),
        len(reading.gaps),
    )
    sys.stdout.write(json.dumps(asdict(figures)) + "\n")


def command(
    videos: Annotated[
        Path,
        folder_argument(
            "FOLDER", "folder of talking-face videos; the first video is repeated until it is long enough"
        ),
    ],
    checkpoint: Annotated[Path, typer.Option(help="checkpoint or exported model", metavar="FILE")] = Path(
        "checkpoints/best_model.pt"
    ),
    params: Annotated[Path, typer.Option(help="parameters", metavar="FILE")] = Path("params.yaml"),
    minutes: Annotated[
        list[float] | None, typer.Option(min=0.1, help="minutes of video; repeatable; default: 1 and 10")
    ] = None,
    out: Annotated[Path, typer.Option(help="results.json and the long videos", metavar="DIR")] = Path(
        "bench-inference"
    ),
) -> None:
    """Measure the real-time factor and peak memory of reading long 720p videos, each in a fresh process.

    Example: python -m benchmarks.inference /data/grid --checkpoint checkpoints/best_model.pt
    """
    from pipeline.console import stdout

    out.mkdir(parents=True, exist_ok=True)
    print_inference_bench(
        bench_inference(videos, checkpoint, params, out, minutes or [1, 10], print_progress), stdout
    )


if __name__ == "__main__":
    run(command)
