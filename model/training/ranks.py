"""The processes that train together: one a GPU, started by torchrun; or this one alone.

Shapes: W ranks, N values.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from model.device import choose_device
from shards.errors import ConfigError, Interrupted, TrainingError

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process."""


@dataclass(frozen=True)
class Ranks:
    """This process's place among them. All ranks call the same methods in the same order."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Among those of this machine, of which there are `local_size`."""
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes checkpoints and logs."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device of `machine.device`: with several ranks on GPUs, each its own. Raises ConfigError."""
        device = choose_device(name)
        if self.world_size == 1 or device.type != "cuda":
            return device
        if device.index is not None:
            raise ConfigError(
                f"machine.device {name} is one GPU for {self.world_size} processes; write auto or cuda"
            )
        device = choose_device(f"cuda:{self.local_rank}")
        torch.cuda.set_device(device)
        return device

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all ranks, in float64."""
        if self.world_size == 1:
            return list(values)
        sums_N = torch.tensor(values, dtype=torch.float64)
        with _lost_rank_reported():
            distributed.all_reduce(sums_N)
        return sums_N.tolist()

    def any(self, value: bool) -> bool:
        """Whether it is true on any rank."""
        return self.sum([float(value)])[0] > 0

    def gathered(self, values_N: torch.Tensor) -> torch.Tensor:
        """The tensors of all ranks (W, N), on the CPU; each has as many values as the others."""
        values_N = values_N.cpu()
        if self.world_size == 1:
            return values_N[None]
        gathered = [torch.empty_like(values_N) for _ in range(self.world_size)]
        with _lost_rank_reported():
            distributed.all_gather(gathered, values_N)
        return torch.stack(gathered)

    def lines(self, lines: Sequence[str]) -> list[str]:
        """The lines of all ranks, those of the first rank first; none of them holds a line break."""
        data = "".join(f"{line}\n" for line in lines).encode(errors="surrogatepass")
        num_bytes_W = self.gathered(torch.tensor([len(data)]))[:, 0].tolist()
        padded = torch.zeros(max(num_bytes_W), dtype=torch.uint8)
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else padded[:0]
        parts = zip(self.gathered(padded), num_bytes_W, strict=True)
        return [
            line
            for part, size in parts
            for line in bytes(part[:size].tolist()).decode(errors="surrogatepass").split("\n")[:-1]
        ]

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network that, called, has its gradients averaged over all ranks in backward.

        Its buffers (statistics of BatchNorm) are the first rank's at the beginning of each window. To be let go of
        before the processes part: torch 2.13 now and then hangs where it is freed later.
        """
        if self.world_size == 1:
            return network
        # of convolutions by one pixel, whose strides say the same in two ways
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        # without device_ids, which would take the clips' lengths to the GPU that stay on the CPU
        return DistributedDataParallel(network, gradient_as_bucket_view=True)

    def unsynchronised(self, learner: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Gradients of backward inside stay this rank's own: of all batches of a window but the last."""
        if isinstance(learner, DistributedDataParallel):
            return learner.no_sync()
        return contextlib.nullcontext()

    def take_first_buffers(self, network: nn.Module) -> None:
        """Copies the first rank's buffers to all: what is learnt of them between two windows is a rank's own."""
        if self.world_size > 1:
            with _lost_rank_reported():
                for buffer in network.buffers():
                    distributed.broadcast(buffer, 0)


SINGLE_PROCESS = Ranks()


@contextlib.contextmanager
def process_group() -> Iterator[Ranks]:
    """The place that torchrun gives this process, process_group to the others; alone where it was not started so.

    Numbers travel by gloo, gradients on GPUs by NCCL. Raises ConfigError where the environment is torn.
    """
    ranks = ranks_of(os.environ)
    if ranks.world_size == 1:
        yield ranks
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend)
    try:
        yield ranks
    except Interrupted:
        distributed.destroy_process_group()  # raised by all ranks alike
        raise
    # after any other error the others may wait in a collective; torchrun ends them, and to destroy would wait too
    distributed.destroy_process_group()


def ranks_of(environment: Mapping[str, str]) -> Ranks:
    """What torchrun's variables say; ConfigError where WORLD_SIZE is above 1 and others are missing."""
    if environment.get("WORLD_SIZE", "1") == "1":
        return Ranks()
    if missing := [name for name in VARIABLES if name not in environment]:
        raise ConfigError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']}, but {', '.join(missing)} is not set; start several "
            "processes with `torchrun --nproc-per-node 2 -m pipeline train`, or unset WORLD_SIZE"
        )
    rank, local_rank, world_size, local_size = (int(environment[name]) for name in VARIABLES[:4])
    return Ranks(rank, world_size, local_rank, local_size)


@contextlib.contextmanager
def only_warnings(logger: logging.Logger) -> Iterator[None]:
    """Of a rank that is not the first, only warnings are logged."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _lost_rank_reported() -> Iterator[None]:
    """A collective that fails has lost one of the ranks."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(
            f"another process of this training has ended, and its own message says why ({reason}); the same "
            "command goes on from the last checkpoint"
        ) from error
