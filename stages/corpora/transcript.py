"""The record every corpus reader gives, and the two conventions they share: media paths and split order."""

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
    """`path` of a corpus table relative to `root`, with forward slashes and no `./`; outside it stays as given.

    An absolute path, as programs write them, is below the root where one of its folders is the root, however the two
    are spelled: through links, from the working directory, with `..`.
    """
    if not path or not leaves_root(path):
        return path and str(PurePosixPath(path.replace("\\", "/")))
    absolute = Path(path)
    for folder in absolute.parents if absolute.is_absolute() else ():
        if _is_same(folder, root):
            inside = absolute.relative_to(folder)
            return path if ".." in inside.parts else inside.as_posix()
    return path


def _is_same(folder: Path, other: Path) -> bool:
    # a name with a zero byte, or in a folder that is none
    with suppress(OSError, ValueError):
        return folder.samefile(other)
    return False


def split_rank(split: str) -> tuple[int, str]:
    """Sort key of splits: train, valid, test, then any other by name."""
    usual = _USUAL_SPLITS.index(split) if split in _USUAL_SPLITS else len(_USUAL_SPLITS)
    return usual, split
