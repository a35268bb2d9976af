"""The record every corpus reader gives, and the two conventions they share: media paths and split order."""

from dataclasses import dataclass
from pathlib import PurePosixPath

from stages.videos.zips import leaves_root

_USUAL_SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, slots=True)
class Transcript:
    """One transcript line of a corpus.

    `media` is the video relative to the corpus root, with forward slashes; where no file was found it is the
    path at which one was expected, and a path that leaves the root stays as the corpus gives it, so that crop
    rejects either with a reason. `age` is in years; `where` is `file:line`, for messages; `times` is the file that
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


def relative_media(path: str) -> str:
    """`path` of a corpus table with forward slashes and no `./`; one that leaves the root stays as given."""
    if not path or leaves_root(path):
        return path
    return str(PurePosixPath(path.replace("\\", "/")))


def split_rank(split: str) -> tuple[int, str]:
    """Sort key of splits: train, valid, test, then any other by name."""
    usual = _USUAL_SPLITS.index(split) if split in _USUAL_SPLITS else len(_USUAL_SPLITS)
    return usual, split
