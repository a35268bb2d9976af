"""The GPU code paths on a simulated GPU: it reads and learns the same as a CPU."""

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model.decoding.reader import LipReader
from model.decoding.registry import HEADS_OF_DECODER
from model.device import Precision
from model.settings import AugmentParams, DecodeParams, ModelParams
from shards.settings import MachineParams
from stages.train import train
from tests.support.networks import ALL_ON, FRAMES, NUM_FRAMES_B, SMALL, SMALL_CONFORMER, reader_of
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.pretend_gpu import CUDA, PretendGpu, pretended_gpu
from tests.support.stepping import ALL_HEADS, MODELS, Bench, assert_same, stepping_job
from tests.support.trainings import read_test_clips, weights

SETTINGS = {**ALL_HEADS, "ema_decay": 0.9, "teacher_forcing_end": 0.5, "augment": ALL_ON}

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available(), reason="a real GPU is available; tests marked gpu use it"
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendGpu]:
    with pretended_gpu(monkeypatch) as gpu:
        yield gpu


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(12, 2))


# -- errors like those of a GPU ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "operation",
    [
        lambda here, there: here + there,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: nn.functional.linear(there, here),
        lambda here, there: here[torch.zeros(1, dtype=torch.long, device="cuda")],
        lambda here, there: torch.where(there > 0, here, there),
        lambda here, there: there.numpy(),
        lambda here, there: np.asarray(there),
        lambda here, there: there.long() @ there.long(),
        lambda here, there: there.to("cpu", non_blocking=True),
    ],
)
def test_mixed_devices_and_cpu_only_operations_raise(
    gpu: PretendGpu, operation: Callable[[torch.Tensor, torch.Tensor], object]
) -> None:
    here = torch.ones(3, 3)
    with pytest.raises((RuntimeError, TypeError)):
        operation(here, here.to("cuda"))


def test_cpu_scalars_and_indices_are_accepted_and_waits_are_recorded(gpu: PretendGpu) -> None:
    there = torch.arange(6.0, device="cuda")
    assert (there + torch.tensor(1.0)).device == CUDA and not gpu.waits
    assert there[torch.tensor([1, 2])].tolist() == [1.0, 2.0]
    assert float(there.sum()) == 15.0 and bool((there >= 0).all())
    assert sum(gpu.waits.values()) == 4


def test_types_follow_cudas_autocast_and_random_numbers_are_separate(gpu: PretendGpu) -> None:
    """The autocast of a CPU would keep the layer norm in bfloat16."""
    there = torch.ones(4, 4, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        product = there @ there
        assert (product.dtype, nn.functional.layer_norm(product, (4,)).dtype) == (
            torch.bfloat16,
            torch.float32,
        )
    state, cuda_state = torch.get_rng_state(), torch.cuda.get_rng_state()
    drawn = torch.rand(5, device="cuda")
    assert torch.equal(torch.get_rng_state(), state)
    torch.cuda.set_rng_state(cuda_state)
    assert torch.rand(5, device="cuda").tolist() == drawn.tolist()


# -- reading -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [SMALL, SMALL_CONFORMER], ids=["cnn3d", "conformer"])
@pytest.mark.parametrize("name", HEADS_OF_DECODER)
def test_every_decoder_reads_the_same_on_gpu_and_cpu(
    monkeypatch: pytest.MonkeyPatch, model: ModelParams, name: str
) -> None:
    torch.manual_seed(1)
    video_BTHW = torch.randint(0, 256, (3, FRAMES[0], 96, 96), dtype=torch.uint8)
    params = DecodeParams(decoder=name, beam=4, lm_weight=0.4, length_bonus=0.1, syllable_weight=0.2)
    reader = reader_of(model)
    blind = name == "ctc"
    expected = reader.read(video_BTHW, NUM_FRAMES_B, params, blind)
    with pretended_gpu(monkeypatch) as gpu:
        moved = copy.copy(reader)
        moved.network, moved.device = copy.deepcopy(reader.network).to("cuda"), torch.device("cuda")
        found = moved.read(video_BTHW, NUM_FRAMES_B, params, blind)
        assert not any("encoder" in wait for wait in gpu.waits)
        moved.precision = Precision(torch.float16)
        log_probs_SV = moved.ctc_log_probs(video_BTHW[0].numpy())
        assert log_probs_SV is not None and np.isfinite(log_probs_SV).all()
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours.text, len(ours.candidates)) == (theirs.text, len(theirs.candidates))
        assert ours.score == pytest.approx(theirs.score, abs=1e-5)


