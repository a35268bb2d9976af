"""Reads members of a zip in place as files, without unpacking to disk.

A stored member is a window on its zip. A deflated member is inflated in memory, only as far as it is read. Zips are
untrusted: names, sizes, flags and checksums are checked before they are used.
"""

import errno
import io
import os
import stat
import struct
import threading
import unicodedata
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO, Protocol

from shards.errors import ClipRejected
from shards.files import HASH_BLOCK_BYTES
from shards.schema import Reason

MAX_INFLATED_MB = 512.0
"""A deflated video is held in memory, and a worker has at most 1.5 GB. Larger videos must be stored, not deflated."""

ZIPS_KEPT = 16
"""Zip directories kept in memory. Chinese-LiPS has 3; reading a directory of 90,000 members took 1.1 s and 74 MB."""

MAX_DIRECTORY_BYTES = 128 << 20
"""Largest directory of a zip: more than a million members, for which zipfile needs 1 GB."""

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_ENCRYPTED = 0x1
_UTF8 = 0x800
_LIKELY_ENCODINGS = ("utf-8", "gb18030", "cp950", "cp932", "cp949")
"""Encodings of names without the UTF-8 flag: macOS and Linux, then Windows in Chinese, Japanese and Korean."""
_UNIX = 3

# zipfile raises these for a truncated or damaged file, or a file that is not a zip
_DAMAGE_ERRORS = (
    zipfile.BadZipFile,
    NotImplementedError,
    OSError,
    OverflowError,
    UnicodeDecodeError,
    ValueError,
    struct.error,
)


@dataclass(frozen=True, slots=True)
class Member:
    """An entry of a zip's directory. Every value is checked before use."""

    path: Path
    """The zip."""
    name: str
    raw_name: bytes
    header_offset: int
    method: int
    packed_size: int
    size: int
    crc: int
    is_encrypted: bool
    is_link: bool

    @property
    def title(self) -> str:
        """The name of the member for messages."""
        return f"{self.path.name}!{self.name}"


def dangling_link(path: Path) -> str | None:
    """Returns a message on the link in `path` whose target is missing, or None."""
    for part in (*reversed(path.parents), path):
        if part.is_symlink() and not part.exists():
            return f"{part} is a link whose target {part.readlink()} is missing; fetch the target"
    return None


def leaves_root(media: str) -> bool:
    """Returns whether a POSIX or Windows path of a corpus table or a zip is absolute or contains `..`."""
    windows = PureWindowsPath(media)  # splits at / and \, and knows drives
    return bool(windows.drive or windows.root) or ".." in windows.parts


@dataclass(frozen=True, slots=True)
class _Directory:
    members: Mapping[str, Member]
    spellings: Mapping[str, Member]
    """Members by their non-ASCII names in all likely encodings, in the composed form of Unicode."""


def zip_members(path: Path) -> Mapping[str, Member]:
    """Returns the members of a zip without folders. Reads a zip once per process for each size and modification time.

    A duplicate name maps to its last member, as in every unpacker. Raises ClipRejected (missing_file, unreadable).
    """
    return _cached_directory(path).members


def _cached_directory(path: Path) -> _Directory:
    try:
        status = path.stat()
    except OSError as error:
        link = dangling_link(path) if isinstance(error, FileNotFoundError) else None
        raise ClipRejected(Reason.MISSING_FILE, link or f"{path}: {error.strerror}") from error
    key = (str(path.absolute()), status.st_size, status.st_mtime_ns)
    with _zips_lock:
        if key not in _zips:
            _zips[key] = _directory_or_error(path.absolute())
            while len(_zips) > ZIPS_KEPT:
                _zips.popitem(last=False)
        _zips.move_to_end(key)
        directory = _zips[key]
    if isinstance(directory, str):
        raise ClipRejected(Reason.UNREADABLE, directory)
    return directory


