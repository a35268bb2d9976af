"""Pseudo labels of unlabelled clips (`train.self_training`): which are kept, and the file that a run stores them in.

Shapes: N rows of the training clips, U unlabelled clips.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from model.decoding.calibration import right_characters
from model.metrics import edit_counts, total_counts
from model.runs import Curve
from model.settings import SelfTrainingParams
from model.text import DOUBTFUL
from shards.blend import IS_LABELLED
from shards.errors import TableError
from shards.files import read_table, sha256_of, table_from_rows, write_table
from shards.schema import PSEUDO_LABELS

MADE_BY = "pipeline train"
LENGTH_CLASSES, FEWEST_OF_CLASS = 5, 20
"""Clips are kept by the share of their length class: else short clips, of which a model is surer, would be all that is
kept. A class has at least FEWEST_OF_CLASS clips, since its share is rounded to whole clips."""


class PseudoLabel(NamedTuple):
    """What the teacher has read in one clip. The fields are columns of the file."""

    clip_id: str
    text: str
    score: float
    disagreement: float
    learnt: str | None = None
    """The text with DOUBTFUL characters; None: all of it is learnt."""

    @property
    def confidence(self) -> float:
        return math.exp(min(self.score, 0.0))


def disagreement(text: str, others: Sequence[str]) -> float:
    """Returns the largest CER between `text` and a reading of another view; 0 without other views."""
    return max((edit_counts(text, other).cer for other in others), default=0.0)


def with_doubtful(text: str, confidences: Sequence[float], others: Sequence[str], least: float) -> str:
    """Returns `text` with DOUBTFUL for each character that is less sure than `least`, or not in all other readings.

    A text without confidences, which has too many characters for its clip, stays.
    """
    is_sure = [confidence >= least for confidence in confidences] or [True] * len(text)
    for other in others:
        is_sure = [sure and right for sure, right in zip(is_sure, right_characters(other, text), strict=True)]
    return "".join(character if sure else DOUBTFUL for character, sure in zip(text, is_sure, strict=True))


def consensus(texts: Sequence[str]) -> int:
    """Returns the index of the reading that is nearest to all others, by edits; of equal ones the first."""
    distances = [sum(edit_counts(text, other).errors for other in texts) for text in texts]
    return distances.index(min(distances))


def kept_by_length(
    confidence_U: np.ndarray, num_frames_U: np.ndarray, is_fit_U: np.ndarray, share: float
) -> np.ndarray:
    """Returns which clips to keep (bool): of each length class at most `share` of its clips, the surest that are fit.

    The classes have equally many clips. Of equally sure clips, the first of the table is kept.
    """
    is_kept_U = np.zeros(len(confidence_U), bool)
    num_classes = max(1, min(LENGTH_CLASSES, len(confidence_U) // FEWEST_OF_CLASS))
    for of_class in np.array_split(np.argsort(num_frames_U, kind="stable"), num_classes):
        fit = np.sort(of_class[is_fit_U[of_class]])
        surest = fit[np.argsort(-confidence_U[fit], kind="stable")]
        is_kept_U[surest[: math.floor(share * len(of_class) + 0.5)]] = True
    return is_kept_U


def table_of(
    labels: Sequence[PseudoLabel],
    num_frames_U: np.ndarray,
    is_spellable_U: np.ndarray,
    params: SelfTrainingParams,
    share: float,
) -> pa.Table:
    """Returns the labels with the choice of those to keep, as `write_table` writes them."""
    confidence_U = np.array([label.confidence for label in labels])
    disagreement_U = np.array([label.disagreement for label in labels])
    # a label of doubtful characters alone teaches nothing
    has_text_U = np.array([bool((label.learnt or label.text).strip(DOUBTFUL)) for label in labels], bool)
    is_fit_U = (
        has_text_U
        & is_spellable_U
        & (confidence_U >= params.min_confidence)
        & (disagreement_U <= params.max_disagreement)
    )
    is_kept_U = kept_by_length(confidence_U, num_frames_U, is_fit_U, share)
    rows = [
        label._asdict() | {"confidence": label.confidence, "kept": bool(kept)}
        for label, kept in zip(labels, is_kept_U, strict=True)
    ]
    return table_from_rows(rows, PSEUDO_LABELS)


@dataclass(frozen=True)
class PseudoLabels:
    """The pseudo labels that an epoch trains on, by row of the training clips."""

    texts: dict[int, str]
    """Row → label, for the clips that are kept."""
    weights: dict[int, float]
    """Row → weight of the label in the loss."""
    figures: Curve = field(default_factory=dict)
    """Columns of curves.csv."""

    @classmethod
    def of(cls, table: pa.Table, samples: pa.Table, params: SelfTrainingParams) -> "PseudoLabels":
        """Joins a table of pseudo labels with the training clips. A clip that is not in the table has no label."""
        row_of_clip = _unlabelled_rows(samples)
        hidden = samples["label"]
        texts, weights = {}, {}
        learnt: list[bool] = []
        """For each learnt character of a kept label whether it is right."""
        num_doubtful = num_kept_chars = 0
        pairs: dict[bool, list[tuple[str, str]]] = {True: [], False: []}
        for label in table.to_pylist():
            if (row := row_of_clip.get(label["clip_id"])) is None:
                continue
            if reference := hidden[row].as_py():
                pairs[label["kept"]].append((reference, label["text"]))
            if label["kept"]:
                texts[row] = label["learnt"] or label["text"]
                num_kept_chars += len(texts[row])
                num_doubtful += texts[row].count(DOUBTFUL)
                if reference:
                    are_right = right_characters(reference, label["text"])
                    learnt += [
                        right for right, one in zip(are_right, texts[row], strict=True) if one != DOUBTFUL
                    ]
                weights[row] = params.weight * (label["confidence"] if params.weigh_by_confidence else 1.0)
        num_clips = table.num_rows
        figures: Curve = {
            "pseudo_labels": num_clips,
            "pseudo_kept": len(texts) / max(num_clips, 1),
            "pseudo_confidence": float(np.mean(table["confidence"].to_numpy())) if num_clips else None,
        }
        if pairs[True] or pairs[False]:
            figures["pseudo_cer"] = total_counts(pairs[True] + pairs[False]).cer
            figures["pseudo_cer_kept"] = total_counts(pairs[True]).cer if pairs[True] else None
        if params.min_character_confidence:
            figures["pseudo_doubtful"] = num_doubtful / max(num_kept_chars, 1)
            figures["pseudo_wrong_learnt"] = learnt.count(False) / len(learnt) if learnt else None
        return cls(texts, weights, figures)

    def __str__(self) -> str:
        figures = self.figures
        line = f"{figures['pseudo_labels']} clips read, {_percent(figures['pseudo_kept'])} kept"
        if figures["pseudo_confidence"] is not None:
            line += f", mean confidence {_percent(figures['pseudo_confidence'])}"
        if figures.get("pseudo_cer") is not None:
            line += f", CER by the hidden labels {_percent(figures['pseudo_cer'])}"
        if figures.get("pseudo_cer_kept") is not None:
            line += f" ({_percent(figures['pseudo_cer_kept'])} of the kept)"
        if figures.get("pseudo_doubtful") is not None:
            line += f", {_percent(figures['pseudo_doubtful'])} of their characters doubtful"
        if figures.get("pseudo_wrong_learnt") is not None:
            line += f", {_percent(figures['pseudo_wrong_learnt'])} of the others wrong"
        return line


def labels_file(run_folder: Path, epoch: int) -> Path:
    """Returns the file of the labels that were made at the start of `epoch`."""
    return run_folder / "pseudo_labels" / f"epoch_{epoch:04d}.parquet"


def write_labels(path: Path, table: pa.Table) -> str:
    """Writes the labels; returns the sha256 of the file, by which a checkpoint names it."""
    write_table(path, table, PSEUDO_LABELS)
    return sha256_of(path)


def read_labels(path: Path, sha256: str) -> pa.Table:
    """Returns the labels that a checkpoint names. Raises TableError if the file is missing or has changed."""
    table = read_table(path, PSEUDO_LABELS, MADE_BY)
    if (found := sha256_of(path)) != sha256:
        raise TableError(
            f"{path} has changed: its sha256 is {found[:16]}…, the checkpoint has {sha256[:16]}…"
        )
    return table


def _unlabelled_rows(samples: pa.Table) -> dict[str, int]:
    rows = np.flatnonzero(~samples[IS_LABELLED.name].to_numpy(zero_copy_only=False))
    clip_ids = samples["clip_id"].take(pa.array(rows)).to_pylist()
    return dict(zip(clip_ids, rows.tolist(), strict=True))


def _percent(share: float | int | None) -> str:
    assert share is not None
    return f"{100 * share:.1f} %"
