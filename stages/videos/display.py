"""Converts a decoded picture to what a player shows: square pixels, 8 bit, SDR; and gives its orientation.

A picture with square pixels of 8 bit in SDR is returned unchanged. Any other picture is converted once, as a whole.

Shapes: H height, W width in stored pixels.
"""

import re
from fractions import Fraction
from functools import cache
from typing import Any, NamedTuple

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from numpy.typing import NDArray

from shards.enums import Transfer
from stages.videos.tone import ToneCurve

MAX_PIXEL_RATIO = 10
"""The most elongated pixels in use are 2:1; a header with a larger ratio than this is wrong."""

# AVCOL_TRC_SMPTE2084 and AVCOL_TRC_ARIB_STD_B67
_HDR = {16: Transfer.PQ, 18: Transfer.HLG}
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG
_LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG
_BT709 = 1  # AVCOL_SPC_BT709
_PLANAR = re.compile(r"(?:yuva?(?P<j>j?)(?P<sampling>4\d\d)p|gray)(?P<bits>9|10|12|14|16)?(?:le)?")


class Orientation(NamedTuple):
    """How a stored picture is made upright: transposed first, then mirrored."""

    is_transposed: bool = False
    mirrors_x: bool = False
    """Swaps left and right."""
    mirrors_y: bool = False

    def upright(self, stored: NDArray[Any]) -> NDArray[Any]:
        """Returns an upright view of `stored`."""
        if self == UPRIGHT:
            return stored
        turned = stored.swapaxes(0, 1) if self.is_transposed else stored
        return turned[:: -1 if self.mirrors_y else 1, :: -1 if self.mirrors_x else 1]

    def to_stored_23(self, width: int, height: int) -> NDArray[np.float64]:
        """Returns the matrix from pixels of the upright picture to those of the stored picture of this size."""
        if self.is_transposed:
            width, height = height, width
        x_3 = [-1, 0, width - 1] if self.mirrors_x else [1, 0, 0]
        y_3 = [0, -1, height - 1] if self.mirrors_y else [0, 1, 0]
        return np.array([y_3, x_3] if self.is_transposed else [x_3, y_3], np.float64)


UPRIGHT = Orientation()


def orientation_of(picture: av.VideoFrame) -> Orientation:
    """Returns the orientation nearest to the picture's display matrix; upright without a (regular) matrix.

    Call it only for the first picture: PyAV's side data and its picture refer to each other, which keeps the picture in
    memory until Python collects garbage.
    """
    matrix = picture.side_data.get(SideDataType.DISPLAYMATRIX)
    if matrix is None:
        return UPRIGHT
    # FFmpeg's display.h: x' = a x + c y, y' = b x + d y, from the nine numbers a b u c d v x y w
    (a, b, _), (c, d, _) = np.frombuffer(matrix, np.int32)[:6].reshape(2, 3).tolist()
    if a * d == b * c:
        return UPRIGHT
    straight, crossed = abs(a) + abs(d), abs(b) + abs(c)
    if crossed > straight:
        return Orientation(True, c < 0, b < 0)
    return Orientation(False, a < 0, d < 0)


def transfer_of(picture: av.VideoFrame) -> Transfer:
    return _HDR.get(int(picture.color_trc), Transfer.SDR)


def pixel_ratio(stream: av.VideoStream) -> Fraction:
    """Returns width to height of a stored pixel; the container overrides the bitstream, as in FFmpeg's players."""
    return Fraction(stream.sample_aspect_ratio or 1)


def square_size(width: int, height: int, ratio: Fraction) -> tuple[int, int]:
    """Returns the size with square pixels: the height is kept, as in FFmpeg's players.

    Encoders that round a size to even numbers compensate by a ratio of nearly 1, which is ignored.
    """
    square_width = max(1, round(width * ratio))
    return (width if abs(square_width - width) <= 1 else square_width), height


