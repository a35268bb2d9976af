"""One optimiser step: its gradient with any batching, a stop within it, and non-finite values."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from model.device import copy_of
from model.networks.sound_head import SoundLoss
from model.settings import DecodeParams
from model.training.augment import training_input
from model.training.ranks import Ranks
from shards.errors import Interrupted
from shards.stream import ClipBatch
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.stepping import (
    ALL_HEADS,
    CONFORMER,
    MODELS,
    Bench,
    TwoAlike,
    assert_close,
    assert_same,
    stepping_job,
)
from tests.support.trainings import MODEL


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(32, 2))


@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("sizes", [[8, 8, 8, 8], [8, 8, 5]], ids=["8x4", "last partial window"])
def test_accumulated_batches_have_the_gradient_of_one_large_batch(
    tmp_path: Path, packed: Packed, model: str, sizes: list[int]
) -> None:
    job = stepping_job(tmp_path, packed, MODELS[model], **ALL_HEADS)
    accumulated, whole = Bench(job), Bench(job)
    ours, theirs = accumulated(accumulated.batches(sizes)), whole(whole.batches([sum(sizes)]))
    assert_close(accumulated.gradient, whole.gradient)
    assert (ours.num_chars, ours.num_clips) == (theirs.num_chars, theirs.num_clips) and ours.was_taken
    assert ours.loss_sum == pytest.approx(theirs.loss_sum, rel=1e-5)
    assert ours.gradient_norm == pytest.approx(theirs.gradient_norm, rel=1e-4)


@pytest.mark.parametrize("model", list(MODELS))
def test_the_gradient_is_the_sum_over_single_clips_divided_by_all_characters(
    tmp_path: Path, packed: Packed, model: str
) -> None:
    """Each clip without padding; torch's own functions compute the losses by the formula of the docstring."""
    job = stepping_job(tmp_path, packed, MODELS[model], ctc_weight=0.4, label_smoothing=0.1)
    bench, plain = Bench(job), Bench(job)
    bench(bench.batches([8, 8, 5]))
    total = torch.zeros(())
    num_chars = 0
    for batch in plain.batches([1] * 21):
        video_BCTYX, num_frames_B, _ = training_input(batch, job, plain.data, 0, torch.device("cpu"))
        ids = plain.data.vocabulary.characters.encode(batch.labels[0])
        label_1L, end_1 = torch.tensor([ids]), torch.tensor([2])
        encoded_BSE, num_steps_B = plain.network.encode(video_BCTYX, num_frames_B)
        nobody_BS = torch.zeros(encoded_BSE.shape[:2], dtype=torch.bool)
        assert plain.network.decoder is not None and plain.network.ctc_head is not None
        logits_LV = plain.network.decoder.teacher_forced(encoded_BSE, nobody_BS, label_1L, 1.0)[0]
        entropy = functional.cross_entropy(
            logits_LV, torch.cat([label_1L[0], end_1]), label_smoothing=0.1, reduction="sum"
        )
        log_probs_SV = plain.network.ctc_head(encoded_BSE[0]).log_softmax(1)
        ctc = functional.ctc_loss(
            log_probs_SV[:, None], label_1L, num_steps_B, torch.tensor([len(ids)]), reduction="sum"
        )
        total = total + 0.4 * ctc + 0.6 * entropy
        num_chars += len(ids)
    (total / num_chars).backward()
    theirs = {name: p.grad for name, p in plain.network.named_parameters() if p.grad is not None}
    assert_close(bench.gradient, theirs)


@pytest.mark.parametrize("model", list(MODELS))
def test_a_rank_without_clips_takes_part_with_a_zero_gradient(
    tmp_path: Path, packed: Packed, model: str
) -> None:
    """Like a rank whose clips are all damaged, while the other rank has four clips."""

    # characters, clips and sound tokens; loss, clips of a bad one, and figures of sound
    others = iter([(9, 4, 0), (20.0, 0, 0.0, 0.0)])

    class Other(Ranks):
        def sum(self, values: list[float]) -> list[float]:
            return [ours + theirs for ours, theirs in zip(values, next(others), strict=True)]

        def add_up(self, values_N: torch.Tensor) -> None:
            assert not values_N.any()

    bench = Bench(stepping_job(tmp_path, packed, MODELS[model], **ALL_HEADS), batch_norm=True)
    bench.step.ranks = Other(rank=1, world_size=2)
    buffers = [buffer.clone() for buffer in bench.network.buffers()]
    called: list[int] = []
    bench.network.register_forward_pre_hook(lambda _, inputs: called.append(len(inputs[0])))
    (batch,) = bench.batches([1])
    nothing = replace(batch, video_BTHW=batch.video_BTHW[:0], clip_ids=(), labels=(), rows=())
    figures = bench([nothing, nothing])
    assert called == [1]  # one backward, which exchanges gradients
    assert (figures.loss_sum, figures.num_chars, figures.num_clips) == (20.0, 9, 4)
    assert figures.was_taken and figures.gradient_norm == 0
    assert bench.gradient.keys() == dict(bench.network.named_parameters()).keys()
    assert_same(list(bench.network.buffers()), buffers)


