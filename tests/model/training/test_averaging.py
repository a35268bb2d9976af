"""The average of the weights: its closed form, no side effects, and its use in training."""

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoints import load_checkpoint
from model.device import Precision
from model.networks.network import LipNetwork
from model.text import Tokenizer
from model.training.run_choice import run_of
from model.training.schedule import WeightAverage
from model.training.training_data import TrainingData
from model.vocabulary import Vocabulary
from stages.train import train
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.resuming import state_of
from tests.support.trainings import MODEL, job_in

DECAY = 0.9
NUM_STEPS = 120
"""More than the warm-up of the decay, which ends after 80 steps."""


@pytest.fixture
def network() -> LipNetwork:
    torch.manual_seed(0)
    return LipNetwork(MODEL, Vocabulary(Tokenizer.of_units("一二三四")), ("ctc", "decoder"))


def change(network: LipNetwork) -> None:
    """Changes weights and statistics of BatchNorm like a training step, and counts one more batch."""
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point():
            tensor.data.add_(torch.randn_like(tensor), alpha=0.1)
        else:
            tensor.data.add_(1)


def as_float64(network: LipNetwork) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy().copy() for name, tensor in network.state_dict().items()}


def test_the_average_is_the_weighted_sum_of_all_weights(network: LipNetwork) -> None:
    """The share of step n is (1 - d_n) times every later d; that of the initial weights is the product of all d."""
    average = WeightAverage(network, DECAY)
    seen = [as_float64(network)]
    for _ in range(NUM_STEPS):
        change(network)
        average.step()
        seen.append(as_float64(network))
    decays = [min(DECAY, (1 + n) / (10 + n)) for n in range(NUM_STEPS)]
    assert decays[0] == 0.1 and decays[79] < DECAY == decays[80]
    shares = [np.prod(decays), *((1 - d) * np.prod(decays[n + 1 :]) for n, d in enumerate(decays))]
    assert sum(shares) == pytest.approx(1)
    for name, tensor in average.network.state_dict().items():
        if tensor.is_floating_point():
            expected = sum(share * weights[name] for share, weights in zip(shares, seen, strict=True))
            np.testing.assert_allclose(tensor.numpy(), expected, rtol=0, atol=2e-6)
        else:
            assert tensor == NUM_STEPS, name


def test_the_average_of_unchanged_weights_is_bit_identical(network: LipNetwork) -> None:
    average = WeightAverage(network, DECAY)
    for _ in range(20):
        average.step()
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, average.network.state_dict()[name]), name


def test_averaging_changes_neither_the_network_nor_the_random_state(network: LipNetwork) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    random_state = torch.get_rng_state()
    average = WeightAverage(network, DECAY)
    average.step()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert network.training and not average.network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_restored_average_gives_the_same_result(network: LipNetwork) -> None:
    whole = WeightAverage(network, DECAY)
    for _ in range(5):
        change(network)
        whole.step()
    again = WeightAverage(network, DECAY)
    again.restore(whole.network.state_dict(), whole.num_steps)
    for _ in range(3):
        change(network)
        whole.step()
        again.step()
    for name, tensor in whole.network.state_dict().items():
        assert torch.equal(tensor, again.network.state_dict()[name]), name


@pytest.mark.gpu
def test_on_a_gpu_the_averaged_lstm_needs_no_copy_of_its_weights(cuda: str) -> None:
    """torch warns at every call if the weights are not contiguous in memory; a warning fails a test."""
    learning = LipNetwork(MODEL, Vocabulary(Tokenizer.of_units("一二")), ("ctc",)).to(cuda)
    average = WeightAverage(learning, DECAY)
    average.step()
    encoded_BSE, _ = average.network.encode(torch.zeros(2, 1, 9, 24, 24, device=cuda), torch.tensor([9, 4]))
    assert encoded_BSE.isfinite().all()


# -- in training -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(12, 2))


def test_the_average_is_validated_and_saved_with_the_trained_weights(tmp_path: Path, packed: Packed) -> None:
    train(job_in(tmp_path / "plain", packed, num_epochs=1))
    plain = load_checkpoint(tmp_path / "plain/checkpoints/best_model.pt")
    assert plain["training_state_dict"] is None
    job = job_in(tmp_path / "averaged", packed, num_epochs=1, ema_decay=0.9)
    train(job)
    averaged = load_checkpoint(tmp_path / "averaged/checkpoints/best_model.pt")
    assert averaged["averaged_steps"] == averaged["progress"]["steps"] > 0
    # averaging does not change the trained weights
    for name, tensor in plain["model_state_dict"].items():
        assert torch.equal(tensor, averaged["training_state_dict"][name]), name
    assert any(
        not torch.equal(tensor, averaged["training_state_dict"][name])
        for name, tensor in averaged["model_state_dict"].items()
    )
    state = state_of(job)
    state.restore(run_of(job, TrainingData(job)))
    reader = state.reader(Precision(None)).network.state_dict()
    for name, tensor in averaged["model_state_dict"].items():
        assert torch.equal(tensor, reader[name]), name


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.9), (0.9, 0.0), (0.9, 0.5)])
def test_resuming_with_or_without_an_average(
    tmp_path: Path, packed: Packed, before: float, after: float, caplog: pytest.LogCaptureFixture
) -> None:
    train(job_in(tmp_path / "before", packed, num_epochs=1, ema_decay=before))
    file = tmp_path / "before/checkpoints/checkpoint_epoch_0.pt"
    there = load_checkpoint(file)
    job = replace(job_in(tmp_path / "after", packed, ema_decay=after), resume=file)
    state = state_of(job)
    with caplog.at_level(logging.INFO, "pipeline.train"):
        state.restore(run_of(job, TrainingData(job)))
    message = {(0.0, 0.9): "starting one", (0.9, 0.0): "no longer updated", (0.9, 0.5): ""}[before, after]
    assert message in caplog.text and bool(message) == ("average of the weights" in caplog.text)
    learnt = there["training_state_dict"] or there["model_state_dict"]
    for name, tensor in state.network.state_dict().items():
        assert torch.equal(tensor, learnt[name]), name
    expected = there["model_state_dict"] if after else learnt
    for name, tensor in state.evaluation_network.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    if after:
        assert isinstance(state.average, WeightAverage)
        assert state.average.num_steps == there["averaged_steps"]
