"""What a run shows while it trains, beside its log."""

from collections.abc import Sequence

from model.job import Progress, TrainingJob
from model.runs import Curve, RunFolder
from model.scored import ScoredClip
from model.step import StepFigures


class Watch:
    """Nothing yet."""

    def __init__(self, job: TrainingJob, run: RunFolder, progress: Progress) -> None:
        """Goes on after `progress.steps`: what a killed run showed of later steps is left out."""

    def step(self, progress: Progress, figures: StepFigures) -> None:
        """After an optimiser step."""

    def epoch(self, curve: Curve, scored: Sequence[ScoredClip]) -> None:
        """At the end of an epoch; `scored` holds the valid clips where it was validated."""

    def close(self) -> None:
        """Writes out what is held back."""
