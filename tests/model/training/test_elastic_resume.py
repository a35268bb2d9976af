"""A run resumes with another number of processes or other batches: each clip is visited once, steps are equal."""

import json
import logging
import os
import random
import signal
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.checkpoints import load_checkpoint, save_checkpoint
from model.decoding.reader import LipReader
from model.training import step as step_module
from model.training.ranks import Ranks
from model.training.run_choice import run_of
from model.training.step import StepFigures, TrainingStep
from model.training.training_data import TrainingData, TrainingJob
from shards.elastic_plan import PlanShape, Segment
from shards.errors import Interrupted, TrainingError
from shards.samples import read_samples
from shards.stream import ClipBatch
from stages import train as train_module
from stages.train import train
from tests.support.damage import damage
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.ranks import together
from tests.support.resuming import copied, last_of, stopping_at
from tests.support.trainings import assert_same_weights, job_in

NUM_CLIPS = 26
Shape = tuple[int, int, int]
"""Processes, batch size, accumulation steps."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(num_train=NUM_CLIPS, num_valid=2))


def job_of(folder: Path, packed: Packed, shape: Shape, **changes: object) -> TrainingJob:
    _, batch_size, accumulation_steps = shape
    given = {
        "learning_rate": 2e-3,
        "batch_size": batch_size,
        "accumulation_steps": accumulation_steps,
        **changes,
    }
    job = job_in(folder, packed, **given)
    return replace(job, machine=job.machine.model_copy(update={"trackers": (), "num_workers": 0}))


# -- ten kills ---------------------------------------------------------------------------------------------


def recorded(job: TrainingJob, kill: tuple[int, int] | None) -> None:
    """Trains, and records the clips and figures of each step. `kill` is a rank, and the step after which it dies."""
    rank = int(os.environ["RANK"])
    record = job.runs.parent / f"steps-{rank}.jsonl"
    record.parent.mkdir(parents=True, exist_ok=True)
    num_steps = 0

    class RecordedStep(TrainingStep):
        def __call__(self, window: Sequence[ClipBatch], epoch: int, *arguments: Any) -> StepFigures:
            nonlocal num_steps
            figures = super().__call__(window, epoch, *arguments)
            entry = {
                "number": self.state.progress.steps,
                "ranks": self.ranks.world_size,
                "epoch": epoch,
                "clips": [clip_id for batch in window for clip_id in batch.clip_ids],
                "loss": figures.loss_sum,
                "rate": figures.learning_rate,
            }
            with record.open("a") as file:
                print(json.dumps(entry), file=file)
            num_steps += 1
            if (rank, num_steps) == kill:
                os.kill(os.getpid(), signal.SIGKILL)
            return figures

    step_module.TrainingStep = RecordedStep  # type: ignore[misc]
    train_module.SAVE_EVERY_S = -1.0
    train(job)


def steps_of(folder: Path) -> list[dict[str, Any]]:
    """Returns the steps with the clips of all ranks. Of a step that was repeated after a kill, it returns the last."""
    by_number: dict[int, dict[int, dict[str, Any]]] = {}
    for file in folder.glob("steps-*.jsonl"):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            by_number.setdefault(entry["number"], {})[int(file.stem[6:])] = entry
    steps = []
    for number in sorted(by_number):
        ranks = by_number[number]
        first = ranks[0]
        used = [ranks[rank] for rank in range(first["ranks"])]
        assert {entry["loss"] for entry in used} == {first["loss"]}
        steps.append(first | {"clips": sorted(clip for entry in used for clip in entry["clips"])})
    return steps


def run_killed(folder: Path, packed: Packed, shapes: Sequence[Shape], seed: int) -> None:
    """Trains with each shape in turn, and kills a random rank in each but the last."""
    draw = random.Random(seed)
    for number, shape in enumerate(shapes):
        is_last = number + 1 == len(shapes)
        kill = None if is_last else (draw.randrange(shape[0]), draw.choice([1, 2, 2, 3]))
        results = together(recorded, job_of(folder, packed, shape, num_epochs=4), kill, world_size=shape[0])
        lost = [result for result in results if isinstance(result, TrainingError)]
        assert len(lost) == (0 if is_last else shape[0] - 1), results


def test_ten_kills_with_equal_global_batches_leave_every_step_as_it_is(
    tmp_path: Path, packed: Packed
) -> None:
    """With dropout, scheduled sampling, augmentation and batch statistics."""
    shapes = {1: (1, 2, 4), 2: (2, 2, 2), 4: (4, 2, 1)}
    draw = random.Random(3)
    used = [shapes[4], *(shapes[draw.choice([1, 2, 4])] for _ in range(9)), shapes[2]]
    assert len(set(used)) == 3
    run_killed(tmp_path / "killed", packed, used, seed=4)
    together(recorded, job_of(tmp_path / "whole", packed, shapes[4], num_epochs=4), None, world_size=4)
    ours, theirs = steps_of(tmp_path / "killed"), steps_of(tmp_path / "whole")
    assert [step["clips"] for step in ours] == [step["clips"] for step in theirs]
    assert len({step["ranks"] for step in ours}) > 1
    for key in ("loss", "rate"):
        np.testing.assert_allclose([step[key] for step in ours], [step[key] for step in theirs], rtol=1e-4)
    curves = [
        load_checkpoint(tmp_path / name / "checkpoints/checkpoint_epoch_3.pt")["progress"]["curves"]
        for name in ("killed", "whole")
    ]
    for key in ("train_loss", "val_loss", "learning_rate", "gradient_norm", "padding"):
        np.testing.assert_allclose(*([c[key] for c in curve] for curve in curves), rtol=1e-3, err_msg=key)
    assert len(list((tmp_path / "killed/runs").iterdir())) == 1


def test_ten_kills_with_changing_global_batches_visit_every_clip_once(tmp_path: Path, packed: Packed) -> None:
    draw = random.Random(6)
    used = [(4, 2, 1), *((draw.choice([1, 2, 4]), 2, 1) for _ in range(9)), (2, 2, 1)]
    run_killed(tmp_path, packed, used, seed=8)
    assert len(list((tmp_path / "runs").iterdir())) == 1
    steps = steps_of(tmp_path)
    for epoch in range(4):
        visits = Counter(clip for step in steps if step["epoch"] == epoch for clip in step["clips"])
        assert len(visits) == NUM_CLIPS and set(visits.values()) == {1}, (epoch, visits)
    sizes = {len(step["clips"]) for step in steps}
    assert len(sizes) >= 3, sizes
    rates = [step["rate"] for step in steps if step["epoch"] == 0]
    assert rates == sorted(rates)


# -- which run a command continues -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped_once(packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Interrupted):
        train(stopping_at(job_of(folder, packed, (1, 4, 2)), 1, 2))
    return folder


@pytest.fixture
def last(stopped_once: Path, tmp_path: Path) -> Path:
    """The checkpoint of a run in the folder `a` that was stopped after the first step of epoch 1."""
    return copied(stopped_once, tmp_path / "a")


def test_larger_batches_with_the_same_global_batch_train_the_same_model(
    tmp_path: Path, packed: Packed, last: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bit for bit: the plan of the first command is kept to the end, its batches are not split."""
    train(job_of(tmp_path / "whole", packed, (1, 4, 2)))
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(job_of(tmp_path / "a", packed, (1, 8, 1)))
    name = "checkpoints/checkpoint_epoch_2.pt"
    assert_same_weights(tmp_path / "whole" / name, tmp_path / "a" / name)
    (line,) = [message for message in caplog.messages if "unfinished run" in message]
    assert f"{last.parent} is an unfinished run of 1 process × batch_size 4 × accumulation_steps 2" in line
    assert "to start a new run instead, set another paths.runs or train.seed" in line
    (line,) = [message for message in caplog.messages if "epoch plan is for" in message]
    assert "18 of 26 clips of epoch 1 are left; its plan is kept" in line
    assert "1 process × batch_size 4 × accumulation_steps 2 (global batch 8)" in line
    assert "1 process × batch_size 8 × accumulation_steps 1 (global batch 8)" in line
    assert len(list((tmp_path / "a/runs").iterdir())) == 1
    # a third command starts a new run, because this one is finished
    job = job_of(tmp_path / "a", packed, (1, 2, 4))
    assert run_of(job, TrainingData(job)).folder != last.parent
    # both commands of this run find it finished
    for shape in ((1, 4, 2), (1, 8, 1)):
        assert train(job_of(tmp_path / "a", packed, shape)).already_done


