"""Cuts the mouth clip out of the pictures by a known track. The bytes are the same each time.

Shapes: T output frames, H = W = size_px.
"""

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.errors import ClipRejected
from shards.schema import Reason
from stages.mouths.mouth_pictures import MouthPatches
from stages.settings import CropParams
from stages.videos.media import Media, source_of
from stages.videos.picture import Window
from stages.videos.video import decode

EDGE_PX = 2
"""Bilinear sampling reads one pixel beyond its position; one more for rounding."""


def render_from_track(
    media: Media,
    transform_T23: NDArray[np.float32] | None,
    frame_index_T: NDArray[np.int32],
    params: CropParams,
    patches: MouthPatches | None = None,
) -> NDArray[np.uint8]:
    """Returns the clip (T, size_px, size_px) that a known track cuts from the video, uint8.

    Frames in `patches` are cut from there. If some are missing, the video is decoded (again), with the same result.
    Without a transform the whole picture is the mouth. An oblong picture keeps its aspect ratio, and its border is
    repeated above and below, or at the sides. Raises ClipRejected as `video.decode` does, and `truncated` if the file
    ends before the track.
    """
    clip_THW = np.empty((len(frame_index_T), params.size_px, params.size_px), np.uint8)
    shrink = 1 if transform_T23 is None else _shrink(transform_T23)

    def window_of(k: int, picture_size: tuple[int, int]) -> Window:
        if transform_T23 is None:
            return Window(0, 0, *picture_size)
        return _window(transform_T23[k], shrink, params.size_px, picture_size)

    def cut(k: int, gray_HW: NDArray[np.uint8], window: Window) -> NDArray[np.uint8]:
        if transform_T23 is None:
            return _whole(gray_HW, params.size_px)
        return _mouth(gray_HW, window, transform_T23[k], shrink, params.size_px)

    missing = []
    for k, frame_index in enumerate(frame_index_T.tolist()):
        gray_HW = None
        if patches is not None and patches.picture_size is not None:
            window = window_of(k, patches.picture_size)
            gray_HW = patches.find(frame_index, window)
        if gray_HW is None:
            missing.append(k)
        else:
            clip_THW[k] = cut(k, gray_HW, window)
    missing.reverse()
    for frame in decode(media, params) if missing else ():
        while missing and frame_index_T[missing[-1]] == frame.index:
            k = missing.pop()
            window = window_of(k, frame.size)
            clip_THW[k] = cut(k, frame.gray(window), window)
        if not missing:
            break  # no output frame shows the last pictures
    if missing:
        raise ClipRejected(
            Reason.TRUNCATED,
            f"{source_of(media).name} ends before frame {frame_index_T[missing[-1]]} of its track; get the file again",
        )
    return clip_THW


def _shrink(transform_T23: NDArray[np.float32]) -> int:
    """Returns the whole factor by which pictures are shrunk before the warp: one per clip, so that it cannot flicker.

    Bilinear sampling reads four pixels. Below half scale it would skip pixels and flicker.
    """
    scales = np.hypot(transform_T23[:, 0, 0], transform_T23[:, 1, 0])
    return max(1, int(1 / np.median(scales)))


def _window(
    transform_23: NDArray[np.float32], shrink: int, size_px: int, picture_size: tuple[int, int]
) -> Window:
    """Returns the pixels that the warp reads, on a grid of `shrink`-pixel cells that starts at the picture's corner."""
    (a, minus_b, t_x), (b, _, t_y) = transform_23.astype(np.float64).tolist()
    assert math.isclose(b, -minus_b, rel_tol=1e-4, abs_tol=1e-6), "a similarity"
    corners = [
        (x + 1j * y - (t_x + 1j * t_y)) / (a + 1j * b) for x in (0, size_px - 1) for y in (0, size_px - 1)
    ]
    edges = []
    for sides, length in (
        ([z.real for z in corners], picture_size[0]),
        ([z.imag for z in corners], picture_size[1]),
    ):
        cells = max(1, length // shrink)
        first = min(max(math.floor(min(sides) / shrink) - EDGE_PX, 0), cells - 1)
        last = min(max(math.ceil(max(sides) / shrink) + EDGE_PX, first + 1), cells)
        edges.append((first * shrink, min(last * shrink, length)))
    (left, right), (top, bottom) = edges
    return Window(left, top, right, bottom)


def _mouth(
    gray_HW: NDArray[np.uint8], window: Window, transform_23: NDArray[np.float32], shrink: int, size_px: int
) -> NDArray[np.uint8]:
    height, width = (max(1, side // shrink) for side in gray_HW.shape)
    if shrink > 1:
        gray_HW = np.asarray(cv2.resize(gray_HW, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    # the middle of a cell of factor f lies at f i + (f - 1) / 2 of the picture's pixels
    to_picture_33 = np.diag([shrink, shrink, 1.0])
    to_picture_33[:2, 2] = (shrink - 1) / 2 + np.array([window.left, window.top])
    matrix = transform_23.astype(np.float64) @ to_picture_33
    return np.asarray(
        cv2.warpAffine(
            gray_HW, matrix, (size_px, size_px), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        ),
        np.uint8,
    )


def _whole(gray_HW: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """Returns the picture in the middle of a square, scaled so that its longer side is `size_px`."""
    height, width = gray_HW.shape
    longer_px = max(width, height)
    if longer_px != size_px:
        size = (max(1, round(width * size_px / longer_px)), max(1, round(height * size_px / longer_px)))
        interpolation = cv2.INTER_AREA if longer_px > size_px else cv2.INTER_LINEAR
        gray_HW = np.asarray(cv2.resize(gray_HW, size, interpolation=interpolation), np.uint8)
    above, left = ((size_px - side) // 2 for side in gray_HW.shape)
    below, right = size_px - gray_HW.shape[0] - above, size_px - gray_HW.shape[1] - left
    if not (above or below or left or right):
        return gray_HW
    return np.asarray(cv2.copyMakeBorder(gray_HW, above, below, left, right, cv2.BORDER_REPLICATE), np.uint8)
