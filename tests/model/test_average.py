"""The average of checkpoints: numbers against torch, what is refused, and that it reads and starts trainings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from model.average import average_checkpoints
from model.checkpoints import load_checkpoint, save_checkpoint
from model.decoding.reader import LipReader
from pipeline.cli import app
from shards.errors import CheckpointError, ConfigError
from stages.train import train
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.resuming import state_of
from tests.support.trainings import job_in


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(12, 2))


@pytest.fixture(scope="module")
def paths(packed: Packed, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three checkpoints of a training: its start, and two with small changes of all weights."""
    folder = tmp_path_factory.mktemp("checkpoints")
    state = state_of(job_in(folder, packed)).as_checkpoint(None)
    paths = [folder / f"{number}.pt" for number in range(3)]
    for number, path in enumerate(paths):
        random = torch.Generator().manual_seed(number)
        moved = {
            name: tensor + 0.01 * torch.randn(tensor.shape, generator=random)
            if tensor.is_floating_point()
            else tensor + number
            for name, tensor in state["model_state_dict"].items()
        }
        save_checkpoint(path, state | {"model_state_dict": moved, "epoch": number})
    return paths


def test_weights_are_the_mean_and_all_else_is_of_the_last(paths: list[Path]) -> None:
    averaged, states = average_checkpoints(paths), [load_checkpoint(path) for path in paths]
    for name, tensor in averaged["model_state_dict"].items():
        theirs = [state["model_state_dict"][name] for state in states]
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, torch.stack(theirs).mean(dim=0), rtol=1e-5, atol=1e-7)
        else:
            assert torch.equal(tensor, theirs[-1])
        assert tensor.dtype == theirs[-1].dtype
    assert averaged["epoch"] == 2 and averaged["tokenizer"] == states[-1]["tokenizer"]


def test_one_checkpoint_twice_gives_the_same_weights(paths: list[Path]) -> None:
    averaged = average_checkpoints([paths[0], paths[0]])["model_state_dict"]
    own = load_checkpoint(paths[0])["model_state_dict"]
    assert all(torch.equal(averaged[name], tensor) for name, tensor in own.items())


def test_the_result_reads_and_starts_a_training_but_is_not_resumed(
    paths: list[Path], packed: Packed, tmp_path: Path
) -> None:
    out = tmp_path / "average.pt"
    result = CliRunner().invoke(app, ["average", *map(str, paths), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert str(out) in result.output
    assert LipReader.from_checkpoint(out, torch.device("cpu")).epoch == 2
    train(job_in(tmp_path / "started", packed, num_epochs=1, init_from=str(out)))
    with pytest.raises(CheckpointError, match="no training to resume"):
        train(replace(job_in(tmp_path / "resumed", packed, num_epochs=1), resume=out))


def test_weights_from_other_random_numbers_are_refused(
    paths: list[Path], packed: Packed, tmp_path: Path
) -> None:
    other = tmp_path / "other.pt"
    save_checkpoint(other, state_of(job_in(tmp_path, packed, seed=7)).as_checkpoint(None))
    with pytest.raises(CheckpointError, match="started from different random weights"):
        average_checkpoints([paths[0], other])


def test_other_models_and_single_checkpoints_are_refused(paths: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least two"):
        average_checkpoints(paths[:1])
    state: dict[str, Any] = load_checkpoint(paths[0])
    other = tmp_path / "other.pt"
    save_checkpoint(other, state | {"fps": 50.0})
    with pytest.raises(CheckpointError, match="fps"):
        average_checkpoints([paths[0], other])
    result = CliRunner().invoke(app, ["average", *map(str, paths), "--out", str(paths[0])])
    assert result.exit_code != 0
    assert load_checkpoint(paths[0])["epoch"] == 0, "not overwritten"
