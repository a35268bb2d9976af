"""A run of self-training: it resumes with the very same labels, also in other processes, and reports its figures."""

import json
import logging
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from model.checkpoints import load_checkpoint
from model.decoding.reader import LipReader
from model.settings import DecodeParams, SelfTrainingParams
from model.training.training_data import TrainingJob
from shards.errors import CheckpointError, Interrupted
from shards.files import sha256_of
from stages.train import train
from tests.support.killed_runs import INTERRUPTED, Kill, job_in_folder, run, steps_of
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.ranks import together
from tests.support.resuming import last_of, stopping_at
from tests.support.self_trainings import (
    NUM_LABELLED,
    NUM_UNLABELLED,
    PARAMS,
    curves,
    hidden_clips,
    label_files,
    pack_with_hidden,
    self_training_job,
)
from tests.support.trainings import (
    assert_same_weights,
    job_in,
    read_test_clips,
)

FILES = ("best_model.pt", "checkpoint_epoch_0.pt", "checkpoint_epoch_2.pt", "checkpoint_epoch_4.pt")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_with_hidden(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def undisturbed(packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted training of five epochs, in a process of its own."""
    folder = tmp_path_factory.mktemp("undisturbed")
    assert run(self_training_job(folder, packed), folder, save_every_s=60) == 0
    return folder


def columns_of_labels(folder: Path) -> list[list[str]]:
    return [
        [value for name, value in curve.items() if name.startswith("pseudo_")] for curve in curves(folder)
    ]


def assert_same_run(ours: Path, theirs: Path) -> None:
    assert label_files(ours) == label_files(theirs)
    assert columns_of_labels(ours) == columns_of_labels(theirs)
    for name in FILES:
        assert_same_weights(ours / "checkpoints" / name, theirs / "checkpoints" / name)
    ours_last, theirs_last = (load_checkpoint(last_of(folder)) for folder in (ours, theirs))
    for key in ("labels_epoch", "labels_sha256", "best_val_cer", "steps"):
        assert ours_last["progress"][key] == theirs_last["progress"][key]


def test_a_training_that_stops_after_every_step_equals_an_undisturbed_one(
    tmp_path: Path, packed: Packed, undisturbed: Path
) -> None:
    job, stops = self_training_job(tmp_path, packed), 0
    seen: set[tuple[int, int]] = set()

    def stop_once(epoch: int, batches_done: int, *_: float) -> None:
        nonlocal stops
        if (epoch, batches_done) not in seen:
            seen.add((epoch, batches_done))
            stops += 1
            signal.raise_signal(signal.SIGTERM)

    while True:
        try:
            train(replace(job, on_batch=stop_once))
            break
        except Interrupted:
            continue
    assert stops == len(steps_of(undisturbed)) >= 12
    assert_same_run(tmp_path, undisturbed)


KILLS = {
    # 60: saves at the end of an epoch and after labelling, so each kill goes back to one of them
    "after labelling": (60.0, [Kill("step", 3), Kill("step", 5)]),
    # epoch 1 and epoch 3 read 14 clips in two views, after each validation of two clips
    "within labelling": (60.0, [Kill("validation", 4), Kill("validation", 11)]),
    "while checkpoints and labels are written": (
        -1.0,
        [Kill("write", 6), Kill("rename", 2), Kill("write", 4)],
    ),
    "by SIGTERM within labelling": (60.0, [Kill("validation", 5, signal.SIGTERM)]),
}


@pytest.mark.parametrize("name", KILLS)
def test_a_killed_training_uses_the_very_same_labels(
    tmp_path: Path, packed: Packed, undisturbed: Path, name: str
) -> None:
    job = job_in_folder(self_training_job(tmp_path, packed), tmp_path)
    save_every_s, kills = KILLS[name]
    for kill in kills:
        assert run(job, tmp_path, kill, save_every_s) == (
            -kill.by if kill.by == signal.SIGKILL else INTERRUPTED
        )
    assert run(job, tmp_path, save_every_s=save_every_s) == 0
    expected = {tuple(step["position"]): step for step in steps_of(undisturbed)}
    steps = steps_of(tmp_path)
    assert {tuple(step["position"]) for step in steps} == expected.keys()
    assert all(step == expected[tuple(step["position"])] for step in steps)
    assert_same_run(tmp_path, undisturbed)


def test_the_checkpoint_names_the_file_of_the_labels(tmp_path: Path, packed: Packed) -> None:
    with pytest.raises(Interrupted):
        train(stopping_at(self_training_job(tmp_path, packed), 2, 2))
    last = last_of(tmp_path)
    (file,) = (last.parent / "pseudo_labels").iterdir()
    progress = load_checkpoint(last)["progress"]
    assert file.name == "epoch_0001.parquet"
    assert (progress["labels_epoch"], progress["labels_sha256"]) == (1, sha256_of(file))


def test_a_training_without_self_training_stores_nothing_new(tmp_path: Path, packed: Packed) -> None:
    train(job_in(tmp_path, packed, num_epochs=1))
    state = load_checkpoint(last_of(tmp_path))
    assert not {"labels_epoch", "labels_sha256"} & state["progress"].keys()
    assert "self_training" not in state["train_params"] and "teacher_params" not in state
    assert not any(name.startswith("pseudo_") for name in curves(tmp_path)[0])


@pytest.fixture(scope="module")
def stopped(packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in epoch 2, which trains on the labels of epoch 1."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Interrupted):
        train(stopping_at(self_training_job(folder, packed), 2, 2))
    return folder


def copy_of(folder: Path, to: Path) -> Path:
    """Copies a run; returns the file of its labels."""
    shutil.copytree(folder, to)
    (file,) = (last_of(to).parent / "pseudo_labels").iterdir()
    return file


def test_a_lost_file_is_an_error_that_names_the_checkpoint_whose_weights_wrote_it(
    tmp_path: Path, packed: Packed, stopped: Path, undisturbed: Path
) -> None:
    lost = copy_of(stopped, tmp_path / "run")
    lost.unlink()
    before = lost.parents[1] / "checkpoint_epoch_0.pt"
    job = self_training_job(tmp_path / "run", packed)
    with pytest.raises(CheckpointError) as error:
        train(job)
    message = str(error.value)
    assert f"{lost} is missing" in message and f"--resume {before}, whose weights wrote them" in message
    train(replace(job, resume=before))
    assert_same_run(tmp_path / "run", undisturbed)


def test_a_changed_file_is_an_error(tmp_path: Path, packed: Packed, stopped: Path) -> None:
    changed = copy_of(stopped, tmp_path / "run")
    table = pq.read_table(changed)
    pq.write_table(table.slice(1), changed)
    with pytest.raises(CheckpointError, match=r"epoch_0001\.parquet has changed"):
        train(self_training_job(tmp_path / "run", packed))


def test_without_that_checkpoint_the_clips_can_be_labelled_again(
    tmp_path: Path, packed: Packed, stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lost = copy_of(stopped, tmp_path / "run")
    lost.unlink()
    (lost.parents[1] / "checkpoint_epoch_0.pt").unlink()
    job, last = self_training_job(tmp_path / "run", packed), last_of(tmp_path / "run")
    with pytest.raises(CheckpointError) as error:
        train(job)
    assert f"--resume {last} --accept-new-plan to label the clips again" in str(error.value)
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(replace(job, resume=last, accept_new_plan=True))
    assert "the clips are labelled again at the start of epoch 2" in caplog.text
    assert sorted(label_files(tmp_path / "run")) == ["epoch_0002.parquet", "epoch_0003.parquet"]


def test_labels_are_made_again_if_the_checkpoint_has_the_weights_that_wrote_them(
    tmp_path: Path, packed: Packed, undisturbed: Path
) -> None:
    """The checkpoint that is saved right after labelling."""
    job = self_training_job(tmp_path, packed)
    assert run(job, tmp_path, Kill("step", 4), save_every_s=60) == -signal.SIGKILL
    (file,) = last_of(tmp_path).parent.glob("pseudo_labels/*")
    written = file.read_bytes()
    file.unlink()
    assert run(job, tmp_path, save_every_s=60) == 0
    assert label_files(tmp_path)[file.name] == written
    assert_same_run(tmp_path, undisturbed)


def test_resuming_from_a_file_of_another_run_copies_its_labels(
    tmp_path: Path, packed: Packed, stopped: Path, undisturbed: Path
) -> None:
    job = self_training_job(tmp_path, packed)
    train(replace(job, resume=last_of(stopped)))
    assert label_files(tmp_path) == label_files(undisturbed)
    assert_same_weights(tmp_path / "checkpoints" / FILES[-1], undisturbed / "checkpoints" / FILES[-1])


def test_another_schedule_labels_at_the_start_of_an_epoch_not_within_one(
    tmp_path: Path, packed: Packed
) -> None:
    """The checkpoint is of the middle of epoch 0, and the new schedule starts with that epoch."""
    with pytest.raises(Interrupted):
        train(stopping_at(self_training_job(tmp_path / "first", packed), 0, 2))
    job = self_training_job(tmp_path / "second", packed, PARAMS.model_copy(update={"start_epoch": 0}))
    train(replace(job, resume=last_of(tmp_path / "first")))
    names = ["epoch_0001.parquet", "epoch_0002.parquet", "epoch_0004.parquet"]
    assert sorted(label_files(tmp_path / "second")) == names
    assert {row["pseudo_labels"] for row in curves(tmp_path / "second")[1:]} == {str(NUM_UNLABELLED)}


def test_switching_self_training_on_within_an_epoch_is_another_epoch_plan(
    tmp_path: Path, packed: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    off = self_training_job(tmp_path, packed, SelfTrainingParams())
    with pytest.raises(Interrupted):
        train(stopping_at(off, 0, 2))
    last = last_of(tmp_path)
    job = self_training_job(tmp_path, packed)
    with pytest.raises(CheckpointError, match=r"train\.self_training is on, in the checkpoint it is off"):
        train(replace(job, resume=last))
    with caplog.at_level(logging.INFO, "pipeline.train"), pytest.raises(Interrupted):
        train(stopping_at(job, 0, 2))
    assert f"starting a new run, but {last.parent} is unfinished" in caplog.text
    assert "self_training" in caplog.text and "to resume that run: pipeline train" in caplog.text


def test_a_finished_run_needs_no_labels(tmp_path: Path, packed: Packed) -> None:
    job = self_training_job(tmp_path, packed, num_epochs=2)
    train(job)
    (file,) = tmp_path.glob("runs/*/pseudo_labels/*")
    file.unlink()
    assert train(job).already_done


# -- several processes -------------------------------------------------------------------------------------


def labelled_by_two(folder: Path, packed: Packed, start_epoch: int) -> None:
    train(still_job(folder, packed, start_epoch))


def still_job(folder: Path, packed: Packed, start_epoch: int) -> TrainingJob:
    """No random draws in the network, and the same optimiser steps for one process as for two."""
    params = PARAMS.model_copy(update={"start_epoch": start_epoch, "views": 3})
    return self_training_job(folder, packed, params, num_epochs=3)


def test_two_processes_write_the_labels_of_one(tmp_path: Path, packed: Packed) -> None:
    """At the start of epoch 0 both have the same weights, to the last bit."""
    assert together(labelled_by_two, tmp_path / "two", packed, 0) == [None, None]
    with pytest.raises(Interrupted):
        train(stopping_at(still_job(tmp_path / "one", packed, 0), 0, 2))
    ours, theirs = label_files(tmp_path / "two"), label_files(tmp_path / "one")
    assert ours["epoch_0000.parquet"] == theirs["epoch_0000.parquet"]
    assert sorted(ours) == ["epoch_0000.parquet", "epoch_0002.parquet"]


def test_a_run_resumes_with_two_processes_and_the_same_labels(
    tmp_path: Path, packed: Packed, stopped: Path
) -> None:
    """The same global batch in another shape: 2 processes × 4 clips × 1 instead of 1 × 4 × 2."""
    file = copy_of(stopped, tmp_path / "run")
    written = file.read_bytes()
    assert together(resumed_by_two, tmp_path / "run", packed) == [None, None]
    assert label_files(tmp_path / "run")[file.name] == written
    assert len(list((tmp_path / "run/runs").iterdir())) == 1
    assert curves(tmp_path / "run")[2]["pseudo_labels"] == str(NUM_UNLABELLED)


def resumed_by_two(folder: Path, packed: Packed) -> None:
    train(self_training_job(folder, packed, accumulation_steps=1))


def test_hidden_labels_are_never_learnt(tmp_path: Path, packed: Packed, undisturbed: Path) -> None:
    """Other hidden labels, or none: the same weights and the same pseudo labels."""
    clips = [*toy_clips(NUM_LABELLED, 2), *((*clip[:3], "") for clip in hidden_clips())]
    bare = pack_clips(tmp_path / "bare", clips)
    train(self_training_job(tmp_path, bare))
    for name in FILES:
        assert_same_weights(tmp_path / "checkpoints" / name, undisturbed / "checkpoints" / name)
    assert label_files(tmp_path) == label_files(undisturbed)
    assert "pseudo_cer" not in curves(tmp_path)[0] and "pseudo_cer" in curves(undisturbed)[0]


def test_the_teacher_is_the_average_that_the_checkpoint_of_the_epoch_before_holds(
    packed: Packed, undisturbed: Path
) -> None:
    reader = LipReader.from_checkpoint(undisturbed / "checkpoints/checkpoint_epoch_2.pt", torch.device("cpu"))
    scored = read_test_clips(reader, packed, DecodeParams(decoder="ctc"), split="unlabelled")
    (file,) = undisturbed.glob("runs/*/pseudo_labels/epoch_0003.parquet")
    rows = pq.read_table(file).to_pylist()
    assert [row["text"] for row in rows] == [clip.hypothesis for clip in scored]
    np.testing.assert_allclose([row["score"] for row in rows], [clip.score for clip in scored], rtol=1e-4)


def test_the_figures_go_to_the_trackers_and_curves(undisturbed: Path) -> None:
    (journal,) = (undisturbed / "runs").glob("*/metrics.jsonl")
    rows = [json.loads(line) for line in journal.read_text().splitlines()]
    tags = {tag for row in rows for tag in (row.get("values") or row)}
    assert {"self_training/clips", "self_training/kept_share", "self_training/cer"} <= tags
    rounds = curves(undisturbed)
    assert [row["pseudo_labels"] for row in rounds] == ["", *[str(NUM_UNLABELLED)] * 4]
    assert rounds[1]["pseudo_doubtful"] != "" != rounds[1]["pseudo_wrong_learnt"]
    assert rounds[1]["pseudo_cer"] == rounds[2]["pseudo_cer"]  # the same labels