class Display:
    """Converts the pictures of one file. All must have the format of its first picture."""

    def __init__(self, first: av.VideoFrame, stream: av.VideoStream) -> None:
        self.orientation = orientation_of(first)
        self._rotation = first.rotation
        self.transfer = transfer_of(first)
        self._stored_size = first.width, first.height
        self._size = square_size(*self._stored_size, pixel_ratio(stream))
        self._codec = stream.codec_context
        self._coded_ratio = self._codec.sample_aspect_ratio
        self._has_own_ratio = (self._coded_ratio or 1) != pixel_ratio(stream)
        self._curve: ToneCurve | None = None
        if self.transfer is not Transfer.SDR:
            planes, bits = _planes(_as_planar(first))
            self._curve = ToneCurve(self.transfer, bits, is_full_range(first), planes[0])

    def change(self, picture: av.VideoFrame) -> str:
        """Returns the difference from the first picture in words, or ""."""
        size = picture.width, picture.height
        if size != self._stored_size:
            return "from {}x{} to {}x{} pictures".format(*self._stored_size, *size)
        # 0: without a matrix, which in H.264 and HEVC may come only with the first picture
        if picture.rotation not in (0, self._rotation):
            return "the orientation of its pictures"
        coded_ratio = self._codec.sample_aspect_ratio
        if coded_ratio != self._coded_ratio and not self._has_own_ratio:
            before, now = self._coded_ratio or 1, coded_ratio or 1
            if before != now:
                return f"the shape of its pixels from {before} to {now} (width to height)"
        if transfer_of(picture) is not self.transfer:
            return f"from {self.transfer} to {transfer_of(picture)}"
        return ""

    def convert(self, picture: av.VideoFrame) -> av.VideoFrame:
        """Returns the picture with square pixels, 8 bit, SDR, still in its stored orientation."""
        is_square = self._size == self._stored_size
        planar = _planar(picture.format.name)
        if is_square and self._curve is None and not (planar and planar["bits"]):
            return picture
        if planar is None and self._curve is None:
            # RGB, palettes, interlaced planes
            rgb_HW3 = _resized(picture.to_ndarray(format="rgb24"), self._size)
            return av.VideoFrame.from_ndarray(rgb_HW3, format="rgb24")
        picture = _as_planar(picture)
        planes, bits = _planes(picture)
        planar = _planar(picture.format.name)
        assert planar is not None, "planar"
        name = f"yuv{planar['j']}{planar['sampling']}p" if len(planes) == 3 else "gray"
        result = av.VideoFrame(*self._size, name)
        result.colorspace, result.color_range = picture.colorspace, picture.color_range
        if self._curve is not None:
            result.colorspace, result.color_range = _BT709, _FULL_RANGE
            chroma = self._curve.chroma(*planes) if len(planes) == 3 else []
            planes = [self._curve.luma(planes[0]), *chroma]
        elif bits > 8:
            planes = [
                _rounded(plane, bits, is_full_range(picture), number > 0)
                for number, plane in enumerate(planes)
            ]
        for number, plane in enumerate(planes):
            samples = _samples(result, number, np.uint8)
            samples[:] = _resized(plane, (samples.shape[1], samples.shape[0]))
        return result


@cache
def _planar(name: str) -> re.Match[str] | None:
    return _PLANAR.fullmatch(name)


def is_full_range(picture: av.VideoFrame) -> bool:
    """Returns whether the range is full. As in FFmpeg, unmarked YUV is limited and unmarked gray is full."""
    color_range, name = int(picture.color_range), picture.format.name
    if name.startswith("gray"):
        return color_range != _LIMITED_RANGE
    return color_range == _FULL_RANGE or name.startswith("yuvj")


def _as_planar(picture: av.VideoFrame) -> av.VideoFrame:
    """Returns a planar picture. HDR as RGB or in interleaved planes is rare, so its conversion may be slow."""
    if _planar(picture.format.name):
        return picture
    return picture.reformat(format="yuv444p10le", dst_colorspace="BT2020")


def _planes(picture: av.VideoFrame) -> tuple[list[NDArray[Any]], int]:
    """Returns luma, and chroma if there is any, as views; and the bits of a sample."""
    bits = picture.format.components[0].bits
    number = 1 if picture.format.name.startswith("gray") else 3
    return [_samples(picture, i, np.uint8 if bits == 8 else np.uint16) for i in range(number)], bits


def _samples(picture: av.VideoFrame, number: int, kind: type[np.uint8 | np.uint16]) -> NDArray[Any]:
    plane = picture.planes[number]
    # rows are padded: 360 px take 384 bytes
    rows = np.frombuffer(plane, kind).reshape(-1, plane.line_size // np.dtype(kind).itemsize)
    return rows[: plane.height, : plane.width]


def _rounded(plane_HW: NDArray[Any], bits: int, is_full_range: bool, is_chroma: bool) -> NDArray[np.uint8]:
    """Returns samples of 8 bit: ITU-T H.273, equations for full and limited range."""
    scale = 255 / ((1 << bits) - 1) if is_full_range else 1 / (1 << bits - 8)
    shift = 128 - scale * (1 << bits - 1) if is_chroma else 0.0
    return np.asarray(cv2.convertScaleAbs(plane_HW, alpha=scale, beta=shift), np.uint8)


def _resized(picture: NDArray[Any], size: tuple[int, int]) -> NDArray[np.uint8]:
    if picture.shape[1::-1] == size:
        return picture
    interpolation = cv2.INTER_AREA if size[0] < picture.shape[1] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, size, interpolation=interpolation), np.uint8)
