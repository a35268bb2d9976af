"""Reads any video: crops it piece by piece with the code of preprocessing, runs the network, joins the texts.

Neighbouring pieces may overlap in time; the joined text has the words of an overlap once.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rapidfuzz.distance import Levenshtein

from model.decoding.result import Alternative, Candidate, ClipReader, Reading, TimedCharacter
from model.metrics import edit_counts
from model.scripts import written_plainly
from model.text import is_han, normalise
from pipeline.params import Params
from shards.errors import ClipRejected
from shards.schema import Reason
from stages.mouths.cropping import MouthClip
from stages.mouths.long_video import mouth_pieces
from stages.mouths.pieces import Piece
from stages.videos.media import Source
from stages.videos.video import read_header

AT_REST = "at_rest"
"""The reason for a video in which nobody speaks; such a video has no gap, and crops.parquet no such reason."""


@dataclass(frozen=True, slots=True)
class RankedText(Alternative):
    """A candidate of a beam search with its scores, for JSON: None instead of -inf, a probability of 0."""

    rank_score: float | None
    scores: Mapping[str, float | None]
    """Of each part that the model has (`PartScores`)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the video with its text; `reason` says why it could not be read."""

    start_s: float
    """In a file counted as players count: from the start of the sound if that is before the first picture."""
    end_s: float
    text: str
    confidence: float | None
    """Geometric mean of the characters' probabilities; None if the segment could not be read."""
    reason: str | None = None
    candidates: tuple[RankedText, ...] = ()
    """Texts of the whole clip, before the words that neighbouring clips read too are removed."""
    characters: tuple[TimedCharacter, ...] = ()
    """One for each character of `text`, with times like the segment's; empty if the model cannot give them."""


@dataclass(frozen=True, slots=True)
class VideoReading:
    """The result of `pipeline inference` for one video; `reason` is null if a part of it could be read."""

    path: str
    text: str
    confidence: float | None
    """Geometric mean of the characters' probabilities."""
    cer: float | None
    num_frames: int | None
    """Number of mouth pictures that were read, each counted once."""
    reason: str | None
    segments: tuple[Segment, ...]

    @property
    def gaps(self) -> tuple[Segment, ...]:
        """The segments that could not be read."""
        return tuple(segment for segment in self.segments if segment.reason is not None)


OnMouth = Callable[[Piece, MouthClip], None]
"""Called with each piece before it is read: `piece` has its time from the first picture (`start_s`, `end_s`), `mouth`
its pictures (`clip_THW`)."""


def read_video(
    path: Path,
    reader: ClipReader,
    params: Params,
    ground_truth: str | None = None,
    on_mouth: OnMouth | None = None,
) -> VideoReading:
    """Returns the text of one video of any length, or the reason why it cannot be read (as in crops.parquet).

    `ground_truth` is normalised like the labels of training.
    """
    joined = JoinedReadings(params.crop.target_fps)
    try:
        _check_there(path)
        header = read_header(path)
        for piece in mouth_pieces(
            Source(path), header, params.crop, params.inference, params.corpus.media_kind
        ):
            if piece.rejected is not None:
                joined.add_gap(piece)
            elif piece.mouth is not None and not joined.covers(piece):
                if on_mouth is not None:
                    on_mouth(piece, piece.mouth)
                joined.add(piece, reader.read_clip(piece.mouth.clip_THW, params.decode))
    except ClipRejected as error:
        return VideoReading(str(path), "", None, None, None, str(error), ())
    if joined.num_read == 0:
        reason = joined.reason_for_no_text(header.duration_s)
        return VideoReading(str(path), "", None, None, None, reason, ())
    # pieces are joined by spaces, which labels of some scripts do not have
    cer, text = None, written_plainly(joined.text.strip(), reader.text)
    if ground_truth is not None:
        reference = reader.reference(normalise(ground_truth, reader.text), params.decode)
        cer = edit_counts(reference, text).cer
    segments = tuple(_shifted(segment, header.start_s) for segment in joined.segments)
    return VideoReading(str(path), text, joined.confidence, cer, joined.num_frames, None, segments)


def _shifted(segment: Segment, start_s: float) -> Segment:
    """Returns the segment with times as players count and without spaces at its ends."""
    return replace(
        _cut(segment, segment.text.strip()),
        start_s=segment.start_s + start_s,
        end_s=segment.end_s + start_s,
        characters=shifted(segment.characters, start_s),
    )


def shifted(characters: Sequence[TimedCharacter], start_s: float) -> tuple[TimedCharacter, ...]:
    """Returns the characters with `start_s` added to their times."""
    return tuple(replace(one, start_s=one.start_s + start_s, end_s=one.end_s + start_s) for one in characters)


def _cut(segment: Segment, part: str, at_end: bool = False) -> Segment:
    """Returns the segment with only `part` of its text: the first part that is equal to it, or the last one."""
    start = segment.text.rfind(part) if at_end else segment.text.find(part)
    assert start >= 0, "a part of the text"
    return replace(segment, text=part, characters=segment.characters[start : start + len(part)])


