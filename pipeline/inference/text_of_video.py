"""Reads any video: the crop code of preprocessing, piece by piece, then the network.

One text of the readings of neighbouring stretches, some of which show the same second twice.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rapidfuzz.distance import Levenshtein

from model.decoding.result import Candidate, ClipReader, Reading
from model.metrics import edit_counts
from model.text import is_han, normalise
from pipeline.inference.long_video import mouth_pieces
from pipeline.inference.pauses import Piece
from pipeline.params import Params
from shards.errors import ClipRejected
from shards.schema import Reason
from stages.mouths.cropping import MouthClip
from stages.videos.media import Source
from stages.videos.video import read_header

AT_REST = "at_rest"
"""The reason of a video in which nobody speaks; no stretch of it is a gap, and the ledger has no such clips."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another text that the stretch may say; of the whole clip, before what its neighbours say too is taken away."""

    text: str
    share: float
    """Its part of the probability of all that were found."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the video and what was read there; `reason` says why nothing could be."""

    start_s: float
    """Of a file counted as players do, from the begin of sound where that comes before the first picture."""
    end_s: float
    text: str
    confidence: float | None
    """Geometric mean of the characters' probabilities; None where nothing could be read."""
    reason: str | None = None
    candidates: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class VideoReading:
    """What `pipeline inference` says of one video; `reason` is null where some of it could be read."""

    path: str
    text: str
    confidence: float | None
    """Geometric mean of the characters' probabilities."""
    cer: float | None
    num_frames: int | None
    """Mouth pictures that were read, each counted once."""
    reason: str | None
    segments: tuple[Segment, ...]

    @property
    def gaps(self) -> tuple[Segment, ...]:
        """The stretches that could not be read."""
        return tuple(segment for segment in self.segments if segment.reason is not None)


OnMouth = Callable[[Piece, MouthClip], None]
"""Called with each stretch before it is read: when it is, from the first picture (`start_s`, `end_s`), and its mouth
(`clip_THW`)."""


