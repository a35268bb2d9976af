"""Builds the training job that params.yaml describes, and prints the result of `pipeline train --find-budget`."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from model.training.find_budget import MARGIN, FoundBudget
from model.training.training_data import TrainingJob
from pipeline.params import Params, params_text
from shards.open_store import open_store
from shards.packs import Pack, Packs
from shards.schema import FURTHER_TABLES


def packs_of(values: Params) -> Packs:
    """Returns the packs of train.data, or the pack of `paths`."""
    paths = values.paths
    default = Pack(
        "",
        Path(paths.samples),
        open_store(paths.shards, values.machine),
        Path(paths.clips),
        Path(paths.crops),
        {name: Path(getattr(paths, name)) for name in FURTHER_TABLES},
    )
    return Packs.of(values.train.data, default, values.machine, values.train.where)


def job_of(values: Params) -> TrainingJob:
    """Returns the job of these parameters. The command adds its options with `dataclasses.replace`."""
    paths = values.paths
    return TrainingJob(
        packs=packs_of(values),
        runs=Path(paths.runs),
        checkpoints=Path(paths.checkpoints),
        logs=Path(paths.logs),
        text=values.text,
        model=values.model,
        train=values.train,
        loader=values.loader,
        decode=values.decode.for_validation(),
        machine=values.machine,
        config_text=params_text(values),
    )


def print_budget(found: FoundBudget, console: Console) -> None:
    """Prints a row for each budget that was tried, and the option to set."""
    title = f"training steps in {found.memory_mb:,.0f} MB, with {MARGIN:.0%} kept free"
    table = Table(title=title, title_justify="left")
    for name in ("loader.frame_budget", "clips × frames", "peak, MB", "frames/s", "fits"):
        table.add_column(name, justify="right")
    for trial in found.trials:
        table.add_row(
            str(trial.frame_budget),
            ", ".join(f"{shape.num_clips} × {shape.num_frames}" for shape in trial.shapes),
            "out of memory" if trial.peak_mb is None else f"{trial.peak_mb:,.0f}",
            "" if trial.frames_per_s is None else f"{trial.frames_per_s:,.0f}",
            "yes" if trial.fits else "no",
        )
    console.print(table)
    for line in _advice(found):
        console.print(line, markup=False, highlight=False)


def _advice(found: FoundBudget) -> list[str]:
    lines = []
    if found.speed_change:
        lines.append(
            f"train.augment.speed_change {found.speed_change} makes clips longer than the budget counts; "
            "the steps were tried with the longer clips."
        )
    if found.fits_all:
        lines.append(
            "Every batch of train.batch_size clips fits. A larger frame budget has no effect; a larger "
            "train.batch_size has one."
        )
    lines.append(
        f"the current loader.frame_budget {found.current} {'fits' if found.current_fits else 'does not fit'}"
    )
    if not found.current_fits or found.current < found.frame_budget:
        lines.append(f"--set loader.frame_budget={found.frame_budget}")
    return lines
