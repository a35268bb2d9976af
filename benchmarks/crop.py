"""`python -m benchmarks.crop`: the crop stage against decoding only, against other settings, and against other tools.

All variants run in turns in one call, each with the same kind of process pool; its start counts for all of them.
"""

import functools
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from benchmarks.crop_peers import auto_avsr_like, decode_only, mediapipe_loop
from benchmarks.material import lengthened, upscaled, videos_of
from benchmarks.options import Rounds, folder_argument, print_progress, run
from benchmarks.versions import machine_facts
from shards import schema
from shards.files import read_table, table_from_rows, write_json, write_table, write_text
from shards.settings import MachineParams
from stages.clips.clip_work import Clip, Work
from stages.clips.local_pool import LocalPool
from stages.crop import crop
from stages.settings import CorpusParams, CropParams

TOLERANCES_PX = (0.0, 0.1, 0.25, 0.5, 1.0)
CHINESE_LIPS_FRAMES = round(100.8 * 3600 * 30)
HD, FULL_HD = (1280, 720), (1920, 1080)
LONG_MINUTES = 10
SMALL_SHARE = 0.19
"""Share of a 720p picture at which the mouth of a GRID video is 18 px wide, so that its face is searched in tiles."""
PACKAGES = ("mediapipe", "ai-edge-litert", "av", "opencv-python", "numpy")

# tracks are compared, so no clip may be rejected for its quality
_LENIENT = {
    "min_detection_rate": 0.1,
    "max_gap_s": 60.0,
    "min_mouth_width_px": 1.0,
    "max_jitter_px": 1000.0,
    "max_yaw_deg": 90.0,
    "max_chars_per_s": 1e6,
}


@dataclass(frozen=True)
class Errors:
    """Distance of a crop from the crop with landmarks on every frame, in pixels of the 96-px crop."""

    centre_mean_px: float
    centre_p99_px: float
    corner_p99_px: float


@dataclass(frozen=True)
class CurvePoint:
    """Results for one tolerance on one folder of videos."""

    videos: str
    tolerance_px: float
    frames_per_s: float
    landmarked_share: float
    errors: Errors


@dataclass
class CropBench:
    """All results; seconds are medians over the rounds."""

    machine: dict[str, str]
    preset: str
    processes: int
    num_clips: int
    num_frames: int
    seconds: dict[str, float] = field(default_factory=dict)
    landmarked_share: float = 0.0
    errors: Errors | None = None
    landmarker_errors: Errors | None = None
    """Between crops by the two landmarkers, both with landmarks on every frame."""
    curve: list[CurvePoint] = field(default_factory=list)
    peak_worker_mb: float | None = None

    def frames_per_s(self, variant: str) -> float:
        return self.num_frames / self.seconds[variant]

    def ratios(self) -> dict[str, float]:
        """Returns the figures that have goals, and two more."""
        ours = self.seconds["crop"]
        return {
            "share of decoding": self.seconds["decode"] / ours,
            "against landmarks on every frame": self.seconds["every frame"] / ours,
            "against a loop like auto_avsr's": self.seconds["auto_avsr"] / ours,
            "against mediapipe's landmarker on every frame": self.seconds["mediapipe"] / ours,
            "landmarker litert against mediapipe": self.seconds["crop, landmarker mediapipe"] / ours,
            "both landmarkers on every frame": self.seconds["every frame, landmarker mediapipe"]
            / self.seconds["every frame"],
            "from 1 process to all": self.seconds["crop, 1 process"] / ours,
            "faces of 5 % of the width": ours / self.seconds["small faces"],
        }


def bench_crop(
    folders: Sequence[Path],
    out: Path,
    num_clips: int,
    rounds: int,
    processes: int,
    with_memory: bool,
    preset: str,
    progress: Callable[[str], None],
) -> CropBench:
    """Measures on 720p copies of the first folder's videos, then the curve on the original videos of all folders.

    Writes the copies once into `out`, which also gets results.json and curve.csv. Raises ConfigError if a folder has
    no video.
    """
    progress(f"writing {num_clips} videos of 720p")
    videos = videos_of(folders[0], num_clips)
    hd = upscaled(videos, out / f"720p_{preset}", *HD, preset)
    small = upscaled(videos, out / f"720p_small_{preset}", *HD, preset, SMALL_SHARE)
    with tempfile.TemporaryDirectory(dir=out) as scratch:
        stage, small_stage = (
            _Stage(Path(scratch) / name, each) for name, each in (("hd", hd), ("small", small))
        )
        progress("counting frames")
        num_frames = sum(
            done.crop_row["source_frames"] for done in _pooled(decode_only, hd, processes, stage.folder)
        )
        result = CropBench(machine_facts(PACKAGES), preset, processes, len(hd), num_frames)
        _measure_variants(result, stage, small_stage, rounds, progress)
        every, ours = stage.tracks("every frame"), stage.tracks("crop")
        result.errors = _errors(ours, every)
        result.landmarker_errors = _errors(stage.tracks("every frame, landmarker mediapipe"), every)
        result.landmarked_share = stage.landmarked() / num_frames
        for folder in folders:
            result.curve += _curve(folder, num_clips, processes, Path(scratch), progress)
    if with_memory:
        progress(f"cropping {LONG_MINUTES} minutes of 1080p in one process")
        long = lengthened(videos_of(folders[0], 1)[0], out / "long_1080p.mp4", *FULL_HD, LONG_MINUTES)
        result.peak_worker_mb = _peak_mb(long)
    _write(result, out)
    return result


