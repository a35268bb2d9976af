"""Only one training at a time writes in a run folder."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from shards.disk import writing_told
from shards.errors import TrainingError
from shards.locks import held

LOCK = ".lock"


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other trainings out of `folder`, as `shards.locks.held`. TrainingError where one is at work there."""

    def refusal(holder: str) -> TrainingError:
        return TrainingError(
            f"another training of the same parameters is at work in {folder} ({holder}): wait until "
            "it has ended, or end it, and the same command goes on from there; to train both, change a parameter "
            "(train.seed), or give this one paths.runs, paths.checkpoints and paths.logs of its own"
        )

    with ExitStack() as lock:
        with writing_told(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock.enter_context(held(folder / LOCK, refusal))
        yield
