"""Pixels of one decoded picture: gray and colour, upright, uint8.

Shapes: H height, W width in pixels after the display rotation.
"""

from dataclasses import dataclass

import av
import cv2
import numpy as np
from numpy.typing import NDArray

# plane 0 of these is the luma plane, 8 bit
_LUMA_FORMATS = {
    f"yuv{j}{sampling}p" for j in ("", "j") for sampling in ("410", "411", "420", "422", "440", "444")
} | {"nv12", "nv21", "nv16", "nv24", "yuva420p", "yuva422p", "yuva444p", "gray"}
_FULL_RANGE = 2  # AVCOL_RANGE_JPEG
_LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG

# 16..235 to 0..255, ITU-R BT.601 and BT.709 alike: what a decoder's RGB, turned to gray, shows
_EXPAND = np.clip(np.rint((np.arange(256) - 16) * (255 / 219)), 0, 255).astype(np.uint8)


@dataclass(frozen=True, slots=True)
class SourceFrame:
    """One decoded picture: its place in the file and its time since the first picture."""

    index: int
    time_s: float
    picture: av.VideoFrame

    def gray_HW(self) -> NDArray[np.uint8]:
        """Gray picture, uint8, full range 0..255, upright and contiguous."""
        picture = self.picture
        name = picture.format.name
        if name not in _LUMA_FORMATS:
            # RGB, 10 bit, palettes: rare enough for the long way
            gray = cv2.cvtColor(picture.to_ndarray(format="bgr24"), cv2.COLOR_BGR2GRAY)
            return _upright(np.asarray(gray, np.uint8), picture.rotation)
        plane = picture.planes[0]
        # rows are padded: 360 px wide stands in 384 bytes
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
        luma = rows[: picture.height, : picture.width]
        # FFmpeg takes unmarked YUV for limited range and unmarked gray for full
        full = int(picture.color_range) == _FULL_RANGE or name.startswith("yuvj")
        if name == "gray":
            full = int(picture.color_range) != _LIMITED_RANGE
        return _upright(luma.copy() if full else _EXPAND[luma], picture.rotation)

    def rgb_HW3(self) -> NDArray[np.uint8]:
        """Colour picture, uint8, upright. Contiguous, since mp.Image misreads padded rows."""
        return _upright(self.picture.to_ndarray(format="rgb24"), self.picture.rotation)


def _upright(picture: NDArray[np.uint8], rotation_deg: int) -> NDArray[np.uint8]:
    quarter_turns = round(rotation_deg / 90) % 4  # both FFmpeg's angle and rot90's turn anticlockwise
    return np.ascontiguousarray(np.rot90(picture, quarter_turns))
