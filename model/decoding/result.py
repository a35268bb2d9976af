"""What a reader of any kind says of a clip, and what every reader can do. Imports no torch.

One scored clip: what the model read, beside what was said.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from model.settings import DecodeParams, TextParams
from shards.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Candidate:
    """A text that a clip may say."""

    text: str
    log_probability: float
    """Of the text, given the clip, by all that the decoder asks, nats (model/decoding/posterior.py)."""
    rank_score: float
    """What the decoder ordered its candidates by, nats: language model and length bonus included, no probability."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read from one clip."""

    text: str
    score: float
    """Log-probability of the text, a character (where syllables are read, a syllable), nats; of an empty text as a
    whole."""
    candidates: tuple[Candidate, ...] = ()
    """The best texts, `text` first; a greedy decoder knows no others and gives none."""


class ClipReader(Protocol):
    """A trained model with all it takes to read: LipReader with torch, OnnxReader without."""

    fps: float
    crop_px: int
    """Side of the mouth crops it was trained on."""
    text: TextParams

    def read_clip(self, clip_THW: np.ndarray, params: DecodeParams) -> Reading:
        """Text of one uint8 clip."""

    def reference(self, label: str, params: DecodeParams) -> str:
        """What a reading of `label` by this decoder is compared with: the label, or its syllables."""


def refuse_other_clips(reader: ClipReader, fps: float, crop_px: int, whose: str, mend: str) -> None:
    """CheckpointError where `whose` clips have another frame rate or size than those that the model has learnt from.

    It would read them, and be wrong: of 50 frames/s in place of 25, twice as many characters; `mend` says what to do.
    """
    if not math.isclose(reader.fps, fps) or reader.crop_px != crop_px:
        raise CheckpointError(
            f"the model has learnt from clips of {reader.fps:g} frames/s and {reader.crop_px} px, {whose} are of "
            f"{fps:g} frames/s and {crop_px} px: {mend}"
        )


@dataclass(frozen=True, slots=True)
class ScoredClip:
    """A reference and the hypothesis for it. `score` is the log-probability a character, in nats."""

    clip_id: str
    split: str
    reference: str
    hypothesis: str
    score: float
    num_frames: int
    speaker: str | None
    topic: str | None
    candidates: tuple[Candidate, ...] = ()
    """The best texts, `hypothesis` first; none of a greedy decoder."""
