"""The record that every corpus reader returns, and the checks of all records of a corpus.

Also the shared conventions for media paths and split order. The checks find speakers and videos in several splits,
which make scores useless for new people and videos, and clips of one video whose texts contradict each other.
"""

import logging
import os
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path, PurePosixPath

from model.settings import TextParams
from model.text import normalise
from shards.enums import TRAIN_SPLIT, UNLABELLED_SPLIT
from shards.errors import ClipRejected, CorpusError
from stages.settings import CorpusParams
from stages.videos.media import resolve_media
from stages.videos.zip_directory import leaves_root

_log = logging.getLogger(__name__)

_USUAL_SPLITS = ("train", "valid", "test")
NAMES_SHOWN = 5
_NEEDED_SPLITS = (TRAIN_SPLIT, "valid")

_SHARE = 0.5
"""Share of the shorter of two parts. Neighbours may share less, for example the silence between them."""

Shared = Mapping[str, tuple[str, ...]]
"""Speaker, or video, → its two or more splits."""

_NAMES = TextParams(drop_punctuation=False)


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
    audio: str | None = None
    """The file with the clip's sound, a path like `media`; None: the video's own sound track."""
    confidence: float | None = None
    """How certain the text is, 0 to 1; None: not given."""


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


def one_spelling(speaker: str) -> str:
    """Returns the same text for S1, s1 and Ｓ1: names are compared as labels are, except that punctuation counts."""
    return normalise(speaker, _NAMES)


def with_one_spelling(transcripts: Sequence[Transcript]) -> list[Transcript]:
    """Gives each speaker one name, the first in code point order; warns where it merges several names."""
    spellings: dict[str, set[str]] = defaultdict(set)
    for one in transcripts:
        if one.speaker:
            spellings[one_spelling(one.speaker)].add(one.speaker)
    name_of = {name: min(names) for names in spellings.values() for name in names}
    if several := sorted(sorted(names) for names in spellings.values() if len(names) > 1):
        some = "; ".join(" = ".join(names) for names in several[:NAMES_SHOWN])
        more = f" and {len(several) - NAMES_SHOWN} more" if len(several) > NAMES_SHOWN else ""
        _log.warning(
            "names of speakers that differ only in case or width are treated as one person: %s%s; for two people, use "
            "names that differ in more",
            some,
            more,
        )
    return [replace(one, speaker=name_of[one.speaker]) if one.speaker else one for one in transcripts]


def shared_speakers(transcripts: Sequence[Transcript]) -> Shared:
    return _in_several_splits((one.speaker, one.split) for one in transcripts)


def shared_videos(transcripts: Sequence[Transcript], video_of: Mapping[str, str]) -> Shared:
    """Compares files, as `videos_of` gives them; `stats` finds copies after they are cropped."""
    return _in_several_splits((video_of.get(one.media), one.split) for one in transcripts)


def _in_several_splits(pairs: Iterable[tuple[str | None, str]]) -> Shared:
    splits_of: dict[str, set[str]] = defaultdict(set)
    for name, split in pairs:
        if name:
            splits_of[name].add(split)
    return {
        name: tuple(sorted(splits, key=split_rank))
        for name, splits in sorted(splits_of.items())
        if are_apart(splits)
    }


def are_apart(splits: Collection[str]) -> bool:
    """Returns whether there are several splits, apart from train and unlabelled, which are both for training."""
    return len({TRAIN_SPLIT if split == UNLABELLED_SPLIT else split for split in splits}) > 1


def report_overlap(speakers: Shared, videos: Shared, *, is_error: bool) -> None:
    """Raises CorpusError, or warns, where one of the two is not empty."""
    if videos:
        _report("video", videos, "a video of the training data cannot test the model", is_error)
    if speakers:
        _report("speaker", speakers, "scores on a speaker seen in training flatter the model", is_error)


