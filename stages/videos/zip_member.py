"""Reads members of a zip in place as files, without unpacking to disk.

A stored member is a window on its zip. A deflated member is inflated in memory, only as far as it is read. Zips are
untrusted: local headers, sizes and checksums are checked.
"""

import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import PurePosixPath
from typing import BinaryIO, Protocol

from shards.errors import ClipRejected
from shards.files import HASH_BLOCK_BYTES
from shards.schema import Reason
from stages.videos.zip_directory import ENCRYPTED, Member

MAX_INFLATED_MB = 512.0
"""A deflated video is held in memory, and a worker has at most 1.5 GB. Larger videos must be stored, not deflated."""

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")


def member_sha256(member: Member) -> str:
    """Returns the sha256 of a zip member's bytes, the same as of the unpacked file. Raises ClipRejected.

    Also compares the checksum, since it reads the whole member. Keeps no more than a block in memory.
    """
    digest, crc, num_bytes = sha256(), 0, 0
    with _raw_member(member) as packed:
        blocks = _inflated(member, packed) if member.method == zipfile.ZIP_DEFLATED else packed.blocks()
        for block in blocks:
            digest.update(block)
            crc = zlib.crc32(block, crc)
            num_bytes += len(block)
    if num_bytes != member.size or crc != member.crc:
        raise ClipRejected(
            Reason.UNREADABLE, f"{member.title} differs from its checksum in the zip; get the zip again"
        )
    return digest.hexdigest()


class MemberFile(Protocol):
    """A zip member as a file, for av.open. Reading never raises: an error ends the file, and `check` raises it."""

    name: str

    def read(self, num_bytes: int) -> bytes: ...
    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int: ...
    def tell(self) -> int: ...
    def check(self) -> None:
        """Raises ClipRejected if reading failed."""


@contextmanager
def opened_member(member: Member) -> Iterator[MemberFile]:
    """Opens a zip member as a seekable file. Raises ClipRejected (missing_file, unsafe_path, unreadable, oversized)."""
    if member.method == zipfile.ZIP_DEFLATED and member.size > MAX_INFLATED_MB * 1e6:
        raise ClipRejected(
            Reason.OVERSIZED,
            f"{member.title} has {member.size / 1e6:.0f} MB and is deflated, but deflated members may have at most "
            f"{MAX_INFLATED_MB:g} MB; put it into the zip uncompressed (zip -0)",
        )
    with _raw_member(member) as packed:
        if member.method == zipfile.ZIP_DEFLATED:
            yield _Inflated(member, packed)
        else:
            yield packed


class _Seekable:
    """The position in a file of known size."""

    def __init__(self, size: int) -> None:
        self._size, self._position = size, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def tell(self) -> int:
        return self._position


class _Window(_Seekable):
    """A range of an open file, as a separate file."""

    def __init__(self, member: Member, file: BinaryIO, offset: int, size: int) -> None:
        super().__init__(size)
        self.name = PurePosixPath(member.name).name  # FFmpeg uses the extension
        self._title, self._file, self._offset = member.title, file, offset
        self._failure: OSError | None = None

    def read(self, num_bytes: int) -> bytes:
        wanted = max(0, min(num_bytes, self._size - self._position))
        try:
            # pread, since the file object's own position may be shared
            block = os.pread(self._file.fileno(), wanted, self._offset + self._position)
        except OSError as error:
            self._failure = error
            return b""
        self._position += len(block)
        return block

    def check(self) -> None:
        if self._failure is not None:
            raise ClipRejected(
                Reason.UNREADABLE, f"{self._title} cannot be read ({self._failure.strerror}); check the disk"
            ) from self._failure

    def blocks(self) -> Iterator[bytes]:
        while block := self.read(HASH_BLOCK_BYTES):
            yield block
        self.check()


class _Inflated(_Seekable):
    """A deflated member. Keeps what was read so far, so that seeking back costs nothing."""

    def __init__(self, member: Member, packed: _Window) -> None:
        super().__init__(member.size)
        self.name = packed.name
        self._blocks = _inflated(member, packed)
        self._kept = bytearray()
        self._failure: ClipRejected | None = None

    def read(self, num_bytes: int) -> bytes:
        end = min(self._position + num_bytes, self._size)
        while len(self._kept) < end and self._failure is None:
            try:
                block = next(self._blocks, None)
            except ClipRejected as error:
                self._failure = error
                break
            if block is None:
                break
            self._kept += block
        found = bytes(self._kept[self._position : max(end, self._position)])
        self._position += len(found)
        return found

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure


def _inflated(member: Member, packed: _Window) -> Iterator[bytes]:
    """Yields blocks of a deflated member. Raises ClipRejected at damage, and at more bytes than announced."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    num_bytes = 0
    try:
        for block in packed.blocks():
            while not inflate.eof:
                output = inflate.decompress(block, HASH_BLOCK_BYTES)
                # output may be pending even if the whole block was consumed: continue until nothing changes
                if not output and len(inflate.unconsumed_tail) == len(block):
                    break
                block = inflate.unconsumed_tail
                num_bytes += len(output)
                if num_bytes > member.size:
                    raise ClipRejected(
                        Reason.OVERSIZED,
                        f"{member.title} holds more than the {member.size} bytes that its zip announces: "
                        "the zip is damaged, or made to fill the memory; get the zip again",
                    )
                if output:
                    yield output
    except zlib.error as error:
        raise ClipRejected(
            Reason.UNREADABLE, f"{member.title} cannot be inflated ({error}); get the zip again"
        ) from error
    if not inflate.eof or num_bytes != member.size:
        raise ClipRejected(Reason.UNREADABLE, f"{member.title} ends too early in its zip; get the zip again")


@contextmanager
def _raw_member(member: Member) -> Iterator[_Window]:
    """Opens the member's packed bytes, after comparing its local header with the directory."""
    try:
        file = member.path.open("rb")
    except OSError as error:
        raise ClipRejected(
            Reason.UNREADABLE,
            f"{member.title} cannot be read ({error.strerror}); check the file's permissions",
        ) from error
    with file:
        yield _window(member, file)


def _window(member: Member, file: BinaryIO) -> _Window:
    num_bytes = os.fstat(file.fileno()).st_size
    offset = member.header_offset if 0 <= member.header_offset < num_bytes else num_bytes
    header_and_name = _Window(member, file, offset, _LOCAL_HEADER.size + len(member.raw_name))
    header, name = header_and_name.read(_LOCAL_HEADER.size), header_and_name.read(len(member.raw_name))
    header_and_name.check()
    if len(header) == _LOCAL_HEADER.size:
        signature, _, flags, method, _, _, _, _, _, name_size, extra_size = _LOCAL_HEADER.unpack(header)
        # the local extra field often has another length than the directory's
        start = member.header_offset + _LOCAL_HEADER.size + name_size + extra_size
        if (
            signature == b"PK\3\4"
            and method == member.method
            and not flags & ENCRYPTED
            and (name_size, name) == (len(member.raw_name), member.raw_name)
            and start + member.packed_size <= num_bytes
        ):
            return _Window(member, file, start, member.packed_size)
    raise ClipRejected(
        Reason.UNREADABLE, f"{member.title}: the zip differs from its own directory; get the zip again"
    )
