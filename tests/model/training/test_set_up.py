"""Setting up a training, and the measurements on its first batch."""

import functools
import logging
import pickle
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from model import device
from model.settings import AugmentParams
from model.training import epoch_figures, find_budget
from model.training.epoch_figures import choose_threads, flops_per_frame
from model.training.find_budget import Shape
from model.training.step import TrainingStep, set_up
from model.training.training_data import TrainingData, TrainingJob
from shards.settings import MachineParams
from stages.train import train
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.trainings import job_in

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips())


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def step_of(job: TrainingJob) -> TrainingStep:
    return set_up(job, TrainingData(job), CPU)


def trained(job: TrainingJob) -> None:
    train(job)


def tried(job: TrainingJob) -> None:
    find_budget._figures(job, TrainingData(job), [Shape(2, 20, "一")], 4_000.0)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:The .grad attribute:UserWarning")
@pytest.mark.parametrize("use", [trained, tried])
def test_training_and_trials_compile_if_set(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch, use: Callable[[TrainingJob], None]
) -> None:
    """Traces and counts graphs, but runs them without a C++ compiler."""
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    graphs = []
    with torch._dynamo.config.patch(recompile_limit=8):  # put back afterwards
        for compiled in (False, True):
            torch._dynamo.reset()
            counters.clear()
            use(job_in(tmp_path / str(compiled), packed, num_epochs=1, compile=compiled))
            graphs.append(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert graphs[0] == 0
    assert graphs[1] > 1, "more than the check that this machine can compile"


def test_weights_depend_on_the_seed(tmp_path: Path, packed: Packed) -> None:
    weights = []
    for seed in (1, 1, 2):
        network = step_of(job_in(tmp_path, packed, seed=seed)).state.network
        assert network.training
        weights.append(torch.cat([parameter.detach().flatten() for parameter in network.parameters()]))
        torch.rand(3)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_operations_per_frame_do_not_depend_on_speed_or_bucket(tmp_path: Path, packed: Packed) -> None:
    counts, entered = [], []
    for compiled, speed_change in ((False, 0.0), (False, 0.5), (True, 0.0)):
        augment = AugmentParams(speed_change=speed_change)
        step = step_of(job_in(tmp_path, packed, augment=augment))
        # only buckets, without compiling
        step.job = replace(step.job, train=step.job.train.model_copy(update={"compile": compiled}))
        stream, _ = step.data.streams(pin_memory=False)
        batch = next(iter(stream.batches(step.data.epoch(0).batches)))
        inputs = epoch_figures.training_input(batch, step.job, step.data, 0, CPU)
        entered.append(inputs[0].shape[2])
        counts.append(flops_per_frame(step, batch, 0))
    assert len(set(entered)) == 3, entered
    assert counts == pytest.approx([counts[0]] * 3, rel=0.05)


def test_timing_the_threads_is_logged(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device, "TIMED_STEPS", 1)
    for cores, lines in ((1, 0), (2, 2)):
        for module in (epoch_figures, device):
            monkeypatch.setattr(module, "usable_cores", lambda cores=cores: cores)
        job = replace(job_in(tmp_path, packed), machine=MachineParams(threads=0, device="cpu"))
        step = step_of(job)
        stream, _ = step.data.streams(pin_memory=False)
        caplog.clear()
        with caplog.at_level(logging.INFO):
            choose_threads(step, stream)
        assert len(caplog.messages) == lines and step.state.threads in (1, cores)
    assert caplog.messages[0] == "timing a training step with 1 and 2 threads"
    assert "a training step takes: 1 thread 0." in caplog.messages[1]


def test_data_without_tables_is_small_and_gives_the_same_network(tmp_path: Path, packed: Packed) -> None:
    job = job_in(tmp_path, packed)
    data = TrainingData(job)
    bare = data.without_tables(job)
    assert len(bare.samples) == len(bare.valid_samples) == len(bare.valid_batches) == 0
    assert len(data.samples) == 24 and data.valid_batches
    assert len(pickle.dumps(bare)) < len(pickle.dumps(data))
    assert (
        set_up(job, bare, CPU).state.network.state_dict().keys()
        == step_of(job).state.network.state_dict().keys()
    )
