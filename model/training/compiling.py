"""`train.compile`: applies torch.compile to the network's parts, in place, with a limited number of graphs.

torch would compile a graph for each clip length, so clips are padded to a few lengths. One graph serves every number
of clips. Shapes: B clips, T frames, (Y, X) px.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from model.networks.conformer_encoder import ConformerBlock
from model.networks.frontends import Cnn3dFrontend, ResNetFrontend
from model.networks.transformer_decoder import DecoderBlock, KeysValues
from shards.errors import ConfigError

SHORTEST = 16
STEPS_A_DOUBLING = 4
MOST_GRAPHS = 64
"""Limit for one function: more than the padded lengths of any clip, with and without gradients."""


def bucket_length(num_frames: int) -> int:
    """Returns the smallest of 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, … that is at least `num_frames`.

    Each doubling has 4 steps.
    """
    step = SHORTEST // STEPS_A_DOUBLING
    while num_frames > 2 * STEPS_A_DOUBLING * step:
        step *= 2
    return max(SHORTEST, -(-num_frames // step) * step)


def to_bucket(video_BCTYX: torch.Tensor) -> torch.Tensor:
    """Pads the clips with zeros at the end to a length of `bucket_length`. The network's output does not change.

    In training, the batch statistics of BatchNorm include this padding, like all padding.
    """
    num_frames = video_BCTYX.shape[2]
    padding = bucket_length(num_frames) - num_frames
    return functional.pad(video_BCTYX, (0, 0, 0, 0, 0, padding)) if padding else video_BCTYX


def compile_parts(network: nn.Module, device: torch.device) -> None:
    """Compiles frontend, Conformer blocks and Transformer decoder blocks, each when training first calls it.

    Equal blocks share their graphs. Scoring is not compiled: its batches have any length and come once an epoch. A
    deepcopy is not compiled either, and LSTMs keep their own kernels. The names in the state dict do not change.
    Raises ConfigError if this machine cannot compile.
    """
    refuse_without_compiler(device)
    torch._dynamo.config.recompile_limit = MOST_GRAPHS
    for kind, leave_open in _OPEN_SIZES.items():
        compiled = torch.compile(kind.forward, dynamic=False)
        for module in network.modules():
            if isinstance(module, kind):
                _use(module, compiled, leave_open)


def refuse_without_compiler(device: torch.device) -> None:
    """Raises ConfigError if a minimal function cannot be compiled for `device`."""
    try:
        torch.compile(_probe, dynamic=False)(torch.ones(2, device=device))
    except RuntimeError as error:  # all errors of torch._dynamo, whose import here would take two seconds
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"train.compile: torch.compile fails on this machine ({reason}); install a C++ compiler"
            f"{' and triton' if device.type == 'cuda' else ''}, or set train.compile to false"
        ) from error


def _probe(values: torch.Tensor) -> torch.Tensor:
    return values * 2 + 1


def _use(module: nn.Module, compiled: Callable[..., Any], leave_open: Callable[..., None]) -> None:
    """Sends the calls of `module` that compute gradients to `compiled`."""

    def call(*arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return module._call_impl(*arguments, **named)
        leave_open(*arguments, **named)
        return compiled(module, *arguments, **named)

    # like nn.Module.compile, which cannot mark the sizes first; a copy of the module does not have this attribute
    module._compiled_call_impl = call


def _open_frontend(video_BCTYX: torch.Tensor, num_frames_B: torch.Tensor) -> None:
    _open(video_BCTYX, 0)
    _open(num_frames_B, 0)


def _open_conformer(x_BSE: torch.Tensor, offsets_RE: torch.Tensor, padding_BS: torch.Tensor) -> None:
    _open(x_BSE, 0)
    _open(padding_BS, 0)


def _open_decoder(x_BLW: torch.Tensor, encoded: KeysValues, shown_B11S: torch.Tensor) -> None:
    """For each clip length, labels have many lengths: one graph serves all combinations."""
    _open(x_BLW, 0, 1)
    for tensor_BHSD in encoded:
        _open(tensor_BHSD, 0, 2)
    _open(shown_B11S, 0, 3)


def _open(tensor: torch.Tensor, *dims: int) -> None:
    """Marks dimensions for which one graph serves all sizes, except size 1, which has its own graph."""
    for dim in dims:
        torch._dynamo.maybe_mark_dynamic(tensor, dim)


_OPEN_SIZES: dict[type[nn.Module], Callable[..., None]] = {
    Cnn3dFrontend: _open_frontend,
    ResNetFrontend: _open_frontend,
    ConformerBlock: _open_conformer,
    DecoderBlock: _open_decoder,
}
