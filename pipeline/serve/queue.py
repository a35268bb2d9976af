"""The queue of videos for the one worker, with a limited number of places."""

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from pipeline.serve.upload import Upload
from pipeline.serve.worker import Answer, Mouth, ReadingWorker

WAITING_REPORT_S = 2.0


class QueueFull(Exception):
    """There is no free place."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Number of videos that are read before this one."""

    num_before: int


@dataclass(frozen=True, slots=True)
class Started:
    """The reading of the video starts."""

    waited_s: float


Event = Waiting | Started | Mouth | Answer


class ReadingQueue:
    """Reads videos in the order of arrival; belongs to one event loop."""

    def __init__(self, worker: ReadingWorker, max_places: int) -> None:
        self._worker, self._max_places = worker, max_places
        self._uploading: set[Place] = set()
        self._line: list[Place] = []
        self._thread = ThreadPoolExecutor(1)

    @property
    def num_taken(self) -> int:
        return len(self._uploading) + len(self._line)

    def reserve(self) -> "Place":
        """Reserves a place for a video before its upload; `leave` gives it back. Raises QueueFull."""
        if self.num_taken >= self._max_places:
            raise QueueFull
        place = Place(self)
        self._uploading.add(place)
        return place

    async def close(self) -> None:
        """Stops the current reading and the worker."""
        self._worker.stop()
        await asyncio.to_thread(self._thread.shutdown)
        self._worker.close()


class Place:
    """The place of one video: reserved during its upload, then in the queue, whose first video is being read.

    It ends with the reading, or by `leave` if the reading has not started.
    """

    def __init__(self, queue: ReadingQueue) -> None:
        self._queue = queue
        self._moved = asyncio.Event()
        self._upload: Upload | None = None
        self._running: asyncio.Future[Answer] | None = None

    async def read(self, upload: Upload) -> AsyncIterator[Event]:
        """Yields the video's events, the Answer last; closes it with the place. Raises like `ReadingWorker.read`."""
        queue, line = self._queue, self._queue._line
        arrived_s = time.monotonic()
        queue._uploading.discard(self)
        self._upload = upload
        line.append(self)
        while num_before := line.index(self):
            yield Waiting(num_before)
            # repeated after a while: a client that has left is noticed and makes room
            with suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), WAITING_REPORT_S)
            self._moved.clear()
        loop = asyncio.get_running_loop()
        mouths: asyncio.Queue[Mouth | None] = asyncio.Queue()

        def on_mouth(mouth: Mouth) -> None:
            loop.call_soon_threadsafe(mouths.put_nowait, mouth)

        self._running = loop.run_in_executor(queue._thread, queue._worker.read, upload.path, on_mouth)
        self._running.add_done_callback(lambda _: mouths.put_nowait(None))
        # not when the answer is read: a client that does not read must not block the queue
        self._running.add_done_callback(lambda _: self._release())
        yield Started(time.monotonic() - arrived_s)
        while mouth := await mouths.get():
            yield mouth
        yield self._running.result()

    def leave(self) -> None:
        """Gives the place back; if the video is being read, only after the reading."""
        if self._running is None:
            self._release()

    def _release(self) -> None:
        if self._running is not None and not self._running.cancelled():
            self._running.exception()  # retrieved, so that asyncio does not log it if the client has left
        self._queue._uploading.discard(self)
        if self in self._queue._line:
            self._queue._line.remove(self)
        for place in self._queue._line:
            place._moved.set()
        if self._upload is not None:
            self._upload.close()
