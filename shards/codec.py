"""Mouth clips as bytes and back: a closed set of codecs.

| codec | member | payload |
|---|---|---|
| raw | .npy | numpy's own format, uint8, T×H×W: any reader gets the shape |
"""

import io

import numpy as np
from numpy.lib import format as npy

_EXTENSIONS = {"raw": "npy"}
MAX_HEADER_BYTES = 1_000


def clip_extension(codec: str) -> str:
    """The tar member's extension; ValueError for a codec outside the set."""
    if codec not in _EXTENSIONS:
        raise ValueError(f"codec '{codec}' is unknown; known are {', '.join(_EXTENSIONS)}")
    return _EXTENSIONS[codec]


def encode_clip(clip_THW: np.ndarray, codec: str) -> bytes:
    """The payload of a clip, uint8, T×H×W."""
    clip_extension(codec)
    if clip_THW.dtype != np.uint8 or clip_THW.ndim != 3:
        raise ValueError(f"a clip is uint8 with three axes, this is {clip_THW.dtype} {clip_THW.shape}")
    file = io.BytesIO()
    npy.write_array(file, np.ascontiguousarray(clip_THW), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def decode_clip(payload: bytes, codec: str) -> np.ndarray:
    """The clip, uint8, T×H×W, writable.

    ValueError where the payload is not exactly one clip. Nothing is allocated by what a header claims: the
    claim is compared with the bytes that are there first.
    """
    clip_extension(codec)
    file = io.BytesIO(payload)
    if npy.read_magic(file) != (1, 0):
        raise ValueError("the payload is no .npy of version 1.0")
    shape, fortran_order, dtype = npy.read_array_header_1_0(file, max_header_size=MAX_HEADER_BYTES)
    num_bytes = len(payload) - file.tell()
    if dtype != np.uint8 or len(shape) != 3 or fortran_order:
        raise ValueError(f"a clip is uint8 with three axes in C order, this is {dtype} {shape}")
    if min(shape) < 1 or shape[0] * shape[1] * shape[2] != num_bytes:
        raise ValueError(f"the header claims {shape}, {num_bytes} bytes follow")
    return np.frombuffer(payload, np.uint8, offset=file.tell()).reshape(shape).copy()
