"""Small trainings on toy clips, and their results."""

from pathlib import Path

import torch

from model.checkpoints import load_checkpoint
from model.decoding.reader import LipReader
from model.decoding.result import ScoredClip
from model.decoding.scoring import score_split
from model.settings import AugmentParams, DecodeParams, ModelParams, TextParams, TrainParams
from model.training.training_data import TrainingJob
from shards.packs import Packs
from shards.samples import read_samples
from shards.settings import LoaderParams, MachineParams
from tests.support.packed import Packed

MODEL = ModelParams(
    frame_height=24,
    frame_width=24,
    sizes={"channels": (4, 8, 8, 12), "hidden_dim": 16, "num_lstm_layers": 1, "pool_grid": 3},
    dropout=0.1,
)
TRAIN = TrainParams(
    batch_size=4,
    accumulation_steps=2,
    learning_rate=1e-2,
    num_epochs=3,
    warmup_epochs=1,
    ctc_weight=0.5,
    teacher_forcing_end=0.8,
    mixed_precision=False,
    checkpoint_every=2,
    augment=AugmentParams(speed_change=0.1, gain_sigma=0.05),
)


def with_sizes(**sizes: object) -> ModelParams:
    values = MODEL.model_dump()
    return ModelParams.model_validate({**values, "sizes": {**values["sizes"], **sizes}})


def job_in(folder: Path, packed: Packed, **changes: object) -> TrainingJob:
    return TrainingJob(
        packs=Packs.single(packed.samples, packed.store),
        runs=folder / "runs",
        checkpoints=folder / "checkpoints",
        logs=folder / "logs",
        text=TextParams(),
        model=MODEL,
        train=TRAIN.model_copy(update=changes),
        loader=LoaderParams(frame_budget=200),
        decode=DecodeParams(decoder="ctc"),
        machine=MachineParams(threads=1, device="cpu"),
        config_text="made: by a test\n",
    )


def read_test_clips(
    reader: LipReader,
    packed: Packed,
    decode: DecodeParams | None = None,
    blind: bool = False,
    split: str = "test",
) -> list[ScoredClip]:
    """Reads the clips of a split."""
    return score_split(
        reader,
        read_samples(packed.samples, split),
        packed.store,
        batch_size=4,
        loader=LoaderParams(),
        machine=MachineParams(),
        decode=decode or DecodeParams(),
        blind=blind,
    )


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path)["model_state_dict"]


def assert_same_weights(a: Path, b: Path) -> None:
    ours, theirs = weights(a), weights(b)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
