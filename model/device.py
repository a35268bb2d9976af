"""Which device, which precision, how many threads."""

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
"""Names of settings in glibc's malloc.h."""


def choose_device(name: str) -> torch.device:
    """The device of `machine.device`; auto takes a GPU where there is one. ConfigError where it is absent."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"machine.device: '{name}' is no device; write auto, cpu, cuda or cuda:1"
        ) from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"machine.device: {name} is not there (torch sees {torch.cuda.device_count()} GPUs); "
            "set machine.device to cpu or auto"
        )
    return device


@dataclass(frozen=True)
class Precision:
    """The type that convolutions and products are computed in; None: float32."""

    dtype: torch.dtype | None

    @classmethod
    def choose(cls, mixed: bool, device: torch.device) -> "Precision":
        """bfloat16 where the hardware computes it, float16 on a GPU that does not, float32 on such a CPU."""
        if not mixed:
            return cls(None)
        if device.type == "cuda":
            with torch.cuda.device(device):
                # older GPUs emulate bfloat16, slowly, and torch counts that as support unless asked
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
    """Whether the processor computes in bfloat16, and oneDNN, which computes the convolutions, uses it.

    With ONEDNN_MAX_CPU_ISA=AVX2 it does not, and bfloat16 takes six times as long as float32 (a training step of the
    ResNet of conformer_tiny: 0.52 s and 0.08 s).
    """
    return torch.cpu._is_avx512_bf16_supported() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def tune(device: torch.device, precision: Precision, same_lengths: bool) -> None:
    """Settings of this whole process that make training on `device` faster.

    On a GPU products left in float32 are rounded to TF32 where mixed precision is asked for anyway, and there alone:
    torch rounds those of convolutions and LSTMs by itself. Where lengths come back (`same_lengths`) cuDNN tries its
    algorithms once for each. On a CPU freed memory is kept.
    """
    if device.type == "cuda":
        is_mixed = precision.dtype is not None
        torch.set_float32_matmul_precision("high" if is_mixed else "highest")
        torch.backends.cudnn.allow_tf32 = is_mixed
        torch.backends.cudnn.benchmark = same_lengths
    elif device.type == "cpu":
        keep_freed_memory()


def keep_freed_memory() -> bool:
    """Has glibc keep what is freed for the next tensors; False where the C library is another one.

    Without it each freed tensor of more than 32 MB goes back to the kernel, which clears the pages of the next
    one anew: a quarter of the CPU time of the baseline's step. The process grows a third larger, and stays so.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, -1))


def channels_last_weights(network: nn.Module) -> None:
    """Puts the weights of convolutions over pictures and video into the order of GPUs' fastest ones, in place.

    Values and names stay. Torch takes the order of what a convolution gives from its weights too; a clip of one
    channel has no order of its own. On a CPU it brings nothing (docs/benchmarks.md).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        elif isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)


def copy_of(network: Network) -> Network:
    """A deep copy in which each LSTM's weights lie together again: cuDNN would warn, and join them in every call."""
    copied = copy.deepcopy(network)
    for module in copied.modules():
        if isinstance(module, nn.RNNBase):
            module.flatten_parameters()
    return copied


def fastest_threads(network: nn.Module, step: Callable[[nn.Module], torch.Tensor]) -> tuple[int, str]:
    """1 thread or one a core, whichever makes a training step faster, and a line that says so.

    `step` gives the loss of one batch for a network; it is tried on a copy, and torch's random state is put
    back. On a shared machine two threads can be forty times slower than one, since each waits for the other.
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
    told = ", ".join(f"{n} thread{'s' if n > 1 else ''} {s:.3f} s" for n, s in seconds.items())
    return best, f"a training step takes: {told}; taking {best}"
