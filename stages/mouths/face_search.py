"""Searches a picture for faces: the whole picture, then around known faces, then in tiles.

mediapipe's detector gets 128x128 pixels. It finds faces of at least DETECTABLE of its square's side: in a whole 1080p
picture, a face 290 px wide. The detector finds a smaller face in a smaller square.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stages.videos.picture import SourceFrame

DETECTABLE = 0.15
"""Smallest face that the detector always finds, as a share of the square's side. Measured on six people at 20 places
each: it found all faces of 0.15 to 0.75, 97 % of faces of 0.12 and a quarter of faces of 0.10."""

FACE_WIDTH = 2.6
"""Smallest width of the detector's box in mouth widths: 2.6 for a wide smile, 3.4 for a mouth at rest."""

SMALLEST_MOUTH_PX = 8.0
"""Faces with smaller mouths are not searched: their mesh is noise."""

TILE_STEP = 0.7
"""Distance between neighbouring tiles as a share of their side. Their overlap, 0.3, holds every face that the next
larger tiles may miss."""

AROUND_FACE = 3.5
"""Side of the square searched around a known face, in sides of the mesh's box; a face moves by less in STRETCH_S."""

SAME_FACE = 0.3
"""Two boxes with this intersection over union, or more, show the same face."""


@dataclass(frozen=True, slots=True)
class Square:
    """The part of the picture that the detector gets, in source pixels; it may reach outside the picture."""

    left: float
    top: float
    side_px: float


DetectFaces = Callable[..., list[NDArray[np.float32]]]
"""detect(frame, square=None) returns the meshes (478, 3) of the faces in the square, highest score first. Without a
square it searches the whole picture."""


def whole_picture(frame: SourceFrame) -> Square:
    """Returns the centred square around the whole picture; the detector gets black outside the picture."""
    width, height = frame.size
    side_px = max(width, height)
    return Square((width - side_px) / 2, (height - side_px) / 2, side_px)


def find_faces(
    detect: DetectFaces,
    frame: SourceFrame,
    known_boxes: Sequence[NDArray[np.float64]],
    smallest_mouth_px: float | None,
    max_faces: int,
    is_usable: Callable[[NDArray[np.float32]], bool] = lambda mesh: True,
) -> list[NDArray[np.float32]]:
    """Returns the meshes (478, 3) of up to `max_faces` faces, in source pixels.

    Searches the whole picture, then around each of `known_boxes` (left, top, right, bottom of a mesh in a neighbouring
    frame) that was not found there. If no mesh so far `is_usable`, searches ever smaller tiles, down to faces with a
    mouth of `smallest_mouth_px` (None: no tiles).
    """
    meshes = detect(frame)
    for box_4 in known_boxes:
        if all(overlap(box_4, box_of(mesh)) < SAME_FACE for mesh in meshes):
            _add_new(meshes, detect(frame, _around(box_4)))
    if smallest_mouth_px is not None and not any(map(is_usable, meshes)):
        for tiles in _tile_levels(frame.size, smallest_mouth_px):
            for tile in tiles:
                # a face cut by the tile's edge has a poor mesh: detect again with the face in the middle
                for mesh in detect(frame, tile):
                    _add_new(meshes, detect(frame, _around(box_of(mesh))))
            if any(map(is_usable, meshes)):
                break
    return sorted(meshes, key=_negative_size)[:max_faces] if len(meshes) > max_faces else meshes


def box_of(mesh: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns left, top, right, bottom of a mesh (478, 3), source pixels."""
    return np.concatenate([mesh[:, :2].min(axis=0), mesh[:, :2].max(axis=0)]).astype(np.float64)


def overlap(box_4: Iterable[float], other_4: Iterable[float]) -> float:
    """Returns the intersection over union of two boxes (left, top, right, bottom)."""
    left, top, right, bottom = box_4
    other_left, other_top, other_right, other_bottom = other_4
    across = min(right, other_right) - max(left, other_left)
    down = min(bottom, other_bottom) - max(top, other_top)
    if across <= 0 or down <= 0:
        return 0.0
    areas = (right - left) * (bottom - top) + (other_right - other_left) * (other_bottom - other_top)
    return float(across * down / (areas - across * down))


def _add_new(meshes: list[NDArray[np.float32]], found: Sequence[NDArray[np.float32]]) -> None:
    for mesh in found:
        if all(overlap(box_of(mesh), box_of(other)) < SAME_FACE for other in meshes):
            meshes.append(mesh)


def _around(box_4: NDArray[np.float64]) -> Square:
    side_px = AROUND_FACE * float((box_4[2:] - box_4[:2]).max())
    left, top = ((box_4[:2] + box_4[2:] - side_px) / 2).tolist()
    return Square(left, top, side_px)


def _tile_levels(picture_size: tuple[int, int], smallest_mouth_px: float) -> Iterator[list[Square]]:
    """Yields the tiles of each level, each half as large as the level before; the last finds the smallest faces."""
    smallest_px = FACE_WIDTH * max(smallest_mouth_px, SMALLEST_MOUTH_PX) / DETECTABLE
    num_levels = max(0, int(np.ceil(np.log2(max(picture_size) / smallest_px))))
    for level in reversed(range(num_levels)):
        side_px = smallest_px * 2**level
        starts_x, starts_y = (_starts(length, side_px) for length in picture_size)
        yield [Square(left, top, side_px) for top in starts_y for left in starts_x]


def _starts(length_px: int, side_px: float) -> list[float]:
    """Returns where tiles begin along one side of the picture: evenly spaced, the first and last at its ends."""
    if length_px <= side_px:
        return [(length_px - side_px) / 2]
    num_tiles = int(np.ceil((length_px - side_px) / (TILE_STEP * side_px))) + 1
    return np.linspace(0, length_px - side_px, num_tiles).tolist()


def _negative_size(mesh: NDArray[np.float32]) -> float:
    box_4 = box_of(mesh)
    return -float(np.prod(box_4[2:] - box_4[:2]))
