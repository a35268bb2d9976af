"""Encodes mouth clips as bytes and decodes them, with a closed set of codecs.

| codec | member | payload |
|---|---|---|
| raw | .npy | numpy's own format, uint8, T×H×W: every reader knows the shape |
| jpeg | .jpg | the whole clip as one tall gray image |
| h264 | .mp4 | gray H.264 (shards/video_codec.py) |
| ffv1 | .mkv | gray FFV1, lossless (shards/video_codec.py) |

Codec jpeg stacks the frames from top to bottom. A JPEG has at most 65,500 rows, so a long clip continues in more
columns of equal height. Unused cells at the end of the last column repeat the last frame, because an edge to black
would cause ringing in it. The JPEG comment is `<frames>x<height>x<width>`: the image size does not define the cells.
"""

import io
import re
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.lib import format as npy
from numpy.typing import NDArray

from shards.settings import PackParams
from shards.video_codec import decode_video, encode_video

MAX_CLIP_BYTES = 1 << 28
"""Limit of decoded bytes of a clip; larger ones are refused. The largest crop, 1000 × 512 × 512, fits."""

_EXTENSIONS = {"raw": "npy", "jpeg": "jpg", "h264": "mp4", "ffv1": "mkv"}

# Matches only the header that numpy writes for a clip. It is not evaluated, because it is untrusted.
_RAW_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<size>..)"
    rb"\{'descr': '\|u1', 'fortran_order': False, 'shape': \((\d{1,9}), (\d{1,9}), (\d{1,9})\), \} *\n",
    re.DOTALL,
)
_PREAMBLE_BYTES = 10

MAX_SIDE_PX = 65_500
"""Limit of libjpeg for width and height."""

# every JFIF file begins with SOI and an APP0 segment of 16 bytes; the comment must follow them
_JFIF_BYTES = 20
_COMMENT = re.compile(rb"\xff\xfe(?P<size>..)(\d{1,6})x(\d{1,5})x(\d{1,5})", re.DOTALL)
_LONGEST_COMMENT = 4 + 18


def clip_extension(codec: str) -> str:
    """Returns the extension of the tar member; raises ValueError for an unknown codec."""
    if codec not in _EXTENSIONS:
        raise ValueError(f"codec '{codec}' is unknown; use one of {', '.join(_EXTENSIONS)}")
    return _EXTENSIONS[codec]


def encode_clip(clip_THW: np.ndarray, params: PackParams) -> bytes:
    """Returns the payload of a uint8 clip, T×H×W; equal clips give equal bytes. Raises ValueError for other arrays."""
    _check_clip(clip_THW)
    if clip_THW.size > MAX_CLIP_BYTES:
        raise ValueError(
            f"a clip of shape {clip_THW.shape} is larger than {MAX_CLIP_BYTES} bytes, the limit for decoding"
        )
    if params.codec == "raw":
        return encode_raw(clip_THW)
    if params.codec == "jpeg":
        return encode_jpeg(clip_THW, params.jpeg_quality)
    return encode_video(clip_THW, params.codec, params.h264_crf)


def decode_clip(payload: bytes, codec: str, num_frames: int) -> np.ndarray:
    """Returns the writable uint8 clip, T×H×W. Raises ValueError unless the payload is one clip of `num_frames`."""
    clip_extension(codec)
    if num_frames < 1:
        raise ValueError(f"the catalogue says the clip has {num_frames} frames; at least 1 is needed")
    if codec == "jpeg":
        return decode_jpeg(payload, num_frames, MAX_CLIP_BYTES)
    if codec != "raw":
        return decode_video(payload, codec, num_frames, MAX_CLIP_BYTES)
    clip_THW = decode_raw(payload)
    if len(clip_THW) != num_frames:
        raise ValueError(f"the payload has {len(clip_THW)} frames, but the catalogue says {num_frames}")
    return clip_THW


