"""`python -m benchmarks.self_training`: what unlabelled clips add to few labels, by self-training and by sound.

Of the training clips of a pack, a few keep their labels and the labels of the others are hidden. Each variant trains
from scratch with the same number of passes of clips through the network, and reads the test split greedily. The runs
are resumed like every training: run the same command again.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import typer
from rich.console import Console

from benchmarks.options import print_progress, run
from benchmarks.tables import figures_table
from benchmarks.versions import machine_facts
from model.checkpoints import load_checkpoint
from model.decoding.reader import LipReader
from model.decoding.scoring import score_split
from model.metrics import total_counts
from model.training.training_data import TrainingJob
from pipeline.params import Params, load_params
from pipeline.training_job import job_of
from shards.enums import TEST_SPLIT, TRAIN_SPLIT, UNLABELLED_SPLIT
from shards.errors import ConfigError
from shards.files import read_table, write_json, write_table
from shards.packs import Packs
from shards.schema import SAMPLES
from stages.lm import make_language_model
from stages.train import train

PACKAGES = ("torch", "numpy")
VARIANTS = FEW, ALL, SELF, SOUND, BOTH = "few labels", "all labels", "self-training", "sound", "both"
UNLABELLED_SHARE = 0.5
"""Drawn clips, one seed: from half of the epochs on, 0.5 gave 10.2 % CER, 0.75 (labels weighed by confidence) 11.2 %;
from a quarter of the epochs on, 0.75 gave 13.9 %. 16 labels alone gave 10.2 %, all 160 2.2 %."""
TEACHER = ("train.self_training.decoder=ctc_beam", "decode.lm_weight=0.5", "decode.beam=10")
"""Beams with a language model of the few labels; it knows no hidden text."""
SOUND_WEIGHT = 2.0
"""GRID, 80 labels, one seed, CER on valid: 12.7 % with 2, 17.6 % with 0.5, 21.6 % without sound."""
GOALS = {SELF: 0.3, BOTH: 0.5}
"""Share of the gap between few and all labels that a variant should close."""
SOUND_GOAL = 0.75
"""CER with sound as a share of that with few labels."""


@dataclass(frozen=True)
class Trained:
    """One run."""

    variant: str
    seed: int
    test_cer: float
    valid_cer: float | None
    passes: int
    """Clips that went forward and backward through the network."""
    readings: int
    """Clips that the teacher has read, forward only."""
    labellings: list[dict[str, float]] = field(default_factory=list)
    """Of each labelling its first epoch, the share kept, and the CER of all and of the kept labels."""


@dataclass
class SelfTrainingBench:
    machine: dict[str, str]
    num_labelled: int
    num_hidden: int
    runs: list[Trained] = field(default_factory=list)

    def cers(self, variant: str) -> list[float]:
        return [one.test_cer for one in self.runs if one.variant == variant]

    def gap_closed(self, variant: str) -> float | None:
        """Returns the share of the gap from few to all labels, by the means; None if one of them was not run."""
        means = [statistics.mean(cers) for name in (FEW, ALL, variant) if (cers := self.cers(name))]
        if len(means) < 3 or means[0] == means[1]:
            return None
        few, every, ours = means
        return (few - ours) / (few - every)

    def summary(self) -> dict[str, dict[str, float | None]]:
        """Returns mean and range of the test CER of each variant, and the share of the gap that it closes."""
        found: dict[str, dict[str, float | None]] = {}
        for variant in dict.fromkeys(one.variant for one in self.runs):
            cers = self.cers(variant)
            found[variant] = {
                "mean": statistics.mean(cers),
                "lowest": min(cers),
                "highest": max(cers),
                "gap_closed": self.gap_closed(variant),
            }
        return found

    def goals(self) -> list[dict[str, Any]]:
        """Returns the goals of the variants that were run."""
        rows = [
            (f"{variant}: share of the gap closed", closed, goal, closed >= goal)
            for variant, goal in GOALS.items()
            if (closed := self.gap_closed(variant)) is not None
        ]
        if self.cers(SOUND) and self.cers(FEW):
            ratio = statistics.mean(self.cers(SOUND)) / statistics.mean(self.cers(FEW))
            rows.append((f"{SOUND}: CER as a share of that of {FEW}", ratio, SOUND_GOAL, ratio <= SOUND_GOAL))
        return [dict(zip(("name", "figure", "goal", "is_reached"), row, strict=True)) for row in rows]


def bench_self_training(
    params: Path,
    out: Path,
    progress: Callable[[str], None],
    *,
    chosen: Sequence[str],
    seeds: Sequence[int],
    num_labelled: int = 80,
    epoch_clips: int = 800,
    num_epochs: int = 40,
    assignments: Sequence[str] = (),
) -> SelfTrainingBench:
    """Trains each variant with each seed, and writes results.json into `out` after every run.

    `params` is the params.yaml of a project with a pack; `assignments` change it for all variants. A seed also draws
    the clips that keep their labels. Raises ConfigError if a variant is unknown.
    """
    if unknown := set(chosen) - set(VARIANTS):
        raise ConfigError(f"--only {min(unknown)}: choose from {', '.join(VARIANTS)}")
    common = [
        f"loader.epoch_clips={epoch_clips}",
        f"train.num_epochs={num_epochs}",
        f"train.checkpoint_every={num_epochs}",
        "machine.trackers=[]",
    ]
    result: SelfTrainingBench | None = None
    for seed in seeds:
        for variant in chosen:
            seeded = [f"train.seed={seed}", f"loader.seed={seed}"]
            changes = [*common, *seeded, *_changes(variant, num_epochs), *assignments]
            values = load_params(params, assignments=changes)
            samples = Path(values.paths.samples)
            few = out / f"samples-{seed}.parquet"
            num_hidden = hide_labels(samples, few, num_labelled, seed)
            result = result or SelfTrainingBench(machine_facts(PACKAGES), num_labelled, num_hidden)
            progress(f"{variant}, seed {seed}")
            job = _job(values, samples if variant == ALL else few, out, variant, seed)
            train(job)
            result.runs.append(_figures(job, variant, seed, num_hidden))
            write_json(
                out / "results.json",
                {**asdict(result), "summary": result.summary(), "goals": result.goals()},
            )
    assert result is not None, "at least one variant and one seed"
    return result


def _changes(variant: str, num_epochs: int) -> list[str]:
    changes = []
    if variant in (SELF, SOUND, BOTH):
        changes.append(f"loader.unlabelled_share={UNLABELLED_SHARE}")
    if variant in (SELF, BOTH):
        changes += [
            f"train.self_training.start_epoch={num_epochs // 2}",
            f"train.self_training.every_epochs={max(1, num_epochs // 8)}",
            *TEACHER,
        ]
    if variant in (SOUND, BOTH):
        changes.append(f"train.audio_weight={SOUND_WEIGHT}")
    return changes


def hide_labels(samples: Path, out: Path, num_labelled: int, seed: int) -> int:
    """Writes a catalogue in which `num_labelled` training clips keep their labels; returns the number of the others.

    The others are in the split unlabelled, and the shards stay the same. Raises ConfigError if there are too few clips.
    """
    table = read_table(samples, SAMPLES, "pipeline pack")
    splits = np.array(table["split"].to_pylist(), object)
    training = np.flatnonzero(splits == TRAIN_SPLIT)
    if len(training) <= num_labelled:
        raise ConfigError(f"{samples} has {len(training)} training clips; --labelled must be less")
    hidden = np.random.default_rng(seed).permutation(training)[num_labelled:]
    splits[hidden] = UNLABELLED_SPLIT
    place = table.schema.get_field_index("split")
    changed = table.set_column(place, table.schema.field(place), pa.array(splits.tolist()))
    changed = changed.replace_schema_metadata(pq.read_schema(samples).metadata)
    write_table(out, changed, changed.schema)
    return len(hidden)


def _job(values: Params, samples: Path, out: Path, variant: str, seed: int) -> TrainingJob:
    folder = out / f"{variant.replace(' ', '_')}-{seed}"
    job = job_of(values)
    packs = Packs.single(samples, job.packs.store)
    lm = folder / "lm.arpa"
    if job.teacher.lm_weight and not lm.exists():
        make_language_model(packs, lm, values.lm, values.text)
    return replace(
        job,
        packs=packs,
        runs=folder / "runs",
        checkpoints=folder / "checkpoints",
        logs=folder / "logs",
        lm=lm,
    )


def _figures(job: TrainingJob, variant: str, seed: int, num_hidden: int) -> Trained:
    best = job.checkpoints / "best_model.pt"
    reader = LipReader.from_checkpoint(best, torch.device("cpu"))
    clips = score_split(
        reader,
        job.packs.read(TEST_SPLIT),
        job.packs.store,
        batch_size=job.train.batch_size,
        loader=job.loader,
        machine=job.machine,
        decode=job.decode,
    )
    progress = load_checkpoint(job.checkpoints / f"checkpoint_epoch_{job.train.num_epochs - 1}.pt")[
        "progress"
    ]
    params, labellings = job.train.self_training, []
    for curve in progress["curves"]:
        if params.round_of(curve["epoch"]) > params.round_of(curve["epoch"] - 1):
            labellings.append(
                {name: value for name, value in curve.items() if name in ("epoch", *_LABELLING)}
            )
    return Trained(
        variant,
        seed,
        total_counts((clip.reference, clip.hypothesis) for clip in clips).cer,
        min((curve["val_cer"] for curve in progress["curves"] if curve["val_cer"] is not None), default=None),
        job.loader.epoch_clips * job.train.num_epochs,
        len(labellings) * params.views * num_hidden,
        labellings,
    )


_LABELLING = (*("pseudo_kept", "pseudo_cer", "pseudo_cer_kept", "pseudo_doubtful", "pseudo_wrong_learnt"),)


def print_bench(result: SelfTrainingBench, console: Console) -> None:
    table = figures_table(
        f"{result.num_labelled} clips with labels, {result.num_hidden} without: test CER",
        *("", "mean", "lowest", "highest", "gap closed"),
    )
    for variant, figures in result.summary().items():
        cers = (f"{100 * figures[name]:.1f} %" for name in ("mean", "lowest", "highest"))  # type: ignore[operator]
        closed = figures["gap_closed"]
        table.add_row(variant, *cers, "" if closed is None else f"{100 * closed:.0f} %")
    console.print(table)
    for goal in result.goals():
        console.print(
            f"{goal['name']}: {goal['figure']:.2f} (goal {goal['goal']}), "
            f"{'reached' if goal['is_reached'] else 'missed'}"
        )


def command(
    params: Annotated[
        Path, typer.Argument(help="params.yaml of a project with a pack of GRID s1", exists=True)
    ],
    labelled: Annotated[int, typer.Option(min=1, help="training clips that keep their labels")] = 80,
    epoch_clips: Annotated[int, typer.Option(min=1, help="clips of an epoch, of every variant")] = 800,
    num_epochs: Annotated[int, typer.Option(min=4, help="epochs of every variant")] = 40,
    seeds: Annotated[int, typer.Option(min=1, help="number of seeds")] = 3,
    only: Annotated[
        list[str] | None, typer.Option(help="variants to run; default: all", metavar="NAME")
    ] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.key=value, for every variant", metavar="KEY=VALUE"),
    ] = None,
    out: Annotated[Path, typer.Option(help="runs and results.json", metavar="DIR")] = Path(
        "bench-self-training"
    ),
) -> None:
    """Train with few labels, with all, and with few labels and unlabelled clips; compare their test CER.

    Example: python -m benchmarks.self_training params.yaml --only "few labels" --only self-training
    """
    from pipeline.console import stdout

    result = bench_self_training(
        params,
        out,
        print_progress,
        chosen=only or VARIANTS,
        seeds=range(seeds),
        num_labelled=labelled,
        epoch_clips=epoch_clips,
        num_epochs=num_epochs,
        assignments=assignments or (),
    )
    print_bench(result, stdout)


if __name__ == "__main__":
    run(command)