def _within(segment: Segment) -> Segment:
    """Returns the segment with no character's time outside of it: two windows can place one word differently."""

    def inside_s(time_s: float) -> float:
        return min(max(time_s, segment.start_s), segment.end_s)

    characters = tuple(
        replace(one, start_s=inside_s(one.start_s), end_s=inside_s(one.end_s)) for one in segment.characters
    )
    return replace(segment, characters=characters)


def _check_there(path: Path) -> None:
    try:
        is_file = path.is_file()
    except OSError as error:  # no access to a folder, or a name that is too long
        raise ClipRejected(
            Reason.UNREADABLE,
            f"{path} cannot be accessed ({error.strerror}); check the permissions of its folders and its name",
        ) from error
    if not is_file:
        raise ClipRejected(Reason.MISSING_FILE, f"{path} does not exist")


def _ranked(candidates: tuple[Candidate, ...]) -> tuple[RankedText, ...]:
    """Returns candidates for a segment; shares are the softmax of log-probabilities, not of means per character:
    texts of one clip exclude each other."""
    best = max((candidate.log_probability for candidate in candidates), default=0.0)
    # if all have probability 0, all get the same share
    weights = [math.exp(text.log_probability - best) if best > -math.inf else 1.0 for text in candidates]
    return tuple(
        RankedText(text.text, weight / sum(weights), _finite(text.rank_score), _scores(text))
        for text, weight in zip(candidates, weights, strict=True)
    )


def _scores(candidate: Candidate) -> dict[str, float | None]:
    parts = {} if candidate.parts is None else asdict(candidate.parts)
    return {name: _finite(score) for name, score in parts.items() if score is not None}


def _finite(score: float) -> float | None:
    return score if score > -math.inf else None


class JoinedReadings:
    """Joins the readings of the pieces of one video in their order."""

    def __init__(self, fps: float) -> None:
        self.segments: list[Segment] = []
        self.text = ""
        self.num_frames = self.num_read = 0
        self._fps = fps
        self._slack_s = 0.5 / fps
        self._log_probability = 0.0
        self._num_chars = 0

    @property
    def confidence(self) -> float:
        """Geometric mean of the probabilities of all characters."""
        return math.exp(self._log_probability / max(self._num_chars, 1))

    def reason_for_no_text(self, duration_s: float | None) -> str:
        """Returns the reason of the longest gap, or `at_rest` if the gaps are less than half of the video."""
        gaps = [segment for segment in self.segments if segment.reason is not None]
        missing_s = sum(gap.end_s - gap.start_s for gap in gaps)
        if not gaps or (duration_s is not None and 2 * missing_s < duration_s):
            return f"{AT_REST}: the mouth does not move"
        return max(gaps, key=lambda gap: gap.end_s - gap.start_s).reason or ""

    @property
    def _read_until_s(self) -> float:
        return max((segment.end_s for segment in self.segments if segment.reason is None), default=-math.inf)

    def covers(self, piece: Piece) -> bool:
        """Returns whether an earlier piece read all of this one: a window whose speaker leaves soon after its start."""
        return piece.start_s < self._read_until_s - self._slack_s and (
            piece.end_s < self._read_until_s + self._slack_s
        )

    def add(self, piece: Piece, reading: Reading) -> Segment:
        """Adds a reading and returns its segment; may shorten the text of the previous segment."""
        assert piece.mouth is not None
        self.num_read += 1
        # this piece shows again the end of the last window, which could not be read
        while self.segments and self.segments[-1].reason is not None and self._ends_after(piece.start_s):
            last = self.segments.pop()
            if last.start_s < piece.start_s - self._slack_s:
                self.segments.append(replace(last, end_s=piece.start_s))
        shared_s = max(0.0, self._read_until_s - piece.start_s)
        is_shared = shared_s > self._slack_s
        self.num_frames += len(piece.mouth.clip_THW) - (round(shared_s * self._fps) if is_shared else 0)
        # an empty text has the score of its one blank path
        self._num_chars += max(len(reading.text), 1)
        self._log_probability += max(len(reading.text), 1) * reading.score
        segment = Segment(
            max(piece.start_s, self._read_until_s),
            piece.end_s,
            reading.text,
            math.exp(reading.score),
            None,
            _ranked(reading.candidates),
            shifted(reading.characters, piece.start_s),
        )
        glue = separator(self.text, segment.text)
        if is_shared:
            glue, segment = self._remove_overlap(piece, segment)
        elif self.num_read > 1:
            segment = _cut(segment, segment.text.lstrip(), at_end=True)
        self.text += glue + segment.text
        self.segments.append(segment)
        return segment

    def _ends_after(self, time_s: float) -> bool:
        return self.segments[-1].end_s > time_s + 1e-6

    def _remove_overlap(self, piece: Piece, new: Segment) -> tuple[str, Segment]:
        """Removes the overlap; returns the separator and the rest of the new segment."""
        last, text = self.segments[-1], new.text
        shared_s = last.end_s - piece.start_s
        duration_s = (last.end_s - last.start_s) + (piece.end_s - piece.start_s)
        shared_chars = shared_s * (len(last.text) + len(text)) / duration_s
        kept, text = without_overlap(last.text, text, shared_chars)
        begun = self.text.removesuffix(last.text)
        glue = " " if kept.endswith(" ") or text.startswith(" ") else ""
        kept, text = kept.strip(), text.strip()
        self.text = begun + kept
        last, new = _cut(last, kept), _cut(new, text, at_end=True)
        border_s = (max(last.start_s, piece.start_s) + last.end_s) / 2
        self.segments[-1] = _within(replace(last, end_s=border_s))
        return (glue if kept and text else ""), _within(replace(new, start_s=border_s))

    def add_gap(self, piece: Piece) -> Segment | None:
        """Adds a piece that cannot be read; returns its segment, merged with a neighbour of the same reason.

        The part that overlaps a segment with text is not a gap. Returns None if no part is left.
        """
        assert piece.rejected is not None
        reason, start_s = piece.rejected.reason, max(piece.start_s, self._read_until_s)
        if self.covers(piece):
            return None
        last = self.segments[-1] if self.segments else None
        is_too_short = reason is Reason.TOO_SHORT
        if last is not None and last.reason is not None:
            is_same = last.reason.partition(":")[0] in (reason, Reason.TOO_SHORT)
            if (is_too_short or is_same) and start_s <= last.end_s + self._slack_s:
                message = last.reason if is_too_short else str(piece.rejected)
                self.segments[-1] = replace(last, end_s=max(last.end_s, piece.end_s), reason=message)
                return self.segments[-1]
            start_s = max(start_s, last.end_s)
        if is_too_short and self.num_read:
            return None
        self.segments.append(Segment(start_s, max(start_s, piece.end_s), "", None, str(piece.rejected)))
        return self.segments[-1]


