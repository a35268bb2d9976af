"""The decoding result of a clip, a scored clip, and the interface of every lip reader. Imports no torch."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from model.settings import DecodeParams, TextParams
from shards.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible text of a clip."""

    text: str
    log_probability: float
    """Of the text given the clip, by all scores that the decoder uses, nats (model/decoding/posterior.py)."""
    rank_score: float
    """The score that orders the candidates, nats. It includes language model and length bonus: not a probability."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The decoding result of one clip."""

    text: str
    score: float
    """Log-probability per character (per syllable if syllables are read), nats; if the text is empty, of all of it."""
    candidates: tuple[Candidate, ...] = ()
    """The best texts, `text` first; empty for a greedy decoder."""


class ClipReader(Protocol):
    """A trained model, ready to read: LipReader with torch, OnnxReader without."""

    fps: float
    crop_px: int
    """Side of the mouth crops in training."""
    text: TextParams

    def read_clip(self, clip_THW: np.ndarray, params: DecodeParams) -> Reading:
        """Returns the text of one uint8 clip."""

    def reference(self, label: str, params: DecodeParams) -> str:
        """Returns the reference for this decoder: the label, or its syllables."""


def refuse_other_clips(reader: ClipReader, fps: float, crop_px: int, clips: str, fix: str) -> None:
    """Raises CheckpointError with `fix` if `clips` have another frame rate or size than the training clips.

    The model would read such clips wrongly: with 50 frames/s instead of 25, twice as many characters.
    """
    if not math.isclose(reader.fps, fps) or reader.crop_px != crop_px:
        raise CheckpointError(
            f"the model has learnt from clips of {reader.fps:g} frames/s and {reader.crop_px} px, but {clips} are of "
            f"{fps:g} frames/s and {crop_px} px: {fix}"
        )


@dataclass(frozen=True, slots=True)
class ScoredClip:
    """A reference and its hypothesis. `score` is the log-probability per character, in nats."""

    clip_id: str
    split: str
    reference: str
    hypothesis: str
    score: float
    num_frames: int
    speaker: str | None
    topic: str | None
    candidates: tuple[Candidate, ...] = ()
    """The best texts, `hypothesis` first; empty for a greedy decoder."""
