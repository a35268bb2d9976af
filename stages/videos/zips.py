"""Members of a zip, read in place as files: nothing is unpacked to disk.

A stored member is a window on its zip; a deflated one is inflated in memory, as far as it is asked for. Zips are
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
"""A deflated video is held in memory, and a worker has at most 1.5 GB; larger ones must be stored, not deflated."""

ZIPS_KEPT = 16
"""Directories kept in memory. Chinese-LiPS has 3; reading one of 90,000 members took 1.1 s and 74 MB."""

MAX_DIRECTORY_BYTES = 128 << 20
"""Of a zip's directory: above a million members, for which zipfile takes 1 GB."""

_LOCAL_HEADER = struct.Struct("<4s5H3L2H")
_ENCRYPTED = 0x1
_UTF8 = 0x800
_LIKELY_ENCODINGS = ("utf-8", "gb18030", "cp950", "cp932", "cp949")
"""Of names without the flag for UTF-8: of macOS and Linux, then of Windows in Chinese, Japanese and Korean."""
_UNIX = 3

# what a cut, flipped or foreign file makes zipfile raise
_DAMAGE = (
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
    """What a zip's directory says of one member; nothing of it is believed unchecked."""

    path: Path
    """Of the zip."""
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
        """For messages."""
        return f"{self.path.name}!{self.name}"


def dangling_link(path: Path) -> str | None:
    """For messages: the link on the way to `path` whose target is missing."""
    for part in (*reversed(path.parents), path):
        if part.is_symlink() and not part.exists():
            return f"{part} is a link whose target {part.readlink()} is missing; fetch what it leads to"
    return None


def leaves_root(media: str) -> bool:
    """Whether a path of a corpus table or a zip, of POSIX or Windows, is absolute or has a `..` in it."""
    windows = PureWindowsPath(media)  # splits at / and \, and knows drives
    return bool(windows.drive or windows.root) or ".." in windows.parts


@dataclass(frozen=True, slots=True)
class _Directory:
    members: Mapping[str, Member]
    spellings: Mapping[str, Member]
    """By what names that are not ASCII may be in other encodings, all in the composed form of Unicode."""


def zip_members(path: Path) -> Mapping[str, Member]:
    """The members of a zip that are no folders; read once a process for each size and time of change.

    A name that stands twice maps to its last member, as every unpacker sees it. Raises ClipRejected (missing_file,
    unreadable).
    """
    return _listed(path).members


def _listed(path: Path) -> _Directory:
    try:
        status = path.stat()
    except OSError as error:
        link = dangling_link(path) if isinstance(error, FileNotFoundError) else None
        raise ClipRejected(Reason.MISSING_FILE, link or f"{path}: {error.strerror}") from error
    key = (str(path.absolute()), status.st_size, status.st_mtime_ns)
    with _zips_lock:
        if key not in _zips:
            _zips[key] = _directory_or_fault(path.absolute())
            while len(_zips) > ZIPS_KEPT:
                _zips.popitem(last=False)
        _zips.move_to_end(key)
        found = _zips[key]
    if isinstance(found, str):
        raise ClipRejected(Reason.UNREADABLE, found)
    return found


_zips: OrderedDict[tuple[str, int, int], _Directory | str] = OrderedDict()
"""Of a zip that is not whole what is wrong with it, so that it is looked at once and not for each of its clips."""
_zips_lock = threading.Lock()


def find_member(path: Path, name: str) -> Member:
    """The directory's entry, checked for what must not be read. Raises ClipRejected."""
    listed = _listed(path)
    member = listed.members.get(name) or listed.spellings.get(unicodedata.normalize("NFC", name))
    if member is None:
        raise ClipRejected(Reason.MISSING_FILE, f"{path.name} holds no file {name[:200]}")
    if leaves_root(name) or leaves_root(member.name) or member.is_link:
        raise ClipRejected(
            Reason.UNSAFE_PATH,
            f"{member.title} is a link, or named to lie outside of its zip; it is not read",
        )
    if member.is_encrypted:
        raise ClipRejected(Reason.UNREADABLE, f"{member.title} is encrypted; zip it without a password")
    if member.method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ClipRejected(
            Reason.UNREADABLE,
            f"{member.title} is packed by method {member.method}; zip it stored (zip -0) or deflated",
        )
    if member.method == zipfile.ZIP_STORED and member.packed_size != member.size:
        raise ClipRejected(Reason.UNREADABLE, f"{member.title}: the zip gives it two sizes; get the zip anew")
    return member


def _directory_or_fault(path: Path) -> _Directory | str:
    try:
        return _directory(path)
    except ClipRejected as error:
        cause = error.__cause__
        # the disk or network may read at the next try; EINVAL is zipfile's seek to a place that a damaged zip names
        if isinstance(cause, OSError) and cause.errno != errno.EINVAL:
            raise
        return error.detail


class _Capped(io.BufferedReader):
    """A file of which zipfile reads no directory above the cap: it asks for all of it at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its directory has {size / 1e6:.0f} MB")
        return super().read(size)


def _directory(path: Path) -> _Directory:
    members: dict[str, Member] = {}
    spellings: dict[str, Member] = {}
    try:
        with path.open("rb", buffering=0) as raw, _Capped(raw) as file, zipfile.ZipFile(file) as archive:
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
    except _DAMAGE as error:
        raise ClipRejected(
            Reason.UNREADABLE, f"{path.name} is no whole zip ({error}); get the zip anew"
        ) from error
    return _Directory(members, spellings)


def _spellings(info: zipfile.ZipInfo, raw_name: bytes) -> list[str]:
    """What a member may be called, the likeliest first: unless the zip says UTF-8, it says no encoding at all."""
    if info.filename.isascii() or info.flag_bits & _UTF8:
        return [info.filename]
    names = []
    for encoding in _LIKELY_ENCODINGS:
        with suppress(UnicodeDecodeError):
            names.append(raw_name.partition(b"\0")[0].decode(encoding))
    # as the standard has it, which a table may have taken over from Python
    return [*names, info.filename]


def member_sha256(member: Member) -> str:
    """sha256 of a zip member's bytes, equal to that of the unpacked file. Raises ClipRejected.

    The whole member is read, so this is where its checksum is compared. Keeps no more than a block in memory.
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
            Reason.UNREADABLE, f"{member.title} differs from its checksum in the zip; get the zip anew"
        )
    return digest.hexdigest()


