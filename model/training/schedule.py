"""What changes as training goes on, as functions of the epochs done (a fraction within an epoch)."""

import math

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
