"""The contents of a cache entry: declared once, and checked on reading, since a shared cache has other writers.

An entry is a zip of .npy files as numpy.savez writes it, without compression, so the data is never larger than the
file. Any difference from the declaration below raises one of DAMAGE: the entry is damaged.
"""

import io
import json
import math
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from shards.errors import ClipRejected
from shards.schema import Reason, Transfer
from stages.mouths.cropping import Figures, MouthClip
from stages.mouths.landmarks import KEPT, Landmarks

DAMAGE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, zipfile.BadZipFile)
"""Errors of zipfile and numpy for a truncated or damaged file; a difference from the declaration is a ValueError."""

MAX_MEMBER_BYTES = 1 << 30
"""Four times the largest clip that can be packed; landmarks of an hour take a tenth."""

NOT_OF_CONTENT = {
    Reason.MISSING_FILE,
    Reason.EMPTY_TEXT,
    Reason.LABEL_TOO_LONG,
    Reason.CRASHED,
    Reason.TIMEOUT,
}
"""Rejections that are never kept: the same bytes may be accepted next time."""

_FIGURES_OF_FACES = {
    "num_faces",
    "detection_rate",
    "landmarked_frames",
    "bridged_frames",
    "implausible_frames",
    "mouth_width_px",
    "jitter_px",
    "yaw_deg",
    "sound_agreement",
}
"""Figures that are not measured for ready mouth crops."""

_MOST_INT32 = 2**31 - 1


@dataclass(frozen=True)
class _Declared:
    """One array. In `shape`, the same letter means the same length everywhere; a number is a fixed length."""

    dtype: str
    shape: str = ""
    least: float = 0
    most: float = _MOST_INT32
    are_frames: bool = False
    """Indices of F frames, never decreasing."""


def _places(shape: str) -> _Declared:
    # no frame is a million pixels wide, and a face at its edge is only slightly outside
    return _Declared("<f4", shape, least=-1e6, most=1e6)


_LANDMARKS = {
    "width": _Declared("<i8", least=1),
    "height": _Declared("<i8", least=1),
    "times_s_F": _Declared("<f8", "F"),
    "landmarked": _Declared("<i4", "L", are_frames=True),
    "frame_M": _Declared("<i4", "M", are_frames=True),
    "points_MK3": _places(f"M {len(KEPT)} 3"),
    "box_M4": _places("M 4"),
    "cut_frame_C": _Declared("<i4", "C", are_frames=True),
    "cut_box_C4": _places("C 4"),
    "transfer": _Declared("<U"),
}
_OUTCOME = {"outcome": _Declared("|u1", "B")}
_CLIP = {"clip": _Declared("|u1", "T S S")}
_TRACK = {
    "frame_index_T": _Declared("<i4", "T", are_frames=True),
    "landmarked": _Declared("<i4", "L", are_frames=True),
}
_PIECES = {"times_s_P2": _Declared("<f8", "P 2")}
_TRANSFORM = {"transform_T23": _places("T 2 3")}


@dataclass(frozen=True)
class Track:
    """How the clip was cropped: the fields of `MouthClip` without the frames."""

    transform_T23: NDArray[np.float32] | None
    frame_index_T: NDArray[np.int32]
    landmarked: NDArray[np.int32]


