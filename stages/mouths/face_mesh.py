"""Runs mediapipe's two face models in LiteRT, without its graph: no telemetry, no OpenGL, pictures in any order.

The steps of the graph between the models are done here the same way (mediapipe 1.2: face_detector_graph,
face_landmarks_detector_graph and their calculators): the meshes agree with those of the graph's IMAGE mode.

Shapes: A anchors of the detector, D detections, S side of a network's input.
"""

import io
import zipfile
from dataclasses import dataclass

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from numpy.typing import NDArray

from stages.mouths.face_search import Square, whole_picture
from stages.videos.picture import SourceFrame

Doubles = NDArray[np.float64]

DETECTOR_PX = 128
MESH_PX = 256
NUM_LANDMARKS = 478

MIN_SCORE = 0.5
"""Least score of a detection, and of the presence of a face in its region: the graph's defaults."""
SAME_FACE_OVERLAP = 0.3
"""Detections that overlap more are one face. They are averaged."""
REGION_GROWTH = 1.5
"""Side of the square in which the mesh is fitted, in longer sides of the detection."""
_RIGHT_EYE, _LEFT_EYE = 0, 1
"""Key points of the detector that give the head's roll."""


class FaceMesh:
    """Detector and mesh model of a mediapipe face landmark bundle, on one thread."""

    def __init__(self, bundle: bytes) -> None:
        with zipfile.ZipFile(io.BytesIO(bundle)) as models:
            self._detector = _Model(models.read("face_detector.tflite"))
            self._mesh = _Model(models.read("face_landmarks_detector.tflite"))
        self._anchors_A2 = _anchors()

    def __call__(
        self, frame: SourceFrame, square: Square | None = None, *, max_faces: int
    ) -> list[NDArray[np.float32]]:
        """Returns meshes (478, 3) of the largest `max_faces` faces in source pixels, highest score first.

        The detector gets `square`, or the whole picture. Keeps the largest faces, not those with the highest scores as
        mediapipe does: in a crowd the highest scores change from picture to picture.
        """
        regions = self._regions(frame, whole_picture(frame) if square is None else square)
        smallest_px = sorted((region.side_px for region in regions), reverse=True)[:max_faces][-1:]
        kept = [region for region in regions if region.side_px >= smallest_px[0]][:max_faces]
        meshes = [self._mesh_in(frame, region) for region in kept]
        return [mesh for mesh in meshes if mesh is not None]

    def _regions(self, frame: SourceFrame, square: Square) -> list["_Region"]:
        scale = square.side_px / DETECTOR_PX
        shift = np.array([square.left, square.top])
        to_picture_23 = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
        view = frame.rgb_view(to_picture_23, DETECTOR_PX, repeat_border=False, black=-1, white=1)
        raw_A16, score_A1 = self._detector(view)
        logit_A = score_A1[0, :, 0]
        sure = np.flatnonzero(logit_A >= np.log(MIN_SCORE / (1 - MIN_SCORE)))
        if not len(sure):
            return []
        sure = sure[np.argsort(-logit_A[sure], kind="stable")]
        score_D = 1 / (1 + np.exp(-np.minimum(logit_A[sure].astype(np.float64), 100)))
        points_D82 = raw_A16[0, sure].astype(np.float64).reshape(-1, 8, 2) / DETECTOR_PX
        points_D82[:, 0] += self._anchors_A2[sure]
        points_D82[:, 2:] += self._anchors_A2[sure, None]
        centre_D2, half_D2 = points_D82[:, 0], points_D82[:, 1] / 2
        # left top, right bottom, and the six key points, as shares of the square's side
        corners_D82 = np.concatenate(
            [(centre_D2 - half_D2)[:, None], (centre_D2 + half_D2)[:, None], points_D82[:, 2:]], axis=1
        )
        faces = [points * DETECTOR_PX * scale + shift for points in _merged(corners_D82, score_D)]
        return [
            _region(points[0], points[1], points[2 + _RIGHT_EYE], points[2 + _LEFT_EYE]) for points in faces
        ]

    def faces_with_logits(self, frame: SourceFrame) -> list[tuple[NDArray[np.float32], float]]:
        """Returns the mesh in every region of the picture that may be a face, and the logit of the face's presence."""
        regions = self._regions(frame, whole_picture(frame))
        return [self._mesh_and_logit(frame, region) for region in regions]

    def fit_mesh(self, view_SS3: NDArray[np.float32]) -> tuple[Doubles, float]:
        """Returns the mesh (478, 3) in pixels of a view of MESH_PX (RGB, 0 to 1), and the logit of its presence."""
        landmarks, presence, _ = self._mesh(view_SS3)
        return landmarks.reshape(NUM_LANDMARKS, 3).astype(np.float64), float(presence.item())

    def _mesh_in(self, frame: SourceFrame, region: "_Region") -> NDArray[np.float32] | None:
        mesh, logit = self._mesh_and_logit(frame, region)
        return mesh if logit >= np.log(MIN_SCORE / (1 - MIN_SCORE)) else None  # NaN is not a face

    def _mesh_and_logit(self, frame: SourceFrame, region: "_Region") -> tuple[NDArray[np.float32], float]:
        to_picture_23 = region.to_picture_23(MESH_PX)
        points, logit = self.fit_mesh(frame.rgb_view(to_picture_23, MESH_PX, repeat_border=True, white=1))
        mesh = np.empty((NUM_LANDMARKS, 3), np.float32)
        mesh[:, :2] = points[:, :2] @ to_picture_23[:, :2].T + to_picture_23[:, 2]
        mesh[:, 2] = points[:, 2] * (region.side_px / MESH_PX)
        return mesh, logit


