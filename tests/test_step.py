"""One optimiser step: its gradient whatever the batching, what is not finite, and memory that runs out."""

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from model.device import Precision
from model.settings import DecodeParams, ModelParams
from model.training.batch_input import training_input
from model.training.job import TrainingJob
from model.training.out_of_memory import MicroBatches, is_out_of_memory, padded_frames
from model.training.ranks import Ranks
from model.training.step import StepFigures, TrainingStep
from model.training.training_data import TrainingData
from model.training.training_state import TrainingState
from shards.errors import Interrupted, TrainingError
from shards.stream import ClipBatch
from tests.packed import Packed, pack_clips, toy_clips
from tests.test_trainer import MODEL, job_in

CONFORMER = ModelParams.model_validate(
    {
        "preset": "conformer_tiny",
        "frame_height": 32,
        "frame_width": 32,
        "sizes": {
            "channels": (4, 6, 8, 8),
            "hidden_dim": 16,
            "num_heads": 2,
            "feed_forward_dim": 24,
            "num_encoder_layers": 2,
            "conv_kernel": 5,
            "num_decoder_layers": 1,
        },
        "dropout": 0.0,
    }
)
CPU = torch.device("cpu")
MODELS = {"cnn3d": MODEL.model_copy(update={"dropout": 0.0}), "conformer": CONFORMER}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(32, 2))


def stepping_job(
    folder: Path, packed: Packed, model: ModelParams = MODELS["cnn3d"], **changes: object
) -> TrainingJob:
    """Clipping off, so that a gradient is told as it is; the weights differ from their start after a step."""
    given = {"gradient_clip": 1e9, "teacher_forcing_end": 1.0, "warmup_epochs": 0.0, **changes}
    job = job_in(folder, packed, **given)
    return replace(job, model=model)


