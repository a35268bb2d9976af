"""`python -m benchmarks.adapt`: how much better is a person read after `pipeline adapt`, in clips that it did not see?

Folds of the person's clips: the model is adapted to the clips outside of a fold, with their own cross-validation, and
reads those inside. A second split shows what the model forgets of other speakers.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console

from benchmarks.options import print_progress, run
from benchmarks.tables import figures_table
from benchmarks.versions import machine_facts
from model.adapters import save_adapter
from model.bootstrap import interval_of, rates, resampled_sums
from model.decoding.reader import LipReader
from model.decoding.scoring import score_split
from model.device import choose_device
from model.metrics import EditCounts, edit_counts
from model.training.adaptation import PersonClip, adapt, adapt_statistics, adapted
from pipeline.adapting import PersonSource, clips_of_person, train_params
from pipeline.params import Params, load_params
from pipeline.training_job import packs_of
from shards.files import write_json

RESAMPLES = 2_000


@dataclass(frozen=True)
class AdaptBench:
    machine: dict[str, str]
    num_clips: int
    cer_before: float
    cer_after: float
    change_low: float | None
    """95 % interval of the change, after minus before, over clips; None: all clips change alike."""
    change_high: float | None
    cer_statistics: float
    """With statistics alone, which need no labels."""
    blind_before: float
    blind_after: float
    """Blind: the model sees only each clip's mean frame."""
    steps: list[int | None]
    """Of each fold; None: left as it is."""
    seconds: float
    """Of the slowest adaptation."""
    num_bytes: int
    other_before: float | None
    other_after: float | None
    """CER of the other split, mean over the adapters; None: not asked for."""


def bench_adapt(
    checkpoint: Path,
    clips: Sequence[PersonClip],
    values: Params,
    num_folds: int,
    other: str | None,
    out: Path,
) -> AdaptBench:
    """Measures the folds of `clips`."""
    reader = LipReader.from_checkpoint(checkpoint, choose_device(values.machine.device))
    train, decode = train_params(checkpoint), values.decode.for_validation()
    fold_N = np.random.default_rng(0).permutation(len(clips)) % num_folds
    counts: dict[str, list[EditCounts]] = {
        name: [] for name in ("before", "after", "statistics", "blind before", "blind after")
    }
    steps, seconds, num_bytes, others = [], 0.0, 0, []

    def read(one: LipReader, held: Sequence[PersonClip], name: str, blind: bool = False) -> None:
        for clip in held:
            video_BTHW = torch.from_numpy(clip.clip_THW.copy())[None]
            (reading,) = one.read(video_BTHW, torch.tensor([len(clip.clip_THW)]), decode, blind)
            counts[name].append(edit_counts(one.reference(clip.label, decode), reading.text))

    for fold in range(num_folds):
        held = [clip for clip, own in zip(clips, fold_N, strict=True) if own == fold]
        given = [clip for clip, own in zip(clips, fold_N, strict=True) if own != fold]
        start = time.perf_counter()
        found = adapt(reader, given, train, decode, fold, lambda *_: None, values.machine.threads)
        seconds = max(seconds, time.perf_counter() - start)
        steps.append(found.best.steps)
        after = reader if found.changes is None else adapted(reader, found.changes)
        if found.changes is not None:
            weights = reader.network.state_dict()
            num_bytes = max(num_bytes, save_adapter(out / f"fold_{fold}.pt", weights, found.changes, {}))
        read(reader, held, "before")
        read(reader, held, "blind before", blind=True)
        read(after, held, "after")
        read(after, held, "blind after", blind=True)
        read(adapted(reader, adapt_statistics(reader, given)), held, "statistics")
        if other is not None:
            others.append(_cer_of_split(after, other, values))
        print_progress(f"fold {fold}: {len(given)} + {len(held)} clips, {steps[-1]} steps")
    cers = {name: sum(found, EditCounts()).cer for name, found in counts.items()}
    low, high = _interval(counts["before"], counts["after"]) or (None, None)
    return AdaptBench(
        machine_facts(("numpy", "torch")),
        len(clips),
        cers["before"],
        cers["after"],
        low,
        high,
        cers["statistics"],
        cers["blind before"],
        cers["blind after"],
        steps,
        seconds,
        num_bytes,
        None if other is None else _cer_of_split(reader, other, values),
        None if other is None else float(np.mean(others)),
    )


