"""One scored clip: what the model read, beside what was said."""

from dataclasses import dataclass

from model.reading import Candidate


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
