"""The worker process that reads: it has the model, and can be killed without harm to the server.

Shapes: T frames of the clip at the model's rate, H = W = side of the mouth crop.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.decoding.result import ClipReader, Reading
from model.settings import DecodeParams, Head
from pipeline.inference.readers import OpenedReader
from pipeline.params import Params
from shards.errors import MachineError, PipelineError
from stages.clips.local_pool import START_TIMEOUT_S, end_with_parent, interrupts_held
from stages.mouths.landmarker import NATIVE_LOG, native_stderr_to

STRIP_S, STRIP_FPS = 4.0, 12.5
"""Length and rate of the mouth on the page: enough to see that it is the right mouth and that it moves."""


@dataclass(frozen=True, slots=True)
class Mouth:
    """The found mouth, sent before the reading."""

    strip: str
    """Square frames side by side: a JPEG as data: URI."""
    fps: float


@dataclass(frozen=True, slots=True)
class Answer:
    """The result; `reading` has the keys of `pipeline inference --json`."""

    reading: dict[str, Any]
    captions: dict[str, str]
    """The files that the page offers, by the ending of their names; empty if nothing was read."""
    mouth_s: float
    """Time to find and crop the mouth, including decoding."""
    reading_s: float


class WorkerDied(Exception):
    """The process ended while it read a video."""


class WorkerLate(Exception):
    """The process exceeded the time limit and was killed."""


class ReadingWorker:
    """Reads one video at a time in a separate process, which opens its model once with `open_reader` (picklable).

    `read` must be called by one thread only; `stop` may be called by any thread.
    """

    def __init__(self, open_reader: Callable[[], OpenedReader], params: Params, timeout_s: float) -> None:
        self._open_reader, self._params, self._timeout_s = open_reader, params, timeout_s
        self._process: _Process | None = None
        self.is_stopped = False
        # reentrant: a signal handler runs in a thread that may already hold it
        self._lock = threading.RLock()

    def start(self) -> None:
        """Starts the process without waiting for it; does nothing after `stop`."""
        with self._lock:
            if self._process is None and not self.is_stopped:
                self._process = _Process(self._open_reader, self._params)

    def wait_ready(self) -> None:
        """Waits until the model is open. Raises PipelineError if the model or the process cannot start."""
        try:
            self._ready()
        except WorkerDied as error:
            raise MachineError(
                "the reader process ended while it opened the model, perhaps for lack of memory; run `pipeline doctor` "
                f"to find the cause, and see {Path(self._params.machine.cache_dir) / NATIVE_LOG}"
            ) from error

    def stop(self) -> None:
        """Kills the process immediately; a running `read` and every later one raise WorkerDied."""
        with self._lock:
            self.is_stopped = True
            if self._process is not None:
                self._process.process.kill()

    def close(self) -> None:
        """Stops the process and waits for its end; must not be called while another thread reads."""
        self.stop()
        self._end()

    def read(self, path: Path, on_mouth: Callable[[Mouth], None]) -> Answer:
        """Returns the reading. Raises WorkerDied, WorkerLate, and PipelineError if the process cannot start."""
        process = self._ready()
        try:
            process.pipe.send(path)
            deadline_s = time.monotonic() + self._timeout_s
            while process.pipe.poll(max(0.0, deadline_s - time.monotonic())):
                message = process.pipe.recv()
                if isinstance(message, Answer):
                    return message
                assert isinstance(message, Mouth), f"a worker sent {message!r}"
                on_mouth(message)
            raise WorkerLate
        except BaseException as error:
            # the next video must not get an answer to this one
            self._end()
            self.start()
            if isinstance(error, EOFError | OSError):
                raise WorkerDied from error
            raise

    def _ready(self) -> "_Process":
        if self._process is not None and self._process.is_ready and not self._process.process.is_alive():
            self._end()  # it died while it was idle
        self.start()
        if self._process is None:
            raise WorkerDied
        try:
            self._process.wait_ready()
        except (EOFError, OSError) as error:
            self._end()
            raise WorkerDied from error
        except PipelineError:
            self._end()
            raise
        return self._process

    def _end(self) -> None:
        with self._lock:
            if self._process is not None:
                self._process.end()
                self._process = None


class _Process:
    def __init__(self, open_reader: Callable[[], OpenedReader], params: Params) -> None:
        # spawned: the threads of torch and of the landmarker do not survive a fork
        context = multiprocessing.get_context("spawn")
        resource_tracker.ensure_running()
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, open_reader, params), daemon=True)
        with interrupts_held():
            self.process.start()
        theirs.close()
        self.is_ready = False

    def wait_ready(self) -> None:
        if self.is_ready:
            return
        if not self.pipe.poll(START_TIMEOUT_S):
            self.process.kill()
            raise MachineError(f"the model was not open after {START_TIMEOUT_S:g} s; run `pipeline doctor`")
        error = self.pipe.recv()
        if error is not None:
            raise error
        self.is_ready = True

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.process.close()
        self.pipe.close()


def _serve(pipe: "Connection[Any, Any]", open_reader: Callable[[], OpenedReader], params: Params) -> None:
    """Runs in the process: sends None when it is ready, else the error, then answers each video."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        native_stderr_to(Path(params.machine.cache_dir) / NATIVE_LOG)
        from pipeline.inference.captions import as_karaoke, as_srt
        from pipeline.inference.text_of_video import read_video
        from pipeline.inference.timed_text import as_json_object

        opened = open_reader()
    except PipelineError as error:
        pipe.send(error)
        return
    pipe.send(None)
    reader, params = _MonitoredReader(opened, pipe), with_candidates(params, opened.heads)
    while True:
        try:
            path = pipe.recv()
        except EOFError:
            return
        reader.expect_video()
        started_s = time.monotonic()
        try:
            result = read_video(path, reader, params)
        except MemoryError:
            os._exit(1)  # as if the kernel had killed it
        total_s = time.monotonic() - started_s
        captions = {"srt": as_srt(result), "vtt": as_karaoke(result)} if result.text else {}
        values = as_json_object(result)
        pipe.send(Answer(values, captions, total_s - reader.reading_s, reader.reading_s))


