"""Gives clips to processes of this machine: a process that dies or hangs affects only its own clip.

Executors of the standard library cannot end one hung process. Pools that can end one share one pipe among all
workers, which a killed worker may leave locked or half written. Here each worker has its own pipe and clip.
"""

import errno
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import cv2

from shards.errors import MachineError
from shards.machine import describe_exit, limit_bytes
from shards.schema import Reason
from stages.clips.clip_work import Clip, Done, Work, given_up, place
from stages.mouths.landmarker import native_stderr_to

MAX_FAILED_STARTS = 3
"""Processes in a row that may die before they read a clip: a busy machine kills one, a broken machine all."""
FINISH_S = 2.0
"""Time for the other workers to finish when the error of one clip ends the run."""

MORE_MEMORY = (
    "if memory is short, lower machine.workers or raise the limit (ulimit -v, or the batch system's)"
)
NO_MEMORY = errno.ENOMEM
"""Exit code of a worker whose clip asked for more memory than there is."""

START_TIMEOUT_S = 300.0
"""The imports of a worker take 2 s; from a cold network file system, minutes."""

# spawned: mediapipe's threads do not survive a fork
PROCESSES = multiprocessing.get_context("spawn")

LONGEST_WAIT_S = 60.0
"""`wait` does not accept an infinite time; waking up once a minute costs nothing."""


class LocalPool:
    """Up to `num_workers` spawned processes; each does one clip at a time, for at most `timeout_s`.

    A clip whose process dies is retried once, at the end and as the only one. If it dies again, it is `crashed`.
    """

    def __init__(self, work: Work, num_workers: int, timeout_s: float, native_log: Path) -> None:
        self.work, self.num_workers, self.timeout_s = work, num_workers, timeout_s
        self.native_log = native_log
        self._workers: list[_Worker] = []
        self._failed_starts = 0
        self._death = ""
        """How the last dead process ended."""

    def __enter__(self) -> "LocalPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends every process at once. Files that they were writing remain as temporary files."""
        while self._workers:
            self._end(self._workers[-1])

    def run(self, clips: Iterable[Clip]) -> Iterator[tuple[Clip, Done]]:
        """Yields each clip with its result, in order of completion."""
        died, num_dead = [], 0
        try:
            for clip, done in self._run(clips, self.num_workers):
                if done is None:
                    died.append(clip)
                else:
                    yield clip, done
            for suspect in died:
                # the only clip in a new process: if it dies now, this clip is the cause, not the memory of other clips
                self.close()
                for clip, done in self._run([suspect], 1):
                    num_dead = num_dead + 1 if done is None else 0
                    if num_dead >= MAX_FAILED_STARTS and limit_bytes() is not None:
                        raise MachineError(
                            f"{num_dead} clips in a row: {self._last_words(clip)}; {MORE_MEMORY}"
                        )
                    yield clip, done or given_up(clip, Reason.CRASHED, self._last_words(clip))
        except Exception:
            self._let_finish()
            raise
        finally:
            for worker in [worker for worker in self._workers if worker.clip]:
                self._end(worker)

    def _let_finish(self) -> None:
        """Lets workers finish before an error ends them: a half written file would take space on a full disk."""
        until_s = time.monotonic() + FINISH_S
        for worker in self._workers:
            if worker.clip:
                worker.pipe.poll(max(until_s - time.monotonic(), 0.0))

    def _last_words(self, clip: Clip) -> str:
        return (
            f"the process crashed while it read {clip.media} ({self._death}); check the file, or leave it out "
            f"(see the end of {self.native_log})"
        )

    def _run(self, clips: Iterable[Clip], num_workers: int) -> Iterator[tuple[Clip, Done | None]]:
        """Yields each clip with its result; None where its process died."""
        waiting = deque(clips)
        while waiting or any(worker.clip for worker in self._workers):
            self._hand_out(waiting, num_workers)
            patience_s = min(worker.deadline_s for worker in self._workers) - time.monotonic()
            ready = wait([worker.pipe for worker in self._workers], min(max(patience_s, 0.0), LONGEST_WAIT_S))
            for worker in [worker for worker in self._workers if worker.pipe in ready]:
                clip = worker.clip
                try:
                    answer = worker.receive()
                except (EOFError, OSError):
                    self._death = worker.death()
                    self._end(worker)
                    self._count_start(worker)
                    if clip is not None:
                        yield clip, None
                    continue
                self._failed_starts = 0
                if clip is not None:
                    yield clip, _done(answer, clip)
            for worker in [worker for worker in self._workers if worker.is_late()]:
                clip = worker.clip
                self._end(worker)
                self._count_start(worker)
                if clip is not None:
                    yield clip, given_up(clip, Reason.TIMEOUT, self._too_slow(clip))

    def _too_slow(self, clip: Clip) -> str:
        return (
            f"{clip.media} was not finished after {self.timeout_s:g} s (crop.timeout_s); check the file, or "
            "raise the limit"
        )

    def _hand_out(self, waiting: deque[Clip], num_workers: int) -> None:
        idle = [worker for worker in self._workers if worker.is_ready and worker.clip is None]
        for worker in idle:
            if waiting:
                try:
                    worker.give(waiting[0], self.timeout_s)
                except OSError:
                    # it died while it was idle
                    self._end(worker)
                else:
                    waiting.popleft()
        num_starting = sum(not worker.is_ready for worker in self._workers)
        for _ in range(min(num_workers - len(self._workers), len(waiting) - num_starting)):
            self._workers.append(_Worker(self.work, self.native_log))

    def _count_start(self, ended: "_Worker") -> None:
        # not a clip's fault: otherwise every clip in turn would be called crashed
        self._failed_starts += not ended.is_ready
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise MachineError(
                f"worker processes die before they read a clip ({self._death}); {MORE_MEMORY}; run `pipeline doctor` "
                f"to find other causes (see the end of {self.native_log})"
            )

    def _end(self, worker: "_Worker") -> None:
        self._workers.remove(worker)
        worker.end()


