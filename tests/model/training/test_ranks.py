"""Several processes train one model: like one process with all their batches, and with safe stops."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from model.checkpoints import load_checkpoint
from model.decoding.reader import LipReader
from model.runs import RunFolder, locked_run_folder
from model.settings import DecodeParams
from model.training.pixel_statistics import measure_pixel_statistics, with_pixel_statistics
from model.training.ranks import Ranks, ranks_of
from model.training.run_choice import run_of
from model.training.training_data import TrainingData, TrainingJob
from shards.elastic_plan import ElasticPlan, PlanShape, plan_segments
from shards.errors import ConfigError, Interrupted, TrainingError
from shards.packs import Packs
from shards.plan import plan_epoch
from shards.samples import read_samples
from shards.store import FolderStore
from stages import train as train_module
from stages.train import train
from tests.support.packed import Packed, pack_clips, toy_clips, toy_sound, with_column
from tests.support.ranks import together
from tests.support.trainings import MODEL, assert_same_weights, job_in

WORLD_SIZE = 2
STILL = {"learning_rate": 3e-3, "batch_size": 3, "teacher_forcing_end": 1.0, "num_epochs": 2}
"""No random draws in the network: the weights do not depend on which rank reads a clip."""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(num_train=26, num_valid=7))


def batchnorm_in_eval() -> None:
    _BatchNorm.train = lambda self, mode=True: torch.nn.Module.train(self, False)  # type: ignore[method-assign]


def still_job(folder: Path, packed: Packed, **changes: object) -> TrainingJob:
    job = job_in(folder, packed, **STILL, **changes)
    # the attention decoder outputs text from the first epoch on
    return replace(
        job, model=MODEL.model_copy(update={"dropout": 0.0}), decode=DecodeParams(decoder="attention")
    )


def losses_of(job: TrainingJob) -> list[float]:
    """Trains; returns the mean loss after each window, from the callback of this rank."""
    losses: list[float] = []
    train(replace(job, on_batch=lambda *figures: losses.append(figures[3])))
    return losses


# -- the same as one process ------------------------------------------------------------------------------


def still_ranks(folder: Path, packed: Packed, changes: dict[str, object]) -> list[float]:
    batchnorm_in_eval()
    return losses_of(still_job(folder, packed, **changes))


@pytest.fixture
def as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process whose batches hold the clips of both ranks."""

    def doubled(data: TrainingData, epoch: int, *_: object) -> ElasticPlan:
        job = data._job
        loader, shape = job.loader, PlanShape(WORLD_SIZE, job.train.batch_size, job.train.accumulation_steps)
        plans = [
            plan_segments(data.samples, loader, epoch, shape, world_size=WORLD_SIZE, rank=rank)
            for rank in range(WORLD_SIZE)
        ]
        windows = [
            first._replace(
                batches=tuple(map(np.concatenate, zip(first.batches, second.batches, strict=True)))
            )
            for first, second in zip(*(plan.windows for plan in plans), strict=True)
        ]
        return replace(plans[0], windows=tuple(windows))

    monkeypatch.setattr(TrainingData, "epoch", doubled)
    monkeypatch.setattr(_BatchNorm, "train", lambda self, mode=True: torch.nn.Module.train(self, False))