def with_candidates(params: Params, heads: Collection[Head]) -> Params:
    """Returns parameters with which the page can show other readings: auto is greedy and finds none.

    Replaces auto by the beam search of the CTC head, if there is one; like auto it uses no language model.
    """
    if params.decode.decoder != "auto" or "ctc" not in heads:
        return params
    search = DecodeParams(
        decoder="ctc_beam", beam=params.decode.beam, num_candidates=params.decode.num_candidates
    )
    return params.model_copy(update={"decode": search})


class _MonitoredReader:
    """A reader that sends the mouth of each video to the server and measures the time of reading."""

    def __init__(self, reader: ClipReader, pipe: "Connection[Any, Any]") -> None:
        self._reader, self._pipe = reader, pipe
        self.fps, self.crop_px, self.text = reader.fps, reader.crop_px, reader.text
        self.expect_video()

    def expect_video(self) -> None:
        self.reading_s, self._is_shown = 0.0, False

    def read_clip(self, clip_THW: NDArray[np.uint8], params: DecodeParams) -> Reading:
        if not self._is_shown:
            self._pipe.send(mouth_of(clip_THW, self.fps))
            self._is_shown = True
        started_s = time.monotonic()
        reading = self._reader.read_clip(clip_THW, params)
        self.reading_s += time.monotonic() - started_s
        return reading

    def reference(self, label: str, params: DecodeParams) -> str:
        return self._reader.reference(label, params)


def mouth_of(clip_THW: NDArray[np.uint8], fps: float) -> Mouth:
    """Returns the start of the clip as a strip of frames."""
    from stages.pages.page import jpeg_uri

    step = max(1, round(fps / STRIP_FPS))
    frames_THW = clip_THW[: max(1, round(STRIP_S * fps)) : step]
    return Mouth(jpeg_uri(np.hstack(list(frames_THW))), fps / step)