class _Worker:
    """One process, the parent's end of its pipe, and its current clip."""

    def __init__(self, work: Work, native_log: Path) -> None:
        # the first process would start it, and Python 3.11 then lets interrupts through again
        resource_tracker.ensure_running()
        self.pipe, theirs = PROCESSES.Pipe()
        self.process = PROCESSES.Process(target=_serve, args=(theirs, work, native_log), daemon=True)
        with interrupts_held():
            self.process.start()
        # only the worker holds its end now: when it dies, reading here gives EOF
        theirs.close()
        self.is_ready = False
        self.clip: Clip | None = None
        self.deadline_s = time.monotonic() + START_TIMEOUT_S

    def give(self, clip: Clip, timeout_s: float) -> None:
        """Raises OSError where the process is dead."""
        self.pipe.send(clip)
        self.clip = clip
        self.deadline_s = time.monotonic() + timeout_s

    def receive(self) -> object:
        """Returns what `_serve` sent. Raises EOFError or OSError where the process died."""
        answer = self.pipe.recv()
        self.is_ready, self.clip, self.deadline_s = True, None, float("inf")
        return answer

    def is_late(self) -> bool:
        """Returns whether its deadline has passed without an answer."""
        return self.deadline_s <= time.monotonic() and not self.pipe.poll()

    def death(self) -> str:
        """Returns how the process ended; call it after its end of the pipe is closed."""
        self.process.join(FINISH_S)
        code = self.process.exitcode
        if code is None:
            return "it closed its pipe"
        if code == NO_MEMORY:
            return "memory ran out"
        return describe_exit(code)

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Blocks Ctrl-C for processes started inside: only the parent handles it."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _done(answer: object, clip: Clip) -> Done:
    """Returns the result that a worker sent, or raises its exception with the clip's name."""
    if isinstance(answer, Done):
        return answer
    assert isinstance(answer, Exception), f"a worker answered {answer!r}"
    answer.add_note(place(clip))
    raise answer


def _serve(pipe: "Connection[object, object]", work: Work, native_log: Path) -> None:
    """Runs in a worker: reports that it is ready, then answers each clip."""
    native_stderr_to(native_log)
    threading.Thread(target=end_with_parent, daemon=True).start()
    # one process for each core: no threads in addition
    cv2.setNumThreads(1)
    answer: object = None
    while True:
        pipe.send_bytes(_packed(answer))
        try:
            clip = pipe.recv()
        except EOFError:
            return
        assert isinstance(clip, Clip)
        try:
            answer = work(clip)
        except MemoryError:
            # as if the kernel had killed it: only this clip needs too much memory
            os._exit(NO_MEMORY)
        except Exception as error:  # noqa: BLE001  (the parent raises it)
            # a traceback cannot be pickled, its text can
            error.add_note(traceback.format_exc())
            answer = error


def _packed(answer: object) -> bytes:
    """Pickles `answer`; one that cannot be pickled becomes a RuntimeError that describes it."""
    try:
        packed = bytes(ForkingPickler.dumps(answer))
        if isinstance(answer, Exception):
            # some can be pickled, but not unpickled at the other end
            pickle.loads(packed)  # noqa: S301  (ours, of this moment)
    except Exception as fault:  # noqa: BLE001  (raised by whatever the answer is made of)
        failure = RuntimeError(f"an answer that cannot be sent ({fault!r}): {answer!r}")
        for note in getattr(answer, "__notes__", ()):
            failure.add_note(note)
        return bytes(ForkingPickler.dumps(failure))
    return packed


def end_with_parent() -> None:
    """Ends this worker when its parent dies: a killed parent cannot stop its workers, which would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker"
    parent.join()
    os._exit(1)
