"""Reads one complete tar shard once and compares it with its index and the catalogue.

Samples are read at the offsets in samples.parquet, not by the tar headers, so damage to one sample does not affect
others. Headers are untrusted: no memory is allocated by the sizes in them.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from shards.codec import clip_extension, decode_clip, parse_raw_header
from shards.sample_reader import MAX_SAMPLE_BYTES
from shards.samples import without_null
from shards.sound import EXTENSION, decode_sound
from shards.tar import IndexedShard

BLOCK_BYTES = 1 << 20
END_BYTES = 2 * tarfile.BLOCKSIZE
"""Minimum number of zero bytes at the end of a tar."""
MAX_NAME_BYTES = 1 << 12
MAX_METADATA_BYTES = 1 << 20
_RAW_HEAD_BYTES = 128
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE)
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a folder",
}
_PICKLES = (".pkl", ".pickle", ".pth", ".pt", ".pyd", ".dill", ".joblib")
"""Files with Python objects, which may run code when loaded. webdataset uses `.pyd`."""
_SHARED_FIELDS = ("clip_id", "split", "label", "num_frames", "codec", "speaker", "topic")
"""Fields that are both in the metadata of a sample and in samples.parquet."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One problem: the file in the store, a description, and the lost samples."""

    shard: str
    what: str
    clip_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # foreign names may contain bytes that are not UTF-8, or control a terminal
        object.__setattr__(self, "shard", _printable(self.shard))
        object.__setattr__(self, "what", _printable(self.what))
        object.__setattr__(self, "clip_ids", tuple(map(_printable, self.clip_ids)))


def check_shard(
    file: BinaryIO,
    name: str,
    indexed: IndexedShard | None,
    rows: Sequence[Mapping[str, Any]],
    decode: bool,
    on_bytes: Callable[[int], None],
) -> list[Problem]:
    """Returns the problems of an open shard; `rows` are all its rows in samples.parquet, sorted by `sample_offset`.

    Calls `on_bytes` with the number of bytes read since the last call.
    """
    check = _ShardCheck(file, name, {str(row["clip_id"]) for row in rows}, on_bytes)
    cut = []
    for row in rows:
        start, end = row["sample_offset"], row["sample_offset"] + row["sample_size"]
        if not 0 < row["sample_size"] <= MAX_SAMPLE_BYTES or start < check.position:
            check.add(f"samples.parquet has this clip at bytes {start} to {end}, which is not possible", row)
        elif end > check.num_bytes:
            cut.append(row)
        else:
            check.between(start)
            check.sample(row, decode)
    if cut:
        check.add(f"is truncated: it ends at byte {check.num_bytes}, samples.parquet has more", *cut)
        check.skip(check.num_bytes - check.position)
    else:
        check.end()
    if indexed is not None and check.num_bytes != indexed.num_bytes:
        check.add(f"has {check.num_bytes} bytes, index.json says {indexed.num_bytes}")
    if indexed is not None and check.sha256 != indexed.sha256:
        no_loss = ""
        if not check.problems:
            no_loss = "; all clips and labels match samples.parquet, so only bytes that it does not cover are damaged"
        check.add(f"its sha256 differs from index.json{no_loss}")
    return check.problems


class _Damaged(Exception):
    """The tar cannot be read from here to the end of the sample."""


