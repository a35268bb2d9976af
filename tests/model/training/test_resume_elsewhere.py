"""Resuming in another folder, with another plan or other clips: what is kept, and what starts again."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoints import load_checkpoint
from model.settings import DecodeParams, TextParams
from model.training.training_data import TrainingJob
from shards.errors import CheckpointError, Interrupted
from shards.packs import Packs
from shards.settings import LoaderParams, MachineParams
from stages.train import train
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.resuming import Position, copied, last_of, stopped_in, stopping_at
from tests.support.trainings import assert_same_weights, job_in


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(num_train=23, num_valid=2))


@pytest.fixture(scope="module")
def stopped_once(packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    stopped_in(folder, packed)
    return folder


@pytest.fixture
def last(stopped_once: Path, tmp_path: Path) -> Path:
    """The checkpoint of a run in the folder `a` that was stopped in the middle of epoch 1."""
    return copied(stopped_once, tmp_path / "a")


def test_a_checkpoint_within_an_epoch_resumes_exactly_in_another_folder(
    tmp_path: Path, packed: Packed, last: Path
) -> None:
    threads = MachineParams(threads=1, device="cpu", num_workers=2)
    train(replace(job_in(tmp_path / "resumed", packed), resume=last, machine=threads))
    train(job_in(tmp_path / "whole", packed))
    name = "checkpoints/checkpoint_epoch_2.pt"
    assert_same_weights(tmp_path / "whole" / name, tmp_path / "resumed" / name)


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"loader": LoaderParams(frame_budget=200, seed=1)}, r"loader\.seed is 1, the checkpoint has 0"),
        ({"loader": LoaderParams(frame_budget=180)}, r"loader\.frame_budget is 180, the checkpoint has 200"),
        ({"clips": 22}, "the clips differ: samples.parquet"),
    ],
)
def test_another_plan_is_rejected_with_its_differences_and_the_flag(
    tmp_path: Path,
    packed: Packed,
    last: Path,
    change: dict,
    difference: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if "clips" in change:
        packed = pack_clips(tmp_path / "fewer", toy_clips(change["clips"], 2))
    job = replace(job_in(tmp_path / "b", packed), resume=last)
    if "loader" in change:
        job = replace(job, loader=change["loader"])
    with pytest.raises(CheckpointError, match=rf"(?s){difference}.*--accept-new-plan.*epoch 1 restarts"):
        train(job)
    steps: list[Position] = []
    accepted = replace(
        job, accept_new_plan=True, on_batch=lambda epoch, done, *_: steps.append((epoch, done))
    )
    with caplog.at_level(logging.INFO, "pipeline.train"):
        assert train(accepted).epochs == 3
    assert "epoch 1 restarts at its first batch, not after batch 2" in caplog.text
    assert steps[0] == (1, 2)  # the first window of the epoch: two batches
    state = load_checkpoint(tmp_path / "b/checkpoints/checkpoint_epoch_2.pt")
    assert state["progress"]["epoch"] == 3
    # the checkpoint has the new plan now: the same command without the flag resumes, or finds a finished run
    assert train(replace(job, resume=None)).already_done


def test_allowing_bad_samples_later_keeps_the_plan(tmp_path: Path, packed: Packed, last: Path) -> None:
    loader = LoaderParams(frame_budget=200, max_bad_fraction=0.1)
    job = replace(job_in(tmp_path / "a", packed), loader=loader)
    assert not train(job).already_done
    assert load_checkpoint(last)["progress"]["epoch"] == 3
    assert len(list((tmp_path / "a/runs").iterdir())) == 1


@pytest.mark.parametrize("other", ["nothing", "valid clips", "decode", "text"])
def test_a_best_model_of_other_clips_or_another_decoding_is_not_kept(
    tmp_path: Path, packed: Packed, last: Path, other: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The old best model gets a CER that no other model can beat."""
    for path in (last, last.with_name("best_model.pt")):
        state = load_checkpoint(path)
        state["progress"] |= {"best_val_cer": -1.0, "best_val_loss": -1.0}
        torch.save(state, path)
    job = replace(job_in(tmp_path / "b", packed), resume=last)
    if other == "valid clips":
        other_pack = pack_clips(tmp_path / "more", toy_clips(23, 3))
        job = replace(job, packs=Packs.single(other_pack.samples, other_pack.store))
    elif other == "decode":
        job = replace(job, decode=DecodeParams(decoder="attention"))
    elif other == "text":
        job = replace(job, text=TextParams(case_fold=False))
    with caplog.at_level(logging.INFO, "pipeline.train"):
        summary = train(job)
    best = load_checkpoint(tmp_path / "b/checkpoints/best_model.pt")
    if other == "nothing":
        assert (summary.best_epoch, summary.best_val_cer, best["epoch"]) == (0, -1.0, 0)
        assert "without a best model" not in caplog.text
        return
    assert summary.best_epoch in (1, 2) and best["epoch"] == summary.best_epoch
    assert summary.best_val_cer == best["val_cer"] >= 0 and best["best_val_loss"] > 0
    differences = {"valid clips": "other valid clips", "decode": "decode.decoder: ctc there, attention here"}
    differences |= {"text": "text.case_fold: True there, False here"}
    (line,) = [message for message in caplog.messages if "without a best model" in message]
    assert differences[other] in line