class _Stage:
    """The crop stage over some videos, each time with an empty cache."""

    def __init__(self, folder: Path, videos: Sequence[Path]) -> None:
        self.folder, self.videos = folder, videos
        self.root = Path("/")
        folder.mkdir(exist_ok=True)
        rows = [_clip_row(i, path) for i, path in enumerate(videos)]
        write_table(folder / "clips.parquet", table_from_rows(rows, schema.CLIPS), schema.CLIPS)

    def run(self, name: str, processes: int, **changes: Any) -> float:
        """Returns the seconds of a run; keeps its tables under `name`."""
        params = CropParams(**(_LENIENT | changes))
        with tempfile.TemporaryDirectory(dir=self.folder) as cache:
            start = time.perf_counter()
            crop(
                CorpusParams(root=str(self.root)),
                params,
                MachineParams(workers=processes, cache_dir=cache),
                self.folder / "clips.parquet",
                self.folder / f"{name} crops.parquet",
                self.folder / f"{name} tracks.parquet",
            )
            return time.perf_counter() - start

    def tracks(self, name: str) -> dict[str, NDArray[np.float64]]:
        rows = read_table(self.folder / f"{name} tracks.parquet", schema.TRACKS, "bench").to_pylist()
        return {row["clip_id"]: np.array(row["transform"], np.float64).reshape(-1, 2, 3) for row in rows}

    def landmarked(self, name: str = "crop") -> int:
        rows = read_table(self.folder / f"{name} crops.parquet", schema.CROPS, "bench").to_pylist()
        return sum(row["landmarked_frames"] or 0 for row in rows)

    def frames(self, name: str = "crop") -> int:
        rows = read_table(self.folder / f"{name} crops.parquet", schema.CROPS, "bench").to_pylist()
        return sum(row["source_frames"] or 0 for row in rows)


def _measure_variants(
    result: CropBench, stage: _Stage, small_stage: _Stage, rounds: int, progress: Callable[[str], None]
) -> None:
    processes = result.processes
    variants: Mapping[str, Callable[[], float]] = {
        "decode": lambda: _pool_seconds(decode_only, stage, processes),
        "crop": lambda: stage.run("crop", processes),
        "small faces": lambda: small_stage.run("crop", processes),
        "crop, 1 process": lambda: stage.run("crop, 1 process", 1),
        "every frame": lambda: stage.run("every frame", processes, tolerance_px=0.0),
        **{
            f"{name}, landmarker mediapipe": functools.partial(
                stage.run, f"{name}, landmarker mediapipe", processes, landmarker="mediapipe", **changes
            )
            for name, changes in {"crop": {}, "every frame": {"tolerance_px": 0.0}}.items()
        },
        "auto_avsr": lambda: _pool_seconds(auto_avsr_like, stage, processes),
        "mediapipe": lambda: _pool_seconds(mediapipe_loop, stage, processes),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds):
        for name, measure in variants.items():
            seconds[name].append(measure())
            progress(f"round {turn + 1} of {rounds}, {name}: {seconds[name][-1]:.1f} s")
    result.seconds = {name: statistics.median(taken) for name, taken in seconds.items()}


def _curve(
    folder: Path, num_clips: int, processes: int, scratch: Path, progress: Callable[[str], None]
) -> list[CurvePoint]:
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        stage = _Stage(Path(place), videos_of(folder, num_clips))
        points = []
        for tolerance in TOLERANCES_PX:
            seconds = stage.run(f"{tolerance}", processes, tolerance_px=tolerance)
            frames = stage.frames(f"{tolerance}")
            oracle = stage.tracks(f"{TOLERANCES_PX[0]}")
            points.append(
                CurvePoint(
                    folder.name,
                    tolerance,
                    frames / seconds,
                    stage.landmarked(f"{tolerance}") / frames,
                    _errors(stage.tracks(f"{tolerance}"), oracle),
                )
            )
            progress(f"{folder.name}, tolerance {tolerance:g} px: {points[-1].frames_per_s:.0f} frames/s")
    return points


def _pool_seconds(work: Work, stage: _Stage, processes: int) -> float:
    start = time.perf_counter()
    for _ in _pooled(work, stage.videos, processes, stage.folder):
        pass
    return time.perf_counter() - start


