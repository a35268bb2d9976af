"""Pictures of a camera, or of a file as if it were one, taken as they come by a thread that never waits for anybody."""

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
"""Pictures that wait for the reader reach back no further; what comes meanwhile is dropped."""

MAX_SIDE_PX = 1280
"""Larger pictures are shrunk: a mouth is 96 px, and all pictures of a stretch are kept."""


@dataclass(frozen=True, slots=True)
class Captured:
    """A picture and when it was there: in the stream, and by the clock of `time.monotonic`."""

    picture: av.VideoFrame
    time_s: float
    captured_s: float
    orientation: Orientation = UPRIGHT


class Capture:
    """Pictures as they come, taken by a thread of its own."""

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
        """No picture is taken any more; those that wait are still given."""
        self._is_stopped.set()

    def stop(self) -> None:
        """The same, and waits for the thread."""
        self.stop_soon()
        if self._thread.ident is not None:
            self._thread.join(timeout=5.0)

    def pictures(self) -> Iterator[Captured]:
        """What was captured, oldest first, until the source ends."""
        while True:
            one = self._queue.get()
            if one is None:
                return
            yield one

    def _capture(self, pictures: Callable[[], Iterator[Captured]]) -> None:
        try:
            for one in pictures():
                if self._is_stopped.is_set():
                    break
                self.num_captured += 1
                # the last place is kept for the end
                if self._queue.qsize() >= self.room:
                    self.num_dropped += 1
                else:
                    self._queue.put(one)
        except (ClipRejected, MachineError) as error:
            self.error = error
        finally:
            self._queue.put(None)


@contextmanager
def capturing(source: int | Path, params: Params, seconds: float) -> Iterator[Capture]:
    def pictures() -> Iterator[Captured]:
        ends_s = seconds or math.inf
        taken = camera_pictures(source) if isinstance(source, int) else file_pictures(source, params, ends_s)
        for one in taken:
            if one.time_s > ends_s:
                return
            yield one

    capture = Capture(pictures, room=max(2, round(WAITING_S * params.crop.target_fps)))
    capture.start()
    try:
        yield capture
    finally:
        capture.stop()


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the pictures, and with them the reading; a second Ctrl-C ends it at once."""
    kinds = (signal.SIGINT, signal.SIGTERM)
    former = [signal.getsignal(kind) for kind in kinds]

    def end(*_: object) -> None:
        stop()
        for kind, handler in zip(kinds, former, strict=True):
            signal.signal(kind, handler)

    for kind in kinds:
        signal.signal(kind, end)
    try:
        yield
    finally:
        for kind, handler in zip(kinds, former, strict=True):
            signal.signal(kind, handler)


def file_pictures(path: Path, params: Params, ends_s: float = math.inf) -> Iterator[Captured]:
    """The pictures of a file, each at its own time as players count; at `ends_s` the next. Raises ClipRejected."""
    start_s = read_header(path).start_s
    begin_s = time.monotonic()
    # a gap between two pictures is one live as well
    as_it_comes = {"max_source_s": math.inf, "max_gap_s": math.inf}
    for frame in decode(path, params.crop.model_copy(update=as_it_comes)):
        time_s = start_s + frame.time_s
        due_s = begin_s + min(time_s, ends_s)
        time.sleep(max(0.0, due_s - time.monotonic()))
        picture = _shrunk(frame.picture)
        yield Captured(picture, time_s, max(due_s, time.monotonic()), frame.orientation)


def camera_pictures(number: int) -> Iterator[Captured]:
    """The pictures of a camera of this machine. Raises MachineError where it gives none."""
    camera = cv2.VideoCapture(number)
    try:
        begin_s: float | None = None
        while True:
            is_there, bgr_HW3 = camera.read()
            if not is_there:
                raise MachineError(
                    f"camera {number} gives no pictures; is it plugged in and free, and may you use it? "
                    "--camera takes another number, --file a video"
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
