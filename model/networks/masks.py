"""Masks of the steps of a padded batch that belong to a clip."""

import torch


def step_mask(num_steps_B: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Returns (B, num_steps) bool: true within each clip."""
    return torch.arange(num_steps, device=num_steps_B.device) < num_steps_B[:, None]
