"""Learning rate and teacher forcing as functions of the epochs done (with a fraction within an epoch).

Also the exponential moving average of a network's weights, which reads better than the weights themselves.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from model.device import copy_of
from model.settings import TrainParams

_Tensors = list[torch.Tensor]
_Module = TypeVar("_Module", bound=nn.Module)


def learning_rate(params: TrainParams, epochs_done: float) -> float:
    """Returns a linear warm-up over `warmup_epochs`, then constant or a half cosine down to 0 at `num_epochs`."""
    if epochs_done < params.warmup_epochs:
        return params.learning_rate * epochs_done / params.warmup_epochs
    if params.scheduler == "constant":
        return params.learning_rate
    left = max(params.num_epochs - params.warmup_epochs, 1e-9)
    progress = min((epochs_done - params.warmup_epochs) / left, 1.0)
    return params.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def teacher_forcing(params: TrainParams, epoch: int) -> float:
    """Returns the share of true characters fed to the attention decoder: linear from first to last epoch."""
    progress = epoch / max(params.num_epochs - 1, 1)
    return params.teacher_forcing + (params.teacher_forcing_end - params.teacher_forcing) * progress


class WeightAverage(Generic[_Module]):
    """A network whose weights are the average of another network's weights after each step.

    After step n (from 0): average ← d · average + (1 − d) · weights, d = min(decay, (1 + n) / (10 + n)), so that the
    initial weights soon stop mattering (TensorFlow's ExponentialMovingAverage with num_updates). BatchNorm's float
    buffers are averaged too; its counters are copied.
    """

    def __init__(self, learning: _Module, decay: float) -> None:
        self.learning, self.decay = learning, decay
        self.network: _Module = copy_of(learning).requires_grad_(False).eval()
        """Has the averaged weights; it is never trained."""
        self.num_steps = 0
        """Number of steps in the average."""
        self._pairs: tuple[_Tensors, _Tensors, _Tensors, _Tensors] | None = None

    @torch.no_grad()
    def step(self) -> None:
        """Adds the current weights. They must be the same tensors at every step, changed in place."""
        if self._pairs is None:  # finding the tensors of a large network takes 4 ms
            pairs = list(zip(_tensors(self.network), _tensors(self.learning), strict=True))
            floats = [pair for pair in pairs if pair[0].is_floating_point()]
            others = [pair for pair in pairs if not pair[0].is_floating_point()]
            self._pairs = (*_columns(floats), *_columns(others))
        averages, weights, counters, counted = self._pairs
        decay = min(self.decay, (1 + self.num_steps) / (10 + self.num_steps))
        torch._foreach_lerp_(averages, weights, 1 - decay)
        if counters:
            torch._foreach_copy_(counters, counted)
        self.num_steps += 1

    def restore(self, weights: Mapping[str, Any], num_steps: int) -> None:
        """Continues an average of `num_steps` steps; 0 starts a new average with these weights."""
        self.network.load_state_dict(weights)
        self.num_steps = num_steps


def _tensors(network: nn.Module) -> _Tensors:
    return [tensor.detach() for tensor in itertools.chain(network.parameters(), network.buffers())]


def _columns(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[_Tensors, _Tensors]:
    return [average for average, _ in pairs], [weight for _, weight in pairs]