class _ShardCheck:
    """The file, hashed while it is read, and the problems found so far."""

    def __init__(
        self, file: BinaryIO, name: str, clip_ids: set[str], on_bytes: Callable[[int], None]
    ) -> None:
        self._file, self._name, self._clip_ids, self._on_bytes = file, name, clip_ids, on_bytes
        self._digest = hashlib.sha256()
        self.num_bytes = os.fstat(file.fileno()).st_size
        self.position = 0
        self.problems: list[Problem] = []

    @property
    def sha256(self) -> str:
        """Hash of the bytes read so far."""
        return self._digest.hexdigest()

    def add(self, what: str, *rows: Mapping[str, Any]) -> None:
        self.problems.append(Problem(self._name, what, tuple(str(row["clip_id"]) for row in rows)))

    def between(self, stop: int) -> None:
        """Reports members between here and `stop`, where the catalogue has no samples."""
        start = self.position
        try:
            while self.position < stop:
                member_start = self.position
                member = self._header(stop)
                if member is None:
                    self.add(
                        f"the tar ends at byte {member_start}, before the last sample of samples.parquet"
                    )
                    break
                self._unknown(member, member_start)
                self.skip(_padded(member.size))
        except _Damaged as error:
            self.add(f"bytes {start} to {stop} belong to no sample: {error}")
        self.skip(stop - self.position)

    def sample(self, row: Mapping[str, Any], decode: bool) -> None:
        """Compares the sample at this position with its row; afterwards the position is always behind the sample."""
        start, end = self.position, self.position + row["sample_size"]
        clip_id, num_before = row["clip_id"], len(self.problems)
        try:
            expected = [f"{clip_id}.{clip_extension(row['codec'])}", f"{clip_id}.json"]
            found = []
            while self.position < end:
                member = self._header(end)
                if member is None:
                    raise _Damaged("it has zeros where a member should begin")
                found.append(member.name)
                if fault := _fault(member):
                    self.add(f"member {member.name!r} is {fault}", row)
                    self.skip(member.size)
                elif found == expected[:1]:
                    self._clip(row, member.size, decode)
                elif found == expected[:2]:
                    if self._metadata(row, member.size):
                        expected.append(f"{clip_id}.{EXTENSION}")
                elif found == expected:
                    self._sound(row, member.size)
                else:
                    self.skip(member.size)
                if any(self._read(_padded(member.size) - member.size)):
                    self.add(f"the padding after member {member.name!r} is not zero", row)
            if found != expected and len(self.problems) == num_before:
                self.add(f"at bytes {start} to {end} are {found} instead of {expected}", row)
        except (_Damaged, ValueError) as error:
            self.add(f"at bytes {start} to {end}: {error}", row)
        self.skip(end - self.position)

    def end(self) -> None:
        """Reads the bytes after the last sample, which must be zero."""
        start = self.position
        try:
            while self.position < self.num_bytes:
                member_start = self.position
                member = self._header(self.num_bytes)
                if member is None:
                    break
                self._unknown(member, member_start)
                self.skip(_padded(member.size))
                start = self.position
        except _Damaged as error:
            self.add(f"bytes from {start} to the end belong to no sample: {error}")
        else:
            if self.num_bytes - start < END_BYTES:
                self.add("the end of the tar is missing")
            elif self._has_more():
                self.add(f"there is data after the end of the tar at byte {start}")
        self.skip(self.num_bytes - self.position)

    def _header(self, stop: int) -> tarfile.TarInfo | None:
        """Returns the member that begins here and ends before `stop`; None for a block of zeros."""
        at, long_name = self.position, None
        while True:
            if stop - self.position < tarfile.BLOCKSIZE:
                raise _Damaged(f"it is truncated in the tar header at byte {self.position}")
            block = self._read(tarfile.BLOCKSIZE)
            if not any(block):
                return None
            try:
                member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except (tarfile.HeaderError, ValueError) as error:
                raise _Damaged(f"the tar header at byte {at} is damaged ({error})") from error
            if member.size < 0 or _padded(member.size) > stop - self.position:
                raise _Damaged(f"member {member.name!r} claims {member.size} bytes, more than available")
            if member.type != tarfile.GNUTYPE_LONGNAME or long_name is not None:
                member.name = member.name if long_name is None else long_name
                return member
            if member.size > MAX_NAME_BYTES:
                raise _Damaged(f"the tar header at byte {at} claims a name of {member.size} bytes")
            name = self._read(_padded(member.size))
            long_name = name[: member.size].rstrip(b"\0").decode("utf-8", "surrogateescape")

    def _unknown(self, member: tarfile.TarInfo, at: int) -> None:
        """Reports a member outside all samples; readers that group by name add it to the sample of its name."""
        key = member.name.rpartition("/")[2].partition(".")[0]
        fault = f", and is {fault}" if (fault := _fault(member)) else ""
        self.add(
            f"member {member.name!r} at byte {at} belongs to no sample of samples.parquet{fault}",
            *([{"clip_id": key}] if key in self._clip_ids else []),
        )

    def _clip(self, row: Mapping[str, Any], num_bytes: int, decode: bool) -> None:
        if (self.position, num_bytes) != (row["clip_offset"], row["clip_size"]):
            self.add(
                f"the clip has {num_bytes} bytes at byte {self.position}, samples.parquet says {row['clip_size']} at "
                f"byte {row['clip_offset']}",
                row,
            )
        digest, head, kept = hashlib.sha256(), b"", []
        stop = self.position + num_bytes
        while self.position < stop:
            block = self._read(min(BLOCK_BYTES, stop - self.position))
            digest.update(block)
            head = head or block[:_RAW_HEAD_BYTES]
            if decode:
                kept.append(block)
        if digest.hexdigest() != row["sha256"]:
            self.add("the sha256 of the clip differs from samples.parquet", row)
            return
        try:
            if decode:
                decode_clip(b"".join(kept), row["codec"], row["num_frames"])
            elif row["codec"] == "raw":
                shape, first_pixel = parse_raw_header(head)
                num_pixels = shape[0] * shape[1] * shape[2]
                if (shape[0], num_pixels) != (row["num_frames"], num_bytes - first_pixel):
                    raise ValueError(
                        f"it claims shape {shape}, samples.parquet says {row['num_frames']} frames"
                    )
        except ValueError as error:
            self.add(f"the clip cannot be decoded: {error}", row)

    def _metadata(self, row: Mapping[str, Any], num_bytes: int) -> bool:
        """Returns whether it says that a sound follows."""
        if num_bytes > MAX_METADATA_BYTES:
            self.add(f"its metadata has {num_bytes} bytes, the limit is {MAX_METADATA_BYTES}", row)
            self.skip(num_bytes)
            return False
        try:
            metadata = json.loads(self._read(num_bytes))
        except (ValueError, RecursionError) as error:
            self.add(f"its metadata is not valid JSON ({error})", row)
            return False
        if not isinstance(metadata, dict) or not isinstance(metadata.get("fps"), (int, float)):
            self.add("its metadata has no frame rate (fps)", row)
            return False
        for field in _SHARED_FIELDS:
            # an unknown value is null in the catalogue and empty in a sample; older packs have null in samples
            if field not in metadata or without_null(metadata[field]) != without_null(row[field]):
                self.add(
                    f"its metadata says {field} {metadata.get(field)!r}, samples.parquet {row[field]!r}", row
                )
        sound = metadata.get("audio")
        if sound not in (["present"] if row["audio_sha256"] else [None, "silent"]):
            self.add(
                f"its metadata says audio {sound!r}, samples.parquet audio_sha256 {row['audio_sha256']!r}",
                row,
            )
        return sound is not None

    def _sound(self, row: Mapping[str, Any], num_bytes: int) -> None:
        if num_bytes > MAX_SAMPLE_BYTES:
            self.add(f"its sound has {num_bytes} bytes", row)
            self.skip(num_bytes)
            return
        payload = self._read(num_bytes)
        if row["audio_sha256"] not in (None, hashlib.sha256(payload).hexdigest()):
            self.add("the sha256 of the sound differs from samples.parquet", row)
            return
        try:
            decode_sound(payload, row["num_frames"])
        except ValueError as error:
            self.add(f"the sound cannot be decoded: {error}", row)

    def _read(self, num_bytes: int) -> bytes:
        """Returns exactly the next `num_bytes` bytes."""
        assert num_bytes >= 0
        block = self._file.read(num_bytes)
        if len(block) < num_bytes:
            raise OSError(f"the file ended at byte {self.position + len(block)} while it was read")
        self._digest.update(block)
        self.position += num_bytes
        self._on_bytes(num_bytes)
        return block

    def skip(self, num_bytes: int) -> None:
        """Reads bytes only for the hash."""
        while num_bytes > 0:
            num_bytes -= len(self._read(min(BLOCK_BYTES, num_bytes)))

    def _has_more(self) -> bool:
        """Reads to the end; returns whether a byte is not zero."""
        more = False
        while self.position < self.num_bytes:
            more |= any(self._read(min(BLOCK_BYTES, self.num_bytes - self.position)))
        return more


def _fault(member: tarfile.TarInfo) -> str:
    """Returns why a member is unsafe to read; empty for a regular file inside the folder."""
    if member.type not in _REGULAR:
        return _KINDS.get(member.type, f"of tar type {member.type!r}, not a regular file")
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "a name that leads out of the folder"
    if member.name.lower().endswith(_PICKLES):
        return "a pickle, which may run code when loaded"
    return ""


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
