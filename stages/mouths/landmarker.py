"""Finds faces and their landmarks in one picture. The result depends only on that picture.

No state is carried from picture to picture. So pictures may be searched in any order, which adaptive tracking needs,
and earlier searches do not change the landmarks of a picture. Also keeps the messages of the native libraries off the
terminal, where they would bury important messages.
"""

import hashlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from shards.disk import disk_errors_reported
from shards.errors import MachineError
from shards.pipes import refuse_pipe
from shards.safe_text import LogFormatter
from stages.mouths.face_search import DetectFaces, Square, whole_picture
from stages.videos.picture import SourceFrame

if TYPE_CHECKING:
    from mediapipe.tasks.python.vision import FaceLandmarker

    from stages.mouths.face_mesh import FaceMesh

NATIVE_LOG = "native.log"
_is_redirected = False
MODEL_FILE = Path(__file__).parent / "assets" / "face_landmarker.task"
MODEL_SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"

Mesh = NDArray[np.float32]
"""(478, 3): x and y in upright source pixels, z (towards the back of the head) in the same unit."""


def native_stderr_to(file: Path) -> None:
    """Appends to `file`, from now on, all that native code of this process writes to stderr.

    mediapipe and TensorFlow Lite write about four lines per video, and none of their settings stops it. Python's own
    messages, tracebacks included, still go to the terminal, through the new `sys.stderr` that this function installs.
    Code that kept the old `sys.stderr` writes to `file` too. Raises MachineError if `file` cannot be written.
    """
    global _is_redirected
    refuse_pipe(file)
    with disk_errors_reported(f"machine.cache_dir: {file}"):
        file.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    # a worker has no other handler
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(LogFormatter())
    sys.stderr.flush()
    if not _is_redirected:
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        _is_redirected = True
    os.dup2(log, 2)
    os.close(log)


@contextmanager
def face_finder(kind: Literal["litert", "mediapipe"], max_faces: int) -> Iterator[DetectFaces]:
    """Yields the landmarker of that name, for up to `max_faces` faces in one detection.

    LiteRT's landmarker is made once per process, mediapipe's graph each time: it must be closed before the interpreter
    ends. Raises MachineError if a library or the model file is missing or wrong.
    """
    if kind == "litert":
        yield partial(_litert(), max_faces=max_faces)
        return
    with closing(_mediapipe_graph(max_faces)) as graph:
        yield partial(_detect_with, graph)


def model_bundle() -> bytes:
    """Returns mediapipe's face landmark bundle, a zip of models. Raises MachineError if the file was modified."""
    model = MODEL_FILE.read_bytes()
    if hashlib.sha256(model).hexdigest() != MODEL_SHA256:
        raise MachineError(
            f"{MODEL_FILE} was modified, or is from another version; install the package again"
        )
    return model


def face_mesh(alternative: str) -> "FaceMesh":
    """Returns a new detector and mesh model in LiteRT, for one thread only, like LiteRT's interpreters.

    Raises MachineError if LiteRT cannot be loaded; `alternative` is the setting that avoids LiteRT, for the message.
    """
    try:
        from stages.mouths.face_mesh import FaceMesh
    except (ImportError, OSError) as error:
        raise MachineError(
            f"LiteRT cannot be loaded ({error}); install ai-edge-litert, or set {alternative}"
        ) from error
    return FaceMesh(model_bundle())


@cache
def _litert() -> "FaceMesh":
    return face_mesh("crop.landmarker to mediapipe")


def _mediapipe_graph(max_faces: int) -> "FaceLandmarker":
    # the native libraries read these when they are loaded; setdefault: whoever wants their messages sets them
    for name, value in (("GLOG_minloglevel", "3"), ("TF_CPP_MIN_LOG_LEVEL", "3")):
        os.environ.setdefault(name, value)
    model = model_bundle()
    try:
        from mediapipe.tasks.python import BaseOptions, vision

        return vision.FaceLandmarker.create_from_options(
            vision.FaceLandmarkerOptions(
                base_options=BaseOptions(model_asset_buffer=model, delegate=BaseOptions.Delegate.CPU),
                # IMAGE carries nothing from picture to picture; VIDEO refuses to go back
                running_mode=vision.RunningMode.IMAGE,
                num_faces=max_faces,
            )
        )
    except (ImportError, OSError) as error:
        raise MachineError(
            f"mediapipe cannot load a system library ({error}); run `pipeline doctor`, which names the package"
        ) from error


def _detect_with(graph: "FaceLandmarker", frame: SourceFrame, square: Square | None = None) -> list[Mesh]:
    import mediapipe

    rgb_HW3 = frame.rgb_HW3()
    corner_3 = np.zeros(3)
    if square is not None and square != whole_picture(frame):
        left, top = max(0, round(square.left)), max(0, round(square.top))
        right, bottom = round(square.left + square.side_px), round(square.top + square.side_px)
        rgb_HW3 = np.ascontiguousarray(rgb_HW3[top : max(bottom, top + 1), left : max(right, left + 1)])
        corner_3[:2] = left, top
    height, width = rgb_HW3.shape[:2]
    if not height or not width:
        return []
    image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=rgb_HW3)
    scale = np.array([width, height, width], np.float64)
    return [
        (np.array([(p.x, p.y, p.z) for p in face]) * scale + corner_3).astype(np.float32)
        for face in graph.detect(image).face_landmarks
    ]
