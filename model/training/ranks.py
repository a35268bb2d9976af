"""The processes that train together: one per GPU, started by torchrun, or a single process.

Also the signals that stop them, SIGTERM and Ctrl-C: noted at once, handled where training can stop.

Shapes: W ranks, N values.
"""

import contextlib
import logging
import os
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from model.device import choose_device
from shards.errors import ConfigError, Interrupted, TrainingError

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables that torchrun sets."""


@dataclass(frozen=True)
class Ranks:
    """The position of this process. All ranks must call the same methods in the same order."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Rank among the `local_size` processes of this machine."""
    local_size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes checkpoints and logs."""
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Returns the device of `machine.device`. With several ranks, each gets its own GPU. Raises ConfigError."""
        device = choose_device(name)
        if self.world_size == 1 or device.type != "cuda":
            return device
        if device.index is not None:
            raise ConfigError(
                f"machine.device {name} is one GPU for {self.world_size} processes; set it to auto or cuda"
            )
        device = choose_device(f"cuda:{self.local_rank}")
        torch.cuda.set_device(device)
        return device

    def sum(self, values: Sequence[float]) -> list[float]:
        """Returns each value summed over all ranks, in float64."""
        if self.world_size == 1:
            return list(values)
        sums_N = torch.tensor(values, dtype=torch.float64)
        with _lost_rank_reported():
            distributed.all_reduce(sums_N)
        return sums_N.tolist()

    def any(self, value: bool) -> bool:
        """Returns whether `value` is true on any rank."""
        return self.sum([float(value)])[0] > 0

    def gathered(self, values_N: torch.Tensor) -> torch.Tensor:
        """Returns the tensors of all ranks (W, N), on the CPU. All must have the same number of values."""
        values_N = values_N.cpu()
        if self.world_size == 1:
            return values_N[None]
        gathered = [torch.empty_like(values_N) for _ in range(self.world_size)]
        with _lost_rank_reported():
            distributed.all_gather(gathered, values_N)
        return torch.stack(gathered)

    def lines(self, lines: Sequence[str]) -> list[str]:
        """Returns the lines of all ranks, in the order of the ranks. No line may contain a line break."""
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
        """Returns a network whose backward averages the gradients over all ranks.

        Delete it before the process group ends: torch 2.13 sometimes hangs if it is freed later.
        """
        if self.world_size == 1:
            return network
        # for 1×1 convolutions, two different strides describe the same layout
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        # without device_ids: they would copy the clip lengths, which must stay on the CPU, to the GPU
        return DistributedDataParallel(network, gradient_as_bucket_view=True)

    def unsynchronised(self, learner: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Within it, backward does not exchange gradients: for all batches of a window except the last."""
        if isinstance(learner, DistributedDataParallel):
            return learner.no_sync()
        return contextlib.nullcontext()

    def add_up(self, values_N: torch.Tensor) -> None:
        """Replaces the values, on the device of training, by their sums over all ranks."""
        if self.world_size > 1:
            with _lost_rank_reported():
                distributed.all_reduce(values_N)


SINGLE_PROCESS = Ranks()


@contextlib.contextmanager
def process_group() -> Iterator[Ranks]:
    """Joins the process group of torchrun and yields this rank; yields a single process without torchrun.

    Within another `process_group` it stays in that one: a second group at the same address may hang. So several
    trainings one after another need one around them.
    Values are exchanged by gloo, gradients on GPUs by NCCL. Raises ConfigError if environment variables are missing.
    """
    ranks = ranks_of(os.environ)
    if ranks.world_size == 1 or distributed.is_initialized():
        yield ranks
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend)
    try:
        yield ranks
    except Interrupted:
        distributed.destroy_process_group()  # all ranks raise it together
        raise
    # Not after other errors: other ranks may wait in a collective, and destroying would wait for them. torchrun ends
    # them.
    distributed.destroy_process_group()


def ranks_of(environment: Mapping[str, str]) -> Ranks:
    """Returns the rank that torchrun's variables describe. Raises ConfigError if WORLD_SIZE > 1 and one is missing."""
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
    """Within it, only warnings are logged: for ranks other than the first."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _lost_rank_reported() -> Iterator[None]:
    """Turns the error of a failed collective, which means a lost rank, into TrainingError."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise TrainingError(
            f"another process of this training has ended ({reason}); its own message gives the reason. Run the same "
            "command to resume from the last checkpoint"
        ) from error


class StopSignals:
    """Notes a signal. A second Ctrl-C raises KeyboardInterrupt at once.

    One stop may send SIGTERM twice: the batch system sends it to every process, torchrun to its own processes.
    """

    def __init__(self) -> None:
        self.requested = False
        self._was_ctrl_c = False

    def _note(self, number: int, _frame: FrameType | None) -> None:
        is_ctrl_c = number == signal.SIGINT
        if is_ctrl_c and self._was_ctrl_c:
            raise KeyboardInterrupt
        self.requested, self._was_ctrl_c = True, self._was_ctrl_c or is_ctrl_c

    @contextmanager
    def handlers(self) -> Iterator[None]:
        """Notes signals within it; restores the previous handlers afterwards."""
        previous = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
