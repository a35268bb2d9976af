"""The model card that stands beside every exported model, for people and the Hugging Face hub.

It says what was measured, of this model alone; what was not is "not measured", what nobody stated is "not stated".
"""

from dataclasses import dataclass
from statistics import median
from typing import Any

import yaml

from model.bootstrap import Over
from stages.cards.licences import hub_licence, is_unknown, why_not_shared
from stages.cards.model_card_examples import ExportFormat, how_to_run
from stages.reports.figures import has_interval, interval_about, unit_of, why_no_interval

CARD = "MODEL_CARD.md"
MARK = "Made by `pipeline export`, which writes it anew each time."
_LANGUAGES = {
    "chinese_lips": ("zh", "Mandarin"),
    "grid": ("en", "English, GRID's six-word commands"),
}
_MB = 1_000_000
GRAPH_DECODERS = ("ctc", "ctc_beam", "syllables", "pinyin")
"""What an exported graph is read by."""


@dataclass(frozen=True, slots=True)
class TrainedOn:
    """The clips that were learnt from; `num_speakers` is None where no clip names one."""

    num_clips: int
    hours: float
    num_speakers: int | None


@dataclass(frozen=True, slots=True)
class Measured:
    """What a report says of this model; shares, None where it could not be known."""

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
    """Of each speaker by itself, ascending; empty where clips name none."""
    read_by: str | None = None
    """The decoder and its settings, where the report says more than its name."""
    lm_weight: float | None = None
    """Of the language model that was asked; None: none was."""
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
    """What the card tells."""

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
    """The largest one between log-probabilities of the export and of the network, nats."""


def model_card(facts: ExportFacts) -> str:
    """Same facts, same text."""
    return f"""{_front_matter(facts)}
# A lip reader: {facts.preset}, {facts.num_parameters:,} parameters
Reads what a person says from silent video of the mouth: gray crops of {facts.crop_px} × {facts.crop_px} px at
{facts.fps:g} frames a second become text of {facts.num_characters:,} characters. Heads: {", ".join(facts.heads)}.
Checkpoint {facts.checkpoint}, epoch {facts.epoch}, counted from 0.

## Uses it is not for
**Do not read the lips of people who have not agreed to it.** Not to listen in on conversations, not on surveillance or
press video, not to find out who somebody is, and not as evidence of what somebody said: it writes fluent text where it
is wrong, and words that look alike on the lips are one to it.

## Data
{_data(facts)}

## Training
{_training(facts)}

## Results
{_results(facts)}

## Limits
{_limits(facts)}

## Licence
{_licence(facts)}

## Files
{_files(facts)}

## Running it
{how_to_run(facts.format, facts.heads, facts.fps, facts.crop_px)}
{MARK}
"""


def _front_matter(facts: ExportFacts) -> str:
    language = _LANGUAGES.get(facts.corpus or "")
    matter: dict[str, Any] = {
        **hub_licence(facts.license),
        **({"language": [language[0]]} if language else {}),
        "pipeline_tag": "automatic-speech-recognition",
        "tags": ["lip-reading", "visual-speech-recognition", facts.format],
    }
    return f"---\n{yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)}---\n"


def _data(facts: ExportFacts) -> str:
    told = f"Corpus: {f'of kind {facts.corpus}' if facts.corpus else 'not stated'}. Licence: {_licence_name(facts)}."
    if facts.trained_on is None:
        return f"{told} Clips, hours and speakers: not stated (the clips it was trained on are not here)."
    on = facts.trained_on
    speakers = "speakers not stated" if on.num_speakers is None else f"{on.num_speakers:,} speakers"
    if on.num_speakers == 1:
        speakers = "1 speaker"
    return f"{told} Trained on {on.num_clips:,} clips, {on.hours:,.2f} h, {speakers}."


def _training(facts: ExportFacts) -> str:
    train = facts.train
    weights = [f"ctc_weight {train['ctc_weight']:g}"]
    weights += [
        f"{name} {train[name]:g}" for name in ("reverse_weight", "syllable_weight") if train.get(name)
    ]
    told = (
        f"At most {train['num_epochs']} epochs, AdamW with a peak learning rate of {train['learning_rate']:g} "
        f"({train['scheduler']}),\n{train['accumulation_steps']} × {train['batch_size']} clips a step at most, "
        f"{', '.join(weights)}, seed {train['seed']}."
    )
    if train.get("init_from"):
        told += (
            f" Started from {train['init_from'].rsplit('/', 1)[-1]}, whose own data and licence count too."
        )
    chosen = "not measured" if facts.valid_cer is None else _percent(facts.valid_cer)
    return f"{told}\nCER of the valid split, by which it was chosen: {chosen}.\nText: {facts.normaliser}."


def _results(facts: ExportFacts) -> str:
    lines = []
    if facts.measured is None:
        lines.append("CER: not measured (there is no report of this checkpoint; `pipeline report` makes it).")
    else:
        lines += _report_rows(facts.measured)
        if facts.format != "safetensors" and facts.measured.decoder not in GRAPH_DECODERS:
            lines += [
                "",
                "That decoder stays behind: this file holds CTC heads alone, and is read by them with another CER.",
            ]
    if facts.scored_split is not None:
        lines += ["", *_scored_rows(facts)]
    if facts.difference is not None:
        lines += [
            "",
            f"The export's log-probabilities differ from the network's by at most {facts.difference:.1e} (on noise, in "
            "padded batches of several lengths).",
        ]
    return "\n".join(lines)


