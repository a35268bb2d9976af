"""Reads one tar shard from end to end, once, and compares it with its index and the catalogue.

The catalogue leads, not the tar: each sample is looked for where samples.parquet says it stands, so that damage to
one costs no other. Nothing is allocated on a header's word.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

from shards.codec import clip_extension, decode_clip, parse_raw_header
from shards.index import IndexedShard
from shards.sample_reader import MAX_SAMPLE_BYTES
from shards.samples import without_null

BLOCK_BYTES = 1 << 20
END_BYTES = 2 * tarfile.BLOCKSIZE
"""Zeros at the end of a tar, at least."""
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
"""What holds Python objects: whoever loads one runs its code. `.pyd` is webdataset's."""
_TOLD = ("clip_id", "split", "label", "num_frames", "codec", "speaker", "topic")
"""What the sample's metadata and samples.parquet both say."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong: the file in the store, what it is, and the samples it costs."""

    shard: str
    what: str
    clip_ids: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # names out of foreign files and tars may hold bytes that are no UTF-8, or steer a terminal
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
    """What is wrong with an open shard; `rows` are all of it in samples.parquet, by `sample_offset`.

    `on_bytes` is called with the number of bytes read since the last time.
    """
    check = _ShardCheck(file, name, {str(row["clip_id"]) for row in rows}, on_bytes)
    cut = []
    for row in rows:
        start, end = row["sample_offset"], row["sample_offset"] + row["sample_size"]
        if not 0 < row["sample_size"] <= MAX_SAMPLE_BYTES or start < check.position:
            check.add(f"samples.parquet has it at bytes {start} to {end}, where it cannot stand", row)
        elif end > check.num_bytes:
            cut.append(row)
        else:
            check.between(start)
            check.sample(row, decode)
    if cut:
        check.add(f"is cut: it ends at byte {check.num_bytes}, samples.parquet has more", *cut)
        check.skip(check.num_bytes - check.position)
    else:
        check.end()
    if indexed is not None and check.num_bytes != indexed.num_bytes:
        check.add(f"has {check.num_bytes} bytes, index.json says {indexed.num_bytes}")
    if indexed is not None and check.sha256 != indexed.sha256:
        nowhere = ""
        if not check.problems:
            nowhere = "; yet every clip and label is as samples.parquet says, which knows nothing of what is damaged"
        check.add(f"its sha256 is not that of index.json{nowhere}")
    return check.problems


class _Damaged(Exception):
    """The tar cannot be followed from here to the end of the sample."""


