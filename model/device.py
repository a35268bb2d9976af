"""Which device, which precision, how many threads."""

import contextlib
import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from shards.cores import usable_cores
from shards.errors import ConfigError

TIMED_STEPS = 3


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
            return cls(torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16)
        if device.type == "cpu":
            return cls(torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else None)
        return cls(None)

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[object]:
        if self.dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(device.type, self.dtype)

    @property
    def name(self) -> str:
        return str(self.dtype or torch.float32).removeprefix("torch.")


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
    told = ", ".join(f"{threads} threads {s:.3f} s" for threads, s in seconds.items())
    return best, f"a training step takes: {told}; taking {best}"
