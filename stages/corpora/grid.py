"""Reads GRID: video/<speaker>/<clip>.*, align/<speaker>/<clip>.align and splits.csv."""

import logging
from collections.abc import Sequence
from pathlib import Path

from shards.errors import CorpusError
from shards.schema import CLIP_ID_PATTERN
from stages.corpora.csv_rows import read_csv, read_text
from stages.corpora.layout import VIDEO_EXTENSIONS
from stages.corpora.timed import parse_align
from stages.corpora.transcript import Transcript

_log = logging.getLogger(__name__)

_HEADER = ("clip", "split")


def read_grid(root: Path) -> list[Transcript]:
    """Returns the clips that `splits.csv` names as `s1/bbaf2n,train`: id `s1_bbaf2n`, speaker `s1`.

    The text is the words of the alignment without silence, joined by one space; without an alignment it is
    empty. Raises CorpusError for a malformed line, or two videos of one clip.
    """
    videos: dict[str, dict[str, str]] = {}
    transcripts = []
    for where, row in read_csv(root / "splits.csv", _check_header):
        clip = row["clip"].strip()
        speaker, _, name = clip.partition("/")
        if not CLIP_ID_PATTERN.fullmatch(speaker) or not CLIP_ID_PATTERN.fullmatch(name):
            raise CorpusError(f"{where}: clip {clip!r} must be speaker/clip, for example s1/bbaf2n")
        if speaker not in videos:
            videos[speaker] = _videos_of(root, speaker)
        align = f"align/{speaker}/{name}.align"
        transcripts.append(
            Transcript(
                clip_id=f"{speaker}_{name}",
                split=row["split"].strip(),
                speaker=speaker,
                gender=None,
                age=None,
                topic=None,
                media=videos[speaker].pop(name, f"video/{speaker}/{name}.mpg"),
                text=_words(root / align),
                where=where,
                times=align if (root / align).is_file() else None,
            )
        )
    if unnamed := sum(map(len, videos.values())):
        _log.warning(
            "%s has no split for %d videos, so they are left out; to use them, add them there",
            root / "splits.csv",
            unnamed,
        )
    return transcripts


def _check_header(header: Sequence[str]) -> str | None:
    return None if tuple(header) == _HEADER else f"header {','.join(header)} should be {','.join(_HEADER)}"


def _videos_of(root: Path, speaker: str) -> dict[str, str]:
    """Clip name → video, relative to `root`."""
    folder = root / "video" / speaker
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix.lower() in VIDEO_EXTENSIONS:
            media = f"video/{speaker}/{path.name}"
            if path.stem in found:
                raise CorpusError(
                    f"{folder}: {found[path.stem]} and {media} have the same clip name; remove one of them"
                )
            found[path.stem] = media
    return found


def _words(path: Path) -> str:
    if not path.is_file():
        return ""
    return " ".join(word.text for word in parse_align(str(path), read_text(path)))
