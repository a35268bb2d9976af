"""Computes the sparse optical flow of a face between two landmarked frames (Lucas and Kanade 1981, in pyramids).

Lips are tracked point by point. The head is tracked by points that neither speak nor blink, as a rigid body in the
plane.

Shapes: F frames, K kept landmarks, A anchors of the head, H kept points of the head, L of the lips.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.mouths.geometry import Doubles, stable_points
from stages.mouths.landmarks import INNER_LIPS, KEPT, KEPT_INDEX, OUTER_LIPS
from stages.videos.picture import SourceFrame, Window

FLOW_EYES_PX = 50.0
"""Pictures are shrunk for the flow, by a whole factor, until the eyes are about this far apart."""
HEAD_WINDOW_PX = 25
LIP_WINDOW_PX = 15
"""Sides of the squares that the flow compares: eyes and nose move together, lips do not."""
FLOW_LEVELS = 1
FLOW_MARGIN = 0.25
"""Margin around the faces' boxes that is cut out for the flow, as a share of their size."""

MIN_FOUND = 0.5
"""A step that finds a smaller share of the points ends the path."""

FAR_OFF = 2.5
"""Anchors with an error above this many times the median are left out."""

LIPS = [KEPT_INDEX[index] for index in dict.fromkeys(OUTER_LIPS + INNER_LIPS)]
HEAD = [index for index in range(len(KEPT)) if index not in LIPS]
"""Indices among the kept landmarks."""

ANCHORS = (143, 372, 105, 334, 168, 6, 197, 195, 4, 98, 2, 327)
"""Landmarks that move only with the skull: temples, brows, ridge, tip and base of the nose. No eyelids: they blink."""


@dataclass(frozen=True)
class Face:
    """A face in one frame, in upright source pixels."""

    points_K3: Doubles
    box_4: Doubles
    anchors_A2: Doubles