def _report(kind: str, shared: Shared, harm: str, is_error: bool) -> None:
    some = "; ".join(f"{name} in {', '.join(shared[name])}" for name in list(shared)[:NAMES_SHOWN])
    more = f" and {len(shared) - NAMES_SHOWN} more" if len(shared) > NAMES_SHOWN else ""
    number = f"1 {kind} is" if len(shared) == 1 else f"{len(shared)} {kind}s are"
    message = f"{number} in several splits: {some}{more}"
    if is_error:
        raise CorpusError(
            f"{message}; {harm}: move each {kind} to one split, or set corpus.speaker_overlap to warn"
        )
    _log.warning("%s (corpus.speaker_overlap: warn)", message)


def warn_of_splits(transcripts: Sequence[Transcript]) -> None:
    """Warns where a split that training needs is missing, and where no clip names its speaker."""
    splits = sorted({one.split for one in transcripts}, key=split_rank)
    if lacking := [name for name in _NEEDED_SPLITS if name not in splits]:
        _log.warning(
            "no split is named %s, which `pipeline train` needs; the splits are %s",
            " or ".join(lacking),
            ", ".join(splits),
        )
    if len(splits) > 1 and not any(one.speaker for one in transcripts):
        _log.warning("no clip names its speaker: it is not known whether %s share people", ", ".join(splits))


def videos_of(corpus: CorpusParams, transcripts: Sequence[Transcript]) -> Mapping[str, str]:
    """Returns each media path → the first path, in code point order, of the same file.

    Follows links, also hard links, in any Unicode form; where no file can be read, compares the composed names.
    """
    name_of: dict[str, str] = {}
    return {
        media: name_of.setdefault(_file(corpus, media), media)
        for media in sorted({one.media for one in transcripts if one.media})
    }


def _file(corpus: CorpusParams, media: str) -> str:
    try:
        source = resolve_media(Path(corpus.root), media, follow_links=corpus.follow_links)
    except ClipRejected:
        return unicodedata.normalize("NFC", media)
    status = source.path.stat()
    # some network file systems change inode numbers, but they have no hard links
    place = f"{status.st_dev}:{status.st_ino}" if status.st_nlink > 1 else os.path.realpath(source.path)
    return f"{place}!{source.member or ''}"


def check_texts(transcripts: Sequence[Transcript], video_of: Mapping[str, str], text: TextParams) -> None:
    """Raises CorpusError where one video, or one part of it, has two texts in a split: one is wrong.

    Warns where two parts with different texts share half of the shorter one or more.
    """
    parts: dict[tuple[str, str], dict[tuple[float, float], Transcript]] = defaultdict(dict)
    for one in transcripts:
        if not (one.media and one.text.strip()):
            continue
        times = (one.start_s or 0.0, inf if one.end_s is None else one.end_s)
        other = parts[one.split, video_of[one.media]].setdefault(times, one)
        if one.text != other.text and normalise(one.text, text) != normalise(other.text, text):
            raise CorpusError(
                f"{one.where}: {one.media} has another text here ({one.text[:40]!r}) than at {other.where} "
                f"({other.text[:40]!r}): correct the path or remove one; if each is the text of a part of the video, "
                "give the parts' times (corpus.kind table: columns start and end)"
            )
    pairs = [pair for of_video in parts.values() for pair in _overlapping(of_video, text)]
    if pairs:
        one, other = pairs[0]
        _log.warning(
            "clips that share at least half of their time have different texts (pairs: %d): %s (%r) and %s (%r), of "
            "%s; correct start and end, or remove one of them",
            *(len(pairs), one.where, one.text[:40], other.where, other.text[:40], one.media),
        )


def _overlapping(
    parts: Mapping[tuple[float, float], Transcript], text: TextParams
) -> list[tuple[Transcript, Transcript]]:
    found = []
    ordered = sorted(parts)
    labels = {times: normalise(parts[times].text, text) for times in ordered} if len(parts) > 1 else {}
    for place, (start_s, end_s) in enumerate(ordered):
        for other in ordered[place + 1 :]:
            if other[0] >= end_s:
                break
            shorter_s = min(end_s - start_s, other[1] - other[0])
            # two parts that both last to the video's end may share all of the shorter one
            common_s = min(end_s, other[1]) - other[0]
            if (common_s == inf or common_s >= _SHARE * shorter_s - 1e-6) and labels[
                start_s, end_s
            ] != labels[other]:
                found.append((parts[start_s, end_s], parts[other]))
    return found
