"""Helpers of the corpus readers: lines, texts of single clips, clip ids, names of splits, and counts."""

import gzip
import hashlib
import logging
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from shards.errors import ClipRejected, CorpusError
from shards.pipes import refuse_pipe
from shards.schema import Reason
from stages.corpora.csv_rows import decoded, read_text
from stages.corpora.table import UNSPLIT, with_seeded_split
from stages.corpora.transcript import NAMES_SHOWN, Transcript, relative_media, with_one_spelling
from stages.settings import CorpusParams
from stages.videos.media import resolve_media

_log = logging.getLogger(__name__)

VIDEO_EXTENSIONS = frozenset([".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"])
_SOUND_EXTENSIONS = frozenset([".aac", ".flac", ".m4a", ".mp3", ".ogg", ".opus", ".sph", ".wav"])

_SPLIT_WORDS: Mapping[str, str] = {
    "train": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
    "eval": "test",
}


def refused(where: str, found: str, wanted: str) -> CorpusError:
    """Returns the error for a malformed text; names its place and the right form."""
    return CorpusError(f"{where}: {found[:80]!r} must be {wanted}")


def lines_of(path: Path) -> Iterator[tuple[str, str]]:
    """Yields (`file:line`, line without spaces around it) of each line with content; unpacks a file named `.gz`.

    Raises CorpusError where the file is missing or damaged, or is not UTF-8.
    """
    if path.suffix.lower() == ".gz":
        refuse_pipe(path)
        try:
            text = decoded(path, gzip.decompress(path.read_bytes()))
        except (OSError, EOFError, zlib.error) as error:
            raise CorpusError(f"{path} cannot be unpacked: {error}; get the file again") from error
    else:
        text = read_text(path)
    # not splitlines, which also splits at characters within a sentence (U+2028)
    for number, line in enumerate(text.split("\n"), start=1):
        if line := line.strip():
            yield f"{path}:{number}", line


def text_of_clip(corpus: CorpusParams, name: str) -> str | None:
    """Returns the content of a text file of the corpus, None where there is none.

    Raises CorpusError where it is not UTF-8, or a link leads out of the corpus.
    """
    try:
        source = resolve_media(Path(corpus.root), name, follow_links=corpus.follow_links)
    except ClipRejected as error:
        if error.reason is Reason.MISSING_FILE:
            return None
        raise CorpusError(f"{Path(corpus.root) / name}: {error.detail}") from error
    return read_text(source.path)


def video_path(path: str, root: Path, where: str, instead: str) -> str:
    """Returns the path of a video, relative to `root`. Raises CorpusError for sound; `instead` says what to write."""
    if PurePosixPath(path).suffix.lower() in _SOUND_EXTENSIONS:
        raise CorpusError(f"{where}: {path[:200]} is sound, without pictures; {instead}")
    return relative_media(path, root)


def clip_id_of(name: str) -> str:
    """Returns a clip id for any name; a hash keeps names apart that differ only in characters not allowed in ids."""
    plain = re.sub("[^A-Za-z0-9_-]", "-", name)[:111]
    return plain if plain == name else f"{plain}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def split_of_name(name: str) -> str | None:
    """Returns the split that a file or folder is named after (dev: valid), None where it is not named after one."""
    words = re.split("[^a-z]+", name.lower())
    splits = {_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS}
    return splits.pop() if len(splits) == 1 else None


def with_splits(clips: Sequence[Transcript], corpus: CorpusParams, path: Path) -> list[Transcript]:
    """Splits the clips by a seed where no clip has a split. Raises CorpusError where only some have one."""
    unknown = [clip for clip in clips if clip.split == UNSPLIT]
    if unknown and len(unknown) < len(clips):
        raise CorpusError(
            f"{unknown[0].where}: this clip is in no split, but other clips of the corpus are; name the split of "
            "each clip, or the file or folder after its split (train, dev, test), or name none"
        )
    return with_seeded_split(with_one_spelling(clips), corpus, path) if unknown else [*clips]


def counted(clips: Sequence[Transcript], root: Path, folders: Iterable[str] = ()) -> list[Transcript]:
    """Returns the clips; logs how many there are, and warns of clips without text.

    Also warns of videos in `folders` that belong to no clip.
    """
    _log.info("%s: %d clips read, from %d videos", root, len(clips), len({clip.media for clip in clips}))
    if silent := [clip for clip in clips if not clip.text.strip()]:
        _log.warning(
            "%d of %d clips have no text; crop rejects them, except training clips with corpus.unlabelled: keep: %s",
            *(len(silent), len(clips), _some([clip.clip_id for clip in silent])),
        )
    listed = {clip.media for clip in clips}
    if unlisted := [video for folder in folders for video in _videos_in(root, folder) if video not in listed]:
        _log.warning(
            "%d videos below %s are in no list, so they are left out: %s",
            *(len(unlisted), root, _some(unlisted)),
        )
    return [*clips]


def _videos_in(root: Path, name: str) -> Iterator[str]:
    for folder, folders, files in os.walk(root / name):
        folders.sort()
        below = Path(folder).relative_to(root)
        yield from (
            (below / file).as_posix()
            for file in sorted(files)
            if PurePosixPath(file).suffix.lower() in VIDEO_EXTENSIONS
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
