"""Shows progress and logs on stderr: a progress bar on a terminal, lines elsewhere."""

import logging
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Protocol, TextIO

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress import TimeRemainingColumn as TimeLeft
from rich.table import Column
from rich.text import Text

from model.runs import LOG_DATE_FORMAT, LOG_FORMAT
from shards.safe_text import LogFormatter

LINE_EVERY_S = 10.0
RATE_OVER_LINES = 6
"""The rate covers the last minute: the rate of clips found in the cache says nothing about the remaining clips."""

UNBROKEN_COLUMNS = 100_000
"""Wider than any row; a table is never drawn wider than its content."""

stderr = Console(stderr=True)


def console_on(file: TextIO | None = None) -> Console:
    """Returns a console as wide as the terminal; output to a file or another program is neither cut nor wrapped.

    `file` None: stdout.
    """
    console = Console(file=file, soft_wrap=True)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNBROKEN_COLUMNS
    return console


stdout = console_on()


def show_logs(level: int = logging.INFO) -> None:
    """Sends log lines to stderr, above the progress bar if there is one; our own ones from `level` on."""
    if stderr.is_terminal:
        handler: logging.Handler = RichHandler(console=stderr, show_path=False, log_time_format="%H:%M:%S")
        handler.setFormatter(LogFormatter("%(message)s"))
    else:
        handler = _StderrHandler()
        handler.setFormatter(LogFormatter(LOG_FORMAT, LOG_DATE_FORMAT))
    handler.setLevel(level)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for ours in ("pipeline", "stages", "model", "shards"):
        # training.log gets all of them
        logging.getLogger(ours).setLevel(min(level, logging.INFO))


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to the current `sys.stderr`, which stages/mouths/landmarker.py replaces for a while."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__(_uncut_column())
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} {self.unit}/s", style="dim")


def _uncut_column() -> Column:
    """Returns a column that a narrow terminal does not cut: the bar and the detail text become shorter instead."""
    return Column(no_wrap=True)


class ShowProgress(Protocol):
    """Shows how many units are done, and an optional detail text."""

    def __call__(self, done: int, total: int, detail: str = "") -> None: ...


@contextmanager
def progress(what: str, unit: str) -> Iterator[ShowProgress]:
    """Yields a function of (done, total) that shows the progress of `what`, its rate and the time left."""
    if stderr.is_terminal:
        columns = (
            TextColumn(what),
            BarColumn(bar_width=20),
            MofNCompleteColumn(table_column=_uncut_column()),
            _Rate(unit),
            TimeLeft(table_column=_uncut_column()),
            TextColumn("{task.fields[detail]}", style="dim", table_column=Column()),
        )
        with Progress(*columns, console=stderr) as bar:
            task = bar.add_task(what, total=None, detail="")

            def update(done: int, total: int, detail: str = "") -> None:
                bar.update(task, completed=done, total=total, detail=detail)

            yield update
        return
    recent = deque([(time.monotonic(), 0)], maxlen=RATE_OVER_LINES)

    def line(done: int, total: int, detail: str = "") -> None:
        now = time.monotonic()
        if now - recent[-1][0] < LINE_EVERY_S and done < total:
            return
        oldest, done_then = recent[0]
        recent.append((now, done))
        rate = (done - done_then) / max(now - oldest, 1e-9)
        left = timedelta(seconds=round((total - done) / rate)) if rate else "?"
        figures = [f"{done}/{total} {unit}", f"{rate:.1f} {unit}/s", f"{left} left", *filter(None, [detail])]
        with suppress(OSError):  # if stderr goes to a full disk, only the line is lost
            print(f"{what}: {', '.join(figures)}", file=sys.stderr, flush=True)  # noqa: T201

    yield line


def over_epochs(on_progress: ShowProgress, num_epochs: int) -> Callable[[int, int, int, float], None]:
    """Returns a function of (epoch, batches done, batches, loss) that shows the progress over all epochs.

    Epochs may differ in length; the remaining epochs are assumed to be as long as the current one.
    """
    current, before, length = -1, 0, 0

    def on_batch(epoch: int, done: int, total: int, loss: float) -> None:
        nonlocal current, before, length
        if epoch != current:
            before = epoch * total if current < 0 else before + length
            current, length = epoch, total
        detail = f"epoch {epoch} of {num_epochs}, batch {done}/{total}, loss {loss:.3f}"
        on_progress(before + done, before + (num_epochs - epoch) * total, detail)

    return on_batch
