"""Mouth clips as bytes and back: a closed set of codecs.

| codec | member | payload |
|---|---|---|
| raw | .npy | numpy's own format, uint8, T×H×W: any reader gets the shape |
| jpeg | .jpg | the whole clip as one tall gray image (shards/jpeg_codec.py) |
| h264 | .mp4 | gray H.264 (shards/video_codec.py) |
| ffv1 | .mkv | gray FFV1, lossless (shards/video_codec.py) |
"""

import io
import re

import numpy as np
from numpy.lib import format as npy

from shards.jpeg_codec import decode_jpeg, encode_jpeg
from shards.settings import PackParams
from shards.video_codec import decode_video, encode_video

MAX_CLIP_BYTES = 1 << 28
"""A compressed clip that claims more decoded bytes than this is refused: crop's largest, 1000 × 512 × 512, fits."""

_EXTENSIONS = {"raw": "npy", "jpeg": "jpg", "h264": "mp4", "ffv1": "mkv"}

# The header that numpy writes for such an array, and no other: matched, not evaluated, since it is untrusted.
_RAW_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<size>..)"
    rb"\{'descr': '\|u1', 'fortran_order': False, 'shape': \((\d{1,9}), (\d{1,9}), (\d{1,9})\), \} *\n",
    re.DOTALL,
)
_PREAMBLE_BYTES = 10


def clip_extension(codec: str) -> str:
    """The tar member's extension; ValueError for a codec outside the set."""
    if codec not in _EXTENSIONS:
        raise ValueError(f"codec '{codec}' is unknown; known are {', '.join(_EXTENSIONS)}")
    return _EXTENSIONS[codec]


def encode_clip(clip_THW: np.ndarray, params: PackParams) -> bytes:
    """The payload of a clip, uint8, T×H×W: equal clips, equal bytes. ValueError for anything else."""
    _check_clip(clip_THW)
    if clip_THW.size > MAX_CLIP_BYTES:
        raise ValueError(
            f"a clip of {clip_THW.shape} is larger than {MAX_CLIP_BYTES} bytes, the most that is read"
        )
    if params.codec == "raw":
        return encode_raw(clip_THW)
    if params.codec == "jpeg":
        return encode_jpeg(clip_THW, params.jpeg_quality)
    return encode_video(clip_THW, params.codec, params.h264_crf)


def decode_clip(payload: bytes, codec: str, num_frames: int) -> np.ndarray:
    """The clip, uint8, T×H×W, writable; ValueError where the payload is not exactly one clip of `num_frames`."""
    clip_extension(codec)
    if num_frames < 1:
        raise ValueError(f"the catalogue says the clip has {num_frames} frames")
    if codec == "jpeg":
        return decode_jpeg(payload, num_frames, MAX_CLIP_BYTES)
    if codec != "raw":
        return decode_video(payload, codec, num_frames, MAX_CLIP_BYTES)
    clip_THW = decode_raw(payload)
    if len(clip_THW) != num_frames:
        raise ValueError(f"the payload holds {len(clip_THW)} frames, the catalogue says {num_frames}")
    return clip_THW


def encode_raw(clip_THW: np.ndarray) -> bytes:
    """The clip as .npy."""
    _check_clip(clip_THW)
    file = io.BytesIO()
    npy.write_array(file, np.ascontiguousarray(clip_THW), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def decode_raw(payload: bytes) -> np.ndarray:
    """The clip of an .npy, uint8, T×H×W, writable.

    ValueError where the payload is not exactly one clip. Nothing is allocated by what a header claims: the
    claim is compared with the bytes that are there first.
    """
    shape, first_pixel = parse_raw_header(payload)
    num_bytes = len(payload) - first_pixel
    if shape[0] * shape[1] * shape[2] != num_bytes:
        raise ValueError(f"the header claims {shape}, {num_bytes} bytes follow")
    return np.frombuffer(payload, np.uint8, offset=first_pixel).reshape(shape).copy()


def parse_raw_header(head: bytes) -> tuple[tuple[int, int, int], int]:
    """Shape and place of the first pixel that the head of an .npy claims; ValueError where it is no clip's."""
    header = _RAW_HEADER.match(head)
    if header is None or int.from_bytes(header["size"], "little") != header.end() - _PREAMBLE_BYTES:
        raise ValueError("the payload is no .npy of version 1.0 with uint8 on three axes in C order")
    num_frames, height, width = (int(number) for number in header.groups()[1:])
    if min(num_frames, height, width) < 1:
        raise ValueError(f"the header claims {(num_frames, height, width)}")
    return (num_frames, height, width), header.end()


def _check_clip(clip_THW: np.ndarray) -> None:
    if clip_THW.dtype != np.uint8 or clip_THW.ndim != 3 or clip_THW.size == 0:
        raise ValueError(
            f"a clip is uint8 with three axes, none of them empty; this is {clip_THW.dtype} {clip_THW.shape}"
        )