class MemberFile(Protocol):
    """A zip member as a file, for av.open. Reading never raises: what goes wrong ends the file, and `check` tells."""

    name: str

    def read(self, num_bytes: int) -> bytes: ...
    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int: ...
    def tell(self) -> int: ...
    def check(self) -> None:
        """Raises ClipRejected where reading met damage."""


@contextmanager
def opened_member(member: Member) -> Iterator[MemberFile]:
    """A zip member, seekable. Raises ClipRejected (missing_file, unsafe_path, unreadable, oversized)."""
    if member.method == zipfile.ZIP_DEFLATED and member.size > MAX_INFLATED_MB * 1e6:
        raise ClipRejected(
            Reason.OVERSIZED,
            f"{member.title} has {member.size / 1e6:.0f} MB and is deflated, which is read up to "
            f"{MAX_INFLATED_MB:g} MB; put it into the zip uncompressed (zip -0)",
        )
    with _raw_member(member) as packed:
        if member.method == zipfile.ZIP_DEFLATED:
            yield _Inflated(member, packed)
        else:
            yield packed


class _Place:
    """Where one stands in a file of known size."""

    def __init__(self, size: int) -> None:
        self._size, self._place = size, 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = max(0, base + offset)
        return self._place

    def tell(self) -> int:
        return self._place


