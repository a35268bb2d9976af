"""Verbs about models: train, report, show, test, inference.

Heavy imports stay inside the verbs, so that `pipeline --help` answers at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.command import (
    PARAMS,
    PREPROCESSING,
    Assignments,
    CheckpointDir,
    ConfigFile,
    DataRoot,
    Json,
    ParamsFile,
    app,
    load,
    shown,
)

if TYPE_CHECKING:
    from pipeline.params import Params


@app.command()
def train(
    context: typer.Context,
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    preset: Annotated[str | None, typer.Option(help="cpu, 12gb or 24gb")] = None,
    config: ConfigFile = None,
    resume: Annotated[
        Path | None, typer.Option(help="go on from this checkpoint_epoch_N.pt", metavar="FILE")
    ] = None,
    accept_new_plan: Annotated[
        bool, typer.Option("--accept-new-plan", help="with --resume: though its batches were others")
    ] = False,
    find_budget: Annotated[
        bool,
        typer.Option("--find-budget", help="train nothing: print the largest loader.frame_budget that fits"),
    ] = False,
    data_root: DataRoot = None,
    checkpoint_dir: CheckpointDir = None,
    max_frames: Annotated[int | None, typer.Option(help="longest clip; of preprocessing")] = None,
    fps: Annotated[float | None, typer.Option(help="frame rate; of preprocessing")] = None,
    batch_size: Annotated[int | None, typer.Option(help="clips in a batch")] = None,
    accumulation_steps: Annotated[int | None, typer.Option(help="batches for one step")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="peak learning rate")] = None,
    num_epochs: Annotated[int | None, typer.Option(help="epochs in all")] = None,
    warmup_epochs: Annotated[float | None, typer.Option(help="rise of the learning rate")] = None,
    scheduler: Annotated[str | None, typer.Option(help="cosine or constant")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="of AdamW")] = None,
    gradient_clip: Annotated[float | None, typer.Option(help="largest norm of the gradient")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="share of the other characters")] = None,
    teacher_forcing: Annotated[
        float | None,
        typer.Option(
            "--teacher-forcing", "--teacher-forcing-ratio", help="share of given characters, at first"
        ),
    ] = None,
    mixed_precision: Annotated[
        bool | None, typer.Option("--mixed-precision/--no-mixed-precision", help="bfloat16 where it is fast")
    ] = None,
    frame_size: Annotated[int | None, typer.Option(help="input height and width, pixels")] = None,
    frame_height: Annotated[int | None, typer.Option(help="input height, pixels")] = None,
    frame_width: Annotated[int | None, typer.Option(help="input width, pixels")] = None,
    hidden_dim: Annotated[int | None, typer.Option(help="of the LSTMs")] = None,
    num_lstm_layers: Annotated[int | None, typer.Option(help="of the encoder")] = None,
    dropout: Annotated[float | None, typer.Option(help="between layers")] = None,
    num_workers: Annotated[int | None, typer.Option(help="loader threads")] = None,
    prefetch_factor: Annotated[int | None, typer.Option(help="batches ready in each of them")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1")] = None,
) -> None:
    """Train on the shards; goes on by itself where an interrupted run of the same parameters stood.

    Example: pipeline train --preset 12gb --num-epochs 50
    """
    from dataclasses import replace

    from model.trainer import train as run
    from pipeline.console import over_epochs
    from pipeline.older import OLDER_NAMES
    from pipeline.training import job_of
    from shards.errors import ConfigError

    if accept_new_plan and resume is None:
        raise ConfigError("--accept-new-plan is for --resume FILE; without it each plan has a run of its own")
    flags = {name: context.params[name] for name in OLDER_NAMES if name in context.params}
    values = load(params, assignments, preset=preset, config=config, **flags)
    _tell_of_packed(values, params, config)
    if find_budget:
        _find_budget(values)
        return
    paths = values.paths
    with shown("training", "batches") as on_progress:
        job = replace(
            job_of(values),
            resume=resume,
            accept_new_plan=accept_new_plan,
            on_batch=over_epochs(on_progress, values.train.num_epochs),
        )
        summary = run(job)
    best = "no valid CER to choose by: the last model"
    if summary.best_val_cer is not None:
        best = f"best valid CER {summary.best_val_cer:.1%} in epoch {summary.best_epoch}"
    if summary.already_done:
        typer.echo("this run was finished before; nothing to do")
    typer.echo(
        f"{paths.checkpoints}: {summary.num_parameters:,} parameters, {summary.epochs} epochs, {best}, "
        f"{summary.seconds:.0f} s of training"
    )


def _find_budget(values: "Params") -> None:
    from model.find_budget import find_budget
    from pipeline.budget_table import print_budget
    from pipeline.console import stdout
    from pipeline.training import job_of

    print_budget(find_budget(job_of(values)), stdout)


def _tell_of_packed(values: "Params", params: Path, config: Path | None) -> None:
    """One line where values are given to train that are preprocessing's: the shards are packed already."""
    import shlex

    from pipeline.params import changed_keys, load_params

    given = changed_keys(values, load_params(params), PREPROCESSING)
    if not given:
        return
    by_flags = changed_keys(values, load_params(params, config=config), PREPROCESSING)
    options = [f"--config {shlex.quote(str(config))}"] if given.keys() - by_flags.keys() else []
    for key, value in by_flags.items():
        is_root = key == "corpus.root"
        options.append(
            f"--data-root {shlex.quote(value)}" if is_root else f"--set {shlex.quote(f'{key}={value}')}"
        )
    told = ", ".join(f"{key} ({value})" for key, value in given.items())
    typer.echo(
        f"{told}: not as in {params}; train reads shards that are packed already, preprocessing takes it: "
        f"pipeline preprocess {' '.join(options)}",
        err=True,
    )


