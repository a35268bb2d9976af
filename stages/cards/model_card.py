"""Writes the model card next to every exported model, for people and the Hugging Face hub.

It has only figures measured for this model; other figures are "not measured", unknown facts are "not stated". It shows
how to run an exported model without this project, and tests run this code.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from model.bootstrap import Over
from model.exports.onnx_reader import LOG_PROBS, SYLLABLE_LOG_PROBS
from stages.cards.card import front_matter, render
from stages.cards.licences import hub_licence
from stages.cards.pack_facts import LANGUAGES
from stages.reports.figures import has_interval, interval_about, unit_of, why_no_interval

ExportFormat = Literal["onnx", "safetensors"]
FILES: dict[ExportFormat, str] = {"onnx": "model.onnx", "safetensors": "model.safetensors"}

_INPUTS = """Inputs: `video`, uint8 (B, T, {px}, {px}) at {fps:g} frames per second, padded to the longest clip, and
`num_frames`, int64 (B,). Outputs: the log-probabilities {outputs}, float32, and
`num_steps`, int64 (B,). Ids: 0 is the blank, then three special tokens, then the units of `config.json`. The model
normalises gray levels. `clip.npy` below holds one mouth clip, uint8 (T, {px}, {px}).
"""
_GREEDY = """
best = log_probs[0, : int(num_steps[0])].argmax(1).tolist()
path = [token for number, token in enumerate(best) if number == 0 or token != best[number - 1]]
table = config["TABLE"]
first = len(table["special_tokens"])
text = table.get("joiner", "").join(table["characters"][token - first] for token in path if token >= first)
text = re.sub(table.get("unwritten_spaces", "(?!)"), "", text)
print(unicodedata.normalize("NFC", text))  # composes Hangul letters
"""
_ONNX = """import json
import re
import unicodedata

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
config = json.loads(session.get_modelmeta().custom_metadata_map["config"])
clip = np.load("clip.npy")
fed = {"video": clip[None], "num_frames": np.array([len(clip)])}
log_probs, num_steps = session.run(["OUTPUT", "num_steps"], fed)
"""
_SAFETENSORS = """import json

from safetensors.torch import load_file

from model.networks.network import LipNetwork
from model.settings import ModelParams
from model.text import Tokenizer
from model.vocabulary import Vocabulary

with open("config.json", encoding="utf-8") as file:
    config = json.load(file)
characters, syllables = (
    config[name] and Tokenizer.from_json(config[name], name) for name in ("characters", "syllables")
)
network = LipNetwork(ModelParams.model_validate(config["model"]), Vocabulary(characters, syllables), config["heads"])
network.load_state_dict(load_file("model.safetensors"))
"""
CARD = "MODEL_CARD.md"
MARK = "Made by `pipeline export`, which writes it anew each time."
GRAPH_DECODERS = ("ctc", "ctc_beam", "syllables", "pinyin")
"""Decoders that can read an exported graph."""


def example(format: ExportFormat, heads: Sequence[str]) -> str:
    """Returns a program that runs in the folder of the export. For ONNX, it reads clip.npy and prints the text."""
    if format == "safetensors":
        return _SAFETENSORS
    output, table = (LOG_PROBS, "characters") if "ctc" in heads else (SYLLABLE_LOG_PROBS, "syllables")
    return (_ONNX + _GREEDY).replace("OUTPUT", output).replace("TABLE", table)


def how_to_run(format: ExportFormat, heads: Sequence[str], fps: float, crop_px: int) -> str:
    """Returns the section of the card, in Markdown."""
    code = f"```python\n{example(format, heads)}```\n"
    if format == "safetensors":
        return (
            "The weights by name. This project's `model` package builds the network from `config.json`:"
            f"\n\n{code}"
        )
    shapes = {
        "ctc": f"`{LOG_PROBS}` (B, S, V) of characters",
        "syllables": f"`{SYLLABLE_LOG_PROBS}` (B, S, W)",
    }
    outputs = " and ".join(shape for head, shape in shapes.items() if head in heads)
    inputs = _INPUTS.format(px=crop_px, fps=fps, outputs=outputs)
    return (
        "For videos, run `pipeline inference --onnx model.onnx VIDEO`, which needs no torch. For cropped clips:"
        f"\n\n{inputs}\n{code}"
    )


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
    """Units that it writes, of any kind."""
    units: str
    """What the units that it writes are called: characters, words, …"""
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