_zips: OrderedDict[tuple[str, int, int], _Directory | str] = OrderedDict()
"""For a damaged zip its error message, so that it is read once and not for each of its clips."""
_zips_lock = threading.Lock()


def find_member(path: Path, name: str) -> Member:
    """Returns the directory's entry. Raises ClipRejected if it is missing or must not be read."""
    directory = _cached_directory(path)
    member = directory.members.get(name) or directory.spellings.get(unicodedata.normalize("NFC", name))
    if member is None:
        raise ClipRejected(Reason.MISSING_FILE, f"{path.name} holds no file {name[:200]}; correct the path")
    if leaves_root(name) or leaves_root(member.name) or member.is_link:
        raise ClipRejected(
            Reason.UNSAFE_PATH,
            f"{member.title} is a link, or its path leads out of its zip; zip the file itself under a relative path",
        )
    if member.is_encrypted:
        raise ClipRejected(Reason.UNREADABLE, f"{member.title} is encrypted; zip it without a password")
    if member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ClipRejected(
            Reason.UNREADABLE,
            f"{member.title} is packed by method {member.method}; zip it stored (zip -0) or deflated",
        )
    if member.method == zipfile.ZIP_STORED and member.packed_size != member.size:
        raise ClipRejected(Reason.UNREADABLE, f"{member.title}: the zip gives two sizes; get the zip again")
    return member


def _directory_or_error(path: Path) -> _Directory | str:
    try:
        return _directory(path)
    except ClipRejected as error:
        cause = error.__cause__
        # the next read from disk or network may succeed; EINVAL comes from a wrong offset in a damaged zip
        if isinstance(cause, OSError) and cause.errno != errno.EINVAL:
            raise
        return error.detail


class _CappedFile(io.BufferedReader):
    """A file that does not let zipfile read a directory above the limit. zipfile reads a directory in one call."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory has {size / 1e6:.0f} MB")
        return super().read(size)


def _directory(path: Path) -> _Directory:
    members: dict[str, Member] = {}
    spellings: dict[str, Member] = {}
    try:
        with path.open("rb", buffering=0) as raw, _CappedFile(raw) as file, zipfile.ZipFile(file) as archive:
            for info in archive.infolist():
                if info.is_dir():
                    continue
                raw_name = info.orig_filename.encode("utf-8" if info.flag_bits & _UTF8 else "cp437")
                names = _spellings(info, raw_name)
                member = Member(
                    path,
                    names[0],
                    raw_name,
                    info.header_offset,
                    info.compress_type,
                    info.compress_size,
                    info.file_size,
                    info.CRC,
                    bool(info.flag_bits & _ENCRYPTED),
                    info.create_system == _UNIX and stat.S_ISLNK(info.external_attr >> 16),
                )
                members[member.name] = member
                if not info.filename.isascii():
                    spellings |= {unicodedata.normalize("NFC", name): member for name in names}
    except _DAMAGE_ERRORS as error:
        raise ClipRejected(
            Reason.UNREADABLE, f"{path.name} is damaged or not a zip ({error}); get the zip again"
        ) from error
    return _Directory(members, spellings)


def _spellings(info: zipfile.ZipInfo, raw_name: bytes) -> list[str]:
    """Returns the possible names of a member, the likeliest first. Without the UTF-8 flag a zip gives no encoding."""
    if info.filename.isascii() or info.flag_bits & _UTF8:
        return [info.filename]
    names = []
    for encoding in _LIKELY_ENCODINGS:
        with suppress(UnicodeDecodeError):
            names.append(raw_name.partition(b"\0")[0].decode(encoding))
    # decoded as the standard says: a table may have this name from Python
    return [*names, info.filename]


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
            and not flags & _ENCRYPTED
            and (name_size, name) == (len(member.raw_name), member.raw_name)
            and start + member.packed_size <= num_bytes
        ):
            return _Window(member, file, start, member.packed_size)
    raise ClipRejected(
        Reason.UNREADABLE, f"{member.title}: the zip differs from its own directory; get the zip again"
    )
