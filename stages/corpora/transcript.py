"""The record that every corpus reader returns, and the shared conventions for media paths and split order."""

import posixpath
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stages.videos.zip_directory import leaves_root

_USUAL_SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, slots=True)
class Transcript:
    """One transcript line of a corpus.

    `media` is the video relative to the corpus root, with forward slashes; where no file was found it is the
    expected path, and a path that leaves the root stays as the corpus gives it, so that crop rejects either with a
    reason. `start_s` and `end_s` give the part of the video, None: from its start, to its end. `age` is in years;
    `where` is `file:line`, for messages; `times` is the file with the time of each word, a path like `media`, where
    the corpus names one.
    """

    clip_id: str
    split: str
    speaker: str | None
    gender: str | None
    age: int | None
    topic: str | None
    media: str
    text: str
    where: str
    times: str | None = None
    start_s: float | None = None
    end_s: float | None = None


def relative_media(path: str, root: Path) -> str:
    """Returns `path` relative to `root`, with forward slashes and without `./` or `..`; outside the root, unchanged.

    An absolute path is below the root if one of its folders is the root, in any spelling: through links, from the
    working directory, with `..`.
    """
    if not path:
        return path
    if (inside := _inside(path)) is not None:
        return inside
    absolute = Path(path)
    for folder in absolute.parents if absolute.is_absolute() else ():
        if _is_same(folder, root):
            return _inside(str(absolute.relative_to(folder))) or path
    return path


def _inside(path: str) -> str | None:
    """Returns a relative path without `.` and `..`; None where it leaves its folder, or uses `..` within a zip."""
    slashed = path.replace("\\", "/")
    if leaves_root(path) and ".zip!" not in path.lower():
        slashed = posixpath.normpath(slashed)
    return None if leaves_root(slashed) else str(PurePosixPath(slashed))


def _is_same(folder: Path, other: Path) -> bool:
    # a name with a zero byte, or below a file
    with suppress(OSError, ValueError):
        return folder.samefile(other)
    return False


def split_rank(split: str) -> tuple[int, str]:
    """Returns the sort key of splits: train, valid, test, then any other by name."""
    usual = _USUAL_SPLITS.index(split) if split in _USUAL_SPLITS else len(_USUAL_SPLITS)
    return usual, split
