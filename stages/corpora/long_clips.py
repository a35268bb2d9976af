"""Splits clips that are too long for training at pauses, each part with its own text."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from shards.errors import ClipRejected, CorpusError
from shards.schema import Reason
from stages.corpora.timed import MAX_BYTES, PARSERS, Utterance, parse_timed
from stages.corpora.transcript import Transcript
from stages.videos.media import read_small, resolve_media
from stages.videos.video import read_header

_log = logging.getLogger(__name__)

EDGE_S = 0.5
"""Silence kept before and after a part's words: lips move before the voice is heard."""

MIN_PAUSE_S = 0.1
"""Shorter silence is not a pause: stops within a word are as long."""

LATE_S = 0.25
"""Words may end this long after the video: headers are rounded, and decoding allows the same."""


@dataclass(frozen=True, slots=True)
class ClipPart:
    """A part of a long clip; `start_s` or `end_s` is None at the video's own start or end."""

    start_s: float | None
    end_s: float | None
    text: str


def cut_long_clip(
    root: Path,
    transcript: Transcript,
    normalised: Callable[[str], str],
    max_s: float,
    longest_s: float,
    follow_links: bool = False,
) -> list[ClipPart] | None:
    """Returns the parts, of at most `max_s`, of a clip whose video is longer than `longest_s`.

    None where it is not longer, has no times or no pauses, or is already a part of a video.

    Times come from the file that the corpus names, else from a file with the video's name in the same folder or zip,
    with the extension .align, .TextGrid, .srt or .vtt. If the corpus names the file, CorpusError is raised where it is
    malformed or missing, or contains another text. Otherwise the error is logged, and the clip is not split.
    """
    if transcript.start_s is not None or transcript.end_s is not None:
        return None
    try:
        duration_s = read_header(resolve_media(root, transcript.media, follow_links=follow_links)).duration_s
    except ClipRejected:
        return None  # crop reads it again, and reports the reason
    if duration_s is None or duration_s <= longest_s:
        return None
    try:
        found = _times_of(root, transcript, follow_links)
        if found is None:
            return None
        name, utterances = found
        _check_text(
            transcript, name, normalised(" ".join(u.text for u in utterances)), normalised(transcript.text)
        )
    except CorpusError as error:
        if transcript.times is not None:
            raise
        _log.warning("%s; %s is not split, and crop will reject it as too long", error, transcript.clip_id)
        return None
    parts = split_at_pauses(utterances, duration_s, max_s)
    if parts is None:
        _log.warning(
            "%s: no pauses to split %s into parts of %.0f s; crop will reject it as too long",
            name,
            transcript.clip_id,
            max_s,
        )
    return parts


def _times_of(root: Path, transcript: Transcript, follow_links: bool) -> tuple[str, list[Utterance]] | None:
    if transcript.times is not None:
        if not transcript.times.lower().endswith(tuple(PARSERS)):
            raise CorpusError(f"{transcript.where}: {transcript.times} must be one of {', '.join(PARSERS)}")
        try:
            return _read(root, transcript.times, follow_links)
        except ClipRejected as error:
            raise CorpusError(f"{transcript.where}: times: {error.detail}") from error
    stem, dot, extension = transcript.media.rpartition(".")
    base_name = stem if dot and "/" not in extension else transcript.media
    for extension in (".align", ".TextGrid", ".textgrid", ".srt", ".vtt"):
        try:
            return _read(root, base_name + extension, follow_links)
        except ClipRejected as error:
            if error.reason is not Reason.MISSING_FILE:
                raise CorpusError(f"{transcript.where}: {error.detail}") from error
    return None


def _read(root: Path, media: str, follow_links: bool) -> tuple[str, list[Utterance]]:
    name = str(root / media)
    source = resolve_media(root, media, follow_links=follow_links)
    return name, parse_timed(name, read_small(source, MAX_BYTES))


def _check_text(transcript: Transcript, name: str, timed: str, given: str) -> None:
    """Raises CorpusError where the two texts differ. Spaces do not count: between cues they depend on line breaks."""
    timed, given = timed.replace(" ", ""), given.replace(" ", "")
    if timed != given:
        pairs = zip(timed + " ", given + " ", strict=False)
        place = next(i for i, (one, other) in enumerate(pairs) if one != other)
        raise CorpusError(
            f"{name}: the text of {transcript.clip_id} differs from that at {transcript.where}: "
            f"{timed[place : place + 20]!r} instead of {given[place : place + 20]!r}; correct one of them, or set "
            "crop.split_long to false"
        )


def split_at_pauses(
    utterances: Sequence[Utterance], duration_s: float, max_s: float
) -> list[ClipPart] | None:
    """Returns parts of at most `max_s` that hold every utterance once, in order; None where that is not possible.

    A part lasts from `EDGE_S` before its first utterance to `EDGE_S` after its last; where the pause to its
    neighbour is shorter than two edges, they meet in its middle. So no word is cut, and only silence
    far from words is left out. Of all ways to cut, it chooses the fewest cuts without a pause of `MIN_PAUSE_S`
    (these are between utterances too), then the fewest parts, then the longest pauses.
    """
    if not utterances:
        return None
    num = len(utterances)
    # ends_s[j]: when all of the first j utterances are over
    ends_s = [0.0]
    for utterance in utterances:
        ends_s.append(max(ends_s[-1], utterance.end_s))
    cuts = [0] + [j for j in range(1, num) if utterances[j].start_s >= ends_s[j]] + [num]

    def bounds_s(first: int, after: int) -> tuple[float, float]:
        begin_s = utterances[first].start_s - EDGE_S
        begin_s = max(begin_s, (ends_s[first] + utterances[first].start_s) / 2 if first else 0.0)
        end_s = ends_s[after] + EDGE_S
        if after == num:
            # words that go on after the video keep their time, so that crop finds the video truncated
            return begin_s, min(end_s, duration_s) if ends_s[num] <= duration_s + LATE_S else ends_s[num]
        return begin_s, min(end_s, (ends_s[after] + utterances[after].start_s) / 2)

    # for the first j utterances: cuts without a pause, parts, less the silence at the cuts; and the last part's first
    best: dict[int, tuple[int, int, float, int]] = {0: (0, 0, 0.0, 0)}
    for number, after in enumerate(cuts[1:], start=1):
        is_cut = after < num
        pause_s = utterances[after].start_s - ends_s[after] if is_cut else 0.0
        options = []
        for first in reversed(cuts[:number]):
            begin_s, end_s = bounds_s(first, after)
            if end_s - begin_s > max_s:
                break
            if first in best:
                breathless, num_parts, silence_s, _ = best[first]
                # files tell milliseconds: a pause of just MIN_PAUSE_S is one, whatever the last bit says
                breathless += is_cut and pause_s < MIN_PAUSE_S - 1e-6
                options.append((breathless, num_parts + 1, silence_s - pause_s, first))
        if options:
            best[after] = min(options)
    if num not in best:
        return None
    edges = [num]
    while edges[-1]:
        edges.append(best[edges[-1]][-1])
    edges.reverse()
    parts = []
    for first, after in pairwise(edges):
        begin_s, end_s = bounds_s(first, after)
        text = " ".join(utterance.text for utterance in utterances[first:after])
        parts.append(ClipPart(begin_s or None, None if end_s == duration_s else end_s, text))
    return parts
