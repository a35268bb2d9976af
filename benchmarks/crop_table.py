"""Prints the results of the crop benchmark as tables and draws its curve."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.crop import CHINESE_LIPS_FRAMES, TOLERANCES_PX, CropBench
from shards.files import atomic_file

GOALS = {
    "share of decoding": 0.40,
    "against landmarks on every frame": 3.0,
    "against a loop like auto_avsr's": 6.0,
    "from 1 process to all": 1.8,
}
CORES = (2, 16, 64)


def print_crop_bench(result: CropBench, console: Console) -> None:
    """Prints the figures with their goals, the errors in the same run, and the curve."""
    console.print(", ".join(f"{name} {value}" for name, value in result.machine.items()), style="dim")
    speeds = Table(
        title=f"{result.num_clips} videos of 720p (x264 {result.preset}), {result.num_frames:,} frames, "
        f"{result.processes} processes",
        title_justify="left",
    )
    speeds.add_column("")
    speeds.add_column("frames/s", justify="right")
    for name in result.seconds:
        speeds.add_row(name, f"{result.frames_per_s(name):.0f}")
    console.print(speeds)
    ratios = Table(title="ratios", title_justify="left")
    for column in ("", "here", "goal"):
        ratios.add_column(column, justify="left" if not column else "right")
    for name, ratio in result.ratios().items():
        has_goal = name in GOALS and (name != "from 1 process to all" or result.processes == 2)
        ratios.add_row(name, f"{ratio:.2f}", f"{GOALS[name]:.2f}" if has_goal else "")
    console.print(ratios)
    if result.errors is not None:
        errors = result.errors
        console.print(
            f"in this run {result.landmarked_share:.0%} of the frames had landmarks; compared with landmarks on every "
            f"frame the error of the centre is {errors.centre_mean_px:.2f} px on average and "
            f"{errors.centre_p99_px:.2f} px at the 99th percentile, that of the corners {errors.corner_p99_px:.2f} px "
            "at the 99th percentile"
        )
    if result.landmarker_errors is not None:
        errors = result.landmarker_errors
        console.print(
            "crops by mediapipe's graph and by LiteRT, both with landmarks on every frame: the centre differs by "
            f"{errors.centre_mean_px:.3f} px on average and {errors.centre_p99_px:.3f} px at the 99th percentile"
        )
    if result.peak_worker_mb is not None:
        console.print(f"peak memory of a worker, 10 minutes of 1080p: {result.peak_worker_mb:.0f} MB")
    rate = result.frames_per_s("crop") / result.processes
    console.print(
        "estimate for all of Chinese-LiPS (10.9 million frames) at the same speed per core: "
        + ", ".join(f"{CHINESE_LIPS_FRAMES / rate / cores / 3600:.1f} h on {cores} cores" for cores in CORES)
    )
    curve = Table(title="speed and error by tolerance", title_justify="left")
    for column in (
        "videos",
        "tolerance px",
        "frames/s",
        "landmarked",
        "centre mean",
        "centre p99",
        "corner p99",
    ):
        curve.add_column(column, justify="left" if column == "videos" else "right")
    for point in result.curve:
        errors = point.errors
        curve.add_row(
            point.videos, f"{point.tolerance_px:g}", f"{point.frames_per_s:.0f}", f"{point.landmarked_share:.0%}",
            f"{errors.centre_mean_px:.3f}", f"{errors.centre_p99_px:.3f}", f"{errors.corner_p99_px:.3f}",
        )  # fmt: skip
    console.print(curve)


def plot_curve(result: CropBench, path: Path) -> None:
    """Draws speed and error over tolerance, one line per folder of videos."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "curve"  # same curve, same bytes
    from matplotlib import pyplot

    figure, (speed, error) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for number, videos in enumerate(dict.fromkeys(point.videos for point in result.curve)):
        points = [point for point in result.curve if point.videos == videos]
        tolerances = [point.tolerance_px for point in points]
        colour = f"C{number}"
        speed.plot(tolerances, [p.frames_per_s for p in points], "o-", color=colour, label=videos)
        error.plot(
            tolerances, [p.errors.centre_mean_px for p in points], "o-", color=colour, label=f"{videos}, mean"
        )
        error.plot(
            tolerances,
            [p.errors.centre_p99_px for p in points],
            "o--",
            color=colour,
            label=f"{videos}, 99th percentile",
        )
    error.axhline(0.5, color="0.6", linewidth=1, linestyle=":")
    error.axhline(0.15, color="0.6", linewidth=1, linestyle=":")
    error.annotate(
        "limits at the default", (TOLERANCES_PX[-1], 0.5), ha="right", va="bottom", color="0.4", fontsize=8
    )
    for axes, label in (
        (speed, f"source frames/s, {result.processes} processes"),
        (error, "error of the centre, crop px"),
    ):
        axes.set_xlabel("crop.tolerance_px")
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    with atomic_file(path) as file:
        figure.savefig(file, format=path.suffix[1:], metadata={"Date": None})
    pyplot.close(figure)