@pytest.mark.parametrize("model", list(MODELS))
def test_running_statistics_move_to_the_mean_over_the_clips_of_all_ranks(
    tmp_path: Path, packed: Packed, model: str
) -> None:
    """As far as batches one after another move them, which have the same statistics here."""
    job = stepping_job(tmp_path, packed, MODELS[model])
    bench, ranks = Bench(job, batch_norm=True), Bench(job, batch_norm=True)
    ranks.step.ranks = TwoAlike()
    (batch,) = bench.batches([4])
    in_turn = copy_of(bench.network).train()
    for _ in range(3):
        bench.step.batch_loss_B(in_turn, batch, 0)
    bench([batch] * 3)
    ranks([batch] * 3)
    names = [name for name, _ in bench.network.named_buffers() if "running" in name]
    assert len(names) > 3
    for name in names:
        moved = in_turn.get_buffer(name)
        torch.testing.assert_close(bench.network.get_buffer(name), moved, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ranks.network.get_buffer(name), moved, atol=1e-5, rtol=1e-4)
    # of different batches, each clip has the same weight
    uneven = Bench(job, batch_norm=True)
    one, three = uneven.batches([1, 3])
    alone = []
    for part in (one, three):
        network = copy_of(uneven.network).train()
        uneven.step.batch_loss_B(network, part, 0)
        alone.append(network)
    before = copy_of(uneven.network)
    uneven([one, three])
    for name in names:
        first, second = (network.get_buffer(name) for network in alone)
        expected = before.get_buffer(name) + 1.9 * (first / 4 + 3 * second / 4 - before.get_buffer(name))
        torch.testing.assert_close(uneven.network.get_buffer(name), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("ctc_weight", [0.0, 0.4])
def test_no_micro_batch_waits_for_the_gpu(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch, cuda: str, model: str, ctc_weight: float
) -> None:
    """Except in torch's CTC, which copies its offsets to the GPU and waits, forward and backward."""
    job = stepping_job(
        tmp_path, packed, MODELS[model], ctc_weight=ctc_weight, reverse_weight=0.3, teacher_forcing_end=0.5
    )
    bench = Bench(replace(job, decode=DecodeParams(decoder="attention")), device=torch.device(cuda))
    window = bench.batches([4, 4])
    bench(window)  # autotuning and one-time allocations
    ctc_loss = functional.ctc_loss

    def waiting(*arguments: Any, **named: Any) -> torch.Tensor:
        assert arguments[2].device.type == arguments[3].device.type == "cpu"
        torch.cuda.set_sync_debug_mode("default")
        try:
            return ctc_loss(*arguments, **named)
        finally:
            torch.cuda.set_sync_debug_mode("error")

    monkeypatch.setattr(functional, "ctc_loss", waiting)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in window:
            loss = bench.step.batch_loss_B(bench.network, batch, 0).sum()
            if ctc_weight == 0:
                loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# -- a stop ----------------------------------------------------------------------------------------------


def test_a_stop_within_a_window_restores_the_state_before_it(tmp_path: Path, packed: Packed) -> None:
    job = stepping_job(tmp_path, packed, MODEL.model_copy(update={"dropout": 0.3}), ema_decay=0.9)
    bench, undisturbed = Bench(job, batch_norm=True), Bench(job, batch_norm=True)
    window = bench.batches([4, 4, 4])
    for one in (bench, undisturbed):
        one(window)
    before = bench.everything()
    sizes: list[int] = []

    def ask(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        bench.step.stop.requested = len(sizes) == 2

    handle = bench.network.register_forward_pre_hook(ask)
    with pytest.raises(Interrupted):
        bench(window)
    assert sizes == [4, 4]  # the third batch does not start
    assert_same(bench.everything(), before)
    assert all(p.grad is None for p in bench.network.parameters())
    handle.remove()
    bench.step.stop.requested = False
    bench(window)
    undisturbed(window)
    assert_same(bench.everything(), undisturbed.everything())


def test_with_several_ranks_a_stop_waits_for_the_end_of_the_window(tmp_path: Path, packed: Packed) -> None:
    """The other ranks may wait for the gradient of this rank."""

    bench = Bench(stepping_job(tmp_path, packed))
    bench.step.ranks = TwoAlike()
    bench.step.stop.requested = True
    assert bench(bench.batches([2, 2])).was_taken


# -- non-finite values -----------------------------------------------------------------------------------


def poisoned(bench: Bench, clip_id: str, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """Multiplies the loss of one clip, and its gradient, by `value`."""
    whole = bench.step.losses

    def losses(network: nn.Module, batch: ClipBatch, epoch: int) -> tuple[torch.Tensor, SoundLoss | None]:
        factor_B = torch.tensor([value if other == clip_id else 1.0 for other in batch.clip_ids])
        loss_B, sound = whole(network, batch, epoch)
        return loss_B * factor_B, sound

    monkeypatch.setattr(bench.step, "losses", losses)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_non_finite_loss_leaves_the_state_bit_identical(
    tmp_path: Path,
    packed: Packed,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    value: float,
) -> None:
    bench = Bench(stepping_job(tmp_path, packed, CONFORMER, ema_decay=0.9), batch_norm=True)
    window = bench.batches([4, 4, 4])
    assert bench(window).was_taken  # the optimiser has momenta now
    before = bench.everything()
    bad = window[1].clip_ids[2]
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "pipeline.train"):
        poisoned(bench, bad, patch, value)
        figures = bench(window)
    assert figures.skipped == (bad,) and not figures.was_taken
    assert (figures.loss_sum, figures.num_chars, figures.num_clips) == (0.0, 0, 12)
    assert len(caplog.messages) == 1 and f"not finite for {bad}:" in caplog.messages[0]
    assert_same(bench.everything(), before)
    assert all(p.grad is None for p in bench.network.parameters())
    # the same as without the bad window
    again = bench(window)
    fresh = Bench(bench.job, batch_norm=True)
    fresh(window)
    assert again.was_taken and again == fresh(window)
    assert_same(bench.everything(), fresh.everything())


def test_a_non_finite_gradient_skips_the_whole_window(
    tmp_path: Path, packed: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    bench = Bench(stepping_job(tmp_path, packed), batch_norm=True)
    window = bench.batches([3, 2])
    before = bench.everything()
    parameter = next(bench.network.parameters())
    handle = parameter.register_hook(lambda gradient: gradient * float("nan"))
    with caplog.at_level(logging.WARNING, "pipeline.train"):
        figures = bench(window)
    handle.remove()
    assert figures.skipped == window[0].clip_ids + window[1].clip_ids and not figures.was_taken
    assert "the gradient is not finite for train_" in caplog.messages[0]
    assert_same(bench.everything(), before)
    assert bench(window).was_taken


def test_the_scaler_handles_an_overflow_of_float16(
    tmp_path: Path, packed: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    """Gradients overflow above a scale of 2^14; with scale 1, an overflow is an error of the gradient itself."""
    bench = Bench(stepping_job(tmp_path, packed))
    scaler = bench.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    window = bench.batches([4, 4])
    before = [tensor.clone() for tensor in bench.network.state_dict().values()]
    parameter = next(bench.network.parameters())
    limit = 2.0**14
    handle = parameter.register_hook(lambda g: g if scaler.get_scale() <= limit else g + float("inf"))
    taken = []
    for _ in range(2):
        taken.append(bench(window))
        assert_same(list(bench.network.state_dict().values()), before)
    assert all(figures.was_taken and not figures.skipped for figures in taken) and not caplog.messages
    assert scaler.get_scale() == 2.0**14
    assert bench(window).gradient_norm < float("inf")
    after = bench.everything()
    assert not torch.equal(after[0], before[0])
    handle.remove()
    plain = Bench(bench.job)
    plain(window)
    for ours, theirs in zip(after, plain.everything(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    scaler.update(1.0)
    parameter.register_hook(lambda g: g + float("inf"))
    assert not bench(window).was_taken
    assert_same(bench.everything(), after)


def test_a_bad_loss_keeps_the_scale_of_float16(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(stepping_job(tmp_path, packed))
    bench.state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    window = bench.batches([4])
    with monkeypatch.context() as patch:
        poisoned(bench, window[0].clip_ids[0], patch, float("nan"))
        assert not bench(window).was_taken
    assert bench.state.scaler.get_scale() == 2.0**8
    assert bench(window).was_taken
