"""Verb bench: measure the pipeline on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.command import app

bench = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Measure the pipeline on this machine.\n\nExample: pipeline bench crop /data/grid --clips 100",
)
app.add_typer(bench, name="bench")


@bench.command("crop")
def bench_crop(
    videos: Annotated[
        list[Path],
        typer.Argument(
            help="folders of talking-face videos; 720p copies are made of the first one's",
            exists=True,
            file_okay=False,
            metavar="FOLDER...",
        ),
    ],
    out: Annotated[Path, typer.Option(help="results.json, curve.csv, curve.svg", metavar="DIR")] = Path(
        "bench-crop"
    ),
    clips: Annotated[int, typer.Option(min=1, help="videos of each folder")] = 100,
    rounds: Annotated[int, typer.Option(min=1, help="turns of every variant; the median counts")] = 3,
    processes: Annotated[int, typer.Option(min=0, help="0: one a core")] = 0,
    preset: Annotated[str, typer.Option(help="of x264 for the copies; slower ones decode slower")] = "medium",
    memory: Annotated[bool, typer.Option("--memory", help="also 10 minutes of 1080p in one process")] = False,
) -> None:
    """Crop at 720p against decoding alone, landmarks on every frame, and a loop as peers prepare their data.

    Example: pipeline bench crop /data/grid /data/hard --clips 100 --memory
    """
    from pipeline.bench.crop import bench_crop as run
    from pipeline.bench.show import plot_curve, print_crop_bench
    from pipeline.console import show_logs, stdout
    from shards.cores import usable_cores

    show_logs()
    out.mkdir(parents=True, exist_ok=True)
    result = run(
        videos,
        out,
        clips,
        rounds,
        processes or usable_cores(),
        memory,
        preset,
        lambda told: typer.echo(told, err=True),
    )
    plot_curve(result, out / "curve.svg")
    print_crop_bench(result, stdout)
