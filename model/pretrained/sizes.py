"""Reads a network's sizes from the shapes of a public checkpoint's tensors.

Also builds a network without memory, to know its parts and shapes before anything is allocated.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch.overrides import TorchFunctionMode

from model.networks.network import LipNetwork
from model.presets import PRESET_SIZES
from model.pretrained.files import PublicWeights
from model.settings import Head, ModelParams
from model.vocabulary import Vocabulary
from shards.errors import CheckpointError

WINDOW_PX = 88
"""Side of the central window of the crop that public lip readers use."""


def model_params(weights: PublicWeights, learnt: Collection[str]) -> ModelParams:
    """Returns the network that the parts `learnt` of a file belong to. For a frontend only, the rest is the smallest.

    Raises CheckpointError if a tensor that shows a size is missing, or this program does not support the size.
    """
    preset: Literal["conformer_large", "conformer_tiny"]
    preset = "conformer_large" if "encoder" in learnt else "conformer_tiny"
    given: dict[str, Any] = {"pool_grid": 1}
    if "frontend" in learnt:
        given |= _frontend_sizes(weights)
    else:  # fresh weights, of the public size
        given |= PRESET_SIZES["conformer_large"].model_dump(include={"channels", "blocks_per_stage"})
    if "encoder" in learnt:
        given |= _encoder_sizes(weights)
    for name, key in (("decoder", "num_decoder_layers"), ("reverse_decoder", "num_reverse_layers")):
        if name in learnt:
            given[key] = _count(weights, f"{name}.blocks.")
    try:
        return ModelParams.model_validate(
            {
                "preset": preset,
                "sizes": given,
                "window_px": WINDOW_PX,
                "frame_height": WINDOW_PX,
                "frame_width": WINDOW_PX,
                "dropout": 0.1,
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        raise CheckpointError(
            f"{weights.path} has a network that this program does not support: {first['loc'][-1]}: {first['msg']}"
        ) from error


def _frontend_sizes(weights: PublicWeights) -> dict[str, Any]:
    return {
        "channels": tuple(_size(weights, f"frontend.stages.{stage}.0.conv1.weight") for stage in range(4)),
        "blocks_per_stage": _count(weights, "frontend.stages.0."),
    }


def _encoder_sizes(weights: PublicWeights) -> dict[str, Any]:
    first = "encoder.blocks.0"
    return {
        "hidden_dim": _size(weights, "encoder.norm.weight"),
        "num_heads": _size(weights, f"{first}.attention.content_bias"),
        "feed_forward_dim": _size(weights, f"{first}.first_feed_forward.expand.weight"),
        "num_encoder_layers": _count(weights, "encoder.blocks."),
        "conv_kernel": _size(weights, f"{first}.convolution.depthwise.weight", -1),
    }


def _size(weights: PublicWeights, name: str, axis: int = 0) -> int:
    tensor = weights.named.get(name)
    if tensor is None or tensor.ndim == 0:
        raise CheckpointError(f"{weights.path} lacks {name} (our name), which shows a size of the network")
    return tensor.shape[axis]


def _count(weights: PublicWeights, prefix: str) -> int:
    """Returns the number of modules after `prefix`, from the highest number."""
    numbers = [name.removeprefix(prefix) for name in weights.named if name.startswith(prefix)]
    return max((int(number.partition(".")[0]) for number in numbers), default=-1) + 1


def network_of_shapes(model: ModelParams, vocabulary: Vocabulary, heads: Collection[Head]) -> LipNetwork:
    """Returns the network on torch's meta device: with shapes and names, without numbers."""
    with torch.device("meta"), _Undrawn():
        return LipNetwork(model, vocabulary, heads)


class _Undrawn(TorchFunctionMode):
    """Draws no random numbers for tensors without memory: that would import torch's compiler, for seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # of torch.Tensor and nn.init; their callers ignore the result
        if func.__name__ in ("normal_", "uniform_"):
            return None
        return func(*args, **(kwargs or {}))
