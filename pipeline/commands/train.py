"""The commands train, audit, sync and lm.

Heavy imports are inside the commands, so that `pipeline --help` is fast.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.command import (
    PARAMS,
    PREPROCESSING,
    TRAINING,
    Assignments,
    CheckpointDir,
    ConfigFile,
    DataRoot,
    Json,
    ModelFile,
    ParamsFile,
    app,
    check_writable,
    figures_of,
    is_other_rank,
    load,
    print_json,
    say,
    shown,
)

if TYPE_CHECKING:
    from pipeline.params import Params


@app.command(rich_help_panel=TRAINING)
def train(
    context: typer.Context,
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    preset: Annotated[str | None, typer.Option(help="cpu, 12gb or 24gb of GPU memory")] = None,
    config: ConfigFile = None,
    resume: Annotated[
        Path | None, typer.Option(help="resume from this checkpoint_epoch_N.pt", metavar="FILE")
    ] = None,
    accept_new_plan: Annotated[
        bool, typer.Option("--accept-new-plan", help="with --resume: resume even if the epoch plan changed")
    ] = False,
    find_budget: Annotated[
        bool,
        typer.Option("--find-budget", help="print the largest loader.frame_budget that fits; do not train"),
    ] = False,
    data_root: DataRoot = None,
    checkpoint_dir: CheckpointDir = None,
    max_frames: Annotated[int | None, typer.Option(help="longest clip, frames (preprocessing)")] = None,
    fps: Annotated[float | None, typer.Option(help="frame rate, frames/s (preprocessing)")] = None,
    batch_size: Annotated[int | None, typer.Option(help="the largest number of clips in a batch")] = None,
    accumulation_steps: Annotated[int | None, typer.Option(help="batches for one optimizer step")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="peak learning rate, after the warm-up")] = None,
    num_epochs: Annotated[int | None, typer.Option(help="number of epochs")] = None,
    warmup_epochs: Annotated[float | None, typer.Option(help="warm-up of the learning rate, epochs")] = None,
    scheduler: Annotated[str | None, typer.Option(help="cosine or constant learning rate")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="weight decay of AdamW")] = None,
    gradient_clip: Annotated[float | None, typer.Option(help="the largest gradient norm")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="label smoothing, 0 to 1")] = None,
    teacher_forcing: Annotated[
        float | None,
        typer.Option(
            "--teacher-forcing", "--teacher-forcing-ratio", help="teacher forcing in the first epoch, 0 to 1"
        ),
    ] = None,
    mixed_precision: Annotated[
        bool | None,
        typer.Option("--mixed-precision/--no-mixed-precision", help="compute in bfloat16 or float16"),
    ] = None,
    frame_size: Annotated[int | None, typer.Option(help="input height and width, pixels")] = None,
    frame_height: Annotated[int | None, typer.Option(help="input height, pixels")] = None,
    frame_width: Annotated[int | None, typer.Option(help="input width, pixels")] = None,
    hidden_dim: Annotated[int | None, typer.Option(help="hidden size of the LSTMs")] = None,
    num_lstm_layers: Annotated[int | None, typer.Option(help="number of LSTM layers of the encoder")] = None,
    dropout: Annotated[float | None, typer.Option(help="dropout probability between layers")] = None,
    num_workers: Annotated[int | None, typer.Option(help="number of loader threads")] = None,
    prefetch_factor: Annotated[int | None, typer.Option(help="batches ready in each loader thread")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 or mps")] = None,
    json_: Json = False,
) -> None:
    """Train a model on the shards; an interrupted run with the same parameters resumes automatically.

    Options without a default take their value from the params file.

    Example: pipeline train --preset 12gb --num-epochs 50
    """
    from dataclasses import replace

    from pipeline.console import over_epochs
    from pipeline.legacy_config import OLDER_NAMES
    from pipeline.training_job import job_of
    from shards.errors import ConfigError
    from stages.train import train as run

    if accept_new_plan and resume is None:
        raise ConfigError(
            "--accept-new-plan needs --resume FILE; without --resume a changed epoch plan starts a new run"
        )
    flags = {name: context.params[name] for name in OLDER_NAMES if name in context.params}
    values = load(params, assignments, preset=preset, config=config, **flags)
    _warn_of_preprocessing(values, params, config)
    if find_budget:
        _find_budget(values, json_)
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
            shown=shown,
        )
        summary = run(job)
    if json_:
        print_json(figures_of(summary, checkpoints=paths.checkpoints))
        return
    best = "the model of the last epoch, because no CER on valid was measured"
    if summary.best_val_cer is not None:
        best = f"best valid CER {summary.best_val_cer:.1%} in epoch {summary.best_epoch}"
    if summary.already_done:
        typer.echo("this run has already finished; nothing to do")
    say(
        f"{paths.checkpoints}: {summary.num_parameters:,} parameters, {summary.epochs} epochs, {best}, "
        f"{summary.seconds:.0f} s of training"
    )


@app.command(rich_help_panel=TRAINING)
def audit(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    folds: Annotated[
        int,
        typer.Option(min=2, max=100, help="number of models, each trained without the clips that it reads"),
    ] = 4,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            help="read all clips with this model, which has not seen them; train none", metavar="FILE"
        ),
    ] = None,
    clips: Annotated[int, typer.Option(min=0, help="number of clips to print")] = 20,
    json_: Json = False,
) -> None:
    """Find training clips whose label the video contradicts, by models that have not seen the clip.

    Trains a model for each fold with the parameters of `pipeline train`; the same command resumes. Writes paths.audit,
    which train.where can use.

    Example: pipeline audit --folds 4 --set train.num_epochs=20
    """
    from pipeline.console import over_epochs, stdout
    from pipeline.tables.audit import print_audit
    from pipeline.training_job import job_of
    from stages.audit import audit as run
    from stages.audit import given_model, train_folds

    values = load(params, assignments)
    for key in ("runs", "audit"):
        check_writable(Path(getattr(values.paths, key)).parent, f"paths.{key}")
    job = job_of(values)
    if checkpoint:
        models = given_model(checkpoint, job.packs)
    else:
        with shown("training", "batches") as on_progress:

            def on_fold(number: int) -> Any:
                def show(done: int, total: int, detail: str = "") -> None:
                    on_progress(
                        number * total + done, folds * total, f"fold {number + 1} of {folds}, {detail}"
                    )

                return over_epochs(show, values.train.num_epochs)

            models = train_folds(job, folds, on_fold)
    if is_other_rank():
        return
    with shown("reading", "clips") as on_progress:
        summary = run(job, models, clips, on_progress)
    if json_:
        print_json(figures_of(summary))
    else:
        print_audit(summary, stdout)
        say("`pipeline qc` shows the worst clips")


@app.command(rich_help_panel=TRAINING)
def sync(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    checkpoint: ModelFile = None,
    clips: Annotated[int, typer.Option(min=0, help="number of clips to print")] = 20,
    json_: Json = False,
) -> None:
    """Measure the offset between sound and picture of each packed clip, and how well they belong together.

    Needs a pack with pack.audio and a model that was trained with train.audio_weight. Writes paths.sound, which
    train.where can use.

    Example: pipeline sync && pipeline train --set "train.where=abs(offset_frames) <= 2"
    """
    from pipeline.console import stdout
    from pipeline.tables.sync import print_sync
    from pipeline.training_job import packs_of
    from stages.sync import sync as run

    values = load(params, assignments)
    check_writable(Path(values.paths.sound).parent, "paths.sound")
    with shown("comparing sound and picture", "clips") as on_progress:
        summary = run(
            packs_of(values),
            checkpoint or Path(values.paths.checkpoints) / "best_model.pt",
            loader=values.loader,
            machine=values.machine,
            num_shown=clips,
            on_progress=on_progress,
        )
    if json_:
        print_json(figures_of(summary))
    else:
        print_sync(summary, stdout)
        say("`pipeline qc` shows the worst clips")


def _find_budget(values: "Params", json_: bool) -> None:
    from model.training.find_budget import find_budget
    from pipeline.console import stdout
    from pipeline.training_job import job_of, print_budget

    found = find_budget(job_of(values))
    if json_:
        print_json(figures_of(found))
    else:
        print_budget(found, stdout)


def _warn_of_preprocessing(values: "Params", params: Path, config: Path | None) -> None:
    """Prints one line if train is given values that only preprocessing uses: the shards are packed already."""
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
    changed = ", ".join(f"{key} ({value})" for key, value in given.items())
    typer.echo(
        f"{changed}: differs from {params} and has no effect on train, which reads shards that are packed already; "
        f"to apply it run: pipeline preprocess {' '.join(options)}",
        err=True,
    )


@app.command(rich_help_panel=TRAINING)
def lm(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="text to learn from, one sentence on each line; default: lm.text_file", metavar="FILE"
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Train the language model for beam search and print its perplexity on split valid.

    Example: pipeline lm --text novels.txt --set lm.order=5
    """
    from pipeline.training_job import packs_of
    from stages.lm import make_language_model, summary_of

    values = load(params, assignments, lm__text_file=text)
    figures = make_language_model(packs_of(values), Path(values.paths.lm), values.lm, values.text)
    if json_:
        print_json(figures)
    else:
        for line in summary_of(figures).splitlines():
            say(line)
