"""Which videos are meant by files, folders and patterns."""

import glob
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from shards.errors import ClipRejected, ConfigError
from stages.videos.video import read_header

VIDEO_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("mp4", "m4v", "mov", "3gp", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "mts", "m2ts"),
        *("flv", "wmv", "asf", "ogv", "ogg", "mxf", "nut", "ivf"),
    )
)
_PATTERN = frozenset("*?[")

BURNT_SUFFIX = ".captioned.mp4"
"""What --burn-in writes; beside the videos, a second run would read them too."""


def find_videos(given: Sequence[str]) -> tuple[Mapping[Path, Path], list[Path]]:
    """Videos in the order given, each once, and the files that were passed over since they are none.

    Of each video its place below the folder that was named, or before the pattern begins: two of one name stay two.
    A file named by itself is taken at its word. Of a folder (with all below it) and of a pattern what is called like a
    video, or is one by a look at it, is taken; links to nothing, pipes and what --burn-in wrote are passed over, hidden
    files left out. What is called like a video comes first among those passed over. Raises ConfigError where a name is
    empty.
    """
    videos: dict[Path, Path] = {}
    skipped: dict[Path, None] = {}
    for name in given:
        if not name:
            raise ConfigError("a video's name is empty; is a variable of the shell not set?")
        path = Path(name)
        if is_kind(Path.is_dir, path):
            found, root = _below(path), path
        elif _PATTERN & set(name) and not is_kind(Path.exists, path) and (found := _matching(name)):
            root = _fixed_part(path)
        else:
            # also what is missing, and a pattern that matches nothing: the reader tells
            videos.setdefault(path, Path(path.name))
            continue
        for file in found:
            if file.name.endswith(BURNT_SUFFIX) or not _is_video(file):
                skipped[file] = None
            else:
                videos.setdefault(file, file.relative_to(root))
    left_out = [file for file in skipped if file not in videos]
    return videos, sorted(left_out, key=lambda file: not _is_called_video(file))


def _matching(pattern: str) -> list[Path]:
    matches = sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 - Path.glob takes no absolute pattern
    return list(chain.from_iterable(_below(m) if is_kind(Path.is_dir, m) else [m] for m in matches))


def _fixed_part(pattern: Path) -> Path:
    """The folder of a pattern before its first sign."""
    folder = pattern.parent
    while _PATTERN & set(str(folder)):
        folder = folder.parent
    return folder


def _below(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if not is_kind(Path.is_dir, path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def is_kind(kind: Callable[[Path], bool], path: Path, unknown: bool = False) -> bool:
    """`unknown` where it may not be looked at, or its name is too long to be one."""
    try:
        return kind(path)
    except OSError:
        return unknown


def _is_called_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _is_video(path: Path) -> bool:
    # what may not be looked at is told by the reader; a pipe would be waited for
    if not is_kind(Path.is_file, path, unknown=True):
        return False
    if _is_called_video(path):
        return True
    try:
        read_header(path)
    except (ClipRejected, OSError):
        return False
    return True
