"""The sound of a clip in its sample: `<clip_id>.audio.npy`, log-mel vectors in step with the frames.

Shapes: T frames, K = 4 vectors of each frame, M = 40 mel bands.
"""

import io
import json
from functools import lru_cache

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

EXTENSION = "audio.npy"
VECTORS_A_FRAME, BANDS = 4, 40
_VALUE_BYTES = 2


def encode_sound(sound_TKM: NDArray[np.float16]) -> bytes:
    """Returns the payload of the vectors of a clip, float16."""
    assert sound_TKM.dtype == np.float16 and sound_TKM.shape[1:] == (VECTORS_A_FRAME, BANDS)
    return _header(len(sound_TKM)) + sound_TKM.astype("<f2").tobytes()


def decode_sound(payload: bytes | memoryview, num_frames: int) -> NDArray[np.float16]:
    """Returns the vectors (float16, T×4×40, not writable). Raises ValueError unless the payload has `num_frames`."""
    header = _header(num_frames)
    num_bytes = num_frames * VECTORS_A_FRAME * BANDS * _VALUE_BYTES
    if len(payload) != len(header) + num_bytes or bytes(payload[: len(header)]) != header:
        raise ValueError(
            f"the sound is not an .npy of version 1.0 with float16 values of shape {_shape(num_frames)}"
        )
    sound_TKM = np.frombuffer(payload, "<f2", offset=len(header)).reshape(_shape(num_frames))
    if not np.isfinite(sound_TKM).all():
        raise ValueError("the sound has values that are not finite")
    return sound_TKM


def says_sound(metadata_json: bytes) -> bool:
    """Returns whether the metadata of a sample says that its sound follows as a member."""
    try:
        metadata = json.loads(metadata_json)
    except (ValueError, RecursionError):
        return False
    return isinstance(metadata, dict) and "audio" in metadata


def _shape(num_frames: int) -> tuple[int, int, int]:
    return num_frames, VECTORS_A_FRAME, BANDS


@lru_cache(4096)
def _header(num_frames: int) -> bytes:
    """Returns the .npy header. It is compared, not parsed: shards are untrusted."""
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": _shape(num_frames)})
    return header.getvalue()