def encode_raw(clip_THW: np.ndarray) -> bytes:
    """Returns the clip as an .npy file."""
    _check_clip(clip_THW)
    file = io.BytesIO()
    npy.write_array(file, np.ascontiguousarray(clip_THW), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def decode_raw(payload: bytes) -> np.ndarray:
    """Returns the clip of an .npy file (uint8, T×H×W, writable).

    Raises ValueError unless the payload is exactly one clip. Compares the shape in the header with the number of
    bytes before it allocates memory.
    """
    shape, first_pixel = parse_raw_header(payload)
    num_bytes = len(payload) - first_pixel
    if shape[0] * shape[1] * shape[2] != num_bytes:
        raise ValueError(f"the header claims shape {shape}, but {num_bytes} bytes follow")
    return np.frombuffer(payload, np.uint8, offset=first_pixel).reshape(shape).copy()


def parse_raw_header(head: bytes) -> tuple[tuple[int, int, int], int]:
    """Returns shape and offset of the first pixel from an .npy header; raises ValueError if it is not of a clip."""
    header = _RAW_HEADER.match(head)
    if header is None or int.from_bytes(header["size"], "little") != header.end() - _PREAMBLE_BYTES:
        raise ValueError(
            "the payload is not an .npy of version 1.0 with uint8 values on three axes in C order"
        )
    num_frames, height, width = (int(number) for number in header.groups()[1:])
    if min(num_frames, height, width) < 1:
        raise ValueError(f"the header claims shape {(num_frames, height, width)}, which has an empty axis")
    return (num_frames, height, width), header.end()


def _check_clip(clip_THW: np.ndarray) -> None:
    if clip_THW.dtype != np.uint8 or clip_THW.ndim != 3 or clip_THW.size == 0:
        raise ValueError(
            f"a clip must be uint8 with three axes that are not empty (got {clip_THW.dtype} {clip_THW.shape})"
        )


class _Layout(NamedTuple):
    """Numbers of columns and rows of cells in the JPEG."""

    columns: int
    rows: int

    @classmethod
    def of(cls, num_frames: int, height: int) -> "_Layout":
        columns = -(-num_frames // (MAX_SIDE_PX // height))
        return cls(columns, -(-num_frames // columns))


def encode_jpeg(clip_THW: NDArray[np.uint8], quality: int) -> bytes:
    """Returns the clip as a tall gray JPEG with a comment. Raises ValueError if it does not fit."""
    num_frames, height, width = clip_THW.shape
    if height > MAX_SIDE_PX or _Layout.of(num_frames, height).columns * width > MAX_SIDE_PX:
        raise ValueError(
            f"a clip of shape {clip_THW.shape} does not fit a JPEG of {MAX_SIDE_PX} rows and columns"
        )
    columns, rows = _Layout.of(num_frames, height)
    padded = np.concatenate([clip_THW, *[clip_THW[-1:]] * (columns * rows - num_frames)])
    cells_CRHW = padded.reshape(columns, rows, height, width)
    picture_HW = np.ascontiguousarray(cells_CRHW.transpose(1, 2, 0, 3)).reshape(
        rows * height, columns * width
    )
    payload = simplejpeg.encode_jpeg_yuv_planes(picture_HW, None, None, quality=quality)
    shape = f"{num_frames}x{height}x{width}".encode()
    comment = b"\xff\xfe" + (len(shape) + 2).to_bytes(2, "big") + shape
    return payload[:_JFIF_BYTES] + comment + payload[_JFIF_BYTES:]


def decode_jpeg(payload: bytes, num_frames: int, max_bytes: int) -> NDArray[np.uint8]:
    """Returns the clip (uint8, T×H×W). Raises ValueError unless the payload is a JPEG by `encode_jpeg` of `num_frames`.

    Compares the header with the comment, `num_frames` and `max_bytes` before it allocates memory.
    """
    comment = _COMMENT.match(payload[_JFIF_BYTES : _JFIF_BYTES + _LONGEST_COMMENT])
    if comment is None or int.from_bytes(comment["size"], "big") != comment.end() - 2:
        raise ValueError("the payload is not a JPEG with the shape of a clip as its comment")
    commented_frames, height, width = (int(number) for number in comment.groups()[1:])
    if commented_frames != num_frames:
        raise ValueError(
            f"the comment of the payload says {commented_frames} frames, but the catalogue says {num_frames}"
        )
    if not (0 < height <= MAX_SIDE_PX and width > 0):
        raise ValueError(
            f"the comment of the payload says frames of {height} x {width} px, which no JPEG can hold"
        )
    columns, rows = _Layout.of(num_frames, height)
    claimed = simplejpeg.decode_jpeg_header(payload)
    if claimed != (rows * height, columns * width, "Gray", "Gray"):
        raise ValueError(
            f"the payload is a JPEG of {claimed}; {num_frames} gray frames of {height} x {width} px need "
            f"{rows * height} x {columns * width}"
        )
    if rows * height * columns * width > max_bytes:
        raise ValueError(
            f"the payload claims {rows * height * columns * width} pixels, the limit is {max_bytes}"
        )
    picture_HW = simplejpeg.decode_jpeg(payload, colorspace="GRAY")[:, :, 0]
    if columns == 1:
        return np.asarray(picture_HW.reshape(num_frames, height, width))
    cells_RHCW = picture_HW.reshape(rows, height, columns, width)
    return np.ascontiguousarray(cells_RHCW.transpose(2, 0, 1, 3).reshape(-1, height, width)[:num_frames])
