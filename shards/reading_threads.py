"""Threads that read ahead without delaying an early stop or the exit of the interpreter.

At exit concurrent.futures first finishes all queued tasks. With shards in object storage this can take minutes
after Ctrl-C.
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
"""Longest wait at exit, for all threads together."""


class ReadingThreads:
    """A pool of `num_threads` threads. They end when the pool is deleted, and at exit after the current task."""

    def __init__(self, num_threads: int) -> None:
        self.must_end = threading.Event()
        """Set when the threads must end; a long task checks it from time to time."""
        self._queue: SimpleQueue[_Task | None] = SimpleQueue()
        # daemon threads, so that the interpreter reaches `_end_all`, which joins them: a thread that later resumes
        # inside a library can crash the process
        self._threads = [
            threading.Thread(target=_work, args=(self._queue,), name=f"shards-{number}", daemon=True)
            for number in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()
        weakref.finalize(self, _end, self._queue, self.must_end, num_threads).atexit = False
        _living.add(self)

    def submit(self, function: Callable[..., Result], *arguments: object) -> "Future[Result]":
        """Runs `function(*arguments)` in the next free thread; the future gets its result or exception."""
        future: Future[Result] = Future()
        self._queue.put((future, function, arguments))
        return future

    def end(self) -> None:
        """Makes the threads end after their current task."""
        _end(self._queue, self.must_end, len(self._threads))

    def join(self, deadline_s: float) -> None:
        """Waits until the threads have ended or time.monotonic() reaches `deadline_s`."""
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
        del task  # otherwise an idle thread would keep the last batch in memory


def _do(future: "Future[Any]", function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function(*arguments)
    except BaseException as error:  # noqa: BLE001  (the future passes it on)
        future.set_exception(error)
    else:
        future.set_result(result)
