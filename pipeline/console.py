"""What a person sees while a verb runs: progress on a terminal as a bar, elsewhere as lines; on stderr."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.progress import TimeRemainingColumn as TimeLeft
from rich.text import Text

from model.runs import LOG_DATE_FORMAT, LOG_FORMAT
from shards.files import Progress as OnProgress

LINE_EVERY_S = 10.0

stderr = Console(stderr=True)
stdout = Console(soft_wrap=True)


def show_logs() -> None:
    """Sends log lines to stderr, above a progress bar where there is one."""
    if stderr.is_terminal:
        handler: logging.Handler = RichHandler(console=stderr, show_path=False, log_time_format="%H:%M:%S")
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter(LOG_FORMAT, LOG_DATE_FORMAT))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for ours in ("pipeline", "stages", "model", "shards"):
        logging.getLogger(ours).setLevel(logging.INFO)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is when a line comes: stages/chatter.py puts another in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Rate(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        return Text("" if task.speed is None else f"{task.speed:.1f} {self.unit}/s", style="dim")


@contextmanager
def progress(what: str, unit: str) -> Iterator[OnProgress]:
    """Yields a function of (done, total) that shows how far `what` is, its rate and the time left."""
    if stderr.is_terminal:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), _Rate(unit), TimeLeft())
        with Progress(*columns, console=stderr) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    start = last = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LINE_EVERY_S and done < total:
            return
        last = now
        rate = done / max(now - start, 1e-9)
        left_s = (total - done) / rate if rate else float("inf")
        print(  # noqa: T201
            f"{what}: {done}/{total} {unit}, {rate:.1f} {unit}/s, {left_s:.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    yield line
