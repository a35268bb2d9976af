"""Tests that a model refuses clips whose frame rate or size differs from those of its training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from model.checkpoints import save_checkpoint
from model.decoding.scoring import BatchReader
from model.settings import DecodeParams
from pipeline.inference.readers import open_reader
from pipeline.params import load_params
from pipeline.tables.decoders import compare_decoders
from shards.errors import CheckpointError
from shards.packs import Packs
from shards.settings import LoaderParams, MachineParams
from stages.report import score_checkpoint
from stages.train import train
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.resuming import state_of, stopped_in
from tests.support.trainings import MODEL, job_in

ROOT = Path(__file__).parents[2]
CPU = MachineParams(threads=1, device="cpu")
CLIPS = toy_clips(12, 3)
SMALLER = [(clip_id, split, clip_TYX[:, 8:88, 8:88], label) for clip_id, split, clip_TYX, label in CLIPS]
OTHERS: dict[str, Callable[[Path], Packed]] = {
    "50 frames/s and 96 px": lambda folder: pack_clips(folder, CLIPS, fps=50.0),
    "25 frames/s and 80 px": lambda folder: pack_clips(folder, SMALLER),
}
"""Crop settings other than the 25 frames/s and 96 px of the model."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), CLIPS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, packed: Packed) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_checkpoint(folder / "best_model.pt", state_of(job_in(folder, packed)).as_checkpoint(None))
    return folder / "best_model.pt"


def score(checkpoint: Path, packed: Packed) -> tuple[BatchReader, int]:
    reader, clips, _ = score_checkpoint(
        [checkpoint],
        Packs.single(packed.samples, packed.store),
        "test",
        loader=LoaderParams(),
        decode=DecodeParams(decoder="ctc"),
        machine=CPU,
    )
    return reader, len(clips)


@pytest.mark.parametrize("other", OTHERS)
def test_shards_with_other_crop_settings_are_not_scored(
    tmp_path: Path, packed: Packed, checkpoint: Path, other: str
) -> None:
    assert score(checkpoint, packed)[1] == 3
    there = OTHERS[other](tmp_path)
    learnt = "learnt from clips of 25 frames/s and 96 px"
    with pytest.raises(
        CheckpointError, match=f"{learnt}, but those packed in {there.shards}.* are of {other}"
    ):
        score(checkpoint, there)
    params = load_params(ROOT / "params.yaml")
    paths = params.paths.model_copy(update={"samples": str(there.samples), "shards": str(there.shards)})
    report = params.report.model_copy(update={"split": "test"})
    values = params.model_copy(update={"paths": paths, "report": report, "machine": CPU})
    with pytest.raises(CheckpointError, match=f"{learnt}.* are of {other}"):
        compare_decoders([checkpoint], values, ["ctc"])


def test_videos_are_not_cut_with_other_crop_settings(checkpoint: Path) -> None:
    for flags, message in (
        ({"crop.target_fps": 50.0}, "50 frames/s and 96 px"),
        ({"crop.size_px": 64}, "64 px"),
    ):
        with pytest.raises(
            CheckpointError, match=rf"{message}: set crop\.target_fps to 25 and crop\.size_px to 96"
        ):
            open_reader([checkpoint], load_params(ROOT / "params.yaml", flags=flags))
    opened = open_reader([checkpoint], load_params(ROOT / "params.yaml", flags={"machine.device": "cpu"}))
    assert (opened.fps, opened.crop_px) == (25.0, 96)


@pytest.mark.parametrize("other", OTHERS)
def test_training_does_not_resume_with_other_crop_settings(
    tmp_path: Path, packed: Packed, other: str
) -> None:
    """Not even with --accept-new-plan; `train.init_from` starts from the weights."""
    last = stopped_in(tmp_path / "first", packed)
    there = OTHERS[other](tmp_path / "other")
    job = replace(
        job_in(tmp_path / "second", there),
        model=MODEL.model_copy(update={"window_px": 64}),
        resume=last,
        accept_new_plan=True,
    )
    with pytest.raises(
        CheckpointError,
        match=r"does not fit this model and data:(.|\n)*(target_fps\): 25.* there, 50|96 there, 80 here)",
    ):
        train(job)
