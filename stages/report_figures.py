"""What a report says in figures: computed in one place, shown in another (stages/report_page.py).

Shares are 0 to 1, never per cent. What cannot be known is None, never 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from model.metrics import EditCounts
from model.scored import ScoredClip


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
