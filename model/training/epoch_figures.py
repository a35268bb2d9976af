"""The figures of an epoch: one row of curves.csv and one line of the log.

Also measures the first batch before training: the fastest number of threads, and the operations per frame.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model.device import copy_of, fastest_threads
from model.progress import Progress
from model.runs import Curve, logger
from model.training.augment import training_input
from model.training.out_of_memory import part
from model.training.step import TrainingStep, black_clip
from shards.elastic_plan import ElasticPlan
from shards.machine import peak_mb, usable_cores
from shards.stream import ClipBatch, ShardStream

PEAK_FLOPS_PER_S = {
    # H100 datasheet (half of the figures "with sparsity"); H200: the SXM board
    "NVIDIA H200": 989e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H100 PCIe": 756e12,
    # A100 datasheet
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    # L40S datasheet
    "NVIDIA L40S": 362e12,
    # whitepapers of the Ada and GA102 architectures: tensor cores, accumulating in float32
    "NVIDIA GeForce RTX 4090": 165e12,
    "NVIDIA GeForce RTX 3090": 71e12,
}
"""Dense bfloat16 multiplications and additions per second, by CUDA's device name. Parts of a GPU (MIG) are unknown."""

CER_OF_PACK = "val_cer_"
"""Begins the columns of curves.csv with the CER of each pack."""
BACKWARD = 2
"""Backward takes twice the operations of forward: for the gradients of the inputs and of the weights."""


def peak_memory_mb(device: torch.device) -> float:
    """Returns the peak memory so far, MB: of tensors on a GPU, or of the process on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else peak_mb()


def peak_flops_per_s(device: torch.device) -> float | None:
    """Returns the peak bfloat16 speed of the device; None for a CPU or an unknown GPU."""
    return PEAK_FLOPS_PER_S.get(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def flops_of_step(network: nn.Module, loss_of: Callable[[nn.Module], torch.Tensor]) -> int:
    """Returns the floating point operations of forward and backward. An addition and a multiplication count as two.

    `loss_of` returns the loss of one batch for a network. It runs on a copy, and random states are restored. Counts
    convolutions, matrix products, attention and LSTMs, but no element-wise operations.
    """
    parameter = next(network.parameters())
    devices = [parameter.device] if parameter.is_cuda else []
    trial = copy_of(network)
    with (
        torch.random.fork_rng(devices),
        FlopCounterMode(display=False, custom_mapping=_LSTM_FLOPS) as counter,
    ):
        loss_of(trial).backward()
    return counter.get_total_flops()


def _lstm_flops(input_shape: torch.Size, weight_shapes: list[torch.Size], *_: object, **__: object) -> int:
    """Counts cuDNN's LSTM, which FlopCounterMode does not know: each step multiplies by every weight."""
    num_steps = math.prod(input_shape[:-1])
    return 2 * num_steps * sum(math.prod(shape) for shape in weight_shapes if len(shape) == 2)


def _lstm_backward_flops(*arguments: object, **named: object) -> int:
    return BACKWARD * _lstm_flops(*arguments, **named)  # type: ignore[arg-type]


_LSTM_FLOPS = {
    torch.ops.aten._cudnn_rnn: _lstm_flops,
    torch.ops.aten._cudnn_rnn_backward: _lstm_backward_flops,
}


def flop_utilisation(flops: float, seconds: float, device: torch.device) -> float | None:
    """Returns `flops` in `seconds` as a share of the device's peak; None if the peak is unknown."""
    peak = peak_flops_per_s(device)
    return None if peak is None or seconds <= 0 else flops / seconds / peak


def curve_of(
    progress: Progress,
    plan: ElasticPlan,
    learning_rate: float,
    val_loss: float | None,
    val_cer: float | None,
    peak_memory_mb: float,
    flop_utilisation: float | None,
    cer_of_pack: Mapping[str, float] | None = None,
) -> Curve:
    """Returns the row of the epoch that `progress` has just finished. Values that were not measured are None."""
    skipped_before = sum(int(curve["skipped"] or 0) for curve in progress.curves)
    return {
        "epoch": progress.epoch,
        "train_loss": progress.mean_loss,
        "val_loss": val_loss,
        "val_cer": val_cer,
        "learning_rate": learning_rate,
        "clips_per_s": progress.clips_seen / max(progress.seconds, 1e-9),
        "data_wait": progress.wait_s / max(progress.seconds, 1e-9),
        "padding": plan.padding_share,
        "gradient_norm": progress.gradient_norm_sum / max(progress.steps_in_epoch, 1),
        "peak_memory_mb": peak_memory_mb,
        "skipped": progress.skipped_steps - skipped_before,
        "flop_utilisation": flop_utilisation,
        **_audio_columns(progress),
        **{f"{CER_OF_PACK}{name}": cer for name, cer in (cer_of_pack or {}).items()},
    }


