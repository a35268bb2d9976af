"""Which parameters learn, and how fast."""

from typing import Any

from torch import nn

from model.settings import TrainParams


def parameter_groups(network: nn.Module, train: TrainParams) -> list[dict[str, Any]]:
    """Groups for AdamW; `rate_share` of a group is its share of the learning rate.

    Biases and normalisations have no weight decay.
    """
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    return [
        {"params": decayed, "weight_decay": train.weight_decay, "rate_share": 1.0},
        {"params": others, "weight_decay": 0.0, "rate_share": 1.0},
    ]
