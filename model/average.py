"""The average of the weights of several checkpoints (`pipeline average`): one model, as fast as each of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from model.checkpoints import (
    CLIP_PROPERTIES,
    load_checkpoint,
    refuse_other_model,
    vocabulary_of,
    without_training,
)
from model.settings import ModelParams
from shards.errors import CheckpointError, ConfigError

LEAST_SIMILARITY = 0.5
"""Cosine between the weights of two checkpoints. GRID's conformer_tiny: 0.79 or more between runs from the same random
weights, also trained on other clips; 0.00 from different ones, whose average reads nothing."""


@torch.no_grad()
def average_checkpoints(paths: Sequence[Path]) -> dict[str, Any]:
    """Returns a checkpoint with the mean of the weights, to read with and to start a training from, not to resume.

    All other values are those of the last path. Integers, which only count batches, are the last path's too. Izmailov
    et al. 2018, "Averaging weights leads to wider optima". Raises ConfigError for fewer than two paths, CheckpointError
    like `load_checkpoint`, and if a model is another one or has no weights near those of the first.
    """
    if len(paths) < 2:
        raise ConfigError("an average needs at least two checkpoints")
    last = load_checkpoint(paths[-1])
    weights = last["model_state_dict"]
    vocabulary, model = vocabulary_of(last, paths[-1]), ModelParams.model_validate(last["model_params"])
    sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in weights.items()}
    for path in paths:
        state = last if path == paths[-1] else load_checkpoint(path)
        clips = {name: last[name] for name in CLIP_PROPERTIES}
        refuse_other_model(state, model, vocabulary, last["heads"], clips, path)
        theirs = state["model_state_dict"]
        if (similarity := _cosine(weights, theirs)) < LEAST_SIMILARITY:
            raise CheckpointError(
                f"{path} and {paths[-1]} started from different random weights (their cosine is {similarity:.2f}): the "
                "average would read nothing; average checkpoints of one run, or of runs with one train.init_from"
            )
        for name, tensor in theirs.items():
            sums[name] += tensor
    averaged = {
        name: (sums[name] / len(paths)).to(tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in weights.items()
    }
    return without_training(last, averaged)


def _cosine(ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> float:
    """Returns the cosine of all weights with two or more axes: the others do not start from random numbers."""
    products = torch.zeros(3, dtype=torch.float64)
    for name, tensor in ours.items():
        if tensor.ndim > 1 and tensor.is_floating_point():
            one, other = tensor.double().flatten(), theirs[name].double().flatten()
            products += torch.stack([one @ other, one @ one, other @ other])
    dot, one_square, other_square = products.tolist()
    return dot / max((one_square * other_square) ** 0.5, 1e-12)
