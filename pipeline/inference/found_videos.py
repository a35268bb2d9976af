"""Finds the videos that files, folders and patterns name."""

import glob
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import typer

from shards.errors import ClipRejected, ConfigError
from shards.safe_text import one_line
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
"""Suffix of the files that --burn-in writes; in the folder of the videos a second run would read them too."""


def videos_to_read(given: Sequence[str]) -> Mapping[Path, Path]:
    """Returns the videos of `find_videos`; names the skipped files on stderr. Raises ConfigError if there is none."""
    videos, skipped = find_videos(given)
    if skipped:
        names = ", ".join(map(one_line, skipped[:5])) + (", ..." if len(skipped) > 5 else "")
        what = "files that are not videos, or that pipeline inference wrote"
        typer.echo(f"skipped {len(skipped)} {what}: {names}", err=True)
    if not videos:
        raise ConfigError(f"no video found in {', '.join(given)}; name video files or folders with videos")
    return videos


def find_videos(given: Sequence[str]) -> tuple[Mapping[Path, Path], list[Path]]:
    """Returns the videos in the given order, each once, and the files that were skipped because they are not videos.

    Each video has its path relative to the named folder, or to the folder before the pattern, so that two videos of
    the same name stay two. A file named by itself is always used. In a folder (with its subfolders) or a pattern, a
    file is used if its name ends like a video's or its content is a video; broken links, pipes and the output of
    --burn-in are skipped, hidden files are ignored. Skipped files with the suffix of a video come first. Raises
    ConfigError if a name is empty.
    """
    videos: dict[Path, Path] = {}
    skipped: dict[Path, None] = {}
    for name in given:
        if not name:
            raise ConfigError("the name of a video is empty; check whether a shell variable is not set")
        path = Path(name)
        if is_kind(Path.is_dir, path):
            found, root = _below(path), path
        elif _PATTERN & set(name) and not is_kind(Path.exists, path) and (found := _matching(name)):
            root = _fixed_part(path)
        else:
            # also a missing file and a pattern without matches: the reader reports them
            videos.setdefault(path, Path(path.name))
            continue
        for file in found:
            if file.name.endswith(BURNT_SUFFIX) or not _is_video(file):
                skipped[file] = None
            else:
                videos.setdefault(file, file.relative_to(root))
    unused = [file for file in skipped if file not in videos]
    return videos, sorted(unused, key=lambda file: not _has_video_suffix(file))


def _matching(pattern: str) -> list[Path]:
    matches = sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207 - Path.glob takes no absolute pattern
    return list(chain.from_iterable(_below(m) if is_kind(Path.is_dir, m) else [m] for m in matches))


def _fixed_part(pattern: Path) -> Path:
    """Returns the folder of a pattern before its first wildcard."""
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
    """Returns `kind(path)`; `unknown` if access is denied or the name is too long."""
    try:
        return kind(path)
    except OSError:
        return unknown


def _has_video_suffix(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES


def _is_video(path: Path) -> bool:
    # the reader reports a file without access; opening a pipe would block
    if not is_kind(Path.is_file, path, unknown=True):
        return False
    if _has_video_suffix(path):
        return True
    try:
        read_header(path)
    except (ClipRejected, OSError):
        return False
    return True
