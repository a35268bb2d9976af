"""Cuts the mouth clip out of the pictures by a known track, and measures how much the mouth moves in it.

The bytes are the same each time. The motion is that beyond the motion of the mouth's surroundings: almost 0 for a still
picture.

Shapes: T output frames, H = W = size_px; N side of the shrunk crop, P of its pixels, A of them around the mouth.
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
LAG_S = 0.12
"""Time between the compared pictures: the lips move by more than noise, the head moves little."""

SIDE_PX = 48
"""Crops are shrunk to this side and blurred, which removes the camera's noise and most of the codec's."""

_BLUR_PX = 0.6
_MOST_STEPS, _LEAST_SHIFT_PX = 3, 0.2
"""Surroundings are aligned until the shift is smaller, in at most this many steps."""
_LEAST_CONTRAST = 5.0
"""In gray levels. A crop with less contrast shows nothing, and its noise must not count as motion."""

_Y, _X = (np.mgrid[:SIDE_PX, :SIDE_PX] - (SIDE_PX - 1) / 2) / SIDE_PX
_MOUTH = (np.abs(_X) < 0.25) & (np.abs(_Y - 0.02) < 0.17)
"""As wide as a mouth in the canonical crop, and as high as an open one."""
_SURROUNDINGS = ((np.abs(_X) > 0.32) | (_Y < -0.22)) & (np.abs(_X) < 0.47) & (np.abs(_Y) < 0.47)
"""Nose and cheeks, without the chin, which moves with speech."""
_PIXELS = np.concatenate([np.flatnonzero(_SURROUNDINGS), np.flatnonzero(_MOUTH)])
"""The pixels that are compared: first the surroundings, then the mouth; none at the edge of the crop."""
_NUM_AROUND = int(_SURROUNDINGS.sum())
_AFFINE_3P = np.stack([np.ones(len(_PIXELS)), _X.flat[_PIXELS], _Y.flat[_PIXELS]])


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


def mouth_motion(clip_THW: NDArray[np.uint8], fps: float) -> float:
    """Returns the rms change of the mouth's gray levels within LAG_S, in standard deviations of the crop's gray levels.

    A change of light (gain and offset) and a motion of the whole crop (affine), fitted to the surroundings, are
    subtracted. So is the remaining change of the surroundings: noise, and motion that the fit cannot follow.
    """
    lag = min(max(1, round(LAG_S * fps)), len(clip_THW) - 1)
    if lag < 1:
        return 0.0
    # every other pair is enough, and half the work
    firsts, seconds = ([_shrunk(crop_HW) for crop_HW in clip_THW[start :: 2 * lag]] for start in (0, lag))
    beyond = [_change(first, second) for first, second in zip(firsts, seconds, strict=False)]
    contrast = max(_LEAST_CONTRAST, float(np.median([picture.std() for picture in firsts + seconds])))
    return float(np.sqrt(max(0.0, float(np.mean(beyond)))) / contrast)


def _shrunk(crop_HW: NDArray[np.uint8]) -> NDArray[np.float32]:
    small = cv2.resize(crop_HW, (SIDE_PX, SIDE_PX), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.GaussianBlur(small.astype(np.float32), (0, 0), _BLUR_PX), np.float32)


def _change(first_NN: NDArray[np.float32], second_NN: NDArray[np.float32]) -> float:
    """Returns the mean square of the unexplained change of the mouth, minus that of the surroundings."""
    places = np.arange(SIDE_PX, dtype=np.float32)
    basis_8P = np.ones((8, len(_PIXELS)))
    for step in range(_MOST_STEPS):
        mean_N = ((first_NN + second_NN) / 2).ravel()
        right_P, down_P = ((mean_N[_PIXELS + far] - mean_N[_PIXELS - far]) / 2 for far in (1, SIDE_PX))
        # offset, gain, then the shift to the right and down, each constant, growing with x, and with y
        basis_8P[1] = mean_N[_PIXELS]
        basis_8P[2:5], basis_8P[5:] = right_P * _AFFINE_3P, down_P * _AFFINE_3P
        around_8A = basis_8P[:, :_NUM_AROUND]
        change_P = (second_NN - first_NN).ravel()[_PIXELS]
        # a small ridge term: flat surroundings carry no information on motion
        normal_88 = around_8A @ around_8A.T + 1e-3 * np.eye(8)
        fit_8 = np.linalg.solve(normal_88, around_8A @ change_P[:_NUM_AROUND])
        right_px, down_px = (fit_8[i] + fit_8[i + 1] * _X + fit_8[i + 2] * _Y for i in (2, 5))
        if step + 1 == _MOST_STEPS or max(np.abs(right_px).max(), np.abs(down_px).max()) < _LEAST_SHIFT_PX:
            break
        # a picture that changes by its slope to the right has moved to the left
        from_x = (places[None] - right_px).astype(np.float32)
        from_y = (places[:, None] - down_px).astype(np.float32)
        second_NN = np.asarray(
            cv2.remap(second_NN, from_x, from_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
            np.float32,
        )
    left_P = (change_P - fit_8 @ basis_8P) ** 2
    return float(left_P[_NUM_AROUND:].mean() - left_P[:_NUM_AROUND].mean())