@pytest.mark.parametrize("kind", ["plain", "confidences", "sound"])
def test_two_ranks_learn_what_one_process_learns_from_the_doubled_batch(
    tmp_path: Path, packed: Packed, as_one: None, kind: str
) -> None:
    """With windows of two batches: the gradient of the first is exchanged only with the second."""
    changes: dict[str, object] = {}
    if kind == "sound":
        clips = toy_clips(num_train=26, num_valid=7)
        sounds = {clip_id: toy_sound(label, 0) for clip_id, _, _, label in clips[:20]}
        packed = pack_clips(tmp_path / "sound", clips, sounds=sounds)
        changes = {"audio_weight": 0.5, "audio_tokens": 8}
    if kind == "confidences":
        confidence = {f"train_{number:03d}": number / 25 for number in range(26)}
        packed = with_column(packed, tmp_path, "confidence", confidence)
    ours, silent = together(still_ranks, tmp_path / "two", packed, changes)
    theirs = losses_of(still_job(tmp_path / "one", packed, **changes))
    assert silent == []
    assert len(ours) == len(theirs) >= 6
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    one, two = (
        load_checkpoint(next((tmp_path / name / "runs").glob("*/last.pt"))) for name in ("one", "two")
    )
    for name, weights in one["model_state_dict"].items():
        torch.testing.assert_close(two["model_state_dict"][name], weights, atol=1e-4, rtol=0)
    keys = ["train_loss", "val_loss", "val_cer", "gradient_norm"]
    if kind == "sound":
        keys += ["audio_loss", "audio_accuracy"]
        for name, weights in one["audio_head"]["weights"].items():
            torch.testing.assert_close(two["audio_head"]["weights"][name], weights, atol=1e-4, rtol=0)
        assert all(curve["audio_accuracy"] > 0 for curve in one["progress"]["curves"])
    for key in keys:
        np.testing.assert_allclose(
            [curve[key] for curve in two["progress"]["curves"]],
            [curve[key] for curve in one["progress"]["curves"]],
            atol=1e-4,
            err_msg=key,
        )
    assert two["progress"]["curves"][-1]["val_cer"] != 1, "the decoder outputs no text that could differ"
    assert one["progress"]["steps"] == two["progress"]["steps"]
    assert one["plan_identity"]["world_size"] == 1 and two["plan_identity"]["world_size"] == 2


def levels(folder: Path, packed: Packed) -> object:
    """Rank 1 has no shards, like a node that has fetched none."""
    with train_module.process_group() as ranks:
        job = job_in(folder, packed)
        job = replace(job, model=MODEL.model_copy(update={"standardise": "shards"}))
        if not ranks.is_first:
            job = replace(job, packs=Packs.single(packed.samples, FolderStore(folder / "nowhere")))
        run = RunFolder(job.runs, "run")
        return with_pixel_statistics(job, run, job.packs.read("train"), ranks)


def test_the_first_rank_measures_gray_levels_for_all(tmp_path: Path, packed: Packed) -> None:
    first, second = together(levels, tmp_path, packed)
    assert first == second
    assert (first.input_mean, first.input_std) == measure_pixel_statistics(
        packed.store, read_samples(packed.samples, "train"), MODEL
    )


# -- stopped and lost --------------------------------------------------------------------------------------


def stopped(folder: Path, packed: Packed, where: str) -> object:
    """Sends SIGTERM only to rank 1: within epoch 0, or during the validation after it."""
    is_second = os.environ["RANK"] == "1"
    job = job_in(folder, packed)
    if where == "training" and is_second:
        take = train_module._Trainer._take

        def take_and_stop(self: train_module._Trainer, figures) -> None:
            take(self, figures)
            if (self.progress.epoch, self.progress.batches_done) == (0, 0):
                os.kill(os.getpid(), signal.SIGTERM)

        train_module._Trainer._take = take_and_stop  # type: ignore[method-assign]
    elif where == "validation" and is_second:
        encode = LipReader.encode

        def encode_and_stop(self: LipReader, *arguments, **named):
            os.kill(os.getpid(), signal.SIGTERM)
            return encode(self, *arguments, **named)

        LipReader.encode = encode_and_stop  # type: ignore[method-assign]
    steps: list[tuple[int, int]] = []
    try:
        train(replace(job, on_batch=lambda epoch, done, *_: steps.append((epoch, done))))
    except Interrupted as error:
        return str(error)
    return steps


