"""Reads single samples out of tar shards.

Shards and the catalogue are untrusted: offsets are compared with the file size before memory is allocated, and the
content with the catalogue. Shapes: T frames, H and W px.
"""

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy
from numpy.typing import NDArray

from shards.codec import clip_extension, decode_clip, parse_raw_header
from shards.errors import ShardError
from shards.open_shards import ADVICE, OpenShard, OpenShards
from shards.sound import EXTENSION, decode_sound
from shards.store import ShardStore

MAX_SAMPLE_BYTES = 1 << 30
"""116,000 raw frames of 96×96 px; no clip is larger."""
_RAW_HEAD_BYTES = 640  # a tar header and the header of an .npy
_MOST_MEMBERS = 3
_NAME_BYTES = 100
_CHECKSUM = slice(148, 156)


class CatalogueRow(NamedTuple):
    """The place of a clip in its shard, from samples.parquet; see shards/schema.py."""

    clip_id: str
    shard: str
    codec: str
    num_frames: int
    sample_offset: int
    sample_size: int
    clip_offset: int
    clip_size: int

    @property
    def member(self) -> str:
        """The name of the clip in its shard, without the name of its pack (shards/packs.py)."""
        return self.clip_id.rpartition("/")[2]

    @classmethod
    def of(cls, record: Mapping[str, object]) -> "CatalogueRow":
        """Makes one from a row of the table as a dictionary."""
        return cls(*(record[name] for name in cls._fields))  # type: ignore[arg-type]


class SampleRows:
    """Rows of a samples table by row number. Numbers and shard names are decoded once, texts on request."""

    def __init__(self, samples: pa.Table) -> None:
        shards = samples["shard"].dictionary_encode().unify_dictionaries()
        self._shard_names: list[str] = shards.chunk(0).dictionary.to_pylist() if len(shards) else []
        chunks = [chunk.indices.to_numpy(zero_copy_only=False) for chunk in shards.chunks]
        self._shard_N = np.concatenate(chunks) if chunks else np.empty(0, np.int32)
        self._clip_ids, self._labels, self._codecs = (samples[name] for name in ("clip_id", "label", "codec"))
        self._numbers = tuple(samples[name].to_numpy() for name in CatalogueRow._fields[3:])

    def rows(self, row_N: np.ndarray) -> list[CatalogueRow]:
        """Returns the clips at these numbers of an epoch plan: `visit * N + row`."""
        row_N = row_N % len(self._shard_N)
        numbers = row_N.tolist()
        return [
            CatalogueRow(
                self._clip_ids[row].as_py(), self._shard_names[shard], self._codecs[row].as_py(), *place
            )
            for row, shard, *place in zip(
                numbers,
                self._shard_N[row_N].tolist(),
                *(column[row_N].tolist() for column in self._numbers),
                strict=True,
            )
        ]

    def label(self, row: int) -> str:
        label: str = self._labels[row % len(self._shard_N)].as_py()
        return label

    def shards_of(self, batches: Sequence[np.ndarray]) -> list[str]:
        """Returns the shards of these rows in the order of their first use."""
        if not len(batches):
            return []
        row_N = np.concatenate(batches) % len(self._shard_N)
        shards, first = np.unique(self._shard_N[row_N], return_index=True)
        return [self._shard_names[shard] for shard in shards[np.argsort(first)]]


def read_sample(store: ShardStore, row: Mapping[str, object]) -> tuple[np.ndarray, dict[str, object]]:
    """Returns the clip (uint8, T×H×W) and the metadata of one row of samples.parquet.

    Reads only the bytes of the sample. Raises ShardError that names shard and clip if the file is missing or
    truncated or has another content at this place, MachineError if it cannot be reached.
    """
    return read_sample_of(OpenShards(store), row)


def read_sample_of(shards: OpenShards, row: Mapping[str, object]) -> tuple[np.ndarray, dict[str, object]]:
    """Does the same as `read_sample` with open shards."""
    place = CatalogueRow.of(row)
    return shards.read(shards[place.shard], lambda shard: _sample(shard, place, row.get("label")))


def _sample(shard: OpenShard, place: CatalogueRow, label: object) -> tuple[np.ndarray, dict[str, object]]:
    payload, metadata_json, *_ = _members(shard, place)
    try:
        metadata = json.loads(bytes(metadata_json))
    except (ValueError, RecursionError) as error:
        raise _damaged(shard, place, f"its metadata is not valid JSON ({error})") from error
    if not isinstance(metadata, dict) or "fps" not in metadata:
        raise _damaged(shard, place, "its metadata has no key 'fps'")
    if label is not None and metadata.get("label", label) != label:
        raise _foreign(shard, place)
    return _decode(shard, place, payload), metadata