def _cer_of_split(reader: LipReader, split: str, values: Params) -> float:
    packs = packs_of(values)
    scored = score_split(
        reader,
        packs.read(split),
        packs.store,
        batch_size=32,
        loader=values.loader,
        machine=values.machine,
        decode=values.decode.for_validation(),
    )
    return sum((edit_counts(clip.reference, clip.hypothesis) for clip in scored), EditCounts()).cer


def _interval(before: Sequence[EditCounts], after: Sequence[EditCounts]) -> tuple[float, float] | None:
    """Returns the 95 % interval of the change of the CER, by the bootstrap over pairs of readings of a clip."""
    figures_N3 = np.array(
        [[old.errors, new.errors, old.num_chars] for old, new in zip(before, after, strict=True)], np.int64
    )
    old_R, new_R, chars_R = resampled_sums(figures_N3, RESAMPLES, 0).T
    return interval_of(rates(new_R, chars_R) - rates(old_R, chars_R))


def print_bench(result: AdaptBench, console: Console) -> None:
    def percent(share: float | None) -> str:
        return "–" if share is None else f"{share:.1%}"

    table = figures_table(f"{result.num_clips} clips of one person", "", "before", "after", "goal")
    table.add_row("CER", percent(result.cer_before), percent(result.cer_after), "≤ 40 % (GRID s26)")
    table.add_row(
        "change", "", f"{percent(result.change_low)} to {percent(result.change_high)}", "interval below 0"
    )
    table.add_row("CER, statistics only", percent(result.cer_before), percent(result.cer_statistics), "")
    table.add_row("blind CER", percent(result.blind_before), percent(result.blind_after), "")
    table.add_row(
        "CER, other split", percent(result.other_before), percent(result.other_after), "≤ 0.5 points"
    )
    table.add_row("time", "", f"{result.seconds:.0f} s", "≤ 3 min")
    table.add_row("size", "", f"{result.num_bytes / 1e6:.2f} MB", "≤ 1 MB")
    console.print(table)
    console.print(f"steps of the folds: {', '.join(map(str, result.steps))}")


def command(
    params: Annotated[Path, typer.Argument(help="params.yaml of a packed project", exists=True)],
    checkpoint: Annotated[Path, typer.Option(help="model that does not know the person", exists=True)],
    split: Annotated[str, typer.Option(help="split of the person's clips")] = "unseen",
    where: Annotated[str, typer.Option(help="condition on them", metavar="SQL")] = "",
    other: Annotated[
        str | None, typer.Option(help="split of other speakers: what is forgotten; default: none")
    ] = None,
    folds: Annotated[int, typer.Option(min=2)] = 5,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value; repeatable")
    ] = None,
    out: Annotated[Path, typer.Option(help="adapters and results.json", metavar="DIR")] = Path("bench-adapt"),
) -> None:
    """Adapt a model to a person in folds, and read the clips of each fold before and after.

    Example: python -m benchmarks.adapt params.yaml --checkpoint checkpoints/best_model.pt --split unseen --other test
    """
    from pipeline.console import stdout

    values = load_params(params, assignments=assignments or ())
    reader = LipReader.from_checkpoint(checkpoint, choose_device(values.machine.device))
    clips = clips_of_person(reader, checkpoint, PersonSource((), None, split, where, True), values)
    out.mkdir(parents=True, exist_ok=True)
    result = bench_adapt(checkpoint, clips, values, folds, other, out)
    write_json(out / "results.json", asdict(result))
    print_bench(result, stdout)


if __name__ == "__main__":
    run(command)