# -- training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "augment"),
    [("cnn3d", ALL_ON), ("conformer", ALL_ON.model_copy(update={"zoom_sigma": 0.0, "rotation_deg": 0.0}))],
    ids=["cnn3d", "conformer, whole pixels"],
)
def test_a_step_learns_the_same_on_gpu_and_cpu_and_waits_once(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch, model: str, augment: AugmentParams
) -> None:
    """Except for torch's CTC, which waits on its own."""
    settings = {**SETTINGS, "teacher_forcing_end": 1.0, "augment": augment}
    job = stepping_job(tmp_path, packed, MODELS[model], **settings)
    here = Bench(job, batch_norm=True)
    window = here.batches([4, 4])
    expected = here(window)
    with pretended_gpu(monkeypatch) as gpu:
        there = Bench(job, batch_norm=True, device=torch.device("cuda"))
        gpu.waits.clear()
        found = there(window)
        # torch's CTC reads its labels back; nothing else in the losses waits
        waits = [wait for wait in gpu.waits.elements() if "from the GPU in model/losses.py" not in wait]
        assert len(waits) == 1 and waits[0].startswith("tolist in model/training/step.py")
        gradient = {name: value.cpu() for name, value in there.gradient.items()}
    assert found.loss_sum == pytest.approx(expected.loss_sum, rel=1e-5)
    for name, value in here.gradient.items():
        torch.testing.assert_close(gradient[name], value, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("model", list(MODELS))
def test_an_overflow_of_float16_and_a_non_finite_loss_change_nothing(
    tmp_path: Path, packed: Packed, gpu: PretendGpu, model: str
) -> None:
    precision = Precision(torch.float16)
    job = stepping_job(tmp_path, packed, MODELS[model], **SETTINGS)
    bench = Bench(job, True, precision, torch.device("cuda"))
    window = bench.batches([4, 4])
    assert bench(window).was_taken
    bench.state.scaler.update(2.0**40)
    before = [tensor.cpu() for tensor in bench.network.parameters()]
    overflowed = bench(window)
    assert overflowed.was_taken and not np.isfinite(overflowed.gradient_norm)
    assert bench.state.scaler.get_scale() == 2.0**39
    assert_same([tensor.cpu() for tensor in bench.network.parameters()], before)
    with torch.no_grad():
        next(bench.network.parameters()).fill_(torch.nan)
    assert not bench(window).was_taken


def test_a_gpu_training_resumes_exactly_and_a_cpu_reads_its_checkpoint(
    tmp_path: Path, packed: Packed, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {**SETTINGS, "num_epochs": 2, "checkpoint_every": 1, "mixed_precision": True}
    params = MODELS["cnn3d"].model_copy(update={"dropout": 0.2})
    machine = MachineParams(device="cuda", num_workers=1)
    with pretended_gpu(monkeypatch):
        for name in ("whole", "again"):
            job = replace(stepping_job(tmp_path / name, packed, params, **settings), machine=machine)
            if name == "again":
                job = replace(job, resume=next((tmp_path / "whole/runs").glob("*/*epoch*0*.pt")))
            assert train(job).epochs == 2
    whole, again = (
        weights(tmp_path / name / "checkpoints/checkpoint_epoch_1.pt") for name in ("whole", "again")
    )
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    reader = LipReader.from_checkpoint(tmp_path / "whole/checkpoints/best_model.pt", torch.device("cpu"))
    assert len(read_test_clips(reader, packed)) > 0
