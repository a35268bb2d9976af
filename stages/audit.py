"""`pipeline audit`: finds training clips whose label the video contradicts, by models that have not seen the clip."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model.checkpoints import load_checkpoint
from model.decoding.label_scores import LabelScores, other_labels, score_labels
from model.decoding.reader import LipReader
from model.device import choose_device
from model.doubtful_labels import doubt_of
from model.metrics import EditCounts
from model.training.ranks import process_group
from model.training.training_data import OnBatch, TrainingJob
from shards.enums import TRAIN_SPLIT
from shards.errors import CheckpointError, ConfigError
from shards.files import Progress, table_from_rows, write_table
from shards.folds import Fold
from shards.packs import Pack, Packs, pack_of
from shards.schema import AUDIT
from stages.train import train

AUDIT_BATCH = 32
OnFold = Callable[[int], OnBatch | None]
"""Called with the number of a fold before its training; returns the `on_batch` of the training."""


class BlindModel(NamedTuple):
    """A model and the clips that it has not seen."""

    fold: int | None
    checkpoint: Path
    packs: Packs


@dataclass(frozen=True)
class AuditSummary:
    num_clips: int
    num_doubtful: int
    exchanged_share: float | None
    """Estimated share of exchanged labels, over all packs; None if a model is too weak."""
    cer: float
    """Of the readings, compared with the labels."""
    warnings: Sequence[str]
    worst: Sequence[Mapping[str, Any]]
    """The first rows of the table."""


def train_folds(job: TrainingJob, num_folds: int, on_fold: OnFold = lambda _: None) -> list[BlindModel]:
    """Trains a model for each fold of the training clips, on the clips of the other folds that train.where keeps.

    Each training is a run in `job.runs`, so the same call continues it, and finished folds are not trained again.
    Started by torchrun, the processes train each model together.
    """
    _refuse_without_table(job.packs)
    models = []
    with process_group():
        for number in range(num_folds):
            fold, folder = Fold(number, num_folds, is_held_out=False), job.runs / "audit" / f"fold_{number}"
            trained = replace(
                job,
                packs=Packs(job.packs.packs, job.packs.where, fold),
                checkpoints=folder / "checkpoints",
                logs=folder / "logs",
                on_batch=on_fold(number),
            )
            train(trained)
            held_out = Packs(job.packs.packs, fold=replace(fold, is_held_out=True))
            models.append(BlindModel(number, trained.checkpoints / "best_model.pt", held_out))
    return models


def given_model(checkpoint: Path, packs: Packs) -> list[BlindModel]:
    """Returns the model of a checkpoint for all training clips; raises CheckpointError if it learnt from them."""
    _refuse_without_table(packs)
    everything = Packs(packs.packs)
    if load_checkpoint(checkpoint).get("plan_identity", {}).get("samples") in (
        everything.training_hash,
        packs.training_hash,
    ):
        raise CheckpointError(
            f"checkpoint {checkpoint} was trained on these clips, so it may have learnt wrong labels too; run "
            "`pipeline audit` without --checkpoint"
        )
    return [BlindModel(None, checkpoint, everything)]


def audit(
    job: TrainingJob, models: Sequence[BlindModel], num_shown: int = 0, on_progress: Progress | None = None
) -> AuditSummary:
    """Writes the table `audit` of each pack, worst clips first: how well the video supports each training label."""
    labels = Packs(job.packs.packs).read(TRAIN_SPLIT, ["clip_id", "label"])
    label_of = dict(zip(labels["clip_id"].to_pylist(), labels["label"].to_pylist(), strict=True))
    by_pack: dict[str, dict[str, str]] = defaultdict(dict)
    for clip_id, label in label_of.items():
        by_pack[pack_of(clip_id)[0]][clip_id] = label
    others: dict[str, Sequence[str]] = {}
    for of_pack in by_pack.values():  # the labels of another pack may be of another language
        of_label = other_labels(list(of_pack.values()))
        others |= {clip_id: of_label[label] for clip_id, label in of_pack.items()}
    scored: dict[str, list[tuple[int | None, LabelScores]]] = defaultdict(list)
    num_done = 0
    for model in models:
        reader = LipReader.from_checkpoint(model.checkpoint, choose_device(job.machine.device))
        for scores in score_labels(
            reader,
            model.packs.read(TRAIN_SPLIT),
            model.packs.store,
            others,
            batch_size=AUDIT_BATCH,
            loader=job.loader,
            machine=job.machine,
        ):
            scored[pack_of(scores.clip_id)[0]].append((model.fold, scores))
            num_done += 1
            if on_progress:
                on_progress(num_done, len(label_of))
    rows, warnings, num_exchanged = [], [], 0.0
    for pack in job.packs.packs:
        if pack.name in scored:
            found, share = _rows(scored[pack.name])
            write_table(pack.further["audit"], table_from_rows(found, AUDIT), AUDIT)
            rows += (
                found
                if not job.packs.is_blend
                else [row | {"clip_id": job.packs.name_of(pack, row["clip_id"])} for row in found]
            )
            num_exchanged += len(found) * (np.nan if share is None else share)
            if share is None:
                warnings.append(_too_weak(pack))
    rows.sort(key=_worst_first)
    counts = sum((scores.counts for of_pack in scored.values() for _, scores in of_pack), EditCounts())
    return AuditSummary(
        len(rows),
        sum(row["is_doubtful"] for row in rows),
        None if np.isnan(num_exchanged) else num_exchanged / len(rows),
        counts.cer,
        warnings,
        rows[:num_shown],
    )


def _rows(scored: Sequence[tuple[int | None, LabelScores]]) -> tuple[list[dict[str, Any]], float | None]:
    """Returns the rows of a pack's table, worst first, and the estimated share of exchanged labels (`Doubt`)."""
    doubt = doubt_of(
        np.array([scores.label_score for _, scores in scored]),
        np.array([scores.other_scores for _, scores in scored]),
    )
    rows = [
        {
            "clip_id": pack_of(scores.clip_id)[1],
            "label": scores.label,
            "reading": scores.reading,
            "cer": scores.counts.cer,
            "label_score": scores.label_score,
            "reading_score": scores.reading_score,
            "contradiction": scores.reading_score - scores.label_score,
            "fit": fit,
            "is_doubtful": is_doubtful,
            "fold": fold,
        }
        for (fold, scores), fit, is_doubtful in zip(
            scored, doubt.fit_N.tolist(), doubt.is_doubtful_N.tolist(), strict=True
        )
    ]
    return sorted(rows, key=_worst_first), doubt.share


def _worst_first(row: Mapping[str, Any]) -> tuple[bool, float, str]:
    return not row["is_doubtful"], -row["contradiction"], row["clip_id"]


def _refuse_without_table(packs: Packs) -> None:
    for pack in packs.packs:
        if pack.splits_for(TRAIN_SPLIT) and "audit" not in pack.further:
            raise ConfigError(
                f"train.data, pack {pack.name}: names no table for the audit; add `audit: {pack.samples.parent}/"
                "audit.parquet`"
            )


def _too_weak(pack: Pack) -> str:
    return (
        f"{pack.name or pack.samples}: most labels fit their clips hardly better than labels of other clips do, so the "
        "models read too badly to judge them, and none is marked as doubtful; train longer or on more clips"
    )
