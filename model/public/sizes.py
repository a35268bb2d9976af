"""Reads a network's sizes off the shapes of a public checkpoint's tensors."""

from collections.abc import Collection
from typing import Any, Literal

from pydantic import ValidationError

from model.presets import PRESET_SIZES
from model.public.files import PublicWeights
from model.settings import ModelParams
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
