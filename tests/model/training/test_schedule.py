"""Learning rate and teacher forcing as in the papers, gradient clipping and momenta of a step."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

from model.networks.network import LipNetwork
from model.settings import TrainParams
from model.training.schedule import learning_rate, teacher_forcing
from stages.train import _Trainer, train
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.stepping import MODELS, Bench, assert_close, stepping_job
from tests.support.trainings import job_in

PEAK = 2e-3


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(26, 2))


# -- functions of the epochs done ----------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs_done", "share"), [(0, 0), (1, 0.25), (3, 0.75), (4, 1)])
@pytest.mark.parametrize("scheduler", ["cosine", "constant"])
def test_the_rate_rises_linearly(scheduler: str, epochs_done: float, share: float) -> None:
    params = TrainParams(learning_rate=PEAK, warmup_epochs=4, num_epochs=10, scheduler=scheduler)
    assert learning_rate(params, epochs_done) == pytest.approx(share * PEAK, rel=1e-12)


@pytest.mark.parametrize(
    ("epochs_done", "share"),
    [(4, 1), (5, 0.5 + 0.25 * math.sqrt(3)), (6, 0.75), (7, 0.5), (8, 0.25), (10, 0), (11, 0)],
)
def test_the_rate_falls_as_half_a_cosine_after_the_warm_up(epochs_done: float, share: float) -> None:
    params = TrainParams(learning_rate=PEAK, warmup_epochs=4, num_epochs=10)
    assert learning_rate(params, epochs_done) == pytest.approx(share * PEAK, rel=1e-12, abs=1e-18)
    constant = params.model_copy(update={"scheduler": "constant"})
    assert learning_rate(constant, epochs_done) == PEAK


def test_the_rate_equals_that_of_torchs_own_schedulers() -> None:
    """Epoch by epoch; torch's warm-up cannot start at 0, so it starts at a billionth."""
    params = TrainParams(learning_rate=PEAK, warmup_epochs=5, num_epochs=30)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    rise = LinearLR(optimizer, start_factor=1e-9, total_iters=5)
    theirs = SequentialLR(optimizer, [rise, CosineAnnealingLR(optimizer, T_max=25)], milestones=[5])
    for epoch in range(30):
        assert learning_rate(params, epoch) == pytest.approx(theirs.get_last_lr()[0], rel=1e-6, abs=1e-11)
        optimizer.step()
        theirs.step()


def test_without_warm_up_or_with_only_warm_up() -> None:
    params = TrainParams(learning_rate=PEAK, warmup_epochs=0, num_epochs=10)
    assert learning_rate(params, 0) == PEAK and learning_rate(params, 5) == pytest.approx(PEAK / 2)
    params = TrainParams(learning_rate=PEAK, warmup_epochs=10, num_epochs=10)
    assert learning_rate(params, 9) == pytest.approx(0.9 * PEAK) and learning_rate(params, 10) == PEAK


def test_teacher_forcing_falls_linearly_to_the_last_epoch() -> None:
    params = TrainParams(num_epochs=5, teacher_forcing=0.9, teacher_forcing_end=0.5)
    shares = [teacher_forcing(params, epoch) for epoch in range(5)]
    assert shares == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5], abs=1e-12)
    assert teacher_forcing(params.model_copy(update={"num_epochs": 1}), 0) == 0.9


# -- in a training -------------------------------------------------------------------------------------------