class _StoredOutcome(BaseModel):
    """The JSON of an outcome."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
    figures: Figures
    reason: Reason | None
    detail: str | None


def arrays_of_landmarks(made: Landmarks) -> dict[str, NDArray[Any]]:
    return {field.name: np.array(getattr(made, field.name)) for field in fields(made)}


def landmarks_of(kept: zipfile.ZipFile) -> Landmarks:
    _refuse_other_members(kept, _LANDMARKS)
    found = _arrays(kept, _LANDMARKS, {})
    times_s_F = found["times_s_F"]
    if not len(times_s_F) or (np.diff(times_s_F) <= 0).any():
        raise ValueError("its times do not increase")
    width, height, transfer = (found.pop(name) for name in ("width", "height", "transfer"))
    return Landmarks(int(width), int(height), **found, transfer=Transfer(str(transfer)))


def piece_times_of(kept: zipfile.ZipFile) -> NDArray[np.float64]:
    _refuse_other_members(kept, _PIECES)
    times_s_P2 = _arrays(kept, _PIECES, {})["times_s_P2"]
    if (times_s_P2[:, 0] >= times_s_P2[:, 1]).any():
        raise ValueError("a piece ends before it begins")
    return times_s_P2


def arrays_of_outcome(
    figures: Figures, mouth: MouthClip | None, rejection: ClipRejected | None
) -> dict[str, NDArray[Any]]:
    stored = {
        "figures": figures.as_row(),
        "reason": None if rejection is None else rejection.reason,
        "detail": None if rejection is None else rejection.detail,
    }
    outcome = np.frombuffer(json.dumps(stored, ensure_ascii=False).encode(), np.uint8)
    if mouth is None:
        return {"outcome": outcome}
    track = {"frame_index_T": mouth.frame_index_T, "landmarked": mouth.landmarked}
    transform = {} if mouth.transform_T23 is None else {"transform_T23": mouth.transform_T23}
    return {"outcome": outcome, "clip": mouth.clip_THW, **track, **transform}


def outcome_of(
    kept: zipfile.ZipFile, is_face: bool, size_px: int
) -> tuple[Figures, Track | None, int | None, ClipRejected | None]:
    """Returns the figures; and the track and the payload's size, or the rejection.

    Only the header of the clip is read, so that a rerun over a whole corpus takes no minutes of reading.
    """
    stored = _StoredOutcome.model_validate_json(_arrays(kept, _OUTCOME, {})["outcome"].tobytes())
    figures = stored.figures.as_row()
    for name, value in figures.items():
        most = 1 if name == "sound_agreement" else _MOST_INT32
        if isinstance(value, int | float) and not 0 <= value <= most:
            raise ValueError(f"its {name} is {value}")
    if stored.reason is not None:
        _refuse_other_members(kept, _OUTCOME)
        if stored.reason in NOT_OF_CONTENT or not stored.detail:
            raise ValueError(f"a rejection as {stored.reason} ({stored.detail}) is never kept")
        return stored.figures, None, None, ClipRejected(stored.reason, stored.detail)
    declared = _TRACK | (_TRANSFORM if is_face else {})
    _refuse_other_members(kept, _OUTCOME | _CLIP | declared)
    unmeasured = {name for name, value in figures.items() if value is None} - {"source_fps"}
    if unmeasured - {"sound_agreement"} if is_face else unmeasured != _FIGURES_OF_FACES:
        raise ValueError(f"the figures that were not measured are {', '.join(sorted(unmeasured)) or 'none'}")
    lengths = {
        "T": figures["num_frames"],
        "S": size_px,
        "F": figures["source_frames"],
        "L": figures["landmarked_frames"] or 0,
    }
    found = _arrays(kept, declared, lengths)
    info = _member(kept, "clip")
    with kept.open(info) as file:
        _check_header(file, info.file_size, "clip", _CLIP["clip"], lengths)
    track = Track(found.get("transform_T23"), found["frame_index_T"], found["landmarked"])
    return stored.figures, track, info.file_size, None


def clip_of(kept: zipfile.ZipFile, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    lengths = dict(zip("THW", shape, strict=True))
    return _arrays(kept, {"clip": _Declared("|u1", "T H W")}, lengths)["clip"]


def _refuse_other_members(kept: zipfile.ZipFile, declared: Collection[str]) -> None:
    names, expected = sorted(kept.namelist()), sorted(f"{name}.npy" for name in declared)
    if names != expected:
        raise ValueError(f"it holds {', '.join(names)[:200]} where {', '.join(expected)} should be")


def _member(kept: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """Raises ValueError for a compressed or too large member, before reading it."""
    info = kept.getinfo(f"{name}.npy")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > MAX_MEMBER_BYTES:
        raise ValueError(f"its {name} is compressed, or larger than {MAX_MEMBER_BYTES:,} bytes")
    return info


def _arrays(
    kept: zipfile.ZipFile, declared: Mapping[str, _Declared], lengths: dict[str, Any]
) -> dict[str, NDArray[Any]]:
    """Returns the declared arrays. `lengths` holds the known lengths of letters; lengths found here are added."""
    found = {}
    for name, kind in declared.items():
        # reading the whole member checks its CRC
        payload = io.BytesIO(kept.read(_member(kept, name)))
        _check_header(payload, len(payload.getbuffer()), name, kind, lengths)
        payload.seek(0)
        found[name] = array = np.asarray(np.lib.format.read_array(payload, allow_pickle=False))
        _check_values(array, name, kind, lengths)
    return found


def _check_header(file: Any, num_bytes: int, name: str, kind: _Declared, lengths: dict[str, Any]) -> None:
    """Raises ValueError where the header of an .npy differs from the declared array."""
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError(f"its {name} is not an .npy file of version 1.0")
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    letters = kind.shape.split()
    if len(shape) == len(letters):
        lengths.update(
            {key: n for key, n in zip(letters, shape, strict=True) if key.isalpha() and key not in lengths}
        )
    expected = tuple(int(key) if key.isdigit() else lengths.get(key) for key in letters)
    if shape != expected or dtype.str.rstrip("0123456789" if kind.dtype == "<U" else "") != kind.dtype:
        raise ValueError(f"its {name} is {dtype} {shape} where {kind.dtype} {expected} should be")
    if math.prod(shape) * dtype.itemsize != num_bytes - file.tell():
        raise ValueError(f"its {name} claims {shape}, {num_bytes - file.tell()} bytes follow")


def _check_values(array: NDArray[Any], name: str, kind: _Declared, lengths: Mapping[str, Any]) -> None:
    if array.dtype.kind in "US" or not array.size:
        return
    most = lengths["F"] - 1 if kind.are_frames else kind.most
    # `not (...)`: comparisons with NaN are false
    if not (array.min() >= kind.least and array.max() <= most):
        raise ValueError(
            f"its {name} has values {array.min()} to {array.max()}, allowed are {kind.least} to {most}"
        )
    if kind.are_frames and (np.diff(array) < 0).any():
        raise ValueError(f"its {name} decreases")