def test_a_signal_to_one_rank_stops_both_at_the_same_step_and_they_resume_exactly(
    tmp_path: Path, packed: Packed
) -> None:
    """With dropout, scheduled sampling and batch statistics, which differ between the ranks."""
    whole, _ = together(stopped, tmp_path / "whole", packed, "nowhere")
    assert whole == [(epoch, done) for epoch in range(3) for done in (2, 4)]
    messages = together(stopped, tmp_path / "stopped", packed, "training")
    assert messages[0] == messages[1] and "in epoch 0 after 2 batches" in str(messages[0])
    messages = together(stopped, tmp_path / "stopped", packed, "validation")
    assert messages[0] == messages[1] and "in epoch 0 after 4 batches" in str(messages[0])
    rest, silent = together(stopped, tmp_path / "stopped", packed, "nowhere")
    assert rest[0] == (1, 2) and silent == []
    name = "checkpoints/checkpoint_epoch_2.pt"
    assert_same_weights(tmp_path / "whole" / name, tmp_path / "stopped" / name)
    states = [load_checkpoint(tmp_path / run / name) for run in ("whole", "stopped")]
    keys = ("train_loss", "val_loss", "val_cer", "learning_rate", "gradient_norm")
    ours, theirs = ([[c[key] for key in keys] for c in state["progress"]["curves"]] for state in states)
    assert ours == theirs
    log = (tmp_path / "stopped/logs/training.log").read_text()
    assert log.count("train_loss=") == 3


def failing(folder: Path, packed: Packed) -> None:
    if os.environ["RANK"] == "1":

        def fail(self: train_module._Trainer, figures) -> None:
            raise ConfigError("only here")

        train_module._Trainer._take = fail  # type: ignore[method-assign]
    train(job_in(folder, packed))


def test_a_rank_that_fails_ends_the_other(tmp_path: Path, packed: Packed) -> None:
    first, second = together(failing, tmp_path, packed)
    assert str(second) == "only here"
    assert "another process of this training has ended" in str(first)


def training(folder: Path, packed: Packed) -> None:
    train(job_in(folder, packed))


def test_no_rank_trains_in_a_locked_run_folder(tmp_path: Path, packed: Packed) -> None:
    job = job_in(tmp_path, packed)
    run = run_of(job, TrainingData(job, Ranks(0, WORLD_SIZE)))
    with locked_run_folder(run.folder):
        first, second = together(training, tmp_path, packed)
    assert f"running in {run.folder}" in str(first)
    assert "another process of this training has ended" in str(second)
    assert not run.last.exists()


def test_a_lost_rank_is_reported_while_adding_up_statistics() -> None:
    first, second = together(adding)
    assert str(second) == "only here"
    assert isinstance(first, TrainingError) and "another process of this training has ended" in str(first)


def adding() -> None:
    with train_module.process_group() as ranks:
        if ranks.rank == 1:
            raise ConfigError("only here")
        for _ in range(1000):  # the other rank ends before or after the first of them
            ranks.add_up(torch.ones(1000))
            time.sleep(0.01)


def test_ranks_with_different_checkpoints_are_rejected(tmp_path: Path, packed: Packed) -> None:
    """Happens if two machines do not share the folder of runs."""
    together(elsewhere, tmp_path, packed, 1)
    errors = together(elsewhere, tmp_path, packed, 2)
    assert all("[[1, " in str(error) and "all machines share" in str(error) for error in errors)


def elsewhere(folder: Path, packed: Packed, num_runs: int) -> None:
    job = job_in(folder, packed)
    if num_runs == 1:
        try:
            train(replace(job, on_batch=lambda epoch, *_: epoch and os.kill(os.getpid(), signal.SIGTERM)))
        except Interrupted:
            return
    train(replace(job, runs=folder / "runs" / os.environ["RANK"] if os.environ["RANK"] == "1" else job.runs))


# -- bad samples -------------------------------------------------------------------------------------------


def tolerant(folder: Path, packed: Packed, fraction: float) -> TrainingJob:
    job = job_in(folder, packed, num_epochs=1)
    return replace(job, loader=job.loader.model_copy(update={"max_bad_fraction": fraction}))


def trained(folder: Path, packed: Packed, fraction: float) -> None:
    train(tolerant(folder, packed, fraction))