def read_clip(shard: OpenShard, row: CatalogueRow) -> np.ndarray:
    """Returns the clip (uint8, T×H×W) of any codec; raises ShardError as `read_sample` does."""
    return _decode(shard, row, _members(shard, row)[0])


def read_sound(shard: OpenShard, row: CatalogueRow) -> NDArray[np.float16]:
    """Returns the log-mel vectors (float16, T×4×40) of a clip; raises ShardError as `read_sample` does.

    Reads only the members after the clip.
    """
    start = row.clip_offset + -(-row.clip_size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    num_bytes = row.sample_offset + row.sample_size - start
    if not holds_clip(shard, row) or not 0 < num_bytes <= MAX_SAMPLE_BYTES:
        raise _truncated(shard, row)
    rest = memoryview(shard.read(num_bytes, start))
    try:
        members = dict(_files_in(rest))
        name = f"{row.member}.{EXTENSION}"
        if [*members] != [f"{row.member}.json", name]:
            raise ValueError(f"after the clip are {[*members]}, and not its metadata and its sound")
        return decode_sound(rest[members[name]], row.num_frames)
    except (tarfile.HeaderError, ValueError) as error:
        raise _damaged(shard, row, str(error)) from error


def raw_frame_size(shard: OpenShard, row: CatalogueRow) -> tuple[int, int] | None:
    """Returns height and width from the header of a raw clip; None if only `read_clip` can decide."""
    if not holds_clip(shard, row):
        return None
    try:
        shape, _ = parse_raw_header(shard.read(_RAW_HEAD_BYTES, row.clip_offset))
    except ValueError:
        return None
    return shape[1:]


def holds_clip(shard: OpenShard, row: CatalogueRow) -> bool:
    """Returns whether the offsets in the catalogue are consistent and the file is long enough for the clip."""
    return (
        0 <= row.sample_offset < row.clip_offset
        and 0 < row.num_frames <= row.clip_size <= MAX_SAMPLE_BYTES
        and row.clip_offset + row.clip_size <= row.sample_offset + row.sample_size <= shard.num_bytes
    )


def read_raw_into(frames_THW: np.ndarray, shard: OpenShard, row: CatalogueRow) -> bool:
    """Fills `frames_THW` (C order) with the raw clip of this shape in one read, directly from the file.

    Returns False if the bytes before the pixels differ from those of our writer, also for a valid difference such
    as a long name: then `read_clip` returns the clip or raises the error.
    """
    num_head_bytes = row.clip_offset + row.clip_size - frames_THW.nbytes - row.sample_offset
    if num_head_bytes != _RAW_HEAD_BYTES or row.clip_offset != row.sample_offset + tarfile.BLOCKSIZE:
        return False
    head = bytearray(num_head_bytes)
    if shard.read_into([head, frames_THW.data], row.sample_offset) != num_head_bytes + frames_THW.nbytes:
        return False
    return head == _tar_header(f"{row.member}.npy", row.clip_size) + _raw_header(frames_THW.shape)


def _tar_header(name: str, num_bytes: int) -> bytes:
    """Returns the tar header that our writer puts before a file; `tarfile` needs ten times as long."""
    before_sum, after_sum, sum_without_name = _tar_header_without_name(num_bytes)
    name_bytes = name.encode()
    return b"%b%b%06o\0 %b" % (
        name_bytes.ljust(_NAME_BYTES, b"\0"),
        before_sum,
        sum_without_name + sum(name_bytes),
        after_sum,
    )


@lru_cache(4096)
def _tar_header_without_name(num_bytes: int) -> tuple[bytes, bytes, int]:
    """Returns the header between name and checksum, the part after the checksum, and the checksum without a name."""
    member = tarfile.TarInfo()
    member.size = num_bytes
    header = member.tobuf(tarfile.GNU_FORMAT)
    return header[_NAME_BYTES : _CHECKSUM.start], header[_CHECKSUM.stop :], int(header[_CHECKSUM][:6], 8)


@lru_cache(4096)
def _raw_header(shape: tuple[int, int, int]) -> bytes:
    """Returns the .npy header of a clip of this shape."""
    header = io.BytesIO()
    npy.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _members(shard: OpenShard, row: CatalogueRow) -> list[memoryview]:
    """Returns the payloads of clip, metadata and, if packed, sound; raises ShardError if they are another sample's."""
    try:
        names = [f"{row.member}.{extension}" for extension in (clip_extension(row.codec), "json", EXTENSION)]
    except ValueError as error:
        raise _damaged(shard, row, str(error)) from error
    if not holds_clip(shard, row) or row.sample_size > MAX_SAMPLE_BYTES:
        raise _truncated(shard, row)
    sample = memoryview(shard.read(row.sample_size, row.sample_offset))
    try:
        members = _files_in(sample)
    except (tarfile.HeaderError, ValueError) as error:
        raise _damaged(shard, row, str(error)) from error
    if [name for name, _ in members] not in (names, names[:2]):
        raise _foreign(shard, row)
    clip = members[0][1]
    if (row.sample_offset + clip.start, clip.stop - clip.start) != (row.clip_offset, row.clip_size):
        raise _foreign(shard, row)
    return [sample[content] for _, content in members]


def _files_in(sample: memoryview) -> list[tuple[str, slice]]:
    """Returns names and slices of the files in a sequence of tar blocks.

    Raises ValueError or tarfile.HeaderError for other members, such as a link or a device, and for a truncated file.
    """
    files: list[tuple[str, slice]] = []
    start, long_name = 0, ""
    while start < len(sample):
        if len(files) == _MOST_MEMBERS:
            raise ValueError(f"it has more than {_MOST_MEMBERS} members")
        header = tarfile.TarInfo.frombuf(
            bytes(sample[start : start + tarfile.BLOCKSIZE]), tarfile.ENCODING, "surrogateescape"
        )
        content = slice(start + tarfile.BLOCKSIZE, start + tarfile.BLOCKSIZE + header.size)
        name = long_name or header.name
        if header.size < 0 or content.stop > len(sample):
            raise ValueError(f"member {name!r} is longer than the sample")
        if header.type == tarfile.GNUTYPE_LONGNAME and not long_name:
            long_name = bytes(sample[content]).rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif header.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            files.append((name, content))
            long_name = ""
        else:
            raise ValueError(f"member {name!r} has tar type {header.type!r} and is not a regular file")
        start = content.start + -(-header.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return files


def _decode(shard: OpenShard, row: CatalogueRow, payload: memoryview) -> np.ndarray:
    try:
        return decode_clip(bytes(payload), row.codec, row.num_frames)
    except ValueError as error:
        raise _damaged(shard, row, f"it cannot be decoded: {error}") from error


def _truncated(shard: OpenShard, row: CatalogueRow) -> ShardError:
    return _foreign_or(
        shard,
        row,
        f"shard {shard.place} is truncated or from another pack: it has {shard.num_bytes} bytes and does not hold "
        f"clip {row.clip_id} at bytes {row.sample_offset} to {row.sample_offset + row.sample_size}; {ADVICE}",
    )


def _damaged(shard: OpenShard, row: CatalogueRow, why: str) -> ShardError:
    return _foreign_or(
        shard, row, f"shard {shard.place}: the sample of clip {row.clip_id} is damaged: {why}; {ADVICE}"
    )


def _foreign_or(shard: OpenShard, row: CatalogueRow, message: str) -> ShardError:
    return _foreign(shard, row) if _is_foreign(shard, row) else ShardError(message)


def _foreign(shard: OpenShard, row: CatalogueRow) -> ShardError:
    pack = row.clip_id.rpartition("/")[0]
    what, fix = "samples.parquet and the shard", ADVICE
    if pack:
        what, fix = f"samples and shards of pack {pack} in train.data", "correct one of the two paths"
    return ShardError(
        f"shard {shard.place} does not have clip {row.member} of samples.parquet at byte {row.sample_offset}: {what} "
        f"belong to different packs; {fix}"
    )


def _is_foreign(shard: OpenShard, row: CatalogueRow) -> bool:
    """Returns whether the tar is intact up to the sample, but has no sample from its first to its last byte."""
    offset = 0
    for wanted in (row.sample_offset, row.sample_offset + row.sample_size):
        while offset < wanted:
            block = shard.read(tarfile.BLOCKSIZE, offset)
            try:
                header = tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
            except tarfile.HeaderError:
                # zeros elsewhere than at the end of the file are damage
                return block == bytes(tarfile.BLOCKSIZE) and shard.num_bytes - offset <= tarfile.RECORDSIZE
            if header.size < 0:
                return False
            offset += tarfile.BLOCKSIZE * (1 + -(-header.size // tarfile.BLOCKSIZE))
        if offset > wanted:
            return True
    return False
