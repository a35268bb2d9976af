"""What a player shows of a decoded picture: square pixels, 8 bit, SDR; and how it is turned to be upright.

A picture with square pixels of 8 bit in SDR passes untouched. Any other is converted once, as a whole.

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
"""The most elongated pixels in use are 2:1; beyond this the header is wrong."""

# AVCOL_TRC_SMPTE2084 and AVCOL_TRC_ARIB_STD_B67
_HDR = {16: Transfer.PQ, 18: Transfer.HLG}
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG
_LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG
_BT709 = 1  # AVCOL_SPC_BT709
_PLANAR = re.compile(r"(?:yuva?(?P<j>j?)(?P<sampling>4\d\d)p|gray)(?P<bits>9|10|12|14|16)?(?:le)?")


class Orientation(NamedTuple):
    """How a stored picture is turned to be upright: transposed first, then mirrored."""

    is_transposed: bool = False
    mirrors_x: bool = False
    """Left and right change places."""
    mirrors_y: bool = False

    def upright(self, stored: NDArray[Any]) -> NDArray[Any]:
        """A view of `stored`."""
        if self == UPRIGHT:
            return stored
        turned = stored.swapaxes(0, 1) if self.is_transposed else stored
        return turned[:: -1 if self.mirrors_y else 1, :: -1 if self.mirrors_x else 1]

    def to_stored_23(self, width: int, height: int) -> NDArray[np.float64]:
        """From pixels of the upright picture to pixels of the stored one, which has this size."""
        if self.is_transposed:
            width, height = height, width
        x_3 = [-1, 0, width - 1] if self.mirrors_x else [1, 0, 0]
        y_3 = [0, -1, height - 1] if self.mirrors_y else [0, 1, 0]
        return np.array([y_3, x_3] if self.is_transposed else [x_3, y_3], np.float64)


UPRIGHT = Orientation()


def orientation_of(picture: av.VideoFrame) -> Orientation:
    """The nearest of the eight orientations to the picture's display matrix; upright without a (regular) matrix.

    Ask for the first picture only: PyAV's side data and its picture refer to each other, which keeps the picture in
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
    """Width to height of a stored pixel; the container's overrides the bitstream's, as in FFmpeg's players."""
    return Fraction(stream.sample_aspect_ratio or 1)


def square_size(width: int, height: int, ratio: Fraction) -> tuple[int, int]:
    """The size with square pixels: the height is kept, as FFmpeg's players do.

    Encoders that round a size to even numbers make up for it by a ratio of nearly 1, which is left alone.
    """
    shown = max(1, round(width * ratio))
    return (width if abs(shown - width) <= 1 else shown), height


class Display:
    """Shows the pictures of one file; all must agree with its first one."""

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
        """What differs from the first picture, in words; "" where nothing does."""
        size = picture.width, picture.height
        if size != self._stored_size:
            return "from {}x{} to {}x{} pictures".format(*self._stored_size, *size)
        # 0: without a matrix, which in H.264 and HEVC may come with the first picture alone
        if picture.rotation not in (0, self._rotation):
            return "the orientation of its pictures"
        coded_ratio = self._codec.sample_aspect_ratio
        if coded_ratio != self._coded_ratio and not self._has_own_ratio:
            was, now = self._coded_ratio or 1, coded_ratio or 1
            if was != now:
                return f"the shape of its pixels from {was} to {now} (width to height)"
        if transfer_of(picture) is not self.transfer:
            return f"from {self.transfer} to {transfer_of(picture)}"
        return ""

    def shown(self, picture: av.VideoFrame) -> av.VideoFrame:
        """The picture with square pixels, 8 bit, SDR; still in its stored orientation."""
        is_square = self._size == self._stored_size
        found = _planar(picture.format.name)
        if is_square and self._curve is None and not (found and found["bits"]):
            return picture
        if found is None and self._curve is None:
            # RGB, palettes, interlaced planes
            rgb_HW3 = _resized(picture.to_ndarray(format="rgb24"), self._size)
            return av.VideoFrame.from_ndarray(rgb_HW3, format="rgb24")
        picture = _as_planar(picture)
        planes, bits = _planes(picture)
        found = _planar(picture.format.name)
        assert found is not None, "planar"
        name = f"yuv{found['j']}{found['sampling']}p" if len(planes) == 3 else "gray"
        shown = av.VideoFrame(*self._size, name)
        shown.colorspace, shown.color_range = picture.colorspace, picture.color_range
        if self._curve is not None:
            shown.colorspace, shown.color_range = _BT709, _FULL_RANGE
            chroma = self._curve.chroma(*planes) if len(planes) == 3 else []
            planes = [self._curve.luma(planes[0]), *chroma]
        elif bits > 8:
            planes = [
                _rounded(plane, bits, is_full_range(picture), number > 0)
                for number, plane in enumerate(planes)
            ]
        for number, plane in enumerate(planes):
            place = _samples(shown, number, np.uint8)
            place[:] = _resized(plane, (place.shape[1], place.shape[0]))
        return shown


@cache
def _planar(name: str) -> re.Match[str] | None:
    return _PLANAR.fullmatch(name)


def is_full_range(picture: av.VideoFrame) -> bool:
    """FFmpeg takes unmarked YUV for limited range and unmarked gray for full."""
    color_range, name = int(picture.color_range), picture.format.name
    if name.startswith("gray"):
        return color_range != _LIMITED_RANGE
    return color_range == _FULL_RANGE or name.startswith("yuvj")


def _as_planar(picture: av.VideoFrame) -> av.VideoFrame:
    """HDR as RGB or in interleaved planes is rare enough for the long way."""
    if _planar(picture.format.name):
        return picture
    return picture.reformat(format="yuv444p10le", dst_colorspace="BT2020")


def _planes(picture: av.VideoFrame) -> tuple[list[NDArray[Any]], int]:
    """Luma, and chroma where there is any, as views; and the bits of a sample."""
    bits = picture.format.components[0].bits
    number = 1 if picture.format.name.startswith("gray") else 3
    return [_samples(picture, i, np.uint8 if bits == 8 else np.uint16) for i in range(number)], bits


def _samples(picture: av.VideoFrame, number: int, kind: type[np.uint8 | np.uint16]) -> NDArray[Any]:
    plane = picture.planes[number]
    # rows are padded: 360 px wide stands in 384 bytes
    rows = np.frombuffer(plane, kind).reshape(-1, plane.line_size // np.dtype(kind).itemsize)
    return rows[: plane.height, : plane.width]


def _rounded(plane_HW: NDArray[Any], bits: int, is_full_range: bool, is_chroma: bool) -> NDArray[np.uint8]:
    """Samples of 8 bit: ITU-T H.273, equations for full and limited range."""
    scale = 255 / ((1 << bits) - 1) if is_full_range else 1 / (1 << bits - 8)
    shift = 128 - scale * (1 << bits - 1) if is_chroma else 0.0
    return np.asarray(cv2.convertScaleAbs(plane_HW, alpha=scale, beta=shift), np.uint8)


def _resized(picture: NDArray[Any], size: tuple[int, int]) -> NDArray[np.uint8]:
    if picture.shape[1::-1] == size:
        return picture
    interpolation = cv2.INTER_AREA if size[0] < picture.shape[1] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(picture, size, interpolation=interpolation), np.uint8)