def _report_rows(measured: Measured) -> list[str]:
    low, high = measured.cer_low, measured.cer_high
    interval = f"95 % interval {why_no_interval(measured.num_clips)}"
    if low is not None and high is not None and has_interval(low, high):
        about = interval_about(measured.interval_over, measured.num_speakers)
        interval = f"95 % interval {_percent(low)} to {_percent(high)} by bootstrap {about}"
    unit = unit_of(measured.decoder)
    name = unit.rate if unit.note else f"{unit.rate} ({unit.short})"
    decoder = measured.read_by or measured.decoder
    by = f", decoder {decoder}" if decoder else ""
    cers = measured.speaker_cers
    spread = "not measured"
    if len(cers) == 1:
        spread = f"1 speaker, {_percent(cers[0])}"
    elif cers:
        spread = f"{len(cers)} speakers, {_percent(cers[0])} to {_percent(cers[-1])}, median {_percent(median(cers))}"
    return [
        f"On split {measured.split} ({measured.num_clips:,} clips, {measured.num_chars:,} {unit.names}{by}):",
        "",
        "| figure | value |",
        "|---|---|",
        f"| {name} | {_percent(measured.cer)}, {interval} |",
        f"| blind {unit.short}: the same model on each clip's mean frame | {_or_unknown(measured.blind_cer)} |",
        f"| chance {unit.short}: its text against other clips' references | {_or_unknown(measured.chance_cer)} |",
        f"| {unit.short} of single speakers | {spread} |",
        *(["", unit.note] if unit.note else []),
        *_beside_the_model(measured),
    ]


def _beside_the_model(measured: Measured) -> list[str]:
    """What made the figures beside the model, a paragraph each."""
    lines = []
    if measured.lm_weight is not None:
        lines += [
            "",
            f"It was read with a language model (weight {measured.lm_weight:g}) that is no part of this export: "
            "without it the CER is another.",
        ]
    if number := measured.num_rejected:
        clips = (
            "1 clip of that split, which was"
            if number == 1
            else f"{number:,} clips of that split, which were"
        )
        lines += ["", f"Not among them: {clips} rejected before reading."]
    return lines


def _scored_rows(facts: ExportFacts) -> list[str]:
    rows = [
        f"As exported, on {facts.scored_clips:,} clips of split {facts.scored_split}, decoder {facts.scored_decoder}, "
        "one clip at a time in onnxruntime on the CPU of the machine that made this:",
        "",
        "| file | MB | CER | clips/s |",
        "|---|---|---|---|",
    ]
    for file in facts.files:
        if file.cer is not None and file.clips_per_s is not None:
            rows.append(
                f"| {file.name} | {file.num_bytes / _MB:.1f} | {_percent(file.cer)} | {file.clips_per_s:.1f} |"
            )
    rows += [
        "",
        "The int8 weights have 7 bits, so that no sum saturates: the int8 file reads the same on processors with and "
        "without 8-bit dot products (VNNI). Its speed is that of this machine's processor.",
    ]
    return rows


def _limits(facts: ExportFacts) -> str:
    measured = facts.measured
    lines = []
    if measured is None or measured.speaker_overlap is None:
        lines.append(
            "On people it has never seen: not measured. Expect a higher CER than on those it was trained on."
        )
    elif measured.speaker_overlap:
        known = f"{measured.speaker_overlap} of the speakers"
        if measured.num_speakers == 1:
            known = "the one speaker"
        lines.append(
            f"**Trained on too: {known} of split {measured.split}. Its CER is that "
            "of people the model knows, and will be higher on others.**"
        )
    else:
        lines.append(
            f"No speaker of split {measured.split} was trained on; people differ much, and so does the CER."
        )
    language = _LANGUAGES.get(facts.corpus or "")
    lines += [
        f"Language: {language[1] if language else 'not stated'}; any other is read as if it were that of its corpus.",
        f"It writes the {facts.num_characters:,} characters of its training transcripts and no others.",
        "Camera, light, distance and pose of its corpus; others were not measured. The mouth has to be cut as "
        "`pipeline` cuts it: other crops are read badly, without a warning.",
        "Words that look alike on the lips can only be told apart by what is likely to be said.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _licence_name(facts: ExportFacts) -> str:
    return "unknown" if is_unknown(facts.license) else facts.license


def _licence(facts: ExportFacts) -> str:
    if is_unknown(facts.license):
        return "The corpus's licence is unknown; the weights were learnt from videos of people: do not pass them on."
    told = f"The corpus is under {facts.license}. The weights were learnt from crops of its videos and follow its terms"
    if why_not_shared(facts.license):
        return f"{told}: the same uses only, its authors named, and not passed on beyond what that licence allows."
    return f"{told}; name its authors."


def _files(facts: ExportFacts) -> str:
    rows = [f"- `{file.name}`, {file.num_bytes / _MB:.1f} MB" for file in facts.files]
    rows.append("- `config.json`: frame rate, crop, characters, normaliser and decoder")
    return "\n".join(rows)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _or_unknown(share: float | None) -> str:
    return "not measured" if share is None else _percent(share)
