"""Where a clip's video bytes are: a plain file, or a member of a zip; and which part of the video the clip is."""

import re
from dataclasses import dataclass
from pathlib import Path

from shards.errors import ClipRejected
from shards.schema import Reason
from stages.videos.zips import find_member, leaves_root, opened_member

_IN_ZIP = re.compile(r"(.+?\.zip)!(.+)", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Source:
    """A video, or its part from `start_s` to before `end_s`, in seconds since the first picture (None: its ends)."""

    path: Path
    member: str | None = None
    start_s: float | None = None
    end_s: float | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return self.path.name if self.member is None else f"{self.path.name}!{self.member}"

    @property
    def is_part(self) -> bool:
        return self.start_s is not None or self.end_s is not None


Media = Path | Source
"""What functions that read videos take; a path stands for the whole of a plain file."""


def source_of(media: Media) -> Source:
    return media if isinstance(media, Source) else Source(media)


def resolve_media(root: Path, media: str, start_s: float | None = None, end_s: float | None = None) -> Source:
    """What `media` of clips.parquet names under `root`: a file, or `zip!member`.

    Raises ClipRejected where it is missing, would be read outside (unsafe_path), or its zip is damaged.
    """
    if not media:
        raise ClipRejected(Reason.MISSING_FILE, "the transcript names no video")
    in_zip = _IN_ZIP.fullmatch(media)
    if leaves_root(media) or (in_zip and leaves_root(in_zip[2])):
        raise ClipRejected(
            Reason.UNSAFE_PATH, f"{media} leads out of the corpus; name it relative to the root"
        )
    # a plain file may be called so too
    if in_zip is None or _exists(root / media, media):
        return Source(_file_below(root, media), start_s=start_s, end_s=end_s)
    path = _file_below(root, in_zip[1])
    return Source(path, find_member(path, in_zip[2]).name, start_s, end_s)


def check_file_size(source: Source, max_source_mb: float) -> None:
    """Raises ClipRejected (missing_file, unreadable, oversized) before a byte of the video is read."""
    path = source.path
    if not path.is_file():
        raise ClipRejected(
            Reason.MISSING_FILE, f"{path} is {'no plain file' if path.exists() else 'missing'}"
        )
    size_bytes = path.stat().st_size if source.member is None else find_member(path, source.member).size
    if size_bytes == 0:
        raise ClipRejected(Reason.UNREADABLE, f"{source.name} is empty (0 bytes); get the file anew")
    if size_bytes > max_source_mb * 1e6:
        raise ClipRejected(
            Reason.OVERSIZED,
            f"{source.name} has {size_bytes / 1e6:.0f} MB; crop.max_source_mb is {max_source_mb:g}",
        )


def read_small(source: Source, max_bytes: int) -> bytes:
    """All bytes of a small file, a transcript. Raises ClipRejected (oversized above `max_bytes`, and as above)."""
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


def _exists(path: Path, media: str) -> bool:
    try:
        return path.exists()
    except OSError as error:
        # a name too long for the file system, a folder one may not enter
        raise ClipRejected(Reason.MISSING_FILE, f"{media[:200]}: {error.strerror}") from error


def _file_below(root: Path, media: str) -> Path:
    path = root / media
    if not _exists(path, media):
        raise ClipRejected(Reason.MISSING_FILE, f"{media} is not below the corpus root {root}")
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except OSError as error:
        raise ClipRejected(Reason.MISSING_FILE, f"{media[:200]}: {error.strerror}") from error
    if not inside:
        raise ClipRejected(
            Reason.UNSAFE_PATH, f"{media} is a link to a file outside the corpus; copy the file into it"
        )
    if not path.is_file():
        raise ClipRejected(Reason.MISSING_FILE, f"{media} is no plain file")
    return path