class Flow:
    """Optical flow within one stretch, on small gray pictures of the region around these faces."""

    def __init__(self, frames: Sequence[SourceFrame], faces: Sequence[Face]) -> None:
        self.frames = frames
        self._pictures: dict[int, NDArray[np.uint8]] = {}
        self._chains: dict[tuple[int, int], _Chain] = {}
        boxes = np.array([face.box_4 for face in faces])
        margin = FLOW_MARGIN * float((boxes[:, 2:] - boxes[:, :2]).max())
        width, height = frames[0].size
        (left, top), (right, bottom) = boxes[:, :2].min(axis=0) - margin, boxes[:, 2:].max(axis=0) + margin
        left, top = (min(max(0, int(edge)), side - 1) for edge, side in ((left, width), (top, height)))
        self._window = Window(
            left, top, min(max(int(right), left + 1), width), min(max(int(bottom), top + 1), height)
        )
        eyes_N22 = stable_points(np.array([face.points_K3 for face in faces]))[:, :2]
        between_px = np.linalg.norm(eyes_N22[:, 1] - eyes_N22[:, 0], axis=1).max()
        self._shrink = max(1, round(float(between_px) / FLOW_EYES_PX))

    def path(self, begin: int, end: int, face_number: int, first: Face) -> Doubles | None:
        """Returns the kept points (F, K, 2) of a face from frame `begin` of the stretch, a landmarked one, to `end`.

        `first` is the face of that number in frame `begin`. Returns None if the flow lost more than half of the points
        between: something covered the face, or the light went out.
        """
        start = self._to_small(np.concatenate([first.anchors_A2, first.points_K3[LIPS, :2]]))
        chain = self._chains.setdefault((begin, face_number), _Chain([start]))
        while len(chain.points) <= end - begin and not chain.is_lost:
            at = begin + len(chain.points) - 1
            moved_X2, found_X = _next_points(self._picture(at), self._picture(at + 1), chain.points[-1])
            chain.is_lost = bool(found_X.mean() < MIN_FOUND)
            if not chain.is_lost:
                chain.points.append(moved_X2)
        if len(chain.points) <= end - begin:
            return None
        flow_FX2 = self._from_small(np.array(chain.points[: end - begin + 1], np.float64))
        path_FK2 = np.empty((end - begin + 1, len(KEPT), 2))
        path_FK2[:, LIPS] = flow_FX2[:, len(ANCHORS) :]
        path_FK2[:, HEAD] = _moved_rigidly(first.points_K3[HEAD, :2], flow_FX2[:, : len(ANCHORS)])
        return path_FK2

    def _picture(self, number: int) -> NDArray[np.uint8]:
        if number not in self._pictures:
            gray_HW = self.frames[number].luma(self._window)
            if self._shrink > 1:
                width, height = (max(1, side // self._shrink) for side in gray_HW.shape[::-1])
                whole = gray_HW[: height * self._shrink, : width * self._shrink]
                gray_HW = np.asarray(
                    cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8
                )
            self._pictures[number] = gray_HW
        return self._pictures[number]

    def _to_small(self, points_K2: Doubles) -> NDArray[np.float32]:
        # the middle of a cell of factor f lies at f i + (f - 1) / 2 of the picture's pixels
        origin = np.array([self._window.left, self._window.top]) + (self._shrink - 1) / 2
        return ((points_K2 - origin) / self._shrink).astype(np.float32)

    def _from_small(self, points_FK2: Doubles) -> Doubles:
        return points_FK2 * self._shrink + (self._window.left, self._window.top) + (self._shrink - 1) / 2


@dataclass
class _Chain:
    """Points (X, 2) of one face in the small pictures, from frame to frame, as far as requested."""

    points: list[NDArray[np.float32]]
    is_lost: bool = False
    """The flow lost the points after the last frame."""


def _next_points(
    picture: NDArray[np.uint8], following: NDArray[np.uint8], points_X2: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Returns anchors of the head and points of the lips one picture later, and which of them were found."""
    head, lips = points_X2[: len(ANCHORS)], points_X2[len(ANCHORS) :]
    moved = [
        _moved(picture, following, part_X2, window_px)
        for part_X2, window_px in ((head, HEAD_WINDOW_PX), (lips, LIP_WINDOW_PX))
    ]
    return np.concatenate([points for points, _ in moved]), np.concatenate([found for _, found in moved])


def _moved(
    picture: NDArray[np.uint8],
    following: NDArray[np.uint8],
    points_X2: NDArray[np.float32],
    window_px: int,
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    # pyramids and gradients are computed on the whole input, so pass only the part that the points can reach
    reach_px = 2 * window_px
    height, width = picture.shape
    left, top = (max(0, int(low) - reach_px) for low in points_X2.min(axis=0))
    right, bottom = (int(high) + reach_px for high in points_X2.max(axis=0))
    left, top = min(left, width - 1), min(top, height - 1)
    part = np.s_[top : max(bottom, top + 1), left : max(right, left + 1)]
    origin = np.array([left, top], np.float32)
    moved_X2, found_X1, _ = cv2.calcOpticalFlowPyrLK(
        picture[part],
        following[part],
        points_X2 - origin,
        None,
        winSize=(window_px, window_px),
        maxLevel=FLOW_LEVELS,
        criteria=(cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 10, 0.03),
    )
    return np.asarray(moved_X2 + origin, np.float32), found_X1[:, 0].astype(bool)


def _moved_rigidly(points_H2: Doubles, anchors_FA2: Doubles) -> Doubles:
    """Returns the points of the first frame (F, H, 2), moved by the similarities that the anchors went through.

    Fits by least squares, then once more without the anchors that lie far off.
    """
    anchors_FA = anchors_FA2[..., 0] + 1j * anchors_FA2[..., 1]
    points_H = points_H2[:, 0] + 1j * points_H2[:, 1]
    weight_FA = np.ones(anchors_FA.shape)
    for _ in range(2):
        weight_FA = weight_FA / weight_FA.sum(axis=1, keepdims=True)
        start_F = weight_FA @ anchors_FA[0]
        now_F = (weight_FA * anchors_FA).sum(axis=1)
        start_FA = anchors_FA[0] - start_F[:, None]
        now_FA = anchors_FA - now_F[:, None]
        spread_F = (weight_FA * np.abs(start_FA) ** 2).sum(axis=1)
        factor_F = (weight_FA * now_FA * start_FA.conj()).sum(axis=1) / np.maximum(spread_F, 1e-6)
        off_FA = np.abs(now_FA - factor_F[:, None] * start_FA)
        weight_FA = (off_FA <= FAR_OFF * np.median(off_FA, axis=1, keepdims=True) + 1e-6).astype(np.float64)
    moved_FH = factor_F[:, None] * (points_H - start_F[:, None]) + now_F[:, None]
    return np.stack([moved_FH.real, moved_FH.imag], axis=-1)
