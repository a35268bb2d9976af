"""What an epoch came to: one row of curves.csv, and one line of the log."""

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from model.device import copy_of
from model.progress import Progress
from model.runs import Curve
from shards.machine import peak_mb
from shards.plan import EpochPlan

PEAK_FLOPS_PER_S = {
    # H100 datasheet (half of the figures "with sparsity"); of the H200 the SXM board
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
"""Dense bfloat16 products and sums a second, by the name that CUDA gives: of a part of a GPU (MIG) nothing is known."""

BACKWARD = 2
"""Backward multiplies twice what forward does: for the gradients of the inputs, and of the weights."""


def peak_memory_mb(device: torch.device) -> float:
    """The most that tensors on a GPU took so far, or else the process, MB."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else peak_mb()


def peak_flops_per_s(device: torch.device) -> float | None:
    """What the device computes at best in bfloat16; None for a CPU or an unknown GPU."""
    return PEAK_FLOPS_PER_S.get(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def flops_of_step(network: nn.Module, loss_of: Callable[[nn.Module], torch.Tensor]) -> int:
    """Floating point operations of forward and backward, an addition and a multiplication being two.

    `loss_of` gives the loss of one batch for a network. It is tried on a copy, and random states are put back.
    Counted are convolutions, matrix products, attention and LSTMs; what works value by value is not.
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
    """Of cuDNN's LSTM, which FlopCounterMode does not know: each step multiplies by every weight."""
    num_steps = math.prod(input_shape[:-1])
    return 2 * num_steps * sum(math.prod(shape) for shape in weight_shapes if len(shape) == 2)


def _lstm_backward_flops(*arguments: object, **named: object) -> int:
    return BACKWARD * _lstm_flops(*arguments, **named)  # type: ignore[arg-type]


_LSTM_FLOPS = {
    torch.ops.aten._cudnn_rnn: _lstm_flops,
    torch.ops.aten._cudnn_rnn_backward: _lstm_backward_flops,
}


def flop_utilisation(flops: float, seconds: float, device: torch.device) -> float | None:
    """`flops` in `seconds` as a share of what the device computes at best; None where that is not known."""
    peak = peak_flops_per_s(device)
    return None if peak is None or seconds <= 0 else flops / seconds / peak


def curve_of(
    progress: Progress,
    plan: EpochPlan,
    learning_rate: float,
    val_loss: float | None,
    val_cer: float | None,
    peak_memory_mb: float,
    flop_utilisation: float | None,
) -> Curve:
    """The row of the epoch that `progress` stands at the end of; None where nothing was measured."""
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
    }


def epoch_line(curve: Curve) -> str:
    """The row as the log tells it."""
    told = [f"train_loss={curve['train_loss']:.4f}"]
    if curve["val_loss"] is not None:
        told += [f"val_loss={curve['val_loss']:.4f}", f"CER={curve['val_cer']:.4f}"]
    told += [
        f"{curve['clips_per_s']:.1f} clips/s",
        f"waited {_percent(curve['data_wait'])} for data",
        f"padded {_percent(curve['padding'])}",
        f"peak memory {curve['peak_memory_mb']:.0f} MB",
    ]
    if curve["flop_utilisation"] is not None:
        told.append(f"model FLOP utilisation {_percent(curve['flop_utilisation'])}")
    if curve["skipped"]:
        told.append(f"{curve['skipped']} steps skipped")
    return f"Epoch {curve['epoch']}: " + ", ".join(told)


def _percent(share: float | None) -> str:
    assert share is not None
    return f"{100 * share:.1f} %"
