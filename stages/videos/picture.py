"""Reads pixels of one decoded picture, gray and colour, as a player shows them, directly from the decoder's planes.

Shapes: H height, W width in displayed pixels: square, and upright.
"""

from dataclasses import dataclass

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from shards.enums import Transfer
from stages.videos.display import UPRIGHT, Orientation, is_full_range

# plane 0 of these is the luma plane, 8 bit
_YUV_FORMATS = {
    f"yuv{j}{sampling}p" for j in ("", "j") for sampling in ("410", "411", "420", "422", "440", "444")
}
_LUMA_FORMATS = _YUV_FORMATS | {"nv12", "nv21", "nv16", "nv24", "yuva420p", "yuva422p", "yuva444p", "gray"}
# shares of red and blue in luma by AVCOL_SPC: BT.709, and BT.2020 with and without constant luminance
_LUMA_SHARES = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593), 10: (0.2627, 0.0593)}
_BT601_SHARES = (0.299, 0.114)
"""As in FFmpeg, unmarked pictures are BT.601."""

# 16..235 to 0..255, in ITU-R BT.601 and BT.709: the same as a decoder's RGB converted to gray
_EXPAND = np.clip(np.rint((np.arange(256) - 16) * (255 / 219)), 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle of pixels; `right` and `bottom` are exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    def holds(self, other: "Window") -> bool:
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """One decoded picture: its index in the file, and its time since the first picture."""

    index: int
    time_s: float
    picture: av.VideoFrame
    """Square pixels of 8 bit in SDR (`Display.convert`), stored in this orientation."""
    orientation: Orientation = UPRIGHT
    transfer: Transfer = Transfer.SDR
    """The transfer of the file, before the conversion to `picture`."""

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the upright picture, px."""
        width, height = self.picture.width, self.picture.height
        return (height, width) if self.orientation.is_transposed else (width, height)

    @property
    def num_bytes(self) -> int:
        """Memory of the decoded picture, bytes."""
        return sum(plane.buffer_size for plane in self.picture.planes)

    def gray(self, window: Window | None = None) -> NDArray[np.uint8]:
        """Returns the window in gray, uint8, full range 0..255, upright, contiguous. It must lie inside; None: all."""
        luma = self.luma(window)
        if self.picture.format.name in _LUMA_FORMATS and not self._is_full_range:
            return np.asarray(cv2.LUT(luma, _EXPAND), np.uint8)
        # never a view: the decoder overwrites its planes
        return luma.copy()

    def luma(self, window: Window | None = None) -> NDArray[np.uint8]:
        """Returns the same in the range of the decoder. A view if there is a luma plane, valid as long as the frame."""
        picture = self.picture
        if picture.format.name in _LUMA_FORMATS:
            return _cut(self.orientation.upright(_plane(picture, 0)), window)
        # RGB and palettes are rare, so their conversion may be slow
        bgr = self.orientation.upright(picture.to_ndarray(format="bgr24"))
        gray = cv2.cvtColor(np.ascontiguousarray(_cut(bgr, window)), cv2.COLOR_BGR2GRAY)
        return np.asarray(gray, np.uint8)

    def rgb_HW3(self) -> NDArray[np.uint8]:
        """Returns the colour picture, uint8, upright. Contiguous, since mp.Image misreads padded rows."""
        return np.ascontiguousarray(self.orientation.upright(self.picture.to_ndarray(format="rgb24")))

    def rgb_view(
        self,
        to_picture_23: NDArray[np.float64],
        side_px: int,
        repeat_border: bool,
        black: float = 0.0,
        white: float = 255.0,
    ) -> NDArray[np.float32]:
        """Returns a square view in colour: its pixel (u, v) shows `to_picture_23` (u, v, 1), bilinear.

        (side_px, side_px, 3), float32, from `black` to `white`; `side_px` must be even. Converts only the pixels of the
        view: a small part, for a face in a large picture. Outside the picture the border is repeated, or all is black.
        """
        picture = self.picture
        to_stored_23 = _compose(self.orientation.to_stored_23(picture.width, picture.height), to_picture_23)
        if picture.format.name not in _YUV_FORMATS:
            rgb = picture.to_ndarray(format="rgb24")
            view = _warped(rgb, to_stored_23, side_px, repeat_border, 0).astype(np.float32)
            return view * np.float32((white - black) / 255) + np.float32(black)
        luma_black = 0 if self._is_full_range else 16
        views = [_warped(_plane(picture, 0), to_stored_23, side_px, repeat_border, luma_black)]
        # half the resolution is enough for chroma: pixel u of the half view lies at 2 u + 1/2
        to_view_23 = np.array([[2, 0, 0.5], [0, 2, 0.5]])
        for number in (1, 2):
            chroma = _plane(picture, number)
            # odd sides are rounded up: 181 chroma columns for 361 luma columns are one for two
            across = 1 / round(picture.width / chroma.shape[1])
            down = 1 / round(picture.height / chroma.shape[0])
            # chroma lies at every second luma pixel across, and between two rows down (default since MPEG-2)
            to_chroma_23 = np.array([[across, 0, 0], [0, down, (down - 1) / 2]])
            to_chroma_23 = _compose(to_chroma_23, _compose(to_stored_23, to_view_23))
            half = _warped(chroma, to_chroma_23, side_px // 2, repeat_border, 128)
            views.append(np.asarray(cv2.resize(half, (side_px, side_px)), np.uint8))
        shares = _LUMA_SHARES.get(int(picture.colorspace), _BT601_SHARES)
        to_rgb = _to_rgb(*shares, self._is_full_range) * ((white - black) / 255)
        to_rgb[:, 3] += black
        view = np.asarray(cv2.transform(cv2.merge(views).astype(np.float32), to_rgb), np.float32)
        return np.clip(view, black, white, out=view)

    @property
    def _is_full_range(self) -> bool:
        return is_full_range(self.picture)


def _plane(picture: av.VideoFrame, number: int) -> NDArray[np.uint8]:
    plane = picture.planes[number]
    # rows are padded: 360 px take 384 bytes
    return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[: plane.height, : plane.width]


def _cut(picture: NDArray[np.uint8], window: Window | None) -> NDArray[np.uint8]:
    return picture if window is None else picture[window.top : window.bottom, window.left : window.right]


def _warped(
    picture: NDArray[np.uint8],
    to_picture_23: NDArray[np.float64],
    side_px: int,
    repeat_border: bool,
    black: int,
) -> NDArray[np.uint8]:
    border = cv2.BORDER_REPLICATE if repeat_border else cv2.BORDER_CONSTANT
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    size = (side_px, side_px)
    return np.asarray(
        cv2.warpAffine(
            picture, to_picture_23, size, flags=flags, borderMode=border, borderValue=(black,) * 3
        ),
        np.uint8,
    )


def _compose(outer_23: NDArray[np.float64], inner_23: NDArray[np.float64]) -> NDArray[np.float64]:
    return outer_23[:, :2] @ inner_23 + np.array([[0, 0, 1], [0, 0, 1]]) * outer_23[:, 2:]


def _to_rgb(red: float, blue: float, is_full_range: bool) -> NDArray[np.float64]:
    """Returns (3, 4): Y, Cb, Cr, 1 to R, G, B, all 0..255. ITU-R BT.601-7 and BT.709-6, 3.1 to 3.5."""
    green = 1 - red - blue
    from_cb = np.array([0, -2 * blue * (1 - blue) / green, 2 * (1 - blue)])
    from_cr = np.array([2 * (1 - red), -2 * red * (1 - red) / green, 0])
    luma_gain, chroma_gain, black = (1, 1, 0) if is_full_range else (255 / 219, 255 / 224, 16)
    gains = np.stack([np.full(3, luma_gain), chroma_gain * from_cb, chroma_gain * from_cr], axis=1)
    return np.concatenate([gains, -gains @ [[black], [128], [128]]], axis=1)
