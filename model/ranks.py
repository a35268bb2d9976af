"""The processes that train together: one a GPU, started by torchrun; or this one alone."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Ranks:
    """This process's place among them."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes checkpoints and logs."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all ranks."""
        return list(values)

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network that, called, has its gradients averaged over all ranks in backward."""
        return network

    def unsynchronised(self, learner: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Gradients of backward inside stay this rank's own: of all batches of a window but the last."""
        return contextlib.nullcontext()
