"""Which clips are of one video, and whether their texts can all be true."""

import logging
import os
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import inf
from pathlib import Path

from model.settings import TextParams
from model.text import normalise
from shards.errors import ClipRejected, CorpusError
from stages.corpora.transcript import Transcript
from stages.settings import CorpusParams
from stages.videos.media import resolve_media

_log = logging.getLogger(__name__)

_SHARE = 0.5
"""Of the shorter of two parts: neighbours may share less, as the silence between them."""


def videos_of(corpus: CorpusParams, transcripts: Sequence[Transcript]) -> Mapping[str, str]:
    """Each media path → the first path, in code point order, that leads to the same file.

    Through links, hard ones too, and in whichever Unicode form; where there is no file that may be read, the composed
    names are compared.
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
    # some network file systems number their files anew at every look, but they have no hard links
    place = f"{status.st_dev}:{status.st_ino}" if status.st_nlink > 1 else os.path.realpath(source.path)
    return f"{place}!{source.member or ''}"


def check_texts(transcripts: Sequence[Transcript], video_of: Mapping[str, str], text: TextParams) -> None:
    """Raises CorpusError where one video, or one part of it, has two texts in a split: one of them is wrong.

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
                f"({other.text[:40]!r}): correct the path or leave one out; where each is said in a part of the video, "
                "give the parts' times (corpus.kind table: columns start and end)"
            )
    pairs = [pair for of_video in parts.values() for pair in _overlapping(of_video, text)]
    if pairs:
        one, other = pairs[0]
        _log.warning(
            "clips that share half of their seconds or more have different texts (pairs: %d): %s (%r) and %s (%r), of "
            "%s; correct start and end, or leave one of them out",
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
            # two that both go on to the video's end may have all of the shorter one in common
            common_s = min(end_s, other[1]) - other[0]
            if (common_s == inf or common_s >= _SHARE * shorter_s - 1e-6) and labels[
                start_s, end_s
            ] != labels[other]:
                found.append((parts[start_s, end_s], parts[other]))
    return found
