"""Checkpoints that are intact files with invalid values: rejected by name, and ignored by other runs."""

import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoints import KEYS, load_checkpoint, save_checkpoint
from model.decoding.reader import LipReader
from model.training.run_choice import run_of
from model.training.training_data import TrainingData
from shards.errors import CheckpointError
from stages.train import train
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.resuming import state_of, stopped_in
from tests.support.trainings import job_in

State = dict[str, Any]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(num_train=23, num_valid=2))


@pytest.fixture(scope="module")
def last(packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a training that stopped in its second epoch."""
    return stopped_in(tmp_path_factory.mktemp("stopped"), packed)


def first_weight(state: State) -> str:
    return next(name for name, tensor in state["model_state_dict"].items() if tensor.dim() > 1)


def reshape_weight(state: State) -> None:
    name = first_weight(state)
    state["model_state_dict"][name] = state["model_state_dict"][name].flatten()


def reshape_momentum(state: State) -> None:
    momenta = next(m for m in state["optimizer_state_dict"]["state"].values() if m["exp_avg"].dim() > 1)
    momenta["exp_avg"] = momenta["exp_avg"].flatten()


ALTERATIONS: dict[str, Callable[[State], object]] = {
    "a weight of another shape": reshape_weight,
    "a missing weight": lambda state: state["model_state_dict"].pop(first_weight(state)),
    "weights that are a number": lambda state: state.update(model_state_dict=7),
    "heads that are no list": lambda state: state.update(heads=3),
    "model that is no mapping": lambda state: state.update(model_params="large"),
    "progress of another program": lambda state: state["progress"].update(moons=1),
    "progress that is a list": lambda state: state.update(progress=[1, 2]),
    "progress of another kind": lambda state: state["progress"].update(epoch="second"),
    "pieces of another kind": lambda state: state["progress"].update(piece_frames="few"),
    "a momentum of another shape": reshape_momentum,
    "a missing momentum": lambda state: state["optimizer_state_dict"]["state"][0].pop("exp_avg_sq"),
    "no groups of parameters": lambda state: state["optimizer_state_dict"].pop("param_groups"),
    "a plan shape of two numbers": lambda state: state["progress"].update(shape=[1, 4]),
    "a segment of no steps": lambda state: state["progress"].update(segments=[[1, 4, 2, 0]]),
    "threads of another kind": lambda state: state.update(threads="many"),
}


@pytest.mark.parametrize("name", ALTERATIONS)
def test_a_checkpoint_that_cannot_be_resumed_is_named(
    tmp_path: Path, packed: Packed, last: Path, name: str
) -> None:
    state = load_checkpoint(last)
    ALTERATIONS[name](state)
    altered = tmp_path / "altered.pt"
    save_checkpoint(altered, state)
    job = replace(job_in(tmp_path, packed), resume=altered)
    job = replace(job, machine=job.machine.model_copy(update={"threads": 0}))
    with pytest.raises(CheckpointError, match=r"altered\.pt"):
        state_of(job).restore(run_of(job, TrainingData(job)))


HOSTILE_VALUES: list[Any] = [
    None,
    -2,
    2**70,
    float("nan"),
    1e300,
    "a\0b",
    b"x",
    [],
    ["x"],
    {1: 2},
    torch.ones(3),
]


@pytest.mark.parametrize("key", KEYS)
def test_a_hostile_value_of_any_key_is_rejected_with_a_message_or_accepted(
    tmp_path: Path, packed: Packed, last: Path, key: str
) -> None:
    """Reading and resuming raise nothing but CheckpointError."""
    whole = load_checkpoint(last)
    file = tmp_path / "hostile.pt"
    num_refused = 0
    for value in HOSTILE_VALUES:
        torch.save(whole | {key: value}, file)
        try:
            load_checkpoint(file)
        except CheckpointError as error:
            assert str(file) in str(error) and len(str(error)) < 2_000
            num_refused += 1
            continue
        with contextlib.suppress(CheckpointError):
            LipReader.from_checkpoint(file, torch.device("cpu"))
        job = replace(job_in(tmp_path, packed), resume=file)
        with contextlib.suppress(CheckpointError):
            state_of(job).restore(run_of(job, TrainingData(job)))
    assert num_refused >= 6, "most values have another type"


@pytest.mark.parametrize("value", [torch.ones(3), None, [3], "3", 3.0, True])
def test_a_version_that_is_not_an_integer_is_rejected(tmp_path: Path, last: Path, value: object) -> None:
    torch.save(load_checkpoint(last) | {"version": value}, tmp_path / "hostile.pt")
    with pytest.raises(CheckpointError, match=r"hostile\.pt"):
        load_checkpoint(tmp_path / "hostile.pt")


@pytest.mark.parametrize(
    "name",
    ["a weight of another shape", "a missing weight", "weights that are a number", "heads that are no list"],
)
def test_a_checkpoint_that_cannot_be_read_with_is_named(tmp_path: Path, last: Path, name: str) -> None:
    state = load_checkpoint(last)
    ALTERATIONS[name](state)
    altered = tmp_path / "altered.pt"
    save_checkpoint(altered, state)
    with pytest.raises(CheckpointError, match=r"altered\.pt"):
        LipReader.from_checkpoint(altered, torch.device("cpu"))


@pytest.mark.parametrize(
    "name", ["progress of another program", "progress that is a list", "model that is no mapping"]
)
def test_another_run_starts_next_to_it(
    tmp_path: Path, packed: Packed, last: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    state = load_checkpoint(last)
    ALTERATIONS[name](state)
    job = job_in(tmp_path, packed, num_epochs=1)
    save_checkpoint(job.runs / "0123456789abcdef" / "last.pt", state)
    with caplog.at_level(logging.INFO, "pipeline.train"):
        assert train(job).epochs == 1
    assert "starting a new run" not in caplog.text
