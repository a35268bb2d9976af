"""The faces of a video, frame by frame, as they are cached, and the landmarks that are kept.

Shapes: F source frames, M faces in frames (one face in one frame), K kept landmarks, C cuts,
N frames of one face.

The constants below name the kept landmarks by their index in mediapipe's mesh of 478. They correspond to the points of
the 68-point scheme of the canonical face. Pictures are not mirrored: the person's right eye is on the left.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from shards.enums import Transfer
from stages.mouths.face_search import overlap

TRACK_VERSION = 6
"""Raise it when the same video and parameters would give different landmarks: it is part of `track_key`."""

MIN_OVERLAP = 0.1
"""Least intersection over union of one face in neighbouring frames: heads move by less than their size."""

RIGHT_EYE_CORNERS = (33, 133)  # points 36, 39: outer, inner. Corners, unlike eyelids, do not blink
LEFT_EYE_CORNERS = (362, 263)  # points 42, 45: inner, outer
NOSE_BASE = (98, 97, 2, 326, 327)  # points 31 to 35: under the nostrils; 2 is the foot of the septum
MOUTH_CORNERS = (61, 291)  # points 48, 54
OUTER_LIPS = (61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181)  # points 48 to 59
INNER_LIPS = (78, 81, 13, 311, 308, 402, 14, 178)  # points 60 to 67; 13 and 14 face each other across the gap
LIP_GAP = (13, 14)
LIPS_TOP_AND_BOTTOM = (0, 17)
KEPT = tuple(dict.fromkeys((*RIGHT_EYE_CORNERS, *LEFT_EYE_CORNERS, *NOSE_BASE, *OUTER_LIPS, *INNER_LIPS)))
"""The landmarks that are stored: those that geometry needs, a fifteenth of the mesh."""

KEPT_INDEX = {mesh_index: kept_index for kept_index, mesh_index in enumerate(KEPT)}
"""Index of a landmark of the mesh among the kept landmarks."""


@dataclass(frozen=True)
class Landmarks:
    """Every face in every frame of one video, as cached under `track_key`."""

    width: int
    height: int
    times_s_F: NDArray[np.float64]
    landmarked: NDArray[np.int32]
    """Source frames that were searched for faces. In the other frames, faces were tracked."""
    frame_M: NDArray[np.int32]
    points_MK3: NDArray[np.float32]
    """x and y in source pixels, z (towards the back of the head) in the same unit."""
    box_M4: NDArray[np.float32]
    """Left, top, right, bottom of the whole mesh, source pixels."""
    cut_frame_C: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    """The first source frame after each cut to another shot, in rising order."""
    cut_box_C4: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    """The part of the picture, around a face, in which the cut was found."""
    transfer: Transfer = Transfer.SDR

    @property
    def num_faces(self) -> int:
        """The largest number of faces in one frame."""
        return int(np.bincount(self.frame_M).max()) if len(self.frame_M) else 0


@dataclass(frozen=True)
class FaceTrack:
    """One face through the video, in the frames that show its whole mouth."""

    frame_N: NDArray[np.int32]
    points_NK3: NDArray[np.float32]
    cut_frames: list[int] = field(default_factory=list)
    """First frame after each cut at which this track begins or ends."""
    outside_frames: list[int] = field(default_factory=list)
    """Frames left out because the edge of the picture cuts off the mouth."""
    implausible_frames: list[int] = field(default_factory=list)
    """Frames left out because their mesh is not plausible: it fits neither a face nor the neighbouring frames."""
    sound_agreement: float | None = None
    """Correlation of the lips with the sound, if it chose this one of several faces (stages/mouths/voice.py)."""


def match_faces(boxes_A: Sequence[list[float]], boxes_B: Sequence[list[float]]) -> list[tuple[int, int]]:
    """Returns the pairs of the same face in two frames, by their boxes: best overlaps first, each face once."""
    pairs = sorted(
        ((overlap(a, b), -i, -j) for i, a in enumerate(boxes_A) for j, b in enumerate(boxes_B)),
        reverse=True,
    )
    joined: list[tuple[int, int]] = []
    for shared, i, j in pairs:
        if shared < MIN_OVERLAP:
            break
        if -i not in {a for a, _ in joined} and -j not in {b for _, b in joined}:
            joined.append((-i, -j))
    return joined
