"""What a person sees while a verb runs: progress on a terminal as a bar, elsewhere as lines; on stderr."""

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
"""The rate is that of the last minute: what a rerun finds in the cache says nothing of what is still to be done."""

UNBROKEN_COLUMNS = 100_000
"""Wider than any row; a table is drawn no wider than it needs."""

stderr = Console(stderr=True)


def console_on(file: TextIO | None = None) -> Console:
    """As wide as the terminal; what goes to a file or another program is neither cut nor broken.

    `file` None: stdout.
    """
    console = Console(file=file, soft_wrap=True)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = UNBROKEN_COLUMNS
    return console


stdout = console_on()


def show_logs() -> None:
    """Sends log lines to stderr, above a progress bar where there is one."""
    if stderr.is_terminal:
        handler: logging.Handler = RichHandler(console=stderr, show_path=False, log_time_format="%H:%M:%S")
        handler.setFormatter(LogFormatter("%(message)s"))
    else:
        handler = _StderrHandler()
        handler.setFormatter(LogFormatter(LOG_FORMAT, LOG_DATE_FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for ours in ("pipeline", "stages", "model", "shards"):
        logging.getLogger(ours).setLevel(logging.INFO)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is when a line comes: stages/mouths/native_stderr.py puts another in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__(_whole())
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} {self.unit}/s", style="dim")


def _whole() -> Column:
    """A column that a narrow terminal does not cut: the bar and what stands beside it give way."""
    return Column(no_wrap=True)


class Shown(Protocol):
    """Called with what is done of how much, and with what else is to be seen beside it."""

    def __call__(self, done: int, total: int, beside: str = "") -> None: ...


@contextmanager
def progress(what: str, unit: str) -> Iterator[Shown]:
    """Yields a function of (done, total) that shows how far `what` is, its rate and the time left."""
    if stderr.is_terminal:
        columns = (
            TextColumn(what),
            BarColumn(bar_width=20),
            MofNCompleteColumn(table_column=_whole()),
            _Rate(unit),
            TimeLeft(table_column=_whole()),
            TextColumn("{task.fields[beside]}", style="dim", table_column=Column()),
        )
        with Progress(*columns, console=stderr) as bar:
            task = bar.add_task(what, total=None, beside="")

            def move(done: int, total: int, beside: str = "") -> None:
                bar.update(task, completed=done, total=total, beside=beside)

            yield move
        return
    told = deque([(time.monotonic(), 0)], maxlen=RATE_OVER_LINES)

    def line(done: int, total: int, beside: str = "") -> None:
        now = time.monotonic()
        if now - told[-1][0] < LINE_EVERY_S and done < total:
            return
        since, done_then = told[0]
        told.append((now, done))
        rate = (done - done_then) / max(now - since, 1e-9)
        left = timedelta(seconds=round((total - done) / rate)) if rate else "?"
        figures = [f"{done}/{total} {unit}", f"{rate:.1f} {unit}/s", f"{left} left", *filter(None, [beside])]
        with suppress(OSError):  # a full disk below stderr costs the line, not the run
            print(f"{what}: {', '.join(figures)}", file=sys.stderr, flush=True)  # noqa: T201

    yield line


def over_epochs(on_progress: Shown, num_epochs: int) -> Callable[[int, int, int, float], None]:
    """Progress over all epochs out of (epoch, batches done, batches, loss) of each; gives what is called with these.

    Epochs may differ in length: those not seen are taken to be as long as the present one.
    """
    present, before, length = -1, 0, 0

    def on_batch(epoch: int, done: int, total: int, loss: float) -> None:
        nonlocal present, before, length
        if epoch != present:
            before = epoch * total if present < 0 else before + length
            present, length = epoch, total
        beside = f"epoch {epoch} of {num_epochs}, batch {done}/{total}, loss {loss:.3f}"
        on_progress(before + done, before + (num_epochs - epoch) * total, beside)

    return on_batch
