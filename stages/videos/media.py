"""Finds a clip's video bytes: a file or a member of a zip, and the part of the video that the clip covers."""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from shards.disk import FORBIDDEN
from shards.errors import ClipRejected
from shards.schema import Reason
from stages.videos.zip_directory import dangling_link, find_member, leaves_root
from stages.videos.zip_member import opened_member

_IN_ZIP = re.compile(r"(.+?\.zip)!(.+)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Source:
    """A video, or its part from `start_s` to before `end_s`, in seconds since the first picture. None: its ends."""

    path: Path
    member: str | None = None
    start_s: float | None = None
    end_s: float | None = None

    @property
    def name(self) -> str:
        """The name of the file for messages."""
        return self.path.name if self.member is None else f"{self.path.name}!{self.member}"

    @property
    def is_part(self) -> bool:
        return self.start_s is not None or self.end_s is not None


Media = Path | Source
"""The argument of functions that read videos. A path means the whole file."""


def source_of(media: Media) -> Source:
    return media if isinstance(media, Source) else Source(media)


def resolve_media(
    root: Path,
    media: str,
    start_s: float | None = None,
    end_s: float | None = None,
    follow_links: bool = False,
) -> Source:
    """Returns the file, or `zip!member`, that `media` of clips.parquet names under `root`.

    Finds names in any Unicode form that the disk or the zip uses. Raises ClipRejected if the file is missing, lies
    outside `root` (unsafe_path; with `follow_links`, links may lead there), or its zip is damaged.
    """
    if not media:
        raise ClipRejected(Reason.MISSING_FILE, "the transcript names no video")
    in_zip = _IN_ZIP.fullmatch(media)
    if leaves_root(media) or (in_zip and leaves_root(in_zip[2])):
        raise ClipRejected(
            Reason.UNSAFE_PATH,
            f"{media} leads out of the corpus; give its path relative to the root, or put a link to it below the root"
            + ("" if follow_links else " and set corpus.follow_links to true"),
        )
    try:
        path = _find(root, media)
        # a plain file may have such a name too
        if path is None and in_zip is not None:
            media, path = in_zip[1], _find(root, in_zip[1])
        else:
            in_zip = None
        if path is None:
            link = dangling_link(root / media)
            fault = f"{media} is not below the corpus root {root}; correct the path or fetch the file"
            raise ClipRejected(Reason.MISSING_FILE, link or fault)
        target = path.resolve()
        inside = follow_links or any(target.is_relative_to(folder) for folder in _allowed_folders(root))
    except PermissionError as error:
        raise ClipRejected(Reason.UNREADABLE, f"{media} {FORBIDDEN}") from error
    except OSError as error:
        # a name too long for the file system
        raise ClipRejected(Reason.MISSING_FILE, f"{media[:200]}: {error.strerror}") from error
    if not inside:
        raise ClipRejected(
            Reason.UNSAFE_PATH,
            f"{media} is a link to {target}, outside the corpus root; set corpus.follow_links to true if links may "
            "lead there, or copy the file into the root",
        )
    if not path.is_file():
        raise ClipRejected(Reason.MISSING_FILE, f"{media} is not a file; correct the path")
    return Source(path, find_member(path, in_zip[2]).name if in_zip else None, start_s, end_s)


def _allowed_folders(root: Path) -> Iterator[Path]:
    """Yields the folders that may hold files of a corpus: its root, and `blobs` for a snapshot of a Hugging Face cache.

    There `<repository>/snapshots/<revision>` holds links into `<repository>/blobs`, which holds nothing else.
    """
    root = root.resolve()
    yield root
    for folder in (root, *root.parents):
        if folder.parent.name == "snapshots":
            yield (folder.parent.parent / "blobs").resolve()


def _find(root: Path, media: str) -> Path | None:
    """Returns the file or folder of that name, in any Unicode form: macOS decomposes accents and kana."""
    path = root / media
    if path.exists():
        return path
    if media.isascii():
        return None
    path = root
    for part in PurePosixPath(media).parts:
        if not (path / part).exists():
            found = _names_in(path, path.stat().st_mtime_ns).get(unicodedata.normalize("NFC", part))
            if found is None:
                return None
            part = found
        path /= part
    return path


@lru_cache(maxsize=16)
def _names_in(folder: Path, mtime_ns: int) -> Mapping[str, str]:
    """Returns each name in a folder by its composed form. A new `mtime_ns` lists the folder again."""
    names = sorted(path.name for path in folder.iterdir())
    return {unicodedata.normalize("NFC", name): name for name in names}


def check_file_size(source: Source, max_source_mb: float) -> None:
    """Raises ClipRejected (missing_file, unreadable, oversized) without reading the video."""
    path = source.path
    if not path.is_file():
        raise ClipRejected(
            Reason.MISSING_FILE, f"{path} is {'not a file' if path.exists() else 'missing'}; correct the path"
        )
    size_bytes = path.stat().st_size if source.member is None else find_member(path, source.member).size
    if size_bytes == 0:
        raise ClipRejected(Reason.UNREADABLE, f"{source.name} is empty (0 bytes); get the file again")
    if size_bytes > max_source_mb * 1e6:
        raise ClipRejected(
            Reason.OVERSIZED,
            f"{source.name} has {size_bytes / 1e6:.0f} MB; crop.max_source_mb is {max_source_mb:g}",
        )


def read_small(source: Source, max_bytes: int) -> bytes:
    """Returns all bytes of a small file. Raises ClipRejected like `check_file_size`; oversized: above `max_bytes`."""
    check_file_size(source, max_bytes / 1e6)
    if source.member is None:
        try:
            return source.path.read_bytes()
        except OSError as error:
            raise ClipRejected(Reason.UNREADABLE, f"{source.name}: {error.strerror}") from error
    with opened_member(find_member(source.path, source.member)) as file:
        payload = file.read(max_bytes)
        file.check()
    return payload
