"""What splits must not share, or a score says nothing of new people and videos."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from model.settings import TextParams
from model.text import normalise
from shards.errors import CorpusError
from shards.terms import TRAIN_SPLIT
from stages.corpora.transcript import Transcript, split_rank

_log = logging.getLogger(__name__)

NAMES_SHOWN = 5
_NEEDED_SPLITS = (TRAIN_SPLIT, "valid")

Shared = Mapping[str, tuple[str, ...]]
"""Speaker, or video, → the two or more splits that it stands in."""


_NAMES = TextParams(drop_punctuation=False)


def with_one_spelling(transcripts: Sequence[Transcript]) -> list[Transcript]:
    """Each speaker under one name: S1, s1 and Ｓ1 are one person, called as the first of them in code point order.

    Names are compared as labels are, but for punctuation, which counts. Warns where it makes one of several.
    """
    spellings: dict[str, set[str]] = defaultdict(set)
    for one in transcripts:
        if one.speaker:
            spellings[normalise(one.speaker, _NAMES)].add(one.speaker)
    name_of = {name: min(names) for names in spellings.values() for name in names}
    if several := sorted(sorted(names) for names in spellings.values() if len(names) > 1):
        some = "; ".join(" = ".join(names) for names in several[:NAMES_SHOWN])
        more = f" and {len(several) - NAMES_SHOWN} more" if len(several) > NAMES_SHOWN else ""
        _log.warning(
            "names of speakers that differ in case or width alone are taken as one person: %s%s; two people need "
            "names that differ in more",
            some,
            more,
        )
    return [replace(one, speaker=name_of[one.speaker]) if one.speaker else one for one in transcripts]


def shared_speakers(transcripts: Sequence[Transcript]) -> Shared:
    return _in_several_splits((one.speaker, one.split) for one in transcripts)


def shared_videos(transcripts: Sequence[Transcript], video_of: Mapping[str, str]) -> Shared:
    """By file, as `videos_of` gives it: of copies `stats` knows once they are cropped."""
    return _in_several_splits((video_of.get(one.media), one.split) for one in transcripts)


def _in_several_splits(pairs: Iterable[tuple[str | None, str]]) -> Shared:
    splits_of: dict[str, set[str]] = defaultdict(set)
    for name, split in pairs:
        if name:
            splits_of[name].add(split)
    return {
        name: tuple(sorted(splits, key=split_rank))
        for name, splits in sorted(splits_of.items())
        if len(splits) > 1
    }


def report_overlap(speakers: Shared, videos: Shared, *, is_error: bool) -> None:
    """Raises CorpusError, or warns, where one of the two holds any."""
    if videos:
        _report("video", videos, "what was learnt by heart is no test", is_error)
    if speakers:
        _report("speaker", speakers, "scores on a speaker seen in training flatter the model", is_error)


def _report(kind: str, shared: Shared, harm: str, is_error: bool) -> None:
    some = "; ".join(f"{name} in {', '.join(shared[name])}" for name in list(shared)[:NAMES_SHOWN])
    more = f" and {len(shared) - NAMES_SHOWN} more" if len(shared) > NAMES_SHOWN else ""
    stand = f"1 {kind} stands" if len(shared) == 1 else f"{len(shared)} {kind}s stand"
    message = f"{stand} in several splits: {some}{more}"
    if is_error:
        raise CorpusError(
            f"{message}; {harm}: move each {kind} to one split, or set corpus.speaker_overlap to warn"
        )
    _log.warning("%s (corpus.speaker_overlap: warn)", message)


def warn_of_splits(transcripts: Sequence[Transcript]) -> None:
    """Warns where what training needs is called otherwise, and where nobody can tell whether splits share people."""
    splits = sorted({one.split for one in transcripts}, key=split_rank)
    if lacking := [name for name in _NEEDED_SPLITS if name not in splits]:
        _log.warning(
            "no split is called %s, which `pipeline train` needs; the splits are %s",
            " or ".join(lacking),
            ", ".join(splits),
        )
    if len(splits) > 1 and not any(one.speaker for one in transcripts):
        _log.warning("no clip names its speaker: whether %s share people cannot be told", ", ".join(splits))
