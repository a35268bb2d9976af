"""The decoding result of a clip, a scored clip, and the interface of every lip reader. Imports no torch.

The rank score of a beam search is not a log-probability if it includes a language model, a length bonus, the syllable
head or two heads: these scores do not sum to 1 over all texts. So the probability of a text is

    P(text) = P(the search found the correct text) * P(text | the search found the correct text)

The first factor is the total probability of all found texts by the heads. The second is the softmax of the ranks over
them. If the rank is the heads' log-probability, the result is exactly the heads' probability of the text. If every
possible text was found, it is the softmax over all texts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from model.settings import DecodeParams, TextParams
from shards.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class PartScores:
    """Log-probabilities of a text by each part of the model alone, nats; None if the model lacks the part.

    All are of whole texts: attention and language model include the end. They are -inf if the part excludes the text.
    """

    ctc: float | None
    """Summed over all paths."""
    attention: float | None
    syllables: float | None
    """By the syllable head, of the text's toneless syllables, summed over all paths."""
    language_model: float | None
    length: int
    """Number of units, mostly characters."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A possible text of a clip."""

    text: str
    log_probability: float
    """Of the text given the clip, by all scores that the decoder uses, nats (`with_posteriors`)."""
    rank_score: float
    """The score that orders the candidates, nats. It includes language model and length bonus: not a probability."""
    parts: PartScores | None = None
    """None before `with_part_scores` (model/decoding/part_scores.py)."""


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another text of a clip or of one character, before the words that neighbouring clips read too are removed."""

    text: str
    share: float
    """Its share of the probability of all candidates."""


@dataclass(frozen=True, slots=True)
class TimedCharacter:
    """A character of a reading, by the CTC head (model/decoding/alignment.py)."""

    text: str
    start_s: float
    end_s: float
    confidence: float
    alternatives: tuple[Alternative, ...] = ()
    """Other characters at this place, best first; empty where the model writes several characters as one unit."""


@dataclass(frozen=True, slots=True)
class Reading:
    """The decoding result of one clip."""

    text: str
    score: float
    """Log-probability per character (per syllable if syllables are read), nats; if the text is empty, of all of it."""
    candidates: tuple[Candidate, ...] = ()
    """The best texts, `text` first; empty for a greedy decoder."""
    characters: tuple[TimedCharacter, ...] = ()
    """One for each character of `text`; empty without a CTC head, or if the clip has too few steps for the text."""


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
    confidences: tuple[float, ...] = ()
    """Of each character of `hypothesis`; empty if they were not asked for, or the model cannot give them."""


def with_posteriors(found: Sequence[Candidate], log_mass: float | None = None) -> list[Candidate]:
    """Returns one clip's found texts with log P(text) as log-probability, which was that of the heads before.

    Equal texts, which bpe can write in several ways, become one with the sum of their probabilities.
    `log_mass` is the heads' log-probability of all texts together, nats; None: the sum over the candidates, for heads
    in which the texts exclude each other. If all ranks are -inf, the candidates stay unchanged.
    """
    found = _distinct(found)
    log_evidence = _log_sum([candidate.rank_score for candidate in found])
    if log_evidence == -np.inf:
        return list(found)
    if log_mass is None:
        log_mass = _log_sum([candidate.log_probability for candidate in found])
    # by rounding, a sum can be slightly above 0
    shift = log_mass - log_evidence
    return [replace(candidate, log_probability=min(candidate.rank_score + shift, 0.0)) for candidate in found]


def _distinct(found: Sequence[Candidate]) -> Sequence[Candidate]:
    by_text: dict[str, list[Candidate]] = {}
    for candidate in found:
        by_text.setdefault(candidate.text, []).append(candidate)
    if len(by_text) == len(found):
        return found
    summed = [
        Candidate(
            text, _log_sum([one.log_probability for one in same]), _log_sum([one.rank_score for one in same])
        )
        for text, same in by_text.items()
    ]
    return sorted(summed, key=lambda candidate: -candidate.rank_score)


def _log_sum(terms: Sequence[float]) -> float:
    return float(np.logaddexp.reduce(terms, initial=-np.inf))
