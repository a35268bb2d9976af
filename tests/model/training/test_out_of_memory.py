"""Out of memory in a step: micro-batches give the same step, and errors say what to do."""

import logging
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from model.training.out_of_memory import MicroBatches, is_out_of_memory, padded_frames
from shards.errors import TrainingError
from tests.support import forked
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.stepping import MODELS, Bench, TwoAlike, assert_close, assert_same, stepping_job
from tests.support.trainings import MODEL


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(32, 2))


def small_memory(bench: Bench, num_clips: int) -> list[int]:
    """Makes the network run out of memory for more than `num_clips` clips; returns the sizes of its calls."""
    sizes: list[int] = []

    def refuse(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > num_clips:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")

    # after the frontend, when its statistics have changed
    bench.network.encoder.register_forward_pre_hook(refuse)
    return sizes


@pytest.mark.parametrize("model", list(MODELS))
def test_after_running_out_of_memory_micro_batches_give_the_same_step(
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
    # 9 clips fail, then 5 of them; later calls, also of the repeated window, have few clips
    assert sizes[:4] == [2, 9, 2, 5] and max(sizes[4:]) <= 3
    assert [message.split(":")[0].split(",")[0] for message in caplog.messages] == [
        "out of memory in 9 clips",
        "out of memory in 5 clips",
    ]
    assert all("--find-budget" in message for message in caplog.messages)
    # the size is remembered: the next window does not fail
    caplog.clear()
    del sizes[:]
    small(window)
    assert max(sizes) <= 3 and not caplog.messages


def test_a_failed_attempt_changes_neither_statistics_nor_random_draws(tmp_path: Path, packed: Packed) -> None:
    """The step after a failure equals that of a training with small micro-batches from the start."""
    job = stepping_job(tmp_path, packed, MODEL.model_copy(update={"dropout": 0.3}))
    failing, knowing = Bench(job, batch_norm=True), Bench(job, batch_norm=True)
    small_memory(failing, 3)
    window = failing.batches([3, 6])
    states = []
    for bench in (failing, knowing):
        bench(window)
        states.append(bench.everything())
        knowing.state.progress.piece_frames = failing.state.progress.piece_frames
    assert failing.state.progress.piece_frames
    assert_same(*states)


def test_a_single_clip_that_does_not_fit_is_named(tmp_path: Path, packed: Packed) -> None:
    bench = Bench(stepping_job(tmp_path, packed))
    small_memory(bench, 0)
    window = bench.batches([3])
    first, longest = window[0].clip_ids[0], int(window[0].num_frames_B[0])
    with pytest.raises(TrainingError, match=rf"single clip {first}, {longest} frames.*loader\.max_frames"):
        bench(window)


def test_with_several_ranks_the_error_says_what_to_set(tmp_path: Path, packed: Packed) -> None:
    bench = Bench(stepping_job(tmp_path, packed))
    bench.step.ranks = TwoAlike()
    bench.step(bench.batches([2]), 0, 0.5)  # fits
    small_memory(bench, 2)
    with pytest.raises(
        TrainingError, match=r"on rank 1.*Lower loader\.frame_budget below what.*--find-budget.* MB"
    ):
        bench.step(bench.batches([3]), 0, 0.5)


def test_other_errors_do_not_count_as_out_of_memory(tmp_path: Path, packed: Packed) -> None:
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


def test_micro_batches_hold_every_clip_once_in_order_with_minimal_padding(
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
from shards.machine import status_mb
from tests.support.packed import Packed
from tests.support.stepping import Bench, MODELS, stepping_job
logging.basicConfig(stream=sys.stdout, format="%(message)s")
torch.set_num_threads(1)
job = stepping_job(Path("unused"), Packed.at(Path(sys.argv[1])), MODELS["cnn3d"])
bench = Bench(job)
window = bench.batches([16])
whole, few = Bench(job), bench.batches([3])
bench(few), whole(few)  # one-time allocations of torch are done


def take_workspace(module, arguments):
    # 300 MB of addresses per clip, released at once: only torch's allocator fails here, no other library
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


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux")
def test_a_process_with_little_memory_survives_a_failed_allocation(packed: Packed) -> None:
    """A step on 16 clips needs more than the remaining 3 GB of addresses, a step on 8 clips less."""
    done = forked.python(STARVED, packed.samples.parent)
    assert done.returncode == 0, done.stderr
    assert "out of memory in 16 clips" in done.stdout and "apart True" in done.stdout, done.stdout
