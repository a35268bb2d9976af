"""Small trainings with self-training on toy clips."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np

from model.settings import SelfTrainingParams
from model.training.training_data import TrainingJob
from tests.support.packed import SYLLABLES, Packed, pack_clips, toy_clip, toy_clips
from tests.support.trainings import job_in

NUM_LABELLED, NUM_UNLABELLED = 12, 14
PARAMS = SelfTrainingParams(
    start_epoch=1,
    every_epochs=2,
    keep=0.5,
    keep_end=1.0,
    views=2,
    max_disagreement=10,
    min_character_confidence=0.2,
)
"""Labels epochs 1 and 3; the readings of a bad teacher are kept too, some of their characters are doubtful."""


def hidden_clips(number: int = NUM_UNLABELLED, seed: int = 9) -> list[tuple[str, str, np.ndarray, str]]:
    """Returns unlabelled clips, whose labels are known to the test only."""
    rng = np.random.default_rng(seed)
    labels = ["".join(rng.choice(list(SYLLABLES), rng.integers(2, 5))) for _ in range(number)]
    return [
        (f"unlabelled_{place:03d}", "unlabelled", toy_clip(label, 500 + place), label)
        for place, label in enumerate(labels)
    ]


def pack_with_hidden(folder: Path, num_labelled: int = NUM_LABELLED, num_valid: int = 2) -> Packed:
    return pack_clips(folder, [*toy_clips(num_labelled, num_valid), *hidden_clips()])


def self_training_job(
    folder: Path, packed: Packed, params: SelfTrainingParams = PARAMS, **changes: object
) -> TrainingJob:
    """Returns a job of five epochs. The average of the weights is the teacher."""
    given = {"num_epochs": 5, "ema_decay": 0.8, "ctc_weight": 1.0, "self_training": params, **changes}
    job = job_in(folder, packed, **given)
    machine = job.machine.model_copy(update={"trackers": (), "num_workers": 0})
    return replace(job, loader=job.loader.model_copy(update={"unlabelled_share": 0.5}), machine=machine)


def label_files(folder: Path) -> dict[str, bytes]:
    """Returns the files of the labels of the only run in a folder."""
    return {path.name: path.read_bytes() for path in sorted((folder / "runs").glob("*/pseudo_labels/*"))}


def curves(folder: Path) -> list[dict[str, str]]:
    with (folder / "logs/curves.csv").open(newline="") as file:
        return list(csv.DictReader(file))