def test_bad_samples_of_all_ranks_are_counted_and_listed(tmp_path: Path) -> None:
    """One rank lacks its whole first window, the other rank one clip: both stay in step."""
    packed = pack_clips(tmp_path / "packed", toy_clips(num_train=26, num_valid=7))
    samples = read_samples(packed.samples, "train")
    loader = tolerant(tmp_path, packed, 0.0).loader
    plans = [plan_epoch(samples, loader, 4, 0, WORLD_SIZE, rank) for rank in range(WORLD_SIZE)]
    places = {int(row): 0 for row in plans[1].batches[0]} | {int(row): 1 for row in plans[1].batches[1]}
    places[int(plans[0].batches[2][0])] = 2
    for row in places:
        sample = samples.slice(row, 1).to_pylist()[0]
        with (packed.shards / sample["shard"]).open("r+b") as file:
            file.seek(sample["sample_offset"])
            file.write(b"x")
    names = {samples["clip_id"][row].as_py(): batch for row, batch in places.items()}
    together(trained, tmp_path / "two", packed, 0.5)
    entries = [json.loads(line) for line in (tmp_path / "two/logs/quarantine.jsonl").read_text().splitlines()]
    assert {entry["clip_id"]: entry["batch"] for entry in entries} == names
    log = (tmp_path / "two/logs/training.log").read_text()
    assert f"Epoch 0: skipped {len(names)} of 26 clips" in log and "quarantine.jsonl lists them" in log
    errors = together(trained, tmp_path / "strict", packed, (len(names) - 1) / 26)
    assert all(f"{len(names)} of the 26 clips of epoch 0 are bad" in str(error) for error in errors)


# -- small parts -------------------------------------------------------------------------------------------


def test_lines_of_all_ranks_are_in_rank_order() -> None:
    expected = ["rank 0", "银行\u2028 0", "rank 1", "银行\u2028 1"]
    assert together(exchange) == [[[], expected, [3.0, 0.5], True, False, [[0, 7], [1, 7]]]] * WORLD_SIZE


def exchange() -> object:
    with train_module.process_group() as ranks:
        return [
            ranks.lines([]),
            ranks.lines([f"rank {ranks.rank}", f"银行\u2028 {ranks.rank}"]),
            ranks.sum([ranks.rank + 1, 0.5 * ranks.rank]),
            ranks.any(ranks.rank == 1),
            ranks.any(False),
            ranks.gathered(torch.tensor([ranks.rank, 7])).tolist(),
        ]


def test_gradients_are_exchanged_only_in_the_last_batch_of_a_window() -> None:
    """Gradient of w * x by w: x is 1 and 10 on rank 0, 2 and 20 on rank 1."""
    assert together(gradients) == [[1.0, 16.5], [2.0, 16.5]]


def gradients() -> list[float]:
    with train_module.process_group() as ranks:
        network = torch.nn.Linear(1, 1, bias=False)
        learner = ranks.wrap(network)
        x = torch.full((1, 1), ranks.rank + 1.0)
        with ranks.unsynchronised(learner):
            learner(x).sum().backward()
        assert network.weight.grad is not None
        first = network.weight.grad.item()
        learner(10 * x).sum().backward()
        del learner
        return [first, network.weight.grad.item()]


def test_a_single_process_exchanges_nothing() -> None:
    ranks = Ranks()
    assert ranks.lines(["a"]) == ["a"] and ranks.sum([2]) == [2] and ranks.any(True)
    assert ranks.gathered(torch.tensor([3])).tolist() == [[3]]
    network = torch.nn.Linear(1, 1)
    assert ranks.wrap(network) is network


def test_missing_torchrun_variables_are_rejected() -> None:
    assert ranks_of({}) == ranks_of({"WORLD_SIZE": "1", "RANK": "0"}) == Ranks()
    with pytest.raises(ConfigError, match=r"WORLD_SIZE is 4, but LOCAL_RANK, .*torchrun"):
        ranks_of({"WORLD_SIZE": "4", "RANK": "0"})


def test_one_gpu_for_all_processes_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.training.ranks.choose_device", torch.device)
    with pytest.raises(ConfigError, match="cuda:1 is one GPU for 2 processes"):
        Ranks(1, 2, 1, 2).device("cuda:1")
    assert Ranks(1, 2, 1, 2).device("cpu") == torch.device("cpu")
