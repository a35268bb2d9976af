"""The figures of a report; stages/pages/report_page.py shows them.

Shares are 0 to 1, never per cent. A figure that cannot be known is None, never 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from model.bootstrap import ENOUGH_SPEAKERS, Over
from model.decoding.calibration import UNCALIBRATED, ConfidenceScale
from model.decoding.ctc import Spikes
from model.decoding.registry import GREEDY, describe_settings
from model.decoding.result import ScoredClip
from model.metrics import EditCounts
from model.text import Tokenizer, without_version

UNKNOWN_GROUP = "(unknown)"
NORMALISER_UNKNOWN = "not known: samples.parquet does not name it; run `pipeline preprocess` to write it"


@dataclass(frozen=True, slots=True)
class CountedUnit:
    """The unit that an error rate counts."""

    name: str
    names: str
    rate: str
    short: str
    """Short name of the rate, for a column title."""
    note: str = ""
    """A warning about the unit, one sentence."""


CHARACTERS = CountedUnit("character", "characters", "character error rate", "CER")
LETTERS = CountedUnit(
    "letter",
    "letters of pinyin",
    "error rate of pinyin’s letters",
    "letters’ error rate",
    "The model writes toneless pinyin and errors are counted by letter; do not compare this rate with a CER.",
)


def unit_of(decoder: str | None) -> CountedUnit:
    """Returns the unit of texts by `decoder`; None: characters, as in older reports, which do not name it."""
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
    oracle_errors: int | None = None
    """Errors of the candidate with the fewest; None for a greedy decoder, which has no candidates."""


@dataclass(frozen=True, slots=True)
class Group:
    """The clips of one speaker, topic, age …; name None if the corpus does not have it."""

    name: str | None
    num_clips: int
    counts: EditCounts
    interval: Interval | None = None
    """95 % interval of the CER; None if there is none."""
    over: Over = "clips"
    """What the bootstrap draws."""
    num_speakers: int = 0
    """Number of known speakers."""

    @property
    def is_narrow(self) -> bool:
        """Whether the interval is too narrow for other speakers."""
        return self.interval is not None and (self.over == "clips" or self.num_speakers < ENOUGH_SPEAKERS)

    @property
    def label(self) -> str:
        return UNKNOWN_GROUP if self.name is None else self.name


@dataclass(frozen=True, slots=True)
class Confusion:
    """A unit that was said and a unit that was read, "" if added or missed; the most frequent first."""

    reference: str
    hypothesis: str
    count: int
    num_reference: int
    """How often the unit was said in all."""
    look_alike: bool | None
    """Whether both are the same on the lips (homophenes); None if that is not known for one of them."""


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Clips of similar confidence; for a well calibrated model, confidence equals accuracy."""

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
    """Clips of similar quality: a quarter of the split by a column of crops.parquet (stages/statistics/quality.py)."""

    low: float
    high: float
    num_clips: int
    counts: EditCounts


@dataclass(frozen=True, slots=True)
class ClipFacts:
    """Facts of a clip in the tables."""

    gender: str | None = None
    age: int | None = None
    """Years."""
    qualities: Mapping[str, float] = field(default_factory=dict)
    """By the name of a Quality; only measured ones."""


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """Facts for the figures other than the texts; all unknown in a score without tables."""

    decoder: str | None = None
    table: Tokenizer | None = None
    """The units that the model can write."""
    clips: Mapping[str, ClipFacts] = field(default_factory=dict)
    """By clip_id."""
    checkpoint: str | None = None
    """Identity of the checkpoint, of several joined by +; the card of an export finds the report of its model by it."""
    decode: Mapping[str, Any] | None = None
    """The settings that the decoder used."""
    language_model: str | None = None
    """The identity of its file; None if none was used."""
    normaliser: str | None = None
    """The normaliser of the references, in a line; None if their table does not name it."""
    checkpoint_normaliser: str | None = None
    """The normaliser of the learnt labels, in a line."""
    confidence_scale: ConfidenceScale = UNCALIBRATED
    """Of the confidences of characters."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The contents of a report, without pictures."""

    metrics: Mapping[str, Any]
    """The contents of metrics.json."""
    groups: Mapping[str, Sequence[Group]]
    """By "speaker", "gender", "age", "topic", "length" (s); only the group None if the corpus does not have it."""
    characters: Sequence[Confusion]
    """The most frequent confusions of characters."""
    syllables: Sequence[Confusion]
    """The same for toneless pinyin; empty if little of the text is Han."""
    calibration: Sequence[CalibrationBin]
    qualities: Mapping[str, Sequence[QualityBin]]
    """By the name of a Quality."""
    worst: Sequence[CountedClip]
    median: Sequence[CountedClip]
    best: Sequence[CountedClip]
    look_alikes: Sequence[Sequence[str]] = ()
    """Groups of characters of the split that are the same on the lips, the most frequent group first."""
    words: Sequence[Confusion] = ()
    """The most frequent confusions of words, if the text has words with spaces."""


