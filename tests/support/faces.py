"""Synthetic landmarks with known geometry: the canonical face, placed by similarities."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from stages.mouths.geometry import CANONICAL_42
from stages.mouths.landmarks import (
    INNER_LIPS,
    KEPT,
    LEFT_EYE_CORNERS,
    MOUTH_CORNERS,
    NOSE_BASE,
    OUTER_LIPS,
    RIGHT_EYE_CORNERS,
    Landmarks,
)
from stages.mouths.mouth_pictures import MouthPatches
from stages.settings import CropParams
from stages.videos.media import Media

LOWER_LIP = (405, 314, 17, 84, 181, 402, 14, 178)
HALF_MOUTH_PX = 22.51  # corners at (107.17, 157.20) and (152.19, 156.99) on the canonical face


def face_points(
    placements_N23: np.ndarray, stable_42: np.ndarray = CANONICAL_42, opening_px: np.ndarray | float = 0.0
) -> np.ndarray:
    """Returns kept landmarks (N, K, 3) of the canonical face in each placement; the lower lip sinks by `opening_px`."""
    right_eye, left_eye, nose, mouth = stable_42
    half_eye, half_mouth = np.array([12.0, 0.0]), np.array([HALF_MOUTH_PX, 0.0])
    points = {index: np.array(mouth) for index in (*OUTER_LIPS, *INNER_LIPS)}
    points |= {index: np.array(nose) for index in NOSE_BASE}
    for corners, middle in ((RIGHT_EYE_CORNERS, right_eye), (LEFT_EYE_CORNERS, left_eye)):
        points |= {corners[0]: middle - half_eye, corners[1]: middle + half_eye}
    for corner, side in zip(MOUTH_CORNERS, (-1, 1), strict=True):
        points[corner] = mouth + side * half_mouth
    face_K2 = np.array([points[index] for index in KEPT], np.float64)
    faces_NK2 = np.repeat(face_K2[None], len(placements_N23), axis=0)
    lower = [KEPT.index(index) for index in LOWER_LIP]
    faces_NK2[:, lower, 1] += np.broadcast_to(opening_px, len(faces_NK2))[:, None]
    placed = faces_NK2 @ placements_N23[:, :, :2].transpose(0, 2, 1) + placements_N23[:, None, :, 2]
    return np.concatenate([placed, np.zeros((*placed.shape[:2], 1))], axis=2)


def landmarks_of(
    *faces_T23: np.ndarray,
    fps: float = 25.0,
    size: tuple[int, int] = (10_000, 10_000),
    opening_px: np.ndarray | float = 0.0,
    unseen: Iterable[int] = (),
    unseen_first: Iterable[int] = (),
    shuffled: bool = False,
) -> Landmarks:
    """Returns the landmarks of faces placed like this in each frame. `unseen` frames have no face."""
    num_frames = len(faces_T23[0])
    frames, points = [], []
    order = np.random.default_rng(1)
    all_points = [face_points(face, opening_px=opening_px).astype(np.float32) for face in faces_T23]
    for frame in range(num_frames):
        found = [(i, face[frame]) for i, face in enumerate(all_points)]
        if shuffled:
            order.shuffle(found)
        for i, face in found:
            if frame not in set(unseen) and not (i == 0 and frame in set(unseen_first)):
                frames.append(frame)
                points.append(face)
    points_MK3 = np.array(points, np.float32).reshape(-1, len(KEPT), 3)
    flat = points_MK3[:, :, :2]
    return Landmarks(
        *size,
        np.arange(num_frames) / fps,
        np.arange(num_frames, dtype=np.int32),
        np.array(frames, np.int32),
        points_MK3,
        np.concatenate([flat.min(axis=1), flat.max(axis=1)], axis=1),
    )


def synthetic_face(
    scale: float, num_frames: int = 20, x: float = 0.0, y: float = 0.0, **options: Any
) -> Callable[[Media, CropParams, MouthPatches], Landmarks]:
    """Returns a landmarker that finds, in any video, the canonical face scaled by `scale` and moved by x, y."""
    landmarks = landmarks_of(np.array([[[scale, 0, x], [0, scale, y]]] * num_frames), **options)
    return lambda media, params, patches: landmarks
