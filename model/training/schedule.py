"""What changes as training goes on, as functions of the epochs done (a fraction within an epoch).

The exponential moving average of a network's weights, which reads better than the weights themselves.
"""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import torch

from model.device import copy_of
from model.networks.network import LipNetwork
from model.settings import TrainParams


def learning_rate(params: TrainParams, epochs_done: float) -> float:
    """Linear warm-up over `warmup_epochs`, then constant or a half cosine down to 0 at `num_epochs`."""
    if epochs_done < params.warmup_epochs:
        return params.learning_rate * epochs_done / params.warmup_epochs
    if params.scheduler == "constant":
        return params.learning_rate
    left = max(params.num_epochs - params.warmup_epochs, 1e-9)
    progress = min((epochs_done - params.warmup_epochs) / left, 1.0)
    return params.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def teacher_forcing(params: TrainParams, epoch: int) -> float:
    """Share of true characters fed to the attention decoder: linear from the first epoch to the last."""
    progress = epoch / max(params.num_epochs - 1, 1)
    return params.teacher_forcing + (params.teacher_forcing_end - params.teacher_forcing) * progress


_Tensors = list[torch.Tensor]


class WeightAverage:
    """A network whose weights are the average of those that another one had after each step.

    After step n (from 0): average ← d · average + (1 − d) · weights, d = min(decay, (1 + n) / (10 + n)), so that
    the fresh weights are soon forgotten (TensorFlow's ExponentialMovingAverage with num_updates). Float buffers,
    BatchNorm's, are averaged likewise; its counters are copied.
    """

    def __init__(self, learning: LipNetwork, decay: float) -> None:
        self.learning, self.decay = learning, decay
        self.network = copy_of(learning).requires_grad_(False).eval()
        """Reads by the average; never trained."""
        self.num_steps = 0
        """That it holds."""
        self._pairs: tuple[_Tensors, _Tensors, _Tensors, _Tensors] | None = None

    @torch.no_grad()
    def step(self) -> None:
        """Takes in the weights as they stand now: the same tensors at every step, changed in place."""
        if self._pairs is None:  # a large network's look-up takes 4 ms
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
        """Goes on from an average of so many steps; from 0 steps it starts as these weights."""
        self.network.load_state_dict(weights)
        self.num_steps = num_steps


def _tensors(network: LipNetwork) -> _Tensors:
    return [tensor.detach() for tensor in itertools.chain(network.parameters(), network.buffers())]


def _columns(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[_Tensors, _Tensors]:
    return [average for average, _ in pairs], [weight for _, weight in pairs]