def read_by(metrics: Mapping[str, Any]) -> str | None:
    """Describes the decoder and its settings in a line; older reports give only its name, or None."""
    settings = metrics.get("decode")
    return metrics.get("decoder") if settings is None else describe_settings(settings)


def interval_about(over: Over | None, num_speakers: int | None) -> str:
    """Says what the interval was drawn over, and whether that is enough; num_speakers is None in older reports."""
    if over != "speakers":
        return "over clips, because fewer than two speakers are known: too narrow for other speakers"
    if num_speakers is None or num_speakers >= ENOUGH_SPEAKERS:
        return "over speakers"
    return f"over {num_speakers} speakers: with fewer than {ENOUGH_SPEAKERS} it is too narrow"


def why_no_interval(num_clips: int, rate: str = "error rate") -> str:
    """Says why a figure of so many clips has no interval."""
    if num_clips < 2:
        return "none: one clip says nothing about other clips"
    return f"none: all speakers, or clips, have the same {rate}, so resampling says nothing about others"


def has_interval(low: float | None, high: float | None) -> bool:
    """Returns whether there is an interval to show; older reports wrote one without width if all rates were equal."""
    return low is not None and high is not None and low < high


def oracle_about(decoder: str | None, num_candidates: int | None = None) -> str:
    """Says what the oracle CER is, or, if the number of candidates is not known, why there is none."""
    if num_candidates is not None:
        most = (
            "the best candidate" if num_candidates == 1 else f"the best of up to {num_candidates} candidates"
        )
        return f"if {most} of each clip were chosen: the most that rescoring them could gain"
    if decoder in GREEDY:
        return f"none: decoder {decoder} is greedy and has no candidates; set decode.decoder to a beam search"
    return "not known: this report has no candidates; run `pipeline report` again with a beam search"


NO_INTERVAL_NOTE = "one clip, or clips or speakers with equal error rates, say nothing about others"
INTERVALS_NOTE = (
    "Intervals are over speakers, or over clips if fewer than two speakers are known. † Fewer than "
    f"{ENOUGH_SPEAKERS} speakers: too narrow. – No interval: {NO_INTERVAL_NOTE}."
)
NARROW_NOTE = (
    f"too narrow for other speakers: drawn over fewer than {ENOUGH_SPEAKERS} speakers, or over clips because fewer "
    "than two speakers are known"
)


def normaliser_warning(metrics: Mapping[str, Any]) -> str | None:
    """Returns a warning if the references and the learnt labels were normalised with different options.

    Different versions with the same options differ only in rare texts: both are shown, without a warning.
    """
    references, learnt = metrics.get("normaliser"), metrics.get("checkpoint_normaliser")
    if references is None or learnt is None or without_version(references) == without_version(learnt):
        return None
    return (
        "The references and the labels that this model learnt have different normalisers. The differences count as "
        "errors: run `pipeline preprocess` with the model's section text, or train again."
    )


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """The models that read the clips; values of several are joined by +, parameters are summed."""

    preset: str
    num_parameters: int
    epoch: str
    decoder: str
    """Its name and settings, in a line."""


@dataclass(frozen=True, slots=True)
class ReportContext:
    """Everything in the report that does not come from the hypotheses.

    `warnings` are at the top of the page. `speaker_overlap`: speakers of the split that were also trained on, None if
    no speaker is named. `curves` has a row for each epoch: epoch, train_loss, val_loss, val_cer, learning_rate,
    clips_per_s, data_wait; None if not measured. `rejections`: clips in crops.parquet by split and reason.
    `clip_totals`: usable clips by split. `corpora`: of several packs, each with its rejected clips of the split (None:
    not known); empty for one pack. `clip_of` returns a clip's mouth crops, uint8, frames × height × width;
    `spikes_of` the output of its CTC head over time, None if the model has none.
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
    corpora: Mapping[str, int | None] = field(default_factory=dict)
    fps: float = 25.0
