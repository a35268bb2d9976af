"""Verb bench: measure the pipeline on this machine."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.command import app

bench = typer.Typer(
    rich_markup_mode=None,
    help="Measure the pipeline on this machine.\n\nExample: pipeline bench crop /data/grid --clips 100",
)
app.add_typer(bench, name="bench")

Rounds = Annotated[int, typer.Option(min=1, help="turns of every variant; the median counts")]


def folder_argument(metavar: str, help: str) -> Any:
    return typer.Argument(help=help, exists=True, file_okay=False, metavar=metavar)


def told(line: str) -> None:
    """What a benchmark says on its way."""
    typer.echo(line, err=True)


@bench.command("crop")
def bench_crop(
    videos: Annotated[
        list[Path],
        folder_argument(
            "FOLDER...", "folders of talking-face videos; 720p copies are made of the first one's"
        ),
    ],
    out: Annotated[Path, typer.Option(help="results.json, curve.csv, curve.svg", metavar="DIR")] = Path(
        "bench-crop"
    ),
    clips: Annotated[int, typer.Option(min=1, help="videos of each folder")] = 100,
    rounds: Rounds = 3,
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
        told,
    )
    plot_curve(result, out / "curve.svg")
    print_crop_bench(result, stdout)


@bench.command("loader")
def bench_loader(
    videos: Annotated[
        list[Path],
        folder_argument(
            "FOLDER...", "folders of talking-face videos; their mouth clips are kept below --out"
        ),
    ],
    out: Annotated[Path, typer.Option(help="results.json and the material", metavar="DIR")] = Path(
        "bench-loader"
    ),
    clips: Annotated[int, typer.Option(min=1, help="clips in all")] = 200,
    rounds: Rounds = 3,
    profile: Annotated[bool, typer.Option("--profile", help="also where our time goes")] = False,
) -> None:
    """Clips a second out of shards against plain webdataset, mp4 by OpenCV and bare reading; memory and waiting too.

    Example: pipeline bench loader /data/grid/video --clips 200
    """
    from pipeline.bench.loader import bench_loader as run
    from pipeline.bench.loader_show import print_loader_bench
    from pipeline.console import show_logs, stdout

    show_logs()
    out.mkdir(parents=True, exist_ok=True)
    result = run(videos, out, clips, rounds, told, with_profile=profile)
    print_loader_bench(result, stdout)


@bench.command("plan")
def bench_plan(
    clips: Annotated[
        int, typer.Option(min=10_000, help="train samples of a made-up catalogue, beside one of 30,341")
    ] = 10_000_000,
    out: Annotated[Path, typer.Option(help="results.json and the catalogues", metavar="DIR")] = Path(
        "bench-plan"
    ),
) -> None:
    """Plan an epoch of made-up catalogues for 1, 8 and 1,000 ranks: seconds, memory, padding, shards a rank.

    Example: pipeline bench plan --clips 1000000
    """
    from pipeline.bench.plan import CHINESE_LIPS_CLIPS, print_plan_bench
    from pipeline.bench.plan import bench_plan as run
    from pipeline.console import stdout

    out.mkdir(parents=True, exist_ok=True)
    counts = sorted({CHINESE_LIPS_CLIPS, clips})
    print_plan_bench(run(counts, out, told), stdout)


@bench.command("catalogue")
def bench_catalogue(
    clips: Annotated[int, typer.Option(min=1, help="rows of the made-up clips.parquet")] = 10_000_000,
    out: Annotated[
        Path, typer.Option(help="results.json, the made-up catalogue (4 GB) and its stats", metavar="DIR")
    ] = Path("bench-catalogue"),
) -> None:
    """Ask a made-up catalogue what people ask, and draw its stats, each in a fresh process: seconds and memory.

    Example: pipeline bench catalogue --clips 1000000
    """
    from pipeline.bench.catalogue import bench_catalogue as run
    from pipeline.bench.catalogue import print_catalogue_bench
    from pipeline.console import stdout

    out.mkdir(parents=True, exist_ok=True)
    print_catalogue_bench(run(clips, out, told), stdout)


@bench.command("train")
def bench_train(
    out: Annotated[Path, typer.Option(help="results.json and the made-up clips", metavar="DIR")] = Path(
        "bench-train"
    ),
    params: Annotated[
        Path | None,
        typer.Option(help="a params.yaml whose paths name a pack to train on, instead of made-up clips"),
    ] = None,
    model_preset: Annotated[
        str,
        typer.Option(help="conformer compared with its eager self; else conformer_large, on a CPU _tiny"),
    ] = "",
    batch: Annotated[int, typer.Option(min=1, help="clips in a batch")] = 8,
    frames: Annotated[int, typer.Option(min=10, help="of each made-up clip")] = 75,
    rounds: Rounds = 3,
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads; 0: one a core, which a busy machine makes slower")
    ] = 0,
    only: Annotated[
        list[str] | None, typer.Option(help="training, inference, conformer, loop; may be given again")
    ] = None,
) -> None:
    """Clips a second of training and reading against plain eager torch, on the GPU or else the CPU; peak memory.

    Example: pipeline bench train --rounds 5 --only training --only loop
    """
    from model.device import choose_device
    from pipeline.bench.train import GROUPS
    from pipeline.bench.train import bench_train as run
    from pipeline.bench.train_show import print_train_bench
    from pipeline.console import stdout
    from pipeline.params import load_params

    out.mkdir(parents=True, exist_ok=True)
    pack = None
    if params:
        paths = load_params(params).paths
        pack, frames = (paths.shards, Path(paths.samples)), 0
    result = run(
        out,
        told,
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


@bench.command("decode")
def bench_decode(
    out: Annotated[Path, typer.Option(help="results.json", metavar="DIR")] = Path("bench-decode"),
    model_preset: Annotated[
        str, typer.Option(help="a conformer; else conformer_large, on a CPU conformer_tiny")
    ] = "",
    batch: Annotated[int, typer.Option(min=1, help="clips read at once")] = 1,
    rounds: Annotated[int, typer.Option(min=1, help="turns of every decoder; the median counts")] = 3,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: one a core")] = 0,
) -> None:
    """Seconds from a 10 s clip's encoder output to its text: every decoder, beams of 1, 10 and 40, in one run.

    Example: pipeline bench decode --batch 32 --rounds 5
    """
    from model.device import choose_device
    from pipeline.bench.decode import bench_decode as run
    from pipeline.bench.decode_show import print_decode_bench
    from pipeline.console import stdout

    out.mkdir(parents=True, exist_ok=True)
    result = run(
        out,
        told,
        on_gpu=choose_device("auto").type == "cuda",
        preset=model_preset,
        batch_size=batch,
        rounds=rounds,
        threads=threads,
    )
    print_decode_bench(result, stdout)


@bench.command("inference")
def bench_inference(
    videos: Annotated[
        Path,
        folder_argument(
            "FOLDER", "folder of talking-face videos; the first one is played until it is long enough"
        ),
    ],
    checkpoint: Annotated[Path, typer.Option(help="checkpoint or exported model", metavar="FILE")] = Path(
        "checkpoints/best_model.pt"
    ),
    params: Annotated[Path, typer.Option(help="parameters", metavar="FILE")] = Path("params.yaml"),
    minutes: Annotated[
        list[float] | None, typer.Option(min=0.1, help="lengths, may be given again; 1 and 10")
    ] = None,
    out: Annotated[Path, typer.Option(help="results.json and the long videos", metavar="DIR")] = Path(
        "bench-inference"
    ),
) -> None:
    """Read long 720p videos, each in a fresh process: real-time factor and peak memory.

    Example: pipeline bench inference /data/grid --checkpoint checkpoints/best_model.pt
    """
    from pipeline.bench.inference import bench_inference as run
    from pipeline.bench.inference import print_inference_bench
    from pipeline.console import stdout

    out.mkdir(parents=True, exist_ok=True)
    print_inference_bench(run(videos, checkpoint, params, out, minutes or [1, 10], told), stdout)
