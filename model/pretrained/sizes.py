"""Reads a network's sizes off the shapes of a public checkpoint's tensors.

A network without memory: what its parts and tensors would be, before anything is allocated for them.
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
"""Side of the crop's middle that public lip readers see."""


def model_params(weights: PublicWeights, learnt: Collection[str]) -> ModelParams:
    """The network that the parts `learnt` of a file are of; around a frontend alone, the smallest.

    Raises CheckpointError where a tensor that tells a size is missing, or the size is none of this program's.
    """
    preset: Literal["conformer_large", "conformer_tiny"]
    preset = "conformer_large" if "encoder" in learnt else "conformer_tiny"
    given: dict[str, Any] = {"pool_grid": 1}
    if "frontend" in learnt:
        given |= _frontend_sizes(weights)
    else:  # a fresh one of public size
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
        told = error.errors()[0]
        raise CheckpointError(
            f"{weights.path} is of a network that this program does not know: {told['loc'][-1]}: {told['msg']}"
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
        raise CheckpointError(f"{weights.path} lacks {name} (our name), by which its size is known")
    return tensor.shape[axis]


def _count(weights: PublicWeights, prefix: str) -> int:
    """How many modules are numbered behind `prefix`, by the highest number."""
    numbers = [name.removeprefix(prefix) for name in weights.named if name.startswith(prefix)]
    return max((int(number.partition(".")[0]) for number in numbers), default=-1) + 1


def network_of_shapes(model: ModelParams, vocabulary: Vocabulary, heads: Collection[Head]) -> LipNetwork:
    """Such a network on torch's meta device: shapes and names, no numbers."""
    with torch.device("meta"), _Undrawn():
        return LipNetwork(model, vocabulary, heads)


class _Undrawn(TorchFunctionMode):
    """Nothing is drawn for tensors without memory: it would import torch's compiler, for seconds."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        # of torch.Tensor and of nn.init; who calls them looks at no result
        if func.__name__ in ("normal_", "uniform_"):
            return None
        return func(*args, **(kwargs or {}))