def read_video(
    path: Path,
    reader: ClipReader,
    params: Params,
    ground_truth: str | None = None,
    on_mouth: OnMouth | None = None,
) -> VideoReading:
    """What is said in one video of any length; where it cannot be read, the ledger's reason.

    `ground_truth` is normalised as the labels of training were.
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
    cer, text = None, joined.text.strip()
    if ground_truth is not None:
        reference = reader.reference(normalise(ground_truth, reader.text), params.decode)
        cer = edit_counts(reference, text).cer
    segments = tuple(_shifted(segment, header.start_s) for segment in joined.segments)
    return VideoReading(str(path), text, joined.confidence, cer, joined.num_frames, None, segments)


def _shifted(segment: Segment, start_s: float) -> Segment:
    """As it is shown: counted as players count, without spaces at its ends."""
    return replace(
        segment,
        start_s=segment.start_s + start_s,
        end_s=segment.end_s + start_s,
        text=segment.text.strip(),
    )


def _check_there(path: Path) -> None:
    try:
        is_file = path.is_file()
    except OSError as error:  # a folder that may not be entered, a name that is too long
        raise ClipRejected(
            Reason.UNREADABLE,
            f"{path} cannot be looked at ({error.strerror}); check its folders and its name",
        ) from error
    if not is_file:
        raise ClipRejected(Reason.MISSING_FILE, f"{path} is not there")


def _shares(candidates: tuple[Candidate, ...]) -> tuple[Alternative, ...]:
    """Texts of one clip exclude each other: a softmax of their log-probabilities, not a mean per character."""
    best = max((one.log_probability for one in candidates), default=0.0)
    # where none is possible, none is likelier than the others
    weights = [math.exp(one.log_probability - best) if best > -math.inf else 1.0 for one in candidates]
    return tuple(
        Alternative(one.text, weight / sum(weights)) for one, weight in zip(candidates, weights, strict=True)
    )


class JoinedReadings:
    """Readings of the pieces of one video, put together in their order."""

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
        """Geometric mean of the probabilities of all characters read."""
        return math.exp(self._log_probability / max(self._num_chars, 1))

    def reason_for_no_text(self, duration_s: float | None) -> str:
        """Why nothing was read: that of the longest gap, or that the rest of the video, the larger part, is at rest."""
        gaps = [segment for segment in self.segments if segment.reason is not None]
        missing_s = sum(gap.end_s - gap.start_s for gap in gaps)
        if not gaps or (duration_s is not None and 2 * missing_s < duration_s):
            return f"{AT_REST}: the mouth does not move"
        return max(gaps, key=lambda gap: gap.end_s - gap.start_s).reason or ""

    @property
    def _read_until_s(self) -> float:
        return max((one.end_s for one in self.segments if one.reason is None), default=-math.inf)

    def covers(self, piece: Piece) -> bool:
        """Whether all that it shows was read with more around it: a window whose speaker goes soon after it begins."""
        return piece.start_s < self._read_until_s - self._slack_s and (
            piece.end_s < self._read_until_s + self._slack_s
        )

    def add(self, piece: Piece, reading: Reading) -> Segment:
        """The stretch as it stands now; the one before may have given up the end of its text."""
        assert piece.mouth is not None
        self.num_read += 1
        # what could not be read of the end of a window, the next one shows again
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
        start_s, text = max(piece.start_s, self._read_until_s), reading.text
        glue = separator(self.text, text)
        if is_shared:
            glue, text, start_s = self._take_apart(piece, text)
        elif self.num_read > 1:
            text = text.lstrip()
        self.text += glue + text
        candidates = _shares(reading.candidates)
        confidence = math.exp(reading.score)
        self.segments.append(Segment(start_s, piece.end_s, text, confidence, None, candidates))
        return self.segments[-1]

    def _ends_after(self, time_s: float) -> bool:
        return self.segments[-1].end_s > time_s + 1e-6

    def _take_apart(self, piece: Piece, text: str) -> tuple[str, str, float]:
        """What stands before the new text, what is left of it, and when it begins."""
        last = self.segments[-1]
        shared_s = last.end_s - piece.start_s
        duration_s = (last.end_s - last.start_s) + (piece.end_s - piece.start_s)
        shared_chars = shared_s * (len(last.text) + len(text)) / duration_s
        kept, text = without_overlap(last.text, text, shared_chars)
        begun = self.text.removesuffix(last.text)
        glue = " " if kept.endswith(" ") or text.startswith(" ") else ""
        kept, text = kept.strip(), text.strip()
        self.text = begun + kept
        middle_s = (max(last.start_s, piece.start_s) + last.end_s) / 2
        self.segments[-1] = replace(last, end_s=middle_s, text=kept)
        return (glue if kept and text else ""), text, middle_s

    def add_gap(self, piece: Piece) -> Segment | None:
        """The stretch that cannot be read, neighbours of the same reason taken together; None: nothing to name.

        What overlaps a stretch that was read could be read.
        """
        assert piece.rejected is not None
        reason, start_s = piece.rejected.reason, max(piece.start_s, self._read_until_s)
        if self.covers(piece):
            return None
        last = self.segments[-1] if self.segments else None
        is_sliver = reason is Reason.TOO_SHORT
        if last is not None and last.reason is not None:
            is_same = last.reason.partition(":")[0] in (reason, Reason.TOO_SHORT)
            if (is_sliver or is_same) and start_s <= last.end_s + self._slack_s:
                told = last.reason if is_sliver else str(piece.rejected)
                self.segments[-1] = replace(last, end_s=max(last.end_s, piece.end_s), reason=told)
                return self.segments[-1]
            start_s = max(start_s, last.end_s)
        if is_sliver and self.num_read:
            return None
        self.segments.append(Segment(start_s, max(start_s, piece.end_s), "", None, str(piece.rejected)))
        return self.segments[-1]


MAX_OVERLAP_FACTOR = 2.0
"""The shared text is looked for up to this many times the length it should have by the clock."""
EXTRA_CHARS = 4

MIN_SAME_CHARS = 2
"""So many characters that agree are no chance, though the clock wants another length."""


def without_overlap(before: str, after: str, shared_chars: float) -> tuple[str, str]:
    """Both texts without what they say twice: the first gives up its end, the second its begin.

    `shared_chars` is how long the shared text should be by the clock. Of all ends of `before` and begins of `after`
    those are taken for the same words that agree best: characters that agree, less edits between them, less what the
    length differs from `shared_chars`. The cut lies in their middle, at a space where they have one: what a window
    shows at its very edge it shows in part, and its neighbour shows whole. Where nothing agrees, each gives up half
    of `shared_chars`.
    """
    reach = round(MAX_OVERLAP_FACTOR * shared_chars) + EXTRA_CHARS
    # sharing nothing is right only where the clock says so
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
    assert same, "texts of which a character agrees"
    middle = len(same) / 2
    spaces = [place for place, (i, _) in enumerate(same) if end[i] == " "]
    i, j = same[min(spaces or range(len(same)), key=lambda place: abs(place + 0.5 - middle))]
    return before[: len(before) - num_before + i], after[j:]


def separator(before: str, after: str) -> str:
    """What stands between two texts that follow each other: a space between words, nothing beside Han characters.

    A text's own space at the seam counts: the caller leaves out those that `after` begins with.
    """
    if not before or not after.strip() or before[-1].isspace():
        return ""
    return " " if after[0].isspace() or not (is_han(before[-1]) or is_han(after[0])) else ""
