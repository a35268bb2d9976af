"""The record every corpus reader gives, and the two conventions they share: media paths and split order."""

import posixpath
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from stages.videos.zips import leaves_root

_USUAL_SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, slots=True)
class Transcript:
    """One transcript line of a corpus.

    `media` is the video relative to the corpus root, with forward slashes; where no file was found it is the
    path at which one was expected, and a path that leaves the root stays as the corpus gives it, so that crop
    rejects either with a reason. `start_s` and `end_s` say which part of the video it is, None: from its start, to its
    end. `age` is in years; `where` is `file:line`, for messages; `times` is the file that
    tells when each word is said, named as `media` is, where the corpus itself names one.
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
    """`path` of a corpus table relative to `root`, with forward slashes and no `./` or `..`; outside it as given.

    An absolute path, as programs write them, is below the root where one of its folders is the root, however the two
    are spelled: through links, from the working directory, with `..`.
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
    """A relative path without `.` and `..`; None where it leaves its folder, or climbs within a zip."""
    slashed = path.replace("\\", "/")
    if leaves_root(path) and ".zip!" not in path.lower():
        slashed = posixpath.normpath(slashed)
    return None if leaves_root(slashed) else str(PurePosixPath(slashed))


def _is_same(folder: Path, other: Path) -> bool:
    # a name with a zero byte, or in a folder that is none
    with suppress(OSError, ValueError):
        return folder.samefile(other)
    return False


def split_rank(split: str) -> tuple[int, str]:
    """Sort key of splits: train, valid, test, then any other by name."""
    usual = _USUAL_SPLITS.index(split) if split in _USUAL_SPLITS else len(_USUAL_SPLITS)
    return usual, split