class Bench:
    """A training's step and what it changes, BatchNorm in eval mode unless asked for."""

    def __init__(
        self,
        job: TrainingJob,
        batch_norm: bool = False,
        precision: Precision | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.job, self.data = job, TrainingData(job)
        torch.manual_seed(3)
        precision = precision or Precision(None)
        self.state = TrainingState(job, device, precision, self.data)
        self.step = TrainingStep(job, self.data, self.state, precision)
        self.network = self.state.network
        self.network.train()
        for module in self.network.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
                module.train(batch_norm)
        self.gradient: dict[str, torch.Tensor] = {}
        self.state.optimizer.register_step_pre_hook(self._keep_gradient)

    def _keep_gradient(self, *_: object) -> None:
        self.gradient = {
            name: p.grad.clone() for name, p in self.network.named_parameters() if p.grad is not None
        }

    def batches(self, sizes: list[int]) -> list[ClipBatch]:
        """The first train clips in batches of these sizes."""
        stream, _ = self.data.streams(pin_memory=False)
        rows = torch.arange(sum(sizes)).split(sizes)
        return list(stream.batches([row_N.numpy() for row_N in rows]))

    def __call__(self, window: list[ClipBatch]) -> StepFigures:
        return self.step(window, 0, 0.5)

    def everything(self) -> list[torch.Tensor]:
        """All tensors that a step may change, as copies."""
        tensors = [*self.network.state_dict().values()]
        for values in self.state.optimizer.state_dict()["state"].values():
            tensors += [value for value in values.values() if isinstance(value, torch.Tensor)]
        if self.state.average:
            tensors += self.state.average.network.state_dict().values()
        return [tensor.clone() for tensor in tensors]


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> None:
    assert len(ours) == len(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys() and ours
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], atol=1e-5, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
    assert max(float(value.abs().max()) for value in ours.values()) > 1e-2  # else 1e-5 says nothing


ALL_HEADS = {"ctc_weight": 0.4, "reverse_weight": 0.3, "syllable_weight": 0.2}


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
def test_the_gradient_is_that_of_each_clip_alone_summed_and_divided_by_all_characters(
    tmp_path: Path, packed: Packed, model: str
) -> None:
    """Each clip unpadded, the losses from torch's own functions by the formula of the docstring."""
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


@pytest.mark.gpu
@pytest.mark.parametrize("model", list(MODELS))
@pytest.mark.parametrize("ctc_weight", [0.0, 0.4])
def test_no_piece_waits_for_the_gpu(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch, cuda: str, model: str, ctc_weight: float
) -> None:
    """But in torch's CTC, which sends its offsets to the GPU and waits for that, forward and backward."""
    job = stepping_job(
        tmp_path, packed, MODELS[model], ctc_weight=ctc_weight, reverse_weight=0.3, teacher_forcing_end=0.5
    )
    bench = Bench(replace(job, decode=DecodeParams(decoder="attention")), device=torch.device(cuda))
    window = bench.batches([4, 4])
    bench(window)  # what is chosen and allocated once
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


def test_asked_to_stop_it_leaves_a_window_as_if_it_had_not_begun(tmp_path: Path, packed: Packed) -> None:
    job = stepping_job(tmp_path, packed, MODEL.model_copy(update={"dropout": 0.3}), ema_decay=0.9)
    bench, undisturbed = Bench(job, batch_norm=True), Bench(job, batch_norm=True)
    window = bench.batches([4, 4, 4])
    for one in (bench, undisturbed):
        torch.manual_seed(5)
        one(window)
    state, before = torch.get_rng_state(), bench.everything()
    sizes: list[int] = []

    def ask(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        bench.step.stop.has_come = len(sizes) == 2

    handle = bench.network.register_forward_pre_hook(ask)
    with pytest.raises(Interrupted):
        bench(window)
    assert sizes == [4, 4]  # the third batch is not begun
    assert_same([*bench.everything(), torch.get_rng_state()], [*before, state])
    assert all(p.grad is None for p in bench.network.parameters())
    handle.remove()
    bench.step.stop.has_come = False
    bench(window)
    torch.set_rng_state(state)
    undisturbed(window)
    assert_same(bench.everything(), undisturbed.everything())


def test_asked_to_stop_several_ranks_end_the_window(tmp_path: Path, packed: Packed) -> None:
    """The others may wait for this one's gradient."""

    class TwoAlike(Ranks):
        def sum(self, values: list[float]) -> list[float]:
            return [2 * value for value in values]

    bench = Bench(stepping_job(tmp_path, packed))
    bench.step.ranks = TwoAlike(rank=1, world_size=2)
    bench.step.stop.has_come = True
    assert bench(bench.batches([2, 2])).was_taken


# -- what is not finite ------------------------------------------------------------------------------------


def poisoned(bench: Bench, clip_id: str, monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """Makes the loss of one clip `value`, gradient and all."""
    whole = bench.step.batch_loss_B

    def batch_loss_B(network: nn.Module, batch: ClipBatch, epoch: int) -> torch.Tensor:
        factor_B = torch.tensor([value if other == clip_id else 1.0 for other in batch.clip_ids])
        return whole(network, batch, epoch) * factor_B

    monkeypatch.setattr(bench.step, "batch_loss_B", batch_loss_B)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_leaves_all_bit_for_bit_as_it_was(
    tmp_path: Path,
    packed: Packed,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    value: float,
) -> None:
    bench = Bench(stepping_job(tmp_path, packed, CONFORMER, ema_decay=0.9), batch_norm=True)
    window = bench.batches([4, 4, 4])
    assert bench(window).was_taken  # the optimiser has a state now
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
    # as if the bad window had never been
    again = bench(window)
    fresh = Bench(bench.job, batch_norm=True)
    fresh(window)
    assert again.was_taken and again == fresh(window)
    assert_same(bench.everything(), fresh.everything())


def test_a_gradient_that_is_not_finite_leaves_the_whole_window_out(
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


def test_an_overflow_of_float16_is_the_scalers_to_mend(
    tmp_path: Path, packed: Packed, caplog: pytest.LogCaptureFixture
) -> None:
    """Gradients are made to overflow above a scale of 2^14; with scale 1 they are at fault themselves."""
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


def test_a_bad_loss_leaves_the_scale_of_float16_as_it_was(
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


# -- out of memory -----------------------------------------------------------------------------------------


def small_memory(bench: Bench, num_clips: int) -> list[int]:
    """Lets the network run out of memory in more clips than `num_clips`; gives the sizes it is called with."""
    sizes: list[int] = []

    def refuse(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > num_clips:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    # behind the frontend: its statistics are touched by then
    bench.network.encoder.register_forward_pre_hook(refuse)
    return sizes


@pytest.mark.parametrize("model", list(MODELS))
def test_where_memory_runs_out_the_step_in_pieces_is_the_same_step(
    tmp_path: Path, packed: Packed, caplog: pytest.LogCaptureFixture, model: str
) -> None:
    job = stepping_job(tmp_path, packed, MODELS[model])
    whole, small = Bench(job), Bench(job)
    sizes = small_memory(small, 3)
    window = whole.batches([2, 9, 5])
    with caplog.at_level(logging.WARNING, "pipeline.train"):
        ours, theirs = small(window), whole(window)
    assert_close(small.gradient, whole.gradient)
    assert ours.loss_sum == pytest.approx(theirs.loss_sum, rel=1e-5) and ours.num_chars == theirs.num_chars
    # 9 clips fail, then 5 of them, and of the window done anew the rest; which are few by then
    assert sizes[:4] == [2, 9, 2, 5] and max(sizes[4:]) <= 3
    assert [message.split(":")[0].split(",")[0] for message in caplog.messages] == [
        "out of memory in 9 clips",
        "out of memory in 5 clips",
    ]
    assert all("--find-budget" in message for message in caplog.messages)
    # what fitted is remembered: the next window does not fail
    caplog.clear()
    del sizes[:]
    small(window)
    assert max(sizes) <= 3 and not caplog.messages


def test_a_try_that_failed_leaves_no_trace_in_statistics_and_random_state(
    tmp_path: Path, packed: Packed
) -> None:
    """The step after a failure equals that of a training which knew the size of the pieces from the start."""
    job = stepping_job(tmp_path, packed, MODEL.model_copy(update={"dropout": 0.3}))
    failing, knowing = Bench(job, batch_norm=True), Bench(job, batch_norm=True)
    small_memory(failing, 3)
    window = failing.batches([3, 6])
    states = []
    for bench in (failing, knowing):
        torch.manual_seed(5)
        bench(window)
        states.append([*bench.everything(), torch.get_rng_state()])
        knowing.state.progress.piece_frames = failing.state.progress.piece_frames
    assert failing.state.progress.piece_frames
    assert_same(*states)


def test_one_clip_that_does_not_fit_is_named(tmp_path: Path, packed: Packed) -> None:
    bench = Bench(stepping_job(tmp_path, packed))
    small_memory(bench, 0)
    window = bench.batches([3])
    first, longest = window[0].clip_ids[0], int(window[0].num_frames_B[0])
    with pytest.raises(TrainingError, match=rf"{first} alone, {longest} frames.*loader\.max_frames"):
        bench(window)


def test_with_several_ranks_it_ends_with_what_to_set(tmp_path: Path, packed: Packed) -> None:
    class TwoAlike(Ranks):
        def sum(self, values: list[float]) -> list[float]:
            return [2 * value for value in values]

    bench = Bench(stepping_job(tmp_path, packed))
    bench.step.ranks = TwoAlike(rank=1, world_size=2)
    bench.step(bench.batches([2]), 0, 0.5)  # fits
    small_memory(bench, 2)
    with pytest.raises(
        TrainingError, match=r"on rank 1.*lower loader\.frame_budget below what.*--find-budget.* MB"
    ):
        bench.step(bench.batches([3]), 0, 0.5)


@pytest.mark.parametrize("model", list(MODELS))
def test_a_rank_without_a_clip_takes_part_with_a_gradient_of_nothing(
    tmp_path: Path, packed: Packed, model: str
) -> None:
    """As where all clips of its window are damaged, and the other rank has four clips."""

    others = iter([(9, 4), (20.0, 0)])  # characters and clips; loss and clips of a bad one

    class Other(Ranks):
        def sum(self, values: list[float]) -> list[float]:
            return [ours + theirs for ours, theirs in zip(values, next(others), strict=True)]

    bench = Bench(stepping_job(tmp_path, packed, MODELS[model], **ALL_HEADS), batch_norm=True)
    bench.step.ranks = Other(rank=1, world_size=2)
    buffers = [buffer.clone() for buffer in bench.network.buffers()]
    called: list[int] = []
    bench.network.register_forward_pre_hook(lambda _, inputs: called.append(len(inputs[0])))
    (batch,) = bench.batches([1])
    nothing = replace(batch, video_BTHW=batch.video_BTHW[:0], clip_ids=(), labels=(), rows=())
    figures = bench([nothing, nothing])
    assert called == [1]  # one backward, in which gradients are exchanged
    assert (figures.loss_sum, figures.num_chars, figures.num_clips) == (20.0, 9, 4)
    assert figures.was_taken and figures.gradient_norm == 0
    assert bench.gradient.keys() == dict(bench.network.named_parameters()).keys()
    assert_same(list(bench.network.buffers()), buffers)


def test_other_errors_are_no_lack_of_memory(tmp_path: Path, packed: Packed) -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(RuntimeError("std::bad_alloc"))
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    bench = Bench(stepping_job(tmp_path, packed))

    def fail(*_: object) -> None:
        raise RuntimeError("shapes differ")

    bench.network.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="shapes differ"):
        bench(bench.batches([3]))


def test_pieces_hold_every_clip_once_in_order_and_no_padding_beyond_their_longest(
    tmp_path: Path, packed: Packed
) -> None:
    bench = Bench(stepping_job(tmp_path, packed))
    (batch,) = bench.batches([13])
    micro = MicroBatches()
    assert micro.pieces(batch) == [batch]
    while micro.max_frames is None or micro.max_frames > int(batch.num_frames_B.max()):
        micro.shrink(max(micro.pieces(batch), key=padded_frames), MemoryError())
        pieces = micro.pieces(batch)
        assert sum((piece.clip_ids for piece in pieces), ()) == batch.clip_ids
        assert sum((piece.labels for piece in pieces), ()) == batch.labels
        assert all(len(p.clip_ids) == 1 or padded_frames(p) <= micro.max_frames for p in pieces)
        for piece in pieces:
            assert piece.video_BTHW.shape[1] == int(piece.num_frames_B.max())
        clips = [p.video_BTHW[i, :n] for p in pieces for i, n in enumerate(p.num_frames_B.tolist())]
        wanted = [batch.video_BTHW[i, :n] for i, n in enumerate(batch.num_frames_B.tolist())]
        assert_same(clips, wanted)
    assert len(pieces) == 13


STARVED = """
import resource, sys, logging
from pathlib import Path
import torch
from shards.memory import status_mb
from tests.packed import Packed
from tests.test_step import Bench, MODELS, stepping_job
logging.basicConfig(stream=sys.stdout, format="%(message)s")
torch.set_num_threads(1)
job = stepping_job(Path("unused"), Packed.at(Path(sys.argv[1])), MODELS["cnn3d"])
bench = Bench(job)
window = bench.batches([16])
whole, few = Bench(job), bench.batches([3])
bench(few), whole(few)  # what torch allocates once is there


def take_workspace(module, arguments):
    # 300 MB of addresses a clip, given back at once: torch's allocator fails here, and no library beside it
    torch.empty(len(arguments[0]) * 300 * 2**20, dtype=torch.uint8)


bench.network.register_forward_pre_hook(take_workspace)
limit = int(status_mb("VmSize") * 1e6) + 3_000 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
bench(window)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
whole(window)
apart = max(float((whole.gradient[n] - g).abs().max()) for n, g in bench.gradient.items())
print("pieces of", bench.step.micro_batches.max_frames, "apart", apart < 1e-5)
"""

STARVED_ENVIRONMENT = {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux")
def test_a_real_allocation_that_fails_is_survived_in_a_process_of_little_memory(packed: Packed) -> None:
    """The step on 16 clips takes more than the 3 GB of addresses that are left, that on 8 of them less."""
    done = subprocess.run(
        [sys.executable, "-c", STARVED, str(packed.samples.parent)],
        capture_output=True,
        text=True,
        env=os.environ | STARVED_ENVIRONMENT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "out of memory in 16 clips" in done.stdout and "apart True" in done.stdout, done.stdout
