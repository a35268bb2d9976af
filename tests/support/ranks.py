"""Several processes that train together, with torchrun's environment variables."""

import os
import socket
from collections.abc import Callable, Sequence

import torch

from shards.errors import PipelineError
from tests.support.forked import PROCESSES, started

DEADLINE_S = 60.0

Task = Callable[..., object]


def together(task: Task, *arguments: object, world_size: int = 2) -> list[object]:
    """Returns the result or error of `task(*arguments)` on each rank; None for a rank that was killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [PROCESSES.Pipe(duplex=False) for _ in range(world_size)]
    processes = [
        started(_as_rank, rank, world_size, port, sender, task, arguments)
        for rank, (_, sender) in enumerate(pipes)
    ]
    for _, sender in pipes:
        sender.close()  # else a crash of a rank would not be noticed
    try:
        results: list[object] = []
        for receiver, _ in pipes:
            assert receiver.poll(DEADLINE_S), "a rank hangs"
            try:
                results.append(receiver.recv())
            except EOFError:
                results.append(None)
        return results
    finally:
        for process in processes:
            process.join(5)
            process.kill()


def _as_rank(rank: int, world_size: int, port: int, sender, task: Task, arguments: Sequence[object]) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    try:
        sender.send(task(*arguments))
    except PipelineError as error:
        sender.send(error)
    os._exit(0)