@app.command()
def report(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    checkpoint: Annotated[Path | None, typer.Option(help="default: the best one", metavar="FILE")] = None,
) -> None:
    """Score a split, sighted and blind, and write metrics.json, predictions.parquet and report.html.

    Example: pipeline report --set report.split=valid
    """
    from shards.store import open_store
    from stages.score import ReportJob
    from stages.score import report as run

    values = load(params, assignments)
    paths = values.paths
    with shown("reading clips", "clips") as on_progress:
        metrics = run(
            ReportJob(
                checkpoint=checkpoint or Path(paths.checkpoints) / "best_model.pt",
                clips=Path(paths.clips),
                crops=Path(paths.crops),
                samples=Path(paths.samples),
                shards=open_store(paths.shards, values.machine),
                curves=Path(paths.logs) / "curves.csv",
                report=Path(paths.report),
                corpus=values.corpus,
                report_params=values.report,
                loader=values.loader,
                decode=values.decode,
                machine=values.machine,
            ),
            on_progress,
        )
    from pipeline.console import stdout
    from pipeline.summary import print_metrics

    print_metrics(metrics, stdout)
    typer.echo(f"{Path(paths.report) / 'report.html'}")


@app.command()
def show(params: ParamsFile = PARAMS, assignments: Assignments = None, json_: Json = False) -> None:
    """Print the figures of the last report, and where its page is.

    Example: pipeline show
    """
    import json

    from pipeline.console import stdout
    from pipeline.summary import print_metrics
    from shards.errors import TableError

    folder = Path(load(params, assignments).paths.report)
    file = folder / "metrics.json"
    try:
        metrics = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise TableError(f"{file} is missing; `pipeline report` makes it") from None
    except ValueError as error:
        raise TableError(f"{file} is damaged ({error}); `pipeline report` makes it again") from error
    if json_:
        typer.echo(json.dumps(metrics, ensure_ascii=False, indent=2))
    else:
        print_metrics(metrics, stdout)
        typer.echo(f"report: {folder / 'report.html'}")


@app.command()
def test(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    checkpoint: Annotated[Path | None, typer.Option(help="default: the best one", metavar="FILE")] = None,
    checkpoint_dir: CheckpointDir = None,
    split: Annotated[str | None, typer.Option(help="default: report.split")] = None,
    data_root: DataRoot = None,
    batch_size: Annotated[int | None, typer.Option(help="taken for older scripts; changes no result")] = None,
    json_: Json = False,
) -> None:
    """Score a checkpoint on a split and print the figures; writes nothing.

    Example: pipeline test --checkpoint checkpoints/best_model.pt --split valid
    """
    import json

    from pipeline.console import stdout
    from pipeline.summary import print_examples, print_metrics
    from shards.store import open_store
    from stages.report import split_metrics
    from stages.score import score_checkpoint, shared_speakers

    values = load(
        params, assignments, data_root=data_root, checkpoint_dir=checkpoint_dir, report__split=split
    )
    paths = values.paths
    with shown("reading clips", "clips") as on_progress:
        _, scored, blind = score_checkpoint(
            checkpoint or Path(paths.checkpoints) / "best_model.pt",
            Path(paths.samples),
            open_store(paths.shards, values.machine),
            values.report.split,
            loader=values.loader,
            decode=values.decode,
            machine=values.machine,
            on_progress=on_progress,
        )
    overlap = len(shared_speakers(Path(paths.samples), values.report.split))
    metrics = split_metrics(scored, blind, values.report.split, values.report.seed, overlap)
    if json_:
        typer.echo(json.dumps(metrics, ensure_ascii=False, indent=2))
    else:
        print_examples(scored, stdout)
        print_metrics(metrics, stdout)


@app.command()
def inference(
    videos: Annotated[list[Path] | None, typer.Argument(help="video files", metavar="VIDEO...")] = None,
    video_path: Annotated[list[Path] | None, typer.Option(help="a video file, older spelling")] = None,
    ground_truth: Annotated[str | None, typer.Option(help="what is said; prints the CER")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="default: the best one", metavar="FILE")] = None,
    checkpoint_dir: CheckpointDir = None,
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    json_: Json = False,
) -> None:
    """Read videos: the mouth is found and cut as in preprocessing, the text is printed.

    Example: pipeline inference me.mp4 --ground-truth 我们旨在搭建一个平台
    """
    from pipeline.inference import print_readings, read_videos
    from shards.errors import ConfigError

    paths = [*(videos or []), *(video_path or [])]
    if not paths:
        raise ConfigError("name a video: pipeline inference VIDEO")
    if ground_truth is not None and len(paths) > 1:
        raise ConfigError("--ground-truth is for one video")
    values = load(params, assignments, checkpoint_dir=checkpoint_dir)
    readings = read_videos(
        paths, checkpoint or Path(values.paths.checkpoints) / "best_model.pt", values, ground_truth
    )
    print_readings(readings, as_json=json_)
    if any(reading.reason for reading in readings):
        raise SystemExit(1)
