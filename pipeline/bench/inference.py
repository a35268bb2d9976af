"""`pipeline bench inference`: how fast a long 720p video is read, and in how much memory, each in a fresh process."""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.bench.machine import machine_told
from pipeline.bench.material import lengthened, videos_of
from shards.files import write_json

SIZE = (1280, 720)
PACKAGES = ("torch", "ai-edge-litert", "av", "opencv-python", "numpy")


@dataclass(frozen=True, slots=True)
class Reading:
    """One video, read once; seconds are those of reading alone, the model being open."""

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
    """Everything that was measured, by the minutes of the video."""

    machine: dict[str, str]
    model: str
    load: float
    """Processes that ran or waited on the machine before the first reading."""
    readings: dict[str, Reading] = field(default_factory=dict)


def bench_inference(
    folder: Path,
    model: Path,
    params_file: Path,
    out: Path,
    minutes: Sequence[float],
    tell: Callable[[str], None],
) -> InferenceBench:
    """Reads copies of the folder's first video, played until they last so many minutes; writes results.json.

    The model is a checkpoint, or an exported one.
    """
    result = InferenceBench(machine_told(PACKAGES), str(model), os.getloadavg()[0])
    (source,) = videos_of(folder, 1)
    for length in minutes:
        tell(f"a video of {length:g} min at {SIZE[0]}x{SIZE[1]}")
        video = lengthened(source, out / f"{length:g}min.mp4", *SIZE, length)
        tell("reading it")
        result.readings[f"{length:g}"] = _in_fresh_process(video, model, params_file)
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


def _in_fresh_process(video: Path, model: Path, params_file: Path) -> Reading:
    program = "import sys; from pipeline.bench.inference import main; main(*sys.argv[1:])"
    done = subprocess.run(
        [sys.executable, "-c", program, str(video), str(model), str(params_file)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return Reading(**json.loads(done.stdout.splitlines()[-1]))


def main(video: str, model: str, params_file: str) -> None:
    """The fresh process: reads the video, prints its figures as JSON."""
    from pipeline.params import load_params
    from pipeline.reading.inference import read_video
    from pipeline.reading.readers import open_reader

    params = load_params(Path(params_file))
    reader = open_reader(Path(model), params)
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