def _audio_columns(progress: Progress) -> Curve:
    """Returns the mean loss of sound tokens, in nats, and the share that was found; empty without sound."""
    if not progress.audio_tokens:
        return {}
    return {
        "audio_loss": progress.audio_loss_sum / progress.audio_tokens,
        "audio_accuracy": progress.audio_right / progress.audio_tokens,
    }


def epoch_line(curve: Curve) -> str:
    """Returns the line of the log for this row."""
    figures = [f"train_loss={curve['train_loss']:.4f}"]
    if curve["val_loss"] is not None:
        figures += [f"val_loss={curve['val_loss']:.4f}", f"CER={curve['val_cer']:.4f}"]
        figures += [
            f"CER of {key.removeprefix(CER_OF_PACK)}={cer:.4f}"
            for key, cer in curve.items()
            if key.startswith(CER_OF_PACK) and cer is not None
        ]
    figures += [
        f"{curve['clips_per_s']:.1f} clips/s",
        f"waited {_percent(curve['data_wait'])} for data",
        f"padded {_percent(curve['padding'])}",
        f"peak memory {curve['peak_memory_mb']:.0f} MB",
    ]
    if "audio_accuracy" in curve:
        figures.append(f"found {_percent(curve['audio_accuracy'])} of the sound tokens")
    if curve["flop_utilisation"] is not None:
        figures.append(f"model FLOP utilisation {_percent(curve['flop_utilisation'])}")
    if curve["skipped"]:
        figures.append(f"{curve['skipped']} steps skipped")
    return f"Epoch {curve['epoch']}: " + ", ".join(figures)


def _percent(share: float | None) -> str:
    assert share is not None
    return f"{100 * share:.1f} %"


def choose_threads(step: TrainingStep, stream: ShardStream) -> None:
    """Sets torch's number of threads on a CPU. Several processes share the cores, without a measurement."""
    state, ranks = step.state, step.ranks
    if state.device.type != "cpu":
        return
    if not state.threads and ranks.world_size > 1:
        state.threads = max(1, usable_cores() // ranks.local_size)
    if not state.threads and usable_cores() == 1:
        state.threads = 1
    if not state.threads:
        batch = _read(step, stream)
        logger.info("timing a training step with 1 and %d threads", usable_cores())
        state.threads, message = fastest_threads(
            state.network, lambda network: step.batch_loss_B(network, batch, state.progress.epoch).sum()
        )
        logger.info(message)
    torch.set_num_threads(state.threads)


def flops_per_frame_if_known(step: TrainingStep, stream: ShardStream) -> float:
    """Returns `flops_per_frame` of the first batch with a clip; 0 if the peak speed of the device is unknown."""
    if peak_flops_per_s(step.state.device) is None:
        return 0.0
    return flops_per_frame(step, _read(step, stream), step.state.progress.epoch)


def flops_per_frame(step: TrainingStep, batch: ClipBatch, epoch: int) -> float:
    """Returns the operations of forward and backward per input frame, counted on the batch's first clip."""
    first_clip = part(batch, 0, 1)  # fits into memory, even if the batch does not
    # the input may be longer or shorter than the clip: another speed, padding to a bucket
    video_BCTYX, *_ = training_input(first_clip, step.job, step.data, epoch, step.state.device)
    flops = flops_of_step(
        step.state.network, lambda network: step.batch_loss_B(network, first_clip, epoch).sum()
    )
    return flops / video_BCTYX.shape[2]


def _read(step: TrainingStep, stream: ShardStream) -> ClipBatch:
    """Returns the first batch of the plan that has a clip; without one, a black clip."""
    batches = stream.batches(step.state.plan().batches)
    return next((batch for batch in batches if batch.clip_ids), black_clip(step.data))