def _pooled(work: Work, videos: Sequence[Path], processes: int, folder: Path) -> Iterable[Any]:
    clips = [
        Clip(f"{i}", "/", str(path.absolute()).lstrip("/"), "face", "x", 1) for i, path in enumerate(videos)
    ]
    with LocalPool(work, processes, 3_600.0, folder / "native.log") as pool:
        yield from (done for _, done in pool.run(clips))


def _clip_row(number: int, path: Path) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(schema.CLIPS.names)
    return row | {
        "clip_id": f"{number:05d}",
        "split": "bench",
        "media": str(path.absolute()).lstrip("/"),
        "media_kind": "face",
        "text": "x",
        "label": "x",
        "num_chars": 1,
    }


def _errors(ours: Mapping[str, NDArray[np.float64]], oracle: Mapping[str, NDArray[np.float64]]) -> Errors:
    """Returns how far our crop moves the centre and the corners of the oracle's crop."""
    assert ours.keys() == oracle.keys(), (
        f"clips were rejected in only one of two runs: {ours.keys() ^ oracle.keys()}"
    )
    places = np.array([(48, 48), (0, 0), (96, 0), (0, 96), (96, 96)], np.float64)
    centres, corners = [], []
    for clip_id in sorted(ours):
        a_T23, b_T23 = ours[clip_id], oracle[clip_id]
        bottom = np.broadcast_to([0.0, 0, 1], (len(b_T23), 1, 3))
        sources = np.linalg.inv(np.concatenate([b_T23, bottom], axis=1)) @ np.vstack([places.T, np.ones(5)])
        off = np.linalg.norm((a_T23 @ sources).transpose(0, 2, 1) - places, axis=2)
        centres.append(off[:, 0])
        corners.append(off[:, 1:].ravel())
    centre, corner = np.concatenate(centres), np.concatenate(corners)
    return Errors(float(centre.mean()), float(np.percentile(centre, 99)), float(np.percentile(corner, 99)))


def _peak_mb(video: Path) -> float:
    """Returns the peak resident memory of a fresh process that crops the video like a worker, MB."""
    program = (
        "import sys; from pathlib import Path; from benchmarks.crop import crop_long; "
        "print(crop_long(Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(video)], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def crop_long(video: Path) -> float:
    """Crops one long video in this process; returns the peak resident memory in MB."""
    import cv2

    from shards.schema import MediaKind
    from stages.mouths.cropping import crop_video

    cv2.setNumThreads(1)
    params = CropParams(**(_LENIENT | {"max_frames": 1_000_000, "max_source_s": 3_600.0}))
    crop_video(video, MediaKind.FACE, params)
    # Linux counts in KiB, macOS in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1e6 if sys.platform == "darwin" else 1e3 / 1.024
    )


def _write(result: CropBench, out: Path) -> None:
    write_json(out / "results.json", asdict(result) | {"ratios": result.ratios()})
    lines = ["videos,tolerance_px,frames_per_s,landmarked_share,centre_mean_px,centre_p99_px,corner_p99_px"]
    for point in result.curve:
        errors = asdict(point.errors).values()
        figures = (point.tolerance_px, point.frames_per_s, point.landmarked_share, *errors)
        lines.append(",".join([point.videos, *(f"{figure:.4g}" for figure in figures)]))
    write_text(out / "curve.csv", "\n".join(lines) + "\n")


def command(
    videos: Annotated[
        list[Path],
        folder_argument(
            "FOLDER...", "folders of talking-face videos; those of the first folder are copied at 720p"
        ),
    ],
    out: Annotated[Path, typer.Option(help="results.json, curve.csv, curve.svg", metavar="DIR")] = Path(
        "bench-crop"
    ),
    clips: Annotated[int, typer.Option(min=1, help="number of videos of each folder")] = 100,
    rounds: Rounds = 3,
    processes: Annotated[int, typer.Option(min=0, help="number of processes; 0: one per core")] = 0,
    preset: Annotated[str, typer.Option(help="x264 preset of copies; affects decoding speed")] = "medium",
    memory: Annotated[bool, typer.Option("--memory", help="measure memory on 10 minutes of 1080p")] = False,
) -> None:
    """Compare the crop stage at 720p with decoding only, landmarks on every frame, and the loops of other tools.

    Example: python -m benchmarks.crop /data/grid /data/hard --clips 100 --memory
    """
    from benchmarks.crop_table import plot_curve, print_crop_bench
    from pipeline.console import show_logs, stdout
    from shards.machine import usable_cores

    show_logs()
    out.mkdir(parents=True, exist_ok=True)
    result = bench_crop(
        videos,
        out,
        clips,
        rounds,
        processes or usable_cores(),
        memory,
        preset,
        print_progress,
    )
    plot_curve(result, out / "curve.svg")
    print_crop_bench(result, stdout)


if __name__ == "__main__":
    run(command)
