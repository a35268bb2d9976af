"""A mouth clip as one tall gray JPEG.

Frames stand below each other. A JPEG ends at 65,500 rows, so a long clip goes on in further columns, all equally
high; cells that are left over at the end of the last one repeat the last frame, since an edge to black would ring
into it. The comment says `<frames>x<height>x<width>`: the size of the picture alone leaves it open how it is cut.
"""

import re
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray

MAX_SIDE_PX = 65_500
"""libjpeg writes and reads no longer side."""

# what every JFIF file begins with: SOI, and APP0 of 16 bytes; a comment may only follow it
_JFIF_BYTES = 20
_COMMENT = re.compile(rb"\xff\xfe(?P<size>..)(\d{1,6})x(\d{1,5})x(\d{1,5})", re.DOTALL)
_LONGEST_COMMENT = 4 + 18


class _Layout(NamedTuple):
    """How the cells of a picture are arranged."""

    columns: int
    rows: int

    @classmethod
    def of(cls, num_frames: int, height: int) -> "_Layout":
        columns = -(-num_frames // (MAX_SIDE_PX // height))
        return cls(columns, -(-num_frames // columns))


def encode_jpeg(clip_THW: NDArray[np.uint8], quality: int) -> bytes:
    """The clip as a tall gray JPEG with a comment. ValueError where it fits none."""
    num_frames, height, width = clip_THW.shape
    if height > MAX_SIDE_PX or _Layout.of(num_frames, height).columns * width > MAX_SIDE_PX:
        raise ValueError(f"a clip of {clip_THW.shape} fits no JPEG of {MAX_SIDE_PX} rows and columns")
    columns, rows = _Layout.of(num_frames, height)
    padded = np.concatenate([clip_THW, *[clip_THW[-1:]] * (columns * rows - num_frames)])
    cells_CRHW = padded.reshape(columns, rows, height, width)
    picture_HW = np.ascontiguousarray(cells_CRHW.transpose(1, 2, 0, 3)).reshape(
        rows * height, columns * width
    )
    payload = simplejpeg.encode_jpeg_yuv_planes(picture_HW, None, None, quality=quality)
    told = f"{num_frames}x{height}x{width}".encode()
    comment = b"\xff\xfe" + (len(told) + 2).to_bytes(2, "big") + told
    return payload[:_JFIF_BYTES] + comment + payload[_JFIF_BYTES:]


def decode_jpeg(payload: bytes, num_frames: int, max_bytes: int) -> NDArray[np.uint8]:
    """The clip, uint8, T×H×W; ValueError where the payload is no such JPEG of `num_frames`.

    The header is compared with the comment, `num_frames` and `max_bytes` before anything is allocated.
    """
    comment = _COMMENT.match(payload[_JFIF_BYTES : _JFIF_BYTES + _LONGEST_COMMENT])
    if comment is None or int.from_bytes(comment["size"], "big") != comment.end() - 2:
        raise ValueError("the payload is no JPEG with a clip's shape as its comment")
    told, height, width = (int(number) for number in comment.groups()[1:])
    if told != num_frames:
        raise ValueError(f"the payload says it holds {told} frames, the catalogue says {num_frames}")
    if not (0 < height <= MAX_SIDE_PX and width > 0):
        raise ValueError(f"the payload says its frames are {height} x {width} px")
    columns, rows = _Layout.of(num_frames, height)
    claimed = simplejpeg.decode_jpeg_header(payload)
    if claimed != (rows * height, columns * width, "Gray", "Gray"):
        raise ValueError(
            f"the payload is a JPEG of {claimed}; {num_frames} gray frames of {height} x {width} px would be "
            f"{rows * height} x {columns * width}"
        )
    if rows * height * columns * width > max_bytes:
        raise ValueError(f"the payload claims {rows * height * columns * width} pixels")
    picture_HW = simplejpeg.decode_jpeg(payload, colorspace="GRAY")[:, :, 0]
    if columns == 1:
        return np.asarray(picture_HW.reshape(num_frames, height, width))
    cells_RHCW = picture_HW.reshape(rows, height, columns, width)
    return np.ascontiguousarray(cells_RHCW.transpose(2, 0, 1, 3).reshape(-1, height, width)[:num_frames])