def test_a_step_has_the_rate_and_teacher_forcing_of_its_position(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rate is that at the middle of the window by clips, teacher forcing that of the epoch."""
    job = job_in(tmp_path, packed, learning_rate=PEAK, scheduler="constant", warmup_epochs=2, num_epochs=2)
    job = replace(job, train=job.train.model_copy(update={"accumulation_steps": 3, "teacher_forcing": 0.9}))
    positions: list[tuple[int, int, int, int]] = []
    rates: list[float] = []
    clips: list[int] = []
    fed: list[float] = []
    take, forward = _Trainer._take, LipNetwork.forward

    def record_rate(self: _Trainer, figures) -> None:
        rates.append(self.state.optimizer.param_groups[0]["lr"])
        assert figures.learning_rate == rates[-1]
        clips.append(figures.num_clips)
        take(self, figures)

    def record_forcing(self: LipNetwork, *inputs) -> object:
        fed.append(inputs[3])
        return forward(self, *inputs)

    monkeypatch.setattr(_Trainer, "_take", record_rate)
    monkeypatch.setattr(LipNetwork, "forward", record_forcing)
    train(
        replace(job, on_batch=lambda epoch, done, total, _: positions.append((epoch, done, total, len(fed))))
    )
    assert {total % 3 for _, _, total, _ in positions} != {0}, "an epoch ends with a shorter window"
    assert len(set(clips)) > 2 and sum(clips) == 2 * 26, clips
    expected = [
        PEAK * (sum(clips[:number]) + num_clips / 2) / 26 / 2 for number, num_clips in enumerate(clips)
    ]
    assert rates == pytest.approx(expected, rel=1e-9)
    of_first = next(count for epoch, done, total, count in positions if done == total)
    assert set(fed[:of_first]) == {0.9} and set(fed[of_first:]) == {0.8}


def test_a_gradient_above_the_limit_is_scaled_and_its_norm_before_clipping_reported(
    tmp_path: Path, packed: Packed
) -> None:
    job = stepping_job(tmp_path, packed)
    free = Bench(job)
    norm = free(free.batches([4])).gradient_norm
    by_hand = math.sqrt(sum(float(g.double().square().sum()) for g in free.gradient.values()))
    assert norm == pytest.approx(by_hand, rel=1e-5)
    for limit, scale in ((norm / 8, 1 / 8), (norm * 2, 1.0)):
        bench = Bench(stepping_job(tmp_path, packed, gradient_clip=limit))
        assert bench(bench.batches([4])).gradient_norm == pytest.approx(norm, rel=1e-5)
        assert_close(bench.gradient, {name: scale * g for name, g in free.gradient.items()})


@pytest.mark.parametrize("model", list(MODELS))
def test_the_optimiser_is_adamw_with_the_second_momentum_of_transformers(
    tmp_path: Path, packed: Packed, model: str
) -> None:
    """Two steps by the formulas of Loshchilov and Hutter 2019, betas 0.9 and 0.98 (Vaswani et al. 2017)."""
    bench = Bench(stepping_job(tmp_path, packed, MODELS[model], weight_decay=0.1, learning_rate=1e-2))
    network, state = bench.network, bench.state
    decays = {
        id(parameter): group["weight_decay"]
        for group in state.optimizer.param_groups
        for parameter in group["params"]
    }
    assert set(decays.values()) == {0.0, 0.1}
    weights = {name: p.detach().double().clone() for name, p in network.named_parameters()}
    means, squares = ({name: torch.zeros_like(w) for name, w in weights.items()} for _ in range(2))
    for step, batch in enumerate(bench.batches([4, 4]), start=1):
        rate = bench([batch]).learning_rate
        assert rate > 1e-3
        for name, parameter in network.named_parameters():
            gradient = bench.gradient[name].double()
            means[name] = 0.9 * means[name] + 0.1 * gradient
            squares[name] = 0.98 * squares[name] + 0.02 * gradient**2
            mean, square = means[name] / (1 - 0.9**step), squares[name] / (1 - 0.98**step)
            weights[name] *= 1 - rate * decays[id(parameter)]
            weights[name] -= rate * mean / (square.sqrt() + 1e-8)
            # the sign of a tiny gradient is only float32 rounding
            is_large = gradient.abs() > 1e-6
            torch.testing.assert_close(
                parameter.detach().double()[is_large], weights[name][is_large], atol=2e-5, rtol=0
            )
            weights[name] = parameter.detach().double().clone()
