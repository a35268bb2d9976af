"""The line in front of the one worker: who waits where, and no more than there is room for."""

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
    """There is no place left."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """So many videos are read first."""

    num_before: int


@dataclass(frozen=True, slots=True)
class Started:
    """The video's turn has come."""

    waited_s: float


Event = Waiting | Started | Mouth | Answer


class ReadingQueue:
    """First come, first read; lives in one event loop."""

    def __init__(self, worker: ReadingWorker, max_places: int) -> None:
        self._worker, self._max_places = worker, max_places
        self._uploading: set[Place] = set()
        self._line: list[Place] = []
        self._thread = ThreadPoolExecutor(1)

    @property
    def num_taken(self) -> int:
        return len(self._uploading) + len(self._line)

    def reserve(self) -> "Place":
        """A place for a video that is about to come, to be given back by `leave`. Raises QueueFull."""
        if self.num_taken >= self._max_places:
            raise QueueFull
        place = Place(self)
        self._uploading.add(place)
        return place

    async def close(self) -> None:
        """Ends what is being read, and the worker."""
        self._worker.stop()
        await asyncio.to_thread(self._thread.shutdown)
        self._worker.close()


class Place:
    """One video's place: reserved while it comes in, then in the line, the first of which is being read.

    It ends with the reading, or where there is none by `leave`.
    """

    def __init__(self, queue: ReadingQueue) -> None:
        self._queue = queue
        self._moved = asyncio.Event()
        self._upload: Upload | None = None
        self._running: asyncio.Future[Answer] | None = None

    async def read(self, upload: Upload) -> AsyncIterator[Event]:
        """What happens to the video, the Answer last; the video is closed with the place. Raises as the worker does."""
        queue, line = self._queue, self._queue._line
        arrived_s = time.monotonic()
        queue._uploading.discard(self)
        self._upload = upload
        line.append(self)
        while num_before := line.index(self):
            yield Waiting(num_before)
            # told again after a while: who is gone by then makes room
            with suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), WAITING_REPORT_S)
            self._moved.clear()
        loop = asyncio.get_running_loop()
        told: asyncio.Queue[Mouth | None] = asyncio.Queue()

        def tell(mouth: Mouth) -> None:
            loop.call_soon_threadsafe(told.put_nowait, mouth)

        self._running = loop.run_in_executor(queue._thread, queue._worker.read, upload.path, tell)
        self._running.add_done_callback(lambda _: told.put_nowait(None))
        # not when its answer is taken: who takes none must not hold the line
        self._running.add_done_callback(lambda _: self._release())
        yield Started(time.monotonic() - arrived_s)
        while mouth := await told.get():
            yield mouth
        yield self._running.result()

    def leave(self) -> None:
        """Makes room for the next; where the video is being read, that goes to its end first."""
        if self._running is None:
            self._release()

    def _release(self) -> None:
        if self._running is not None and not self._running.cancelled():
            self._running.exception()  # seen, where nobody is left to hear of it
        self._queue._uploading.discard(self)
        if self in self._queue._line:
            self._queue._line.remove(self)
        for place in self._queue._line:
            place._moved.set()
        if self._upload is not None:
            self._upload.close()
