"""Which steps of a padded batch belong to a clip."""

import torch


def step_mask(num_steps_B: torch.Tensor, num_steps: int) -> torch.Tensor:
    """(B, num_steps) bool: true where a clip has a step."""
    return torch.arange(num_steps, device=num_steps_B.device) < num_steps_B[:, None]
