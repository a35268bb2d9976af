"""Receives videos from requests, and puts them into the queue for the one worker, with a limited number of places.

A video is received without a named file in a folder: on Linux its file has no name, so that nothing remains of it
however the server ends.
"""

import asyncio
import os
import re
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import anyio
import anyio.to_thread
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from pipeline.serve.refusals import Limits
from pipeline.serve.worker import Answer, Mouth, ReadingWorker

FIELD = "video"
LONGEST_NAME = 200
_OWN_FILES = Path("/proc/self/fd")
WAITING_REPORT_S = 2.0


class BadUpload(Exception):
    """The request contains no video."""


class TooLargeUpload(Exception):
    """The request is larger than allowed."""


class NoRoomForUpload(Exception):
    """There is no disk space to store the video."""


class SlowUpload(Exception):
    """The upload stopped or was too slow."""


@dataclass
class Upload:
    """An uploaded video; `path` is valid until `close`."""

    name: str
    path: Path
    _file: IO[Any]

    def close(self) -> None:
        self._file.close()


async def receive_upload(request: Request, limits: Limits) -> Upload:
    """Returns the file in the field `video`.

    Raises BadUpload, NoRoomForUpload, ClientDisconnect, and, at the limit, SlowUpload and TooLargeUpload.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limits.max_upload_bytes:
        raise TooLargeUpload
    form = None
    try:
        # not fail_after: it raises nothing if a byte comes between the deadline and the cancellation, and extends it
        with anyio.move_on_after(limits.pause_s) as patience:
            form = await _Capped(request, limits, patience).form(max_files=1, max_fields=0)
    except HTTPException as error:
        raise BadUpload(error.detail) from error
    except UnicodeError as error:  # the sender chooses the encoding of the name
        raise BadUpload(str(error)) from error
    except OSError as error:
        raise _no_room(error) from error
    if form is None:
        raise SlowUpload
    video = form.get(FIELD)
    if not isinstance(video, UploadFile):
        await form.close()
        raise BadUpload(f"no field `{FIELD}`")
    try:
        return await anyio.to_thread.run_sync(_as_file, _plain_name(video.filename or ""), video.file)
    except OSError as error:
        await form.close()
        raise _no_room(error) from error


def _no_room(error: OSError) -> NoRoomForUpload:
    return NoRoomForUpload(f"{tempfile.gettempdir()}: {error.strerror}")


def _plain_name(given: str) -> str:
    """Returns the name without folders and invisible characters: surrogates, invalid in JSON, and direction marks."""
    name = "".join(character for character in re.split(r"[/\\]", given)[-1] if character.isprintable())
    return name[:LONGEST_NAME] or FIELD


class _Capped(Request):
    """A request with a maximum size, and a deadline that each received byte extends.

    A leaky bucket: each byte adds its time at the slowest allowed speed, and the deadline is at most `pause_s` ahead.
    So silence ends an upload after `pause_s`, half the speed after twice that, and the allowed speed never.
    """

    def __init__(self, request: Request, limits: Limits, patience: anyio.CancelScope) -> None:
        super().__init__(request.scope, request.receive)
        self._limits, self._patience = limits, patience

    async def stream(self) -> AsyncGenerator[bytes, None]:
        num_bytes = 0
        async for chunk in super().stream():
            num_bytes += len(chunk)
            if num_bytes > self._limits.max_upload_bytes:
                raise TooLargeUpload
            self._patience.deadline = min(
                self._patience.deadline + len(chunk) / (1e3 * self._limits.slowest_kb_s),
                anyio.current_time() + self._limits.pause_s,
            )
            yield chunk


def _as_file(name: str, spooled: IO[Any]) -> Upload:
    """Returns the upload with a path that another process of this user can open."""
    number = spooled.fileno()  # moves the content from memory to a file without a name
    if _OWN_FILES.is_dir():
        return Upload(name, Path(f"/proc/{os.getpid()}/fd/{number}"), spooled)
    named = tempfile.NamedTemporaryFile(prefix="pipeline-serve-")  # noqa: SIM115 (closed with the upload)
    spooled.seek(0)
    shutil.copyfileobj(spooled, named)
    named.flush()
    spooled.close()
    return Upload(name, Path(named.name), named)


__all__ = [
    "BadUpload",
    "ClientDisconnect",
    "NoRoomForUpload",
    "SlowUpload",
    "TooLargeUpload",
    "Upload",
    "receive_upload",
]


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
