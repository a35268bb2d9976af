"""Face landmarks of every picture of a video (mediapipe FaceLandmarker), and whose face the clip is about.

Shapes: F source frames, M detections (one face in one frame), K kept landmarks, N detections of one face.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shards.errors import MachineError
from stages.settings import CropParams
from stages.video import decode

MODEL_FILE = Path(__file__).parent / "assets" / "face_landmarker.task"
MODEL_SHA256 = "64184e229b263107bc2b804c6625db1341ff2bb731874b0bcc2fe6544e0bc9ff"
TRACK_VERSION = 1
"""Raise it when the same video would give other landmarks: it is part of `track_key`."""

# Indices into mediapipe's 478-point mesh, sides as in a picture of a face that is not mirrored (the person's
# right eye stands left). Chosen to be the points of the 68-point scheme that the canonical face was made from.
RIGHT_EYE_CORNERS = (33, 133)  # points 36, 39: outer, inner. Corners, unlike lids, do not blink
LEFT_EYE_CORNERS = (362, 263)  # points 42, 45: inner, outer
NOSE_BASE = (98, 97, 2, 326, 327)  # points 31 to 35: under the nostrils, 2 being the foot of the septum
MOUTH_CORNERS = (61, 291)  # points 48, 54
OUTER_LIPS = (61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181)  # points 48 to 59
INNER_LIPS = (78, 81, 13, 311, 308, 402, 14, 178)  # points 60 to 67; 13 and 14 face each other across the gap
KEPT = tuple(dict.fromkeys((*RIGHT_EYE_CORNERS, *LEFT_EYE_CORNERS, *NOSE_BASE, *OUTER_LIPS, *INNER_LIPS)))
"""The landmarks that are stored: what geometry needs, a fifteenth of the mesh."""

MIN_OVERLAP = 0.1
"""Intersection over union by which a face is the one of the frame before: heads move by less than their size."""


@dataclass(frozen=True)
class Landmarks:
    """Every face in every landmarked frame of one video, as cached under `track_key`."""

    width: int
    height: int
    times_s_F: NDArray[np.float64]
    landmarked: NDArray[np.int32]
    """Source frames that were searched for faces."""
    frame_M: NDArray[np.int32]
    points_MK3: NDArray[np.float32]
    """x and y in source pixels, z (towards the back of the head) in the same unit."""
    box_M4: NDArray[np.float32]
    """Left, top, right, bottom of the whole mesh, source pixels."""

    @property
    def num_faces(self) -> int:
        """The most faces seen in one frame."""
        return int(np.bincount(self.frame_M).max()) if len(self.frame_M) else 0


@dataclass(frozen=True)
class FaceTrack:
    """One face through the video."""

    frame_N: NDArray[np.int32]
    points_NK3: NDArray[np.float32]


def landmark_video(path: Path, params: CropParams) -> Landmarks:
    """Landmarks of up to `max_faces` faces in every picture of `path`.

    Raises ClipRejected as `video.decode` does, MachineError where mediapipe cannot run.
    """
    times: list[float] = []
    frames: list[int] = []
    points: list[NDArray[np.float32]] = []
    boxes: list[NDArray[np.float32]] = []
    height = width = 0
    last_ms = -1
    with _landmarker(params.max_faces) as find:
        for frame in decode(path, params):
            rgb_HW3 = frame.rgb_HW3()
            height, width = rgb_HW3.shape[:2]
            # VIDEO mode wants whole milliseconds that rise, also at more than 1,000 pictures a second
            last_ms = max(last_ms + 1, round(frame.time_s * 1000))
            times.append(frame.time_s)
            for mesh in find(rgb_HW3, last_ms):
                frames.append(frame.index)
                points.append(mesh[list(KEPT)])
                boxes.append(np.concatenate([mesh[:, :2].min(axis=0), mesh[:, :2].max(axis=0)]))
    return Landmarks(
        width,
        height,
        np.array(times, np.float64),
        np.arange(len(times), dtype=np.int32),
        np.array(frames, np.int32),
        np.array(points, np.float32).reshape(-1, len(KEPT), 3),
        np.array(boxes, np.float32).reshape(-1, 4),
    )


def main_face(landmarks: Landmarks, params: CropParams) -> FaceTrack | None:
    """The face the clip is about: the one with the most size summed over the frames it is in; None without one.

    Faces are followed by the overlap of their boxes and lost after `max_gap_s`.
    """
    tracks = _follow(landmarks, params.max_gap_s)
    if not tracks:
        return None
    sizes_M = np.sqrt(np.prod(landmarks.box_M4[:, 2:] - landmarks.box_M4[:, :2], axis=1, dtype=np.float64))
    # the sum of lengths weighs presence above mere closeness; max() keeps the first among equals
    chosen = max(tracks, key=lambda members: float(sizes_M[members].sum()))
    return FaceTrack(landmarks.frame_M[chosen], landmarks.points_MK3[chosen])


def _follow(landmarks: Landmarks, max_gap_s: float) -> list[list[int]]:
    """Detections of each face, in the order of frames: in each frame the best overlaps are joined first."""
    tracks: list[list[int]] = []
    times = landmarks.times_s_F
    for frame in np.unique(landmarks.frame_M):
        found = np.flatnonzero(landmarks.frame_M == frame).tolist()
        alive = [t for t in tracks if times[frame] - times[landmarks.frame_M[t[-1]]] <= max_gap_s + 1e-6]
        pairs = sorted(
            (
                (_overlap(landmarks.box_M4[track[-1]], landmarks.box_M4[m]), -i, -m)
                for i, track in enumerate(alive)
                for m in found
            ),
            reverse=True,
        )
        taken: set[int] = set()
        for overlap, i, m in pairs:
            if overlap < MIN_OVERLAP:
                break
            track = alive[-i]
            if -m not in found or -i in taken:
                continue
            track.append(-m)
            taken.add(-i)
            found.remove(-m)
        tracks.extend([m] for m in found)
    return tracks


def _overlap(box: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    sides = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    if (sides <= 0).any():
        return 0.0
    shared = float(np.prod(sides))
    return shared / (float(np.prod(box[2:] - box[:2])) + float(np.prod(other[2:] - other[:2])) - shared)


@contextmanager
def _landmarker(max_faces: int) -> Iterator[Any]:
    """A function (rgb_HW3, time in ms) -> list of meshes, 478x3 float32 in pixels: one for each video."""
    # read by the native libraries when they are loaded; a person who wants their chatter sets them
    for name, value in (("GLOG_minloglevel", "3"), ("TF_CPP_MIN_LOG_LEVEL", "3")):
        os.environ.setdefault(name, value)
    model = MODEL_FILE.read_bytes()
    if hashlib.sha256(model).hexdigest() != MODEL_SHA256:
        raise MachineError(
            f"{MODEL_FILE} is not the model this program was made with; install the package again"
        )
    try:
        import mediapipe
        from mediapipe.tasks.python import BaseOptions, vision

        landmarker = vision.FaceLandmarker.create_from_options(
            vision.FaceLandmarkerOptions(
                base_options=BaseOptions(model_asset_buffer=model, delegate=BaseOptions.Delegate.CPU),
                running_mode=vision.RunningMode.VIDEO,
                num_faces=max_faces,
            )
        )
    except (ImportError, OSError) as error:
        raise MachineError(
            f"mediapipe cannot load a library of the system ({error}); `pipeline doctor` names the package"
        ) from error

    def find(rgb_HW3: NDArray[np.uint8], time_ms: int) -> list[NDArray[np.float32]]:
        height, width = rgb_HW3.shape[:2]
        image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=rgb_HW3)
        faces = landmarker.detect_for_video(image, time_ms).face_landmarks
        scale = np.array([width, height, width], np.float64)
        return [(np.array([(p.x, p.y, p.z) for p in face]) * scale).astype(np.float32) for face in faces]

    try:
        yield find
    finally:
        # left to the interpreter's exit, its __del__ prints an ignored exception
        landmarker.close()