@dataclass(frozen=True)
class _Region:
    """A square of the picture, rotated with the head."""

    centre_2: Doubles
    side_px: float
    roll_rad: float

    def to_picture_23(self, view_px: int) -> Doubles:
        """Returns the matrix from pixels of a view of the region to pixels of the picture."""
        scale = self.side_px / view_px
        cos, sin = scale * np.cos(self.roll_rad), scale * np.sin(self.roll_rad)
        turn = np.array([[cos, -sin], [sin, cos]])
        return np.concatenate([turn, (self.centre_2 - turn @ [view_px / 2, view_px / 2])[:, None]], axis=1)


def _region(left_top: Doubles, right_bottom: Doubles, right_eye: Doubles, left_eye: Doubles) -> _Region:
    across = left_eye - right_eye
    return _Region(
        (left_top + right_bottom) / 2,
        REGION_GROWTH * float((right_bottom - left_top).max()),
        float(np.arctan2(across[1], across[0])),
    )


def _merged(corners_D82: Doubles, score_D: Doubles) -> list[Doubles]:
    """Merges overlapping detections to their mean, weighted by score: weighted non-maximum suppression."""
    faces = []
    left = np.arange(len(score_D))
    while len(left):
        overlap = _overlap(corners_D82[left[0], :2], corners_D82[left, :2])
        same = overlap > SAME_FACE_OVERLAP
        same[0] = True  # an empty box does not overlap itself
        weight = score_D[left[same]] / score_D[left[same]].sum()
        faces.append(np.tensordot(weight, corners_D82[left[same]], axes=1))
        left = left[~same]
    return faces


def _overlap(box_22: Doubles, boxes_D22: Doubles) -> Doubles:
    """Returns the intersection over union."""
    sides = np.minimum(box_22[1], boxes_D22[:, 1]) - np.maximum(box_22[0], boxes_D22[:, 0])
    shared = np.prod(np.clip(sides, 0, None), axis=1)
    areas = np.prod(np.clip(boxes_D22[:, 1] - boxes_D22[:, 0], 0, None), axis=1)
    union = areas + np.prod(np.clip(box_22[1] - box_22[0], 0, None)) - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _anchors() -> Doubles:
    """Returns (896, 2): centres of the short-range detector's anchors, as shares of its input's side, row by row.

    A grid of 16x16 with 2 anchors a cell, then one of 8x8 with 6 (strides 8, 16, 16, 16 of SsdAnchorsCalculator).
    """
    grids = []
    for cells, anchors in ((16, 2), (8, 6)):
        y, x = np.mgrid[:cells, :cells]
        centres = np.stack([x, y], axis=-1).reshape(-1, 2)
        grids.append(np.repeat((centres + 0.5) / cells, anchors, axis=0))
    return np.concatenate(grids)


class _Model:
    def __init__(self, content: bytes) -> None:
        self._interpreter = Interpreter(model_content=content, num_threads=1)
        self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._outputs = [output["index"] for output in self._interpreter.get_output_details()]

    def __call__(self, picture_SS3: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        self._interpreter.set_tensor(self._input, picture_SS3[None])
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(output) for output in self._outputs]