class _Window(_Place):
    """A stretch of an open file, as a file of its own."""

    def __init__(self, member: Member, file: BinaryIO, offset: int, size: int) -> None:
        super().__init__(size)
        self.name = PurePosixPath(member.name).name  # its extension helps FFmpeg as it does with a file
        self._title, self._file, self._offset = member.title, file, offset
        self._failure: OSError | None = None

    def read(self, num_bytes: int) -> bytes:
        wanted = max(0, min(num_bytes, self._size - self._place))
        try:
            # read at a place, since the file object's own position may be shared
            block = os.pread(self._file.fileno(), wanted, self._offset + self._place)
        except OSError as error:
            self._failure = error
            return b""
        self._place += len(block)
        return block

    def check(self) -> None:
        if self._failure is not None:
            raise ClipRejected(
                Reason.UNREADABLE, f"{self._title} cannot be read ({self._failure.strerror})"
            ) from self._failure

    def blocks(self) -> Iterator[bytes]:
        while block := self.read(HASH_BLOCK_BYTES):
            yield block
        self.check()


class _Inflated(_Place):
    """A deflated member: what was asked for so far is kept, so that going back costs nothing."""

    def __init__(self, member: Member, packed: _Window) -> None:
        super().__init__(member.size)
        self.name = packed.name
        self._blocks = _inflated(member, packed)
        self._kept = bytearray()
        self._failure: ClipRejected | None = None

    def read(self, num_bytes: int) -> bytes:
        end = min(self._place + num_bytes, self._size)
        while len(self._kept) < end and self._failure is None:
            try:
                block = next(self._blocks, None)
            except ClipRejected as error:
                self._failure = error
                break
            if block is None:
                break
            self._kept += block
        found = bytes(self._kept[self._place : max(end, self._place)])
        self._place += len(found)
        return found

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure


def _inflated(member: Member, packed: _Window) -> Iterator[bytes]:
    """Blocks of a deflated member; ends with ClipRejected at damage, and at more bytes than were announced."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    num_bytes = 0
    try:
        for block in packed.blocks():
            while not inflate.eof:
                made = inflate.decompress(block, HASH_BLOCK_BYTES)
                # output may be pending though all of the block is taken in: on until nothing moves
                if not made and len(inflate.unconsumed_tail) == len(block):
                    break
                block = inflate.unconsumed_tail
                num_bytes += len(made)
                if num_bytes > member.size:
                    raise ClipRejected(
                        Reason.OVERSIZED,
                        f"{member.title} holds more than the {member.size} bytes that its zip announces; "
                        "a damaged zip, or one made to fill memory",
                    )
                if made:
                    yield made
    except zlib.error as error:
        raise ClipRejected(
            Reason.UNREADABLE, f"{member.title} cannot be inflated ({error}); get the zip anew"
        ) from error
    if not inflate.eof or num_bytes != member.size:
        raise ClipRejected(Reason.UNREADABLE, f"{member.title} ends too early in its zip; get the zip anew")


@contextmanager
def _raw_member(member: Member) -> Iterator[_Window]:
    """The member's bytes as they lie in the zip, after its local header was compared with the directory."""
    try:
        file = member.path.open("rb")
    except OSError as error:
        raise ClipRejected(Reason.UNREADABLE, f"{member.title} cannot be read ({error.strerror})") from error
    with file:
        yield _window(member, file)


def _window(member: Member, file: BinaryIO) -> _Window:
    num_bytes = os.fstat(file.fileno()).st_size
    place = member.header_offset if 0 <= member.header_offset < num_bytes else num_bytes
    header_and_name = _Window(member, file, place, _LOCAL_HEADER.size + len(member.raw_name))
    header, name = header_and_name.read(_LOCAL_HEADER.size), header_and_name.read(len(member.raw_name))
    header_and_name.check()
    if len(header) == _LOCAL_HEADER.size:
        signature, _, flags, method, _, _, _, _, _, name_size, extra_size = _LOCAL_HEADER.unpack(header)
        # the local extra field is often of another length than the directory's
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
        Reason.UNREADABLE, f"{member.title}: the zip is not what its directory says; get the zip anew"
    )
