"""The verb train.

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
    ParamsFile,
    app,
    load,
    say,
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

    from pipeline.command import check_writable
    from pipeline.console import over_epochs
    from pipeline.legacy_config import OLDER_NAMES
    from pipeline.training_job import job_of
    from shards.errors import ConfigError
    from stages.train import train as run

    if accept_new_plan and resume is None:
        raise ConfigError("--accept-new-plan is for --resume FILE; without it each plan has a run of its own")
    flags = {name: context.params[name] for name in OLDER_NAMES if name in context.params}
    values = load(params, assignments, preset=preset, config=config, **flags)
    _tell_of_packed(values, params, config)
    if find_budget:
        _find_budget(values)
        return
    paths = values.paths
    for key in ("runs", "checkpoints", "logs"):
        check_writable(Path(getattr(paths, key)), f"paths.{key}")
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
    say(
        f"{paths.checkpoints}: {summary.num_parameters:,} parameters, {summary.epochs} epochs, {best}, "
        f"{summary.seconds:.0f} s of training"
    )


def _find_budget(values: "Params") -> None:
    from model.training.find_budget import find_budget
    from pipeline.console import stdout
    from pipeline.tables.frame_budget import print_budget
    from pipeline.training_job import job_of

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
