"""A network without memory: what its parts and tensors would be, before anything is allocated for them."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from model.networks.network import LipNetwork
from model.settings import Head, ModelParams
from model.vocabulary import Vocabulary


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
