"""Writes the model card next to every exported model, for people and the Hugging Face hub.

It has only figures measured for this model; other figures are "not measured", unknown facts are "not stated".
"""

from dataclasses import dataclass
from statistics import median
from typing import Any

from model.bootstrap import Over
from stages.cards.licences import hub_licence
from stages.cards.model_card_examples import ExportFormat, how_to_run
from stages.cards.pack_facts import LANGUAGES
from stages.cards.render import front_matter, render
from stages.reports.figures import has_interval, interval_about, unit_of, why_no_interval

CARD = "MODEL_CARD.md"
MARK = "Made by `pipeline export`, which writes it anew each time."
GRAPH_DECODERS = ("ctc", "ctc_beam", "syllables", "pinyin")
"""Decoders that can read an exported graph."""


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """The training clips; `num_speakers` is None where no clip names one."""

    num_clips: int
    hours: float
    num_speakers: int | None


@dataclass(frozen=True, slots=True)
class Measured:
    """The figures of a report on this model; shares, None where not known."""

    split: str
    decoder: str | None
    num_clips: int
    num_chars: int
    cer: float
    cer_low: float | None
    cer_high: float | None
    interval_over: Over | None
    num_speakers: int | None
    """Of the split, where the report counts them."""
    blind_cer: float | None
    chance_cer: float | None
    speaker_overlap: int | None
    speaker_cers: tuple[float, ...]
    """Of each speaker, ascending; empty where clips name none."""
    read_by: str | None = None
    """The decoder and its settings, where the report says more than its name."""
    lm_weight: float | None = None
    """Weight of the language model; None: none was used."""
    num_rejected: int = 0
    """Clips of the split that were not read; 0 in an older report, which does not count them."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """One exported file of the model; the figures are those of `ExportFacts.scored_split`, where it was scored."""

    name: str
    num_bytes: int
    cer: float | None = None
    clips_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class ExportFacts:
    """The facts in the card."""

    format: ExportFormat
    preset: str
    num_parameters: int
    heads: tuple[str, ...]
    num_characters: int
    epoch: int
    checkpoint: str
    """Of the checkpoint's bytes (shards.files.file_identity)."""
    valid_cer: float | None
    train: dict[str, Any]
    """The section of params.yaml that it was trained with."""
    normaliser: str
    fps: float
    crop_px: int
    corpus: str | None
    """Kind of the corpus; None where it is not known."""
    license: str
    trained_on: TrainedOn | None
    measured: Measured | None
    files: tuple[FileFacts, ...]
    scored_split: str | None = None
    scored_clips: int = 0
    scored_decoder: str | None = None
    difference: float | None = None
    """The largest difference between log-probabilities of the export and of the network, nats."""


def model_card(facts: ExportFacts) -> str:
    """Returns the card: same facts, same text."""
    language = LANGUAGES.get(facts.corpus or "")
    matter = {
        **hub_licence(facts.license),
        **({"language": [language[0]]} if language else {}),
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["lip-reading", "visual-speech-recognition", facts.format],
    }
    measured = facts.measured
    return render(
        "model_card",
        facts.license,
        facts=facts,
        front_matter=front_matter(matter),
        measured=measured,
        language=language and language[1],
        graph_decoders=GRAPH_DECODERS,
        how_to_run=how_to_run(facts.format, facts.heads, facts.fps, facts.crop_px),
        mark=MARK,
        **({} if measured is None else _figures(measured)),
    )


def _figures(measured: Measured) -> dict[str, Any]:
    """Returns what the template needs in addition to the report's figures."""
    low, high, cers = measured.cer_low, measured.cer_high, measured.speaker_cers
    return {
        "unit": unit_of(measured.decoder),
        "why_no_interval": None if has_interval(low, high) else why_no_interval(measured.num_clips),
        "drawn_over": interval_about(measured.interval_over, measured.num_speakers),
        "median_cer": median(cers) if cers else None,
    }