def test_another_global_batch_continues_a_checkpoint_without_a_flag(
    tmp_path: Path, packed: Packed, last: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Progress bar, learning rate and figures of the epoch cover both parts of it."""
    job = job_of(tmp_path / "b", packed, (1, 3, 1), scheduler="constant", warmup_epochs=3)
    shown: list[tuple[int, int, int]] = []
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(replace(job, resume=last, on_batch=lambda *figures: shown.append(figures[:3])))
    (line,) = [message for message in caplog.messages if "epoch plan is for" in message]
    assert "18 of 26 clips of epoch 1 are left; each is read once, and later epochs are planned" in line
    assert shown[0][:2] == (1, 3)  # after the two batches of the first part
    for epoch in (1, 2):
        done, totals = zip(*((done, total) for e, done, total in shown if e == epoch), strict=True)
        assert list(done) == list(range(done[0], totals[0] + 1)) and len(set(totals)) == 1
    state = load_checkpoint(job.checkpoints / "checkpoint_epoch_2.pt")
    assert state["plan_identity"]["batch_size"] == 3 and state["progress"]["shape"] == [1, 3, 1]
    assert state["progress"]["segments"] == []
    plan = TrainingData(job).epoch(1, PlanShape(1, 3, 1), [Segment(PlanShape(1, 4, 2), 2)])
    assert plan.num_clips == NUM_CLIPS
    curve = state["progress"]["curves"][1]
    assert curve["padding"] == plan.padding_share


def test_other_batches_with_another_global_batch_start_a_new_run_that_names_the_old_one(
    tmp_path: Path, packed: Packed, last: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(job_of(tmp_path / "a", packed, (1, 3, 1), num_epochs=3))
    (line,) = [message for message in caplog.messages if "starting a new run" in message]
    assert "train.batch_size: 4 there, 3 here" in line and line.endswith(
        f"--params {last.parent}/config.yaml"
    )


@pytest.mark.parametrize("content", ["{", '{"parameters": "a", "shapes": [[1]]}', "[]"])
def test_a_damaged_list_of_commands_is_ignored(
    tmp_path: Path, packed: Packed, last: Path, content: str
) -> None:
    (last.parent / "commands.json").write_text(content)
    job = job_of(tmp_path / "a", packed, (1, 8, 1))
    assert run_of(job, TrainingData(job)).folder != last.parent
    job = job_of(tmp_path / "a", packed, (1, 4, 2))
    assert run_of(job, TrainingData(job)).folder == last.parent


@pytest.mark.parametrize(
    ("shape", "changes", "continues"),
    [
        ((2, 4, 2), {}, True),  # another number of processes
        ((4, 2, 1), {}, True),  # the same global batch
        ((1, 4, 1), {}, False),
        ((2, 4, 1), {}, True),
        ((2, 4, 2), {"learning_rate": 1e-3}, False),
    ],
)
def test_a_run_is_continued_by_other_processes_or_an_equal_global_batch(
    tmp_path: Path, packed: Packed, last: Path, shape: Shape, changes: dict[str, float], continues: bool
) -> None:
    job = job_of(tmp_path / "a", packed, shape, **changes)
    folder = run_of(job, TrainingData(job, Ranks(0, shape[0]))).folder
    assert (folder == last.parent) == continues
    # a run without a checkpoint has nothing to continue
    for checkpoint in last.parent.glob("*last.pt"):
        checkpoint.unlink()
    assert run_of(job, TrainingData(job, Ranks(0, shape[0]))).folder != last.parent


# -- other parts of a run ----------------------------------------------------------------------------------


def test_a_checkpoint_of_an_earlier_program_resumes_exactly(
    tmp_path: Path, packed: Packed, last: Path
) -> None:
    """It has a random state, which is not needed, and no shape of its plan."""
    state = load_checkpoint(last)
    for key in ("shape", "segments", "process_s"):
        del state["progress"][key]
    save_checkpoint(last, state | {"random_state": torch.get_rng_state()[None]})
    (last.parent / "commands.json").unlink()
    train(job_of(tmp_path / "a", packed, (1, 4, 2)))
    train(job_of(tmp_path / "whole", packed, (1, 4, 2)))
    name = "checkpoints/checkpoint_epoch_2.pt"
    assert_same_weights(tmp_path / "whole" / name, tmp_path / "a" / name)
    assert len(load_checkpoint(tmp_path / "a" / name)["progress"]["curves"]) == 3


def test_an_epoch_without_a_clip_left_is_only_validated(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped in the validation of epoch 0: the new batches begin with epoch 1."""
    encode = LipReader.encode

    def encode_and_stop(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return encode(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="epoch 0 after 7 batches"):
        patch.setattr(LipReader, "encode", encode_and_stop)
        train(job_of(tmp_path / "a", packed, (1, 4, 2)))
    last = last_of(tmp_path / "a")
    shown: list[tuple[int, int]] = []
    job = replace(job_of(tmp_path / "b", packed, (1, 3, 1)), resume=last)
    # the number of processes differs, so the threads are timed again, with the first batch that is left: a black clip
    job = replace(job, machine=job.machine.model_copy(update={"threads": 0}))
    monkeypatch.setattr("model.training.epoch_figures.usable_cores", lambda: 2)
    state = load_checkpoint(last)
    save_checkpoint(last, state | {"world_size": 2})
    threads = torch.get_num_threads()
    with caplog.at_level(logging.INFO, "pipeline.train"):
        train(replace(job, on_batch=lambda epoch, done, *_: shown.append((epoch, done))))
    torch.set_num_threads(threads)
    assert "timing a training step with 1 and 2 threads" in caplog.messages
    assert shown[0] == (1, 1)
    assert len(load_checkpoint(job.checkpoints / "checkpoint_epoch_2.pt")["progress"]["curves"]) == 3


def test_bad_clips_count_once_in_an_epoch_of_two_plans(tmp_path: Path) -> None:
    packed = pack_clips(tmp_path / "packed", toy_clips(num_train=NUM_CLIPS, num_valid=2))
    job = job_of(tmp_path, packed, (1, 4, 2), num_epochs=1)
    job = replace(job, loader=job.loader.model_copy(update={"max_bad_fraction": 0.5}))
    batches = TrainingData(job).epoch(0).batches
    bad = [int(batches[step][0]) for step in (0, 1, 2, 5)]
    damage(packed, bad)
    with pytest.raises(Interrupted):
        train(stopping_at(job, 0, 2))
    last = last_of(tmp_path)
    # lines of a step that a kill has undone
    quarantine = last.with_name("quarantine.jsonl")
    quarantine.write_text(quarantine.read_text() + '{"epoch": 0, "batch": 2, "clip_id": "undone"}\n')
    train(
        replace(
            job, train=job.train.model_copy(update={"batch_size": 3, "accumulation_steps": 1}), resume=last
        )
    )
    (published,) = tmp_path.glob("logs/quarantine.jsonl")
    entries = [json.loads(line) for line in published.read_text().splitlines()]
    clip_ids = read_samples(packed.samples, "train")["clip_id"].to_pylist()
    assert sorted(entry["clip_id"] for entry in entries) == sorted(clip_ids[row] for row in bad)
    assert [entry["batch"] for entry in entries] == sorted(entry["batch"] for entry in entries)
    assert (
        load_checkpoint(tmp_path / "checkpoints/checkpoint_epoch_0.pt")["progress"]["bad_clips_before"] == 4
    )
