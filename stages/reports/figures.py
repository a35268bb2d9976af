"""What a report says in figures: computed in one place, shown in another (stages/pages/report_page.py).

Shares are 0 to 1, never per cent. What cannot be known is None, never 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.bootstrap import ENOUGH_SPEAKERS, Over
from model.decoding.ctc_spikes import Spikes
from model.decoding.registry import describe_settings
from model.decoding.result import ScoredClip
from model.metrics import EditCounts
from model.text import Tokenizer, without_version

UNKNOWN_GROUP = "(unknown)"
NORMALISER_UNKNOWN = (
    "not known, the table of samples does not say it; `pipeline preprocess` makes one that does"
)


@dataclass(frozen=True, slots=True)
class CountedUnit:
    """What an error rate counts."""

    name: str
    names: str
    rate: str
    short: str
    """Of the rate, for the head of a column."""
    note: str = ""
    """What to beware of, a sentence."""


CHARACTERS = CountedUnit("character", "characters", "character error rate", "CER")
LETTERS = CountedUnit(
    "letter",
    "letters of pinyin",
    "error rate of pinyin’s letters",
    "letters’ error rate",
    "Read as toneless pinyin and counted by its letters: not to be compared with a CER of characters.",
)


def unit_of(decoder: str | None) -> CountedUnit:
    """What is counted of a reading by `decoder`; None is an older report's, which was of characters."""
    return LETTERS if decoder == "syllables" else CHARACTERS


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
    num_speakers: int = 0
    """Those that are known."""

    @property
    def is_narrow(self) -> bool:
        """Whether its interval is too narrow for other speakers."""
        return self.interval is not None and (self.over == "clips" or self.num_speakers < ENOUGH_SPEAKERS)

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
    """Clips of like quality: a quarter of the split by one column of the ledger (stages/statistics/quality.py)."""

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
    normaliser: str | None = None
    """What made the references, in a line; None where their table does not say it."""
    checkpoint_normaliser: str | None = None
    """What made the labels that were learnt, in a line."""


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


def read_by(metrics: Mapping[str, Any]) -> str | None:
    """The decoder and what it read by, in a line; of an older report its name alone, None where it names none."""
    settings = metrics.get("decode")
    return metrics.get("decoder") if settings is None else describe_settings(settings)


def interval_about(over: Over | None, num_speakers: int | None) -> str:
    """What the interval was drawn over, and whether that is enough; an older report does not count its speakers."""
    if over != "speakers":
        return "over clips, for fewer than two speakers are known: too narrow for other speakers"
    if num_speakers is None or num_speakers >= ENOUGH_SPEAKERS:
        return "over speakers"
    return f"over {num_speakers} speakers: with fewer than {ENOUGH_SPEAKERS} it is too narrow"


def why_no_interval(num_clips: int, rate: str = "error rate") -> str:
    """Why no interval stands beside a figure of so many clips."""
    if num_clips < 2:
        return "none: from one clip nothing follows for others"
    return f"none: all speakers, or clips, have the same {rate}, so drawing them anew tells nothing of others"


def has_interval(low: float | None, high: float | None) -> bool:
    """Whether there is one to show; an older report gave one without width where all was alike."""
    return low is not None and high is not None and low < high


NOTHING_NOTE = "of one clip, or of clips or speakers that are all alike, nothing follows for others"
INTERVALS_NOTE = (
    "Intervals are over speakers, over clips where fewer than two are known. † Of fewer than "
    f"{ENOUGH_SPEAKERS} speakers: too narrow. – None: {NOTHING_NOTE}."
)
NARROW_NOTE = (
    f"too narrow for other speakers: drawn over fewer than {ENOUGH_SPEAKERS} of them, or over clips where fewer than "
    "two are known"
)


def normaliser_warning(metrics: Mapping[str, Any]) -> str | None:
    """A sentence where the references were normalised by other options than the labels that were learnt.

    Versions alone differ in rare texts only: they are named beside each other, and not warned of.
    """
    references, learnt = metrics.get("normaliser"), metrics.get("checkpoint_normaliser")
    if references is None or learnt is None or without_version(references) == without_version(learnt):
        return None
    return (
        "The references were made by another normaliser than the labels that this model learnt. What differs counts as "
        "errors: run `pipeline preprocess` with the model's section text, or train again."
    )


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What read the clips."""

    preset: str
    num_parameters: int
    epoch: int
    decoder: str
    """Its name and settings, in a line for people."""


@dataclass(frozen=True, slots=True)
class ReportContext:
    """Everything in the report that does not come from the hypotheses.

    `warnings` stand at the top of the page; `speaker_overlap` counts the speakers of the split that were also
    trained on, None where no speaker is named. `curves` has a row an epoch: epoch, train_loss, val_loss, val_cer,
    learning_rate, clips_per_s, data_wait; None where not measured. `rejections` counts crops.parquet by split and
    reason, `clip_totals` the usable clips by split. `clip_of` gives a clip's mouth crops, uint8, frames × height ×
    width, `spikes_of` what a CTC head says of them over time, None where the model has none.
    """

    corpus: str
    split: str
    seed: int
    num_examples: int
    resamples: int
    model: ModelFacts
    clip_of: Callable[[str], np.ndarray]
    spikes_of: Callable[[str], Spikes | None] = lambda clip_id: None
    warnings: Sequence[str] = ()
    speaker_overlap: int | None = 0
    curves: Sequence[Mapping[str, float | None]] = ()
    rejections: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    clip_totals: Mapping[str, int] = field(default_factory=dict)
    fps: float = 25.0
