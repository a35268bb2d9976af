"""`python -m benchmarks.audit`: exchanges labels of training clips, and measures which of them `pipeline audit` finds.

The labels are exchanged in a copy of samples.parquet; the shards are read as they are. Then three models are trained:
on the clean labels, on all labels of the copy, and on those that the audit does not mark. Everything is in one folder,
so the same command continues.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.options import print_progress, run
from benchmarks.versions import machine_facts
from model.decoding.reader import LipReader
from model.decoding.scoring import score_split
from model.device import choose_device
from model.losses import ctc_steps_needed
from model.metrics import total_counts
from model.training.training_data import TrainingJob
from pipeline.params import load_params
from pipeline.training_job import job_of
from shards.enums import TEST_SPLIT, TRAIN_SPLIT
from shards.files import read_table, write_json, write_table
from shards.packs import Pack, Packs
from shards.schema import AUDIT, SAMPLES
from stages.audit import AUDIT_BATCH, audit, train_folds
from stages.train import train

NOT_DOUBTFUL = "not audit.is_doubtful"
LEFT_OUT = "left out"


@dataclass(frozen=True)
class AuditBench:
    num_clips: int
    num_exchanged: int
    estimated_share: float | None
    recall: float
    precision: float
    ranking: dict[str, float]
    """Column → share of exchanged labels among its worst `num_exchanged` clips."""
    audit_cer: float
    """Of the readings of the folds' models, against the true labels."""
    test_cer: dict[str, float]
    """clean, exchanged, left out → CER on test of a model that learnt from those labels; empty: none was trained."""


def exchange_labels(samples: Path, out: Path, share: float, seed: int) -> set[str]:
    """Writes a copy of a catalogue in which `share` of the training labels are exchanged; returns their clips.

    Each gets the label of the next one in a drawn order. A clip keeps its label if the new one is equal, or too long.
    """
    table = read_table(samples, SAMPLES, "pipeline pack")
    rows = table.to_pylist()
    drawn = np.random.default_rng(seed).permutation(
        [n for n, row in enumerate(rows) if row["split"] == TRAIN_SPLIT]
    )
    chosen = drawn[: round(share * len(drawn))].tolist()
    labels = [rows[number]["label"] for number in chosen]
    exchanged = set()
    for number, label in zip(chosen, labels[1:] + labels[:1], strict=True):
        row = rows[number]
        if label != row["label"] and ctc_steps_needed([ord(char) for char in label]) <= row["num_frames"]:
            rows[number] = row | {"label": label, "num_chars": len(label)}
            exchanged.add(row["clip_id"])
    for name in ("label", "num_chars"):
        place, field = table.schema.get_field_index(name), table.schema.field(name)
        table = table.set_column(place, field, pa.array([row[name] for row in rows], field.type))
    write_table(out, table, table.schema)
    return exchanged


def bench_audit(
    job: TrainingJob,
    out: Path,
    share: float,
    folds: int,
    seed: int,
    trains: bool,
    progress: Callable[[str], None],
) -> AuditBench:
    """Measures the audit of the single pack of `job`."""
    (pack,) = job.packs.packs
    planted = replace(pack, samples=out / "samples.parquet", further={"audit": out / "audit.parquet"})
    exchanged = exchange_labels(pack.samples, planted.samples, share, seed)
    job = replace(job, packs=Packs([planted]), runs=out / "runs")
    models = train_folds(job, folds, lambda fold: progress(f"fold {fold + 1} of {folds}"))
    progress("audit")
    summary = audit(job, models)
    rows = read_table(out / "audit.parquet", AUDIT, "pipeline audit").to_pylist()
    found = {row["clip_id"] for row in rows if row["is_doubtful"]}
    true_label = {
        row["clip_id"]: row["label"]
        for row in Packs([pack]).read(TRAIN_SPLIT, ["clip_id", "label"]).to_pylist()
    }
    cers = {}
    for name, packs in (
        ("clean", Packs([pack])),
        ("exchanged", Packs([planted])),
        (LEFT_OUT, Packs([planted], NOT_DOUBTFUL)),
    ):
        if trains:
            progress(f"training: {name}")
            folder = out / name.replace(" ", "_")
            trained = replace(job, packs=packs, checkpoints=folder / "checkpoints", logs=folder / "logs")
            train(trained)
            cers[name] = _test_cer(trained, pack)
    return AuditBench(
        num_clips=len(rows),
        num_exchanged=len(exchanged),
        estimated_share=summary.exchanged_share,
        recall=len(found & exchanged) / len(exchanged),
        precision=len(found & exchanged) / max(len(found), 1),
        ranking={
            name: sum(
                row["clip_id"] in exchanged
                for row in sorted(rows, key=lambda row: sign * row[name])[: len(exchanged)]
            )
            / len(exchanged)
            for name, sign in (("contradiction", -1), ("fit", 1))
        },
        audit_cer=total_counts((true_label[row["clip_id"]], row["reading"]) for row in rows).cer,
        test_cer=cers,
    )


