"""Captures pictures of a camera, or of a file at its own speed, in a thread that never waits for the reader."""

import math
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import cv2

from pipeline.params import Params
from shards.errors import ClipRejected, MachineError
from stages.videos.display import UPRIGHT, Orientation
from stages.videos.video import decode, read_header

WAITING_S = 1.0
"""The queue holds pictures of at most this time; pictures that arrive while it is full are dropped."""

MAX_SIDE_PX = 1280
"""Larger pictures are shrunk: a mouth crop is 96 px, and all pictures of a segment are kept in memory."""


@dataclass(frozen=True, slots=True)
class Captured:
    """A picture with its time in the stream and its time of capture by `time.monotonic`."""

    picture: av.VideoFrame
    time_s: float
    captured_s: float
    orientation: Orientation = UPRIGHT


class Capture:
    """A thread that captures pictures, and the queue of those that wait."""

    def __init__(self, pictures: Callable[[], Iterator[Captured]], room: int) -> None:
        self.room = room
        self.num_captured = self.num_dropped = 0
        self.error: ClipRejected | MachineError | None = None
        self._queue: queue.Queue[Captured | None] = queue.Queue(room + 1)
        self._is_stopped = threading.Event()
        self._thread = threading.Thread(target=self._capture, args=(pictures,), daemon=True)

    @property
    def num_waiting(self) -> int:
        return self._queue.qsize()

    def start(self) -> None:
        self._thread.start()

    def stop_soon(self) -> None:
        """Stops the capture; pictures that wait are still returned."""
        self._is_stopped.set()

    def stop(self) -> None:
        """Stops the capture and waits for the thread."""
        self.stop_soon()
        if self._thread.ident is not None:
            self._thread.join(timeout=5.0)

    def pictures(self) -> Iterator[Captured]:
        """Yields the captured pictures, oldest first, until the source ends."""
        while True:
            picture = self._queue.get()
            if picture is None:
                return
            yield picture

    def _capture(self, pictures: Callable[[], Iterator[Captured]]) -> None:
        try:
            for picture in pictures():
                if self._is_stopped.is_set():
                    break
                self.num_captured += 1
                # the last place is reserved for the None at the end
                if self._queue.qsize() >= self.room:
                    self.num_dropped += 1
                else:
                    self._queue.put(picture)
        except (ClipRejected, MachineError) as error:
            self.error = error
        finally:
            self._queue.put(None)


@contextmanager
def capturing(source: int | Path, params: Params, seconds: float) -> Iterator[Capture]:
    def pictures() -> Iterator[Captured]:
        end_s = seconds or math.inf
        captured = (
            camera_pictures(source) if isinstance(source, int) else file_pictures(source, params, end_s)
        )
        for picture in captured:
            if picture.time_s > end_s:
                return
            yield picture

    capture = Capture(pictures, room=max(2, round(WAITING_S * params.crop.target_fps)))
    capture.start()
    try:
        yield capture
    finally:
        capture.stop()


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Calls `stop` at Ctrl-C or SIGTERM, and restores the handlers: a second Ctrl-C ends the reading immediately."""
    signals = (signal.SIGINT, signal.SIGTERM)
    previous = [signal.getsignal(number) for number in signals]

    def end(*_: object) -> None:
        stop()
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)

    for number in signals:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in zip(signals, previous, strict=True):
            signal.signal(number, handler)


def file_pictures(path: Path, params: Params, end_s: float = math.inf) -> Iterator[Captured]:
    """Yields the pictures of a file at their own times, as players count, or at `end_s`. Raises ClipRejected."""
    start_s = read_header(path).start_s
    begin_s = time.monotonic()
    # a gap between two pictures of the file is a gap in the live stream too
    no_limits = {"max_source_s": math.inf, "max_gap_s": math.inf}
    for frame in decode(path, params.crop.model_copy(update=no_limits)):
        time_s = start_s + frame.time_s
        due_s = begin_s + min(time_s, end_s)
        time.sleep(max(0.0, due_s - time.monotonic()))
        picture = _shrunk(frame.picture)
        yield Captured(picture, time_s, max(due_s, time.monotonic()), frame.orientation)


def camera_pictures(number: int) -> Iterator[Captured]:
    """Yields the pictures of a camera of this machine. Raises MachineError if it gives none."""
    camera = cv2.VideoCapture(number)
    try:
        begin_s: float | None = None
        while True:
            has_picture, bgr_HW3 = camera.read()
            if not has_picture:
                raise MachineError(
                    f"camera {number} gives no pictures; check that it is connected, free and allowed, or choose "
                    "another number with --camera, or a video with --file"
                )
            now_s = time.monotonic()
            begin_s = now_s if begin_s is None else begin_s
            picture = av.VideoFrame.from_ndarray(bgr_HW3, format="bgr24").reformat(format="yuv420p")
            yield Captured(_shrunk(picture), now_s - begin_s, now_s)
    finally:
        camera.release()


def _shrunk(picture: av.VideoFrame) -> av.VideoFrame:
    factor = MAX_SIDE_PX / max(picture.width, picture.height)
    if factor >= 1:
        return picture
    width, height = (2 * round(side * factor / 2) for side in (picture.width, picture.height))
    return picture.reformat(width=width, height=height)