class _ShardCheck:
    """The file, hashed as it is read, and what was found wrong so far."""

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
        """Of what was read so far."""
        return self._digest.hexdigest()

    def add(self, what: str, *rows: Mapping[str, Any]) -> None:
        self.problems.append(Problem(self._name, what, tuple(str(row["clip_id"]) for row in rows)))

    def between(self, stop: int) -> None:
        """Names what stands from here to `stop`, where the catalogue has nothing."""
        start = self.position
        try:
            while self.position < stop:
                member_start = self.position
                member = self._header(stop)
                if member is None:
                    self.add(
                        f"at byte {member_start} a tar reader meets the end, before that of samples.parquet"
                    )
                    break
                self._unknown(member, member_start)
                self.skip(_padded(member.size))
        except _Damaged as error:
            self.add(f"bytes {start} to {stop} are in no sample: {error}")
        self.skip(stop - self.position)

    def sample(self, row: Mapping[str, Any], decode: bool) -> None:
        """Compares what stands here with its row; stands behind the sample afterwards, whatever it met."""
        start, end = self.position, self.position + row["sample_size"]
        clip_id, num_before = row["clip_id"], len(self.problems)
        try:
            expected = [f"{clip_id}.{clip_extension(row['codec'])}", f"{clip_id}.json"]
            found = []
            while self.position < end:
                member = self._header(end)
                if member is None:
                    raise _Damaged("it holds zeros where a member should begin")
                found.append(member.name)
                if fault := _fault(member):
                    self.add(f"member {member.name!r} is {fault}", row)
                    self.skip(member.size)
                elif found == expected[:1]:
                    self._clip(row, member.size, decode)
                elif found == expected:
                    self._metadata(row, member.size)
                else:
                    self.skip(member.size)
                if any(self._read(_padded(member.size) - member.size)):
                    self.add(f"the padding behind member {member.name!r} is not empty", row)
            if found != expected and len(self.problems) == num_before:
                self.add(f"at bytes {start} to {end} are {found}, not {expected}", row)
        except (_Damaged, ValueError) as error:
            self.add(f"at bytes {start} to {end}: {error}", row)
        self.skip(end - self.position)

    def end(self) -> None:
        """Reads what stands behind the last sample: nothing but zeros should."""
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
            self.add(f"from byte {start} on it is in no sample: {error}")
        else:
            if self.num_bytes - start < END_BYTES:
                self.add("the end of the tar is missing")
            elif self._has_more():
                self.add(f"behind the end of the tar, at byte {start}, stands something else")
        self.skip(self.num_bytes - self.position)

    def _header(self, stop: int) -> tarfile.TarInfo | None:
        """The member that begins here and ends by `stop`; None for a block of zeros."""
        at, long_name = self.position, None
        while True:
            if stop - self.position < tarfile.BLOCKSIZE:
                raise _Damaged(f"it is cut within the tar header at byte {self.position}")
            block = self._read(tarfile.BLOCKSIZE)
            if not any(block):
                return None
            try:
                member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except (tarfile.HeaderError, ValueError) as error:
                raise _Damaged(f"the tar header at byte {at} is damaged ({error})") from error
            if member.size < 0 or _padded(member.size) > stop - self.position:
                raise _Damaged(f"member {member.name!r} claims {member.size} bytes, more than there are")
            if member.type != tarfile.GNUTYPE_LONGNAME or long_name is not None:
                member.name = member.name if long_name is None else long_name
                return member
            if member.size > MAX_NAME_BYTES:
                raise _Damaged(f"the tar header at byte {at} claims a name of {member.size} bytes")
            name = self._read(_padded(member.size))
            long_name = name[: member.size].rstrip(b"\0").decode("utf-8", "surrogateescape")

    def _unknown(self, member: tarfile.TarInfo, at: int) -> None:
        """A member outside of all samples; readers that go by names add it to the sample of its name."""
        key = member.name.rpartition("/")[2].partition(".")[0]
        fault = f", and is {fault}" if (fault := _fault(member)) else ""
        self.add(
            f"member {member.name!r} at byte {at} is in no sample of samples.parquet{fault}",
            *([{"clip_id": key}] if key in self._clip_ids else []),
        )

    def _clip(self, row: Mapping[str, Any], num_bytes: int, decode: bool) -> None:
        if (self.position, num_bytes) != (row["clip_offset"], row["clip_size"]):
            self.add(
                f"the clip has {num_bytes} bytes at {self.position}, samples.parquet says {row['clip_size']} at "
                f"{row['clip_offset']}",
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
            self.add("the sha256 of the clip is not that of samples.parquet", row)
            return
        try:
            if decode:
                decode_clip(b"".join(kept), row["codec"], row["num_frames"])
            elif row["codec"] == "raw":
                shape, first_pixel = parse_raw_header(head)
                num_pixels = shape[0] * shape[1] * shape[2]
                if (shape[0], num_pixels) != (row["num_frames"], num_bytes - first_pixel):
                    raise ValueError(f"it claims {shape}, samples.parquet says {row['num_frames']} frames")
        except ValueError as error:
            self.add(f"the clip cannot be decoded: {error}", row)

    def _metadata(self, row: Mapping[str, Any], num_bytes: int) -> None:
        if num_bytes > MAX_METADATA_BYTES:
            self.add(f"its metadata has {num_bytes} bytes", row)
            self.skip(num_bytes)
            return
        try:
            told = json.loads(self._read(num_bytes))
        except (ValueError, RecursionError) as error:
            self.add(f"its metadata is no JSON ({error})", row)
            return
        if not isinstance(told, dict) or not isinstance(told.get("fps"), (int, float)):
            self.add("its metadata does not tell the frame rate (fps)", row)
            return
        for field in _TOLD:
            # what is unknown is null in the catalogue and empty in a sample, where older packs have null too
            if field not in told or without_null(told[field]) != without_null(row[field]):
                self.add(
                    f"its metadata says {field} {told.get(field)!r}, samples.parquet {row[field]!r}", row
                )

    def _read(self, num_bytes: int) -> bytes:
        """The next bytes, exactly so many."""
        assert num_bytes >= 0
        block = self._file.read(num_bytes)
        if len(block) < num_bytes:
            raise OSError(f"it ended at byte {self.position + len(block)} while it was read")
        self._digest.update(block)
        self.position += num_bytes
        self._on_bytes(num_bytes)
        return block

    def skip(self, num_bytes: int) -> None:
        """Reads on, for the hash alone."""
        while num_bytes > 0:
            num_bytes -= len(self._read(min(BLOCK_BYTES, num_bytes)))

    def _has_more(self) -> bool:
        """Whether anything but zeros follows; reads to the end."""
        more = False
        while self.position < self.num_bytes:
            more |= any(self._read(min(BLOCK_BYTES, self.num_bytes - self.position)))
        return more


def _fault(member: tarfile.TarInfo) -> str:
    """What a reader must not touch about a member; empty where it is a plain file in place."""
    if member.type not in _REGULAR:
        return _KINDS.get(member.type, f"of tar type {member.type!r}, no plain file")
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return "a name that climbs out of the folder"
    if member.name.lower().endswith(_PICKLES):
        return "a pickle, whose loading runs code"
    return ""


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