MAX_OVERLAP_FACTOR = 2.0
"""The shared text is searched up to this many times the length expected from the time, plus EXTRA_CHARS."""
EXTRA_CHARS = 4

MIN_SAME_CHARS = 2
"""This many equal characters are not a coincidence, even if the time suggests another length."""


def without_overlap(before: str, after: str, shared_chars: float) -> tuple[str, str]:
    """Removes the shared text: `before` loses its end, `after` its start. Returns both.

    `shared_chars` is the length of the shared text expected from the time. Of all ends of `before` and starts of
    `after`, the pair with the best score counts as the same words: equal characters, minus edits between them, minus
    the difference of the length from `shared_chars`. The cut is in their middle, at a space if they have one: a window
    shows the words at its edge only in part, and its neighbour shows them whole. If nothing agrees, each text loses
    half of `shared_chars`.
    """
    reach = round(MAX_OVERLAP_FACTOR * shared_chars) + EXTRA_CHARS
    # no shared text is possible only if the time says so
    best, best_key = (0, 0), (-math.inf if shared_chars > 0 else 0.0, 0.0)
    for num_before in range(1, min(reach, len(before)) + 1):
        end = before[-num_before:]
        for num_after in range(1, min(reach, len(after)) + 1):
            edits = Levenshtein.distance(end, after[:num_after])
            # each edit spoils a character of the longer one
            num_same = max(num_before, num_after) - edits
            off = abs((num_before + num_after) / 2 - shared_chars)
            key = (num_same - edits - off, -off)
            is_sure = key[0] >= 0 or num_same >= max(edits, MIN_SAME_CHARS)
            if num_same > 0 and is_sure and key > best_key:
                best, best_key = (num_before, num_after), key
    if best == (0, 0):
        half = round(shared_chars / 2)
        return before[: max(0, len(before) - half)], after[half:]
    num_before, num_after = best
    end, begin = before[-num_before:], after[:num_after]
    same = [
        (i, i - block.src_start + block.dest_start)
        for block in Levenshtein.opcodes(end, begin)
        if block.tag == "equal"
        for i in range(block.src_start, block.src_end)
    ]
    assert same, "at least one character is equal"
    middle = len(same) / 2
    spaces = [place for place, (i, _) in enumerate(same) if end[i] == " "]
    i, j = same[min(spaces or range(len(same)), key=lambda place: abs(place + 0.5 - middle))]
    return before[: len(before) - num_before + i], after[j:]


def separator(before: str, after: str) -> str:
    """Returns the separator of two consecutive texts: a space between words, nothing next to Han characters.

    A space that the texts have at the seam counts: the caller removes those at the start of `after`.
    """
    if not before or not after.strip() or before[-1].isspace():
        return ""
    return " " if after[0].isspace() or not (is_han(before[-1]) or is_han(after[0])) else ""