def test_a_finished_checkpoint_with_other_valid_clips_is_published_without_a_cer(
    tmp_path: Path, packed: Packed
) -> None:
    train(job_in(tmp_path / "a", packed, num_epochs=1))
    more = pack_clips(tmp_path / "more", toy_clips(23, 3))
    resume = tmp_path / "a/checkpoints/checkpoint_epoch_0.pt"
    summary = train(replace(job_in(tmp_path / "b", more, num_epochs=1), resume=resume))
    assert (summary.already_done, summary.best_val_cer, summary.best_epoch) == (True, None, 0)


# -- skipped bad clips -------------------------------------------------------------------------------------


@pytest.fixture
def spoilt(tmp_path: Path) -> Packed:
    """The clips of `packed`, without the first shard of train."""
    packed = pack_clips(tmp_path / "spoilt", toy_clips(23, 2))
    (packed.shards / "train/train-000000.tar").rename(tmp_path / "away.tar")
    return packed


def repair(packed: Packed) -> None:
    shutil.move(packed.samples.parents[1] / "away.tar", packed.shards / "train/train-000000.tar")


def allowing(job: TrainingJob, fraction: float) -> TrainingJob:
    return replace(job, loader=job.loader.model_copy(update={"max_bad_fraction": fraction}))


def test_a_finished_run_reports_skipped_clips_and_how_to_train_again(
    tmp_path: Path, spoilt: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    job = job_in(tmp_path, spoilt, num_epochs=2)
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(allowing(job, 0.5))
    (run,) = (tmp_path / "runs").iterdir()
    assert len((run / "quarantine.jsonl").read_bytes().splitlines()) == 10
    message = f"skipped bad clips 10 times in its 2 epochs; {run / 'quarantine.jsonl'} lists them"
    assert caplog.text.count(message) == 1
    repair(spoilt)
    caplog.clear()
    with caplog.at_level(logging.INFO, "pipeline.train"):
        assert train(job).already_done
    (line,) = [record for record in caplog.records if message in record.getMessage()]
    assert line.levelno == logging.WARNING and f"remove {run} and train again" in line.getMessage()
    shutil.rmtree(run)
    caplog.clear()
    with caplog.at_level(logging.INFO, "pipeline.train"):
        assert not train(job).already_done
        assert train(job).already_done
    assert "skipped" not in caplog.text


def test_a_run_resumes_with_repaired_shards_and_still_reports_skipped_clips(
    tmp_path: Path, spoilt: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    """The interrupted epoch has skipped more clips than are allowed now."""
    job = job_in(tmp_path, spoilt, num_epochs=1)
    with pytest.raises(Interrupted):
        train(stopping_at(allowing(job, 0.5), 0, 4))
    last = last_of(tmp_path)
    num_bad = load_checkpoint(last)["progress"]["bad_clips"]
    assert num_bad > 0
    repair(spoilt)
    with caplog.at_level(logging.INFO, "pipeline.train"):
        assert train(job).epochs == 1
    assert f"Epoch 0: skipped {num_bad} of 23 clips" in caplog.text
    assert f"skipped bad clips {num_bad} times in its 1 epochs" in caplog.text


@pytest.mark.parametrize("with_names", [True, False])
def test_the_list_of_bad_clips_is_copied_into_another_run(
    tmp_path: Path, spoilt: Packed, caplog: pytest.LogCaptureFixture, with_names: bool
) -> None:
    job = allowing(job_in(tmp_path / "a", spoilt, num_epochs=2), 0.5)
    with pytest.raises(Interrupted):
        train(stopping_at(job, 1, 4))
    last = last_of(tmp_path / "a")
    num_bad = load_checkpoint(last)["progress"]["bad_clips"]
    assert num_bad > 0
    if not with_names:
        last = last.rename(tmp_path / "alone.pt")
    elsewhere = allowing(job_in(tmp_path / "b", spoilt, num_epochs=2, learning_rate=0.02), 0.5)
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(replace(elsewhere, resume=last))
    file = next((tmp_path / "b/runs").iterdir()) / "quarantine.jsonl"
    num_named = len(file.read_bytes().splitlines()) if file.exists() else 0
    assert num_named == (10 if with_names else 5 - num_bad)
    names = {
        True: f"{file} lists them",
        False: f"{file} lists {num_named} of them, the others were skipped",
    }
    assert (
        f"Epoch 1: skipped 5 of 23 clips (21.74 %) because they are bad; {names[with_names]}" in caplog.text
    )
    assert f"skipped bad clips 10 times in its 2 epochs; {names[with_names]}" in caplog.text
