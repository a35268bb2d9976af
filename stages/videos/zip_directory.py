"""Reads the directories of zips, and finds members in them.

Zips are untrusted: names, sizes and flags are checked before they are used.
"""

import errno
import io
import stat
import struct
import threading
import unicodedata
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from shards.errors import ClipRejected
from shards.schema import Reason

ZIPS_KEPT = 16
"""Zip directories kept in memory. Chinese-LiPS has 3; reading a directory of 90,000 members took 1.1 s and 74 MB."""

MAX_DIRECTORY_BYTES = 128 << 20
"""Largest directory of a zip: more than a million members, for which zipfile needs 1 GB."""

ENCRYPTED = 0x1
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
                    bool(info.flag_bits & ENCRYPTED),
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
