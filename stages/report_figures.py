"""What a report says in figures: computed in one place, shown in another (stages/report_page.py).

Shares are 0 to 1, never per cent. What cannot be known is None, never 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from model.bootstrap import ENOUGH_SPEAKERS, Over
from model.metrics import EditCounts
from model.scored import ScoredClip
from model.text import Tokenizer

UNKNOWN_GROUP = "(unknown)"


@dataclass(frozen=True, slots=True)
class Interval:
    """The middle 95 % of a bootstrap."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class CountedClip:
    """A scored clip and its errors."""

    clip: ScoredClip
    counts: EditCounts


@dataclass(frozen=True, slots=True)
class Group:
    """The clips of one speaker, topic, age …; name None where the corpus does not say."""

    name: str | None
    num_clips: int
    counts: EditCounts
    interval: Interval | None = None
    """Of the CER; None where it was not made."""
    over: Over = "clips"
    """What was drawn for it."""

    @property
    def label(self) -> str:
        return UNKNOWN_GROUP if self.name is None else self.name


@dataclass(frozen=True, slots=True)
class Confusion:
    """What was read instead of what was said, most frequent first in a list; "" where nothing was (said, or read)."""

    reference: str
    hypothesis: str
    count: int
    num_reference: int
    """How often the unit was said in all."""
    look_alike: bool | None
    """Whether both look the same on the lips (homophenes); None where that is not known of one of them."""


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Clips of like confidence: a sure reader should be right as often as it is sure."""

    low: float
    high: float
    num_clips: int
    num_chars: int
    confidence: float
    """Mean over the clips."""
    accuracy: float
    """1 - CER of the clips together, not below 0."""


@dataclass(frozen=True, slots=True)
class QualityBin:
    """Clips of like quality: a quarter of the split by one column of the ledger (stages/quality.py)."""

    low: float
    high: float
    num_clips: int
    counts: EditCounts


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """What the tables say of a clip."""

    gender: str | None = None
    age: int | None = None
    """Years."""
    qualities: Mapping[str, float] = field(default_factory=dict)
    """By the name of a Quality; those that were measured."""


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """What the figures are made of beside the texts; a score without tables knows none of it."""

    decoder: str | None = None
    table: Tokenizer | None = None
    """What the model can write."""
    clips: Mapping[str, ClipFacts] = field(default_factory=dict)
    """By clip_id."""
    checkpoint: str | None = None
    """What was read with: by it an export's card knows the report on its model."""
    decode: Mapping[str, Any] | None = None
    """The decoder's settings, those that it used."""
    language_model: str | None = None
    """The identity of its file; None where none was asked."""


@dataclass(frozen=True, slots=True)
class Figures:
    """A report's content, without pictures."""

    metrics: Mapping[str, Any]
    """What stands in metrics.json."""
    groups: Mapping[str, Sequence[Group]]
    """By "speaker", "gender", "age", "topic", "length" (s); where the corpus does not say, the group None alone."""
    characters: Sequence[Confusion]
    """The most frequent confusions of characters."""
    syllables: Sequence[Confusion]
    """The same of toneless pinyin; empty where little of the text is Han."""
    calibration: Sequence[CalibrationBin]
    qualities: Mapping[str, Sequence[QualityBin]]
    """By the name of a Quality."""
    worst: Sequence[CountedClip]
    median: Sequence[CountedClip]
    best: Sequence[CountedClip]
    look_alikes: Sequence[Sequence[str]] = ()
    """Characters of the split that look the same on the lips, a group each, the most frequent group first."""
    words: Sequence[Confusion] = ()
    """The largest confusions of words, where the text has words with spaces."""


def interval_about(over: Over | None, num_speakers: int | None) -> str:
    """What the interval was drawn over, and whether that is enough; an older report does not count its speakers."""
    if over != "speakers":
        return "over clips, for fewer than two speakers are known: too narrow for other speakers"
    if num_speakers is None or num_speakers >= ENOUGH_SPEAKERS:
        return "over speakers"
    return f"over {num_speakers} speakers: with fewer than {ENOUGH_SPEAKERS} it is too narrow"