def _test_cer(job: TrainingJob, pack: Pack) -> float:
    reader = LipReader.from_checkpoint(job.checkpoints / "best_model.pt", choose_device(job.machine.device))
    scored = score_split(
        reader,
        Packs([pack]).read(TEST_SPLIT),
        pack.store,
        batch_size=AUDIT_BATCH,
        loader=job.loader,
        machine=job.machine,
        decode=job.decode,
    )
    return total_counts((clip.reference, clip.hypothesis) for clip in scored).cer


def print_audit_bench(result: AuditBench, console: Console) -> None:
    estimated = "unknown" if result.estimated_share is None else f"{result.estimated_share:.0%}"
    title = f"{result.num_exchanged} of {result.num_clips} labels exchanged, estimated: {estimated}"
    table = Table(title=title, title_justify="left")
    for name in ("found", "precision", *(f"among the worst by {name}" for name in result.ranking)):
        table.add_column(name, justify="right")
    table.add_row(*(f"{value:.1%}" for value in (result.recall, result.precision, *result.ranking.values())))
    console.print(table)
    console.print(f"CER of the folds' models on clips that they had not seen: {result.audit_cer:.1%}")
    for name, cer in result.test_cer.items():
        ratio = cer / result.test_cer["clean"] if result.test_cer["clean"] else float("nan")
        console.print(f"labels {name}: CER on test {cer:.1%}, {ratio:.2f} × that of clean labels")


def command(
    samples: Annotated[Path, typer.Argument(help="samples.parquet of a local pack", exists=True)],
    shards: Annotated[Path, typer.Argument(help="folder of its shards", exists=True, file_okay=False)],
    params: Annotated[Path, typer.Option(help="params.yaml of the trainings", exists=True)] = Path(
        "recipes/grid.yaml"
    ),
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value; repeatable")
    ] = None,
    share: Annotated[float, typer.Option(min=0.01, max=0.5, help="share of the labels to exchange")] = 0.3,
    folds: Annotated[int, typer.Option(min=2)] = 4,
    seed: Annotated[int, typer.Option(min=0, help="draws the clips")] = 0,
    trainings: Annotated[bool, typer.Option(help="also train with and without the doubtful clips")] = True,
    out: Annotated[Path, typer.Option(help="runs and results.json", metavar="DIR")] = Path("bench-audit"),
) -> None:
    """Exchange labels of a pack, measure which ones the audit finds, and what leaving them out is worth.

    Example: python -m benchmarks.audit data/samples.parquet data/shards --set train.num_epochs=20
    """
    from pipeline.console import stdout

    flags = {"paths.samples": str(samples), "paths.shards": str(shards)}
    job = job_of(load_params(params, assignments=assignments or (), flags=flags))
    job = replace(job, packs=Packs([replace(job.packs.packs[0], clips=None, crops=None)]))
    result = bench_audit(job, out, share, folds, seed, trainings, print_progress)
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / "results.json", {"machine": machine_facts(["numpy", "pyarrow", "torch"]), **asdict(result)}
    )
    print_audit_bench(result, stdout)


if __name__ == "__main__":
    run(command)
