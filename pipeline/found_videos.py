"""Which videos are meant by files, folders and patterns."""

import glob
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

from shards.errors import ClipRejected
from stages.video import sniff_media_kind

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
    video, or is one by a look at it, is taken; hidden files and what --burn-in wrote are left out.
    """
    videos: dict[Path, Path] = {}
    skipped: dict[Path, None] = {}
    for name in given:
        path = Path(name)
        if path.is_dir():
            found, root = _below(path), path
        elif not path.exists() and _PATTERN & set(name):
            found, root = _matching(name), _fixed_part(path)
        else:
            videos.setdefault(path, Path(path.name))
            continue
        for file in found:
            if file.name.endswith(BURNT_SUFFIX) or not _is_video(file):
                skipped[file] = None
            else:
                videos.setdefault(file, file.relative_to(root))
    return videos, [file for file in skipped if file not in videos]


def _matching(pattern: str) -> list[Path]:
    matches = sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 - Path.glob takes no absolute pattern
    # one that matches nothing is reported as missing, as a file would be
    files = [[Path(pattern)]] if not matches else [_below(m) if m.is_dir() else [m] for m in matches]
    return list(chain.from_iterable(files))


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
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _is_video(path: Path) -> bool:
    if path.suffix.lower() in VIDEO_SUFFIXES or not path.exists():
        return True
    try:
        sniff_media_kind(path)
    except ClipRejected:
        return False
    return True
