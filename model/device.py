"""Chooses the device, the precision and the number of threads."""

import contextlib
import copy
import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from shards.errors import ConfigError
from shards.machine import usable_cores

Network = TypeVar("Network", bound=nn.Module)
TIMED_STEPS = 3
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Settings from glibc's malloc.h."""


def choose_device(name: str) -> torch.device:
    """Returns the device of `machine.device`; auto means a GPU if there is one. Raises ConfigError if it is missing."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"machine.device: '{name}' is not a device; set it to auto, cpu, cuda or cuda:1"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"machine.device: {name} was not found (torch sees {torch.cuda.device_count()} GPUs); "
            "set machine.device to cpu or auto"
        )
    return device


@dataclass(frozen=True)
class Precision:
    """The type in which convolutions and matrix products are computed; None: float32."""

    dtype: torch.dtype | None

    @classmethod
    def choose(cls, mixed: bool, device: torch.device) -> "Precision":
        """Returns bfloat16 if the hardware supports it, else float16 on a GPU and float32 on a CPU."""
        if not mixed:
            return cls(None)
        if device.type == "cuda":
            with torch.cuda.device(device):
                # older GPUs emulate bfloat16 slowly, and torch counts that as support by default
                native = torch.cuda.is_bf16_supported(including_emulation=False)
            return cls(torch.bfloat16 if native else torch.float16)
        if device.type == "cpu":
            return cls(torch.bfloat16 if cpu_computes_bfloat16() else None)
        return cls(None)

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.dtype)

    @property
    def name(self) -> str:
        return str(self.dtype or torch.float32).removeprefix("torch.")


def cpu_computes_bfloat16() -> bool:
    """Returns whether the processor supports bfloat16 and oneDNN, which computes the convolutions, uses it.

    With ONEDNN_MAX_CPU_ISA=AVX2 oneDNN does not, and bfloat16 takes six times as long as float32 (a training step of
    the ResNet of conformer_tiny: 0.52 s and 0.08 s).
    """
    return torch.cpu._is_avx512_bf16_supported() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def tune(device: torch.device, precision: Precision, same_lengths: bool) -> None:
    """Changes settings of this whole process that make training on `device` faster.

    On a GPU, rounds the remaining float32 products to TF32 only with mixed precision; by default torch rounds those of
    convolutions and LSTMs. With `same_lengths` (lengths repeat), cuDNN tries its algorithms once for each length. On a
    CPU, keeps freed memory.
    """
    if device.type == "cuda":
        is_mixed = precision.dtype is not None
        torch.set_float32_matmul_precision("high" if is_mixed else "highest")
        torch.backends.cudnn.allow_tf32 = is_mixed
        torch.backends.cudnn.benchmark = same_lengths
    elif device.type == "cpu":
        keep_freed_memory()


def keep_freed_memory() -> bool:
    """Makes glibc keep freed memory for the next tensors; returns False if the C library is not glibc.

    Otherwise each freed tensor of more than 32 MB returns to the kernel, which clears the pages of the next tensor
    again: a quarter of the CPU time of the baseline's step. The process grows by a third and does not shrink.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def channels_last_weights(network: nn.Module) -> None:
    """Changes the weights of 2D and 3D convolutions to channels-last memory format, in place: the fastest on GPUs.

    Values and names stay. The weights also decide the memory format of the convolution's output, since a clip of one
    channel has no format of its own. On a CPU this brings nothing (docs/benchmarks.md).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        elif isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)


def copy_of(network: Network) -> Network:
    """Returns a deep copy with contiguous LSTM weights; otherwise cuDNN warns, and joins them in every call."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    return copied


def fastest_threads(network: nn.Module, step: Callable[[nn.Module], torch.Tensor]) -> tuple[int, str]:
    """Returns the faster number of threads for a training step (1, or one per core), and a line that reports it.

    `step` returns the loss of one batch for a network. It runs on a copy, and torch's random state is restored.
    On a shared machine two threads can be forty times slower than one, since each waits for the other.
    """
    state, seconds = torch.get_rng_state(), {}
    for threads in sorted({1, usable_cores()}):
        torch.set_num_threads(threads)
        trial = copy.deepcopy(network)
        times = []
        for _ in range(TIMED_STEPS + 1):
            start = time.perf_counter()
            step(trial).backward()
            times.append(time.perf_counter() - start)
        seconds[threads] = statistics.median(times[1:])
    torch.set_rng_state(state)
    best = min(seconds, key=lambda threads: seconds[threads])
    timings = ", ".join(f"{n} thread{'s' if n > 1 else ''} {s:.3f} s" for n, s in seconds.items())
    return best, f"a training step takes: {timings}; using {best}"
