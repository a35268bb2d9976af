"""GRID: video/<speaker>/<clip>.*, align/<speaker>/<clip>.align and splits.csv."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from shards.errors import CorpusError
from shards.schema import CLIP_ID_PATTERN
from stages.corpora.csv_rows import read_csv, read_text
from stages.corpora.transcript import Transcript

_log = logging.getLogger(__name__)

_HEADER = ("clip", "split")
_SILENCE = frozenset({"sil", "sp"})
_VIDEO_EXTENSIONS = frozenset([".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"])
# start and end in 1/25,000 s, word
_ALIGNED = re.compile(r"\s*(\d{1,12})\s+(\d{1,12})\s+(\S+)\s*", re.ASCII)


def read_grid(root: Path) -> list[Transcript]:
    """The clips that `splits.csv` names as `s1/bbaf2n,train`: id `s1_bbaf2n`, speaker `s1`.

    The text is the words of the alignment without silence, joined by one space; without an alignment it is
    empty. Raises CorpusError for a malformed line, or two videos of one clip.
    """
    videos: dict[str, dict[str, str]] = {}
    transcripts = []
    for where, row in read_csv(root / "splits.csv", _check_header):
        clip = row["clip"].strip()
        speaker, _, name = clip.partition("/")
        if not CLIP_ID_PATTERN.fullmatch(speaker) or not CLIP_ID_PATTERN.fullmatch(name):
            raise CorpusError(f"{where}: clip {clip!r} should be speaker/clip, as s1/bbaf2n")
        if speaker not in videos:
            videos[speaker] = _videos_of(root, speaker)
        transcripts.append(
            Transcript(
                clip_id=f"{speaker}_{name}",
                split=row["split"].strip(),
                speaker=speaker,
                gender=None,
                age=None,
                topic=None,
                media=videos[speaker].pop(name, f"video/{speaker}/{name}.mpg"),
                text=_words(root / "align" / speaker / f"{name}.align"),
                where=where,
            )
        )
    if unnamed := sum(map(len, videos.values())):
        _log.warning("%s names no split for %d videos; they are left out", root / "splits.csv", unnamed)
    return transcripts


def _check_header(header: Sequence[str]) -> str | None:
    return None if tuple(header) == _HEADER else f"header {','.join(header)} should be {','.join(_HEADER)}"


def _videos_of(root: Path, speaker: str) -> dict[str, str]:
    """Clip name → video, relative to `root`."""
    folder = root / "video" / speaker
    found: dict[str, str] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix.lower() in _VIDEO_EXTENSIONS:
            media = f"video/{speaker}/{path.name}"
            if path.stem in found:
                raise CorpusError(f"{folder}: {found[path.stem]} and {media} are one clip; leave one of them")
            found[path.stem] = media
    return found


def _words(path: Path) -> str:
    if not path.is_file():
        return ""
    words = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        match = _ALIGNED.fullmatch(line)
        if match is None:
            raise CorpusError(f"{path}:{number}: {line!r} should be start, end and word, as 23750 29500 bin")
        start, end, word = match.groups()
        if int(start) > int(end):
            raise CorpusError(f"{path}:{number}: {word!r} ends at {end}, before its start {start}")
        if word not in _SILENCE:
            words.append(word)
    return " ".join(words)
