"""Threads that read ahead, and that nobody ever waits for: neither who leaves early nor the interpreter's exit.

concurrent.futures joins its threads at exit only after all that is queued is done, which with shards in
object storage can be minutes after a Ctrl-C.
"""

import atexit
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")
_Task = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]

JOIN_S = 10.0
"""At exit, for all of them together."""


class ReadingThreads:
    """`num_threads` threads; they end when this is collected, and at exit with the task at hand."""

    def __init__(self, num_threads: int) -> None:
        self.must_end = threading.Event()
        """A long task looks at it now and then."""
        self._queue: SimpleQueue[_Task | None] = SimpleQueue()
        # daemons, so that the interpreter comes to `_end_all`; there they are joined, since a thread that wakes
        # within a library's code after that can crash the process
        self._threads = [
            threading.Thread(target=_work, args=(self._queue,), name=f"shards-{number}", daemon=True)
            for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()
        weakref.finalize(self, _end, self._queue, self.must_end, num_threads).atexit = False
        _living.add(self)

    def submit(self, function: Callable[..., Result], *arguments: object) -> "Future[Result]":
        """The result, or the exception, of `function(*arguments)`, run by the next free thread."""
        future: Future[Result] = Future()
        self._queue.put((future, function, arguments))
        return future

    def end(self) -> None:
        """They end after the task at hand."""
        _end(self._queue, self.must_end, len(self._threads))

    def join(self, deadline_s: float) -> None:
        """Waits until they have ended, or time.monotonic() is `deadline_s`."""
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))


_living: "weakref.WeakSet[ReadingThreads]" = weakref.WeakSet()


def _end(queue: "SimpleQueue[_Task | None]", must_end: threading.Event, num_threads: int) -> None:
    must_end.set()
    for _ in range(num_threads):
        queue.put(None)


@atexit.register
def _end_all() -> None:
    living, deadline_s = list(_living), time.monotonic() + JOIN_S
    for threads in living:
        threads.end()
    for threads in living:
        threads.join(deadline_s)


def _work(queue: "SimpleQueue[_Task | None]") -> None:
    while (task := queue.get()) is not None:
        _do(*task)
        del task  # or an idle thread would keep the last batch


def _do(future: "Future[Any]", function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function(*arguments)
    except BaseException as error:  # noqa: BLE001  (whoever asks for the result gets it)
        future.set_exception(error)
    else:
        future.set_result(result)
