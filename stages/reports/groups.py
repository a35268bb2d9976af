"""Groups the clips of a report by the columns of the corpus, length, confidence and quality."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from model.bootstrap import Over, rate_interval
from model.metrics import EditCounts
from stages.reports.figures import CalibrationBin, ClipFacts, CountedClip, Group, Interval, QualityBin
from stages.statistics.charts import nice_ticks
from stages.statistics.quality import QUALITIES

CALIBRATION_BINS = 10
QUALITY_BINS = 4
SHORTEST_STEP_S = 0.5
UNKNOWN = ClipFacts()

ClipFactsById = Mapping[str, ClipFacts]


def total(clips: Iterable[CountedClip]) -> EditCounts:
    return sum((counted.counts for counted in clips), EditCounts())


def cer_interval(clips: Sequence[CountedClip], resamples: int, seed: int) -> tuple[Interval | None, Over]:
    """Returns the 95 % interval of the CER, over speakers, or over clips if fewer than two speakers are known.

    None if an interval would mean nothing (`why_no_interval`).
    """
    found, over = rate_interval(
        [counted.counts.errors for counted in clips],
        [counted.counts.num_chars for counted in clips],
        [counted.clip.speaker for counted in clips],
        resamples,
        seed,
    )
    return (Interval(*found) if found else None), over


def groups_of_split(
    clips: Sequence[CountedClip], facts: ClipFactsById, fps: float, resamples: int, seed: int
) -> dict[str, list[Group]]:
    """Groups by speaker, gender, age (decades), topic and length (s); the group of unknown clips is last."""
    step_s = _length_step(clips, fps)

    def facts_of(counted: CountedClip) -> ClipFacts:
        return facts.get(counted.clip.clip_id, UNKNOWN)

    def grouped(key: Callable[[CountedClip], Any], name: Callable[[Any], str] = str) -> list[Group]:
        members: dict[Any, list[CountedClip]] = defaultdict(list)
        for counted in clips:
            members[key(counted)].append(counted)
        keys = sorted(members, key=lambda value: (value is None, value))
        return [
            Group(
                None if value is None else name(value),
                len(members[value]),
                total(members[value]),
                *cer_interval(members[value], resamples, seed),
                num_speakers=len({counted.clip.speaker for counted in members[value]} - {None}),
            )
            for value in keys
        ]

    def decade(counted: CountedClip) -> int | None:
        age = facts_of(counted).age
        return None if age is None else age // 10

    return {
        "speaker": grouped(lambda counted: counted.clip.speaker),
        "gender": grouped(lambda counted: facts_of(counted).gender),
        "age": grouped(decade, decade_name),
        "topic": grouped(lambda counted: counted.clip.topic),
        "length": grouped(
            lambda counted: math.floor(counted.clip.num_frames / fps / step_s + 1e-9),
            lambda number: f"{number * step_s:g}–{(number + 1) * step_s:g}\u202fs",
        ),
    }


def decade_name(decade: int) -> str:
    """Returns the ages of a decade of life, e.g. 20–29 for decade 2."""
    return f"{10 * decade}–{10 * decade + 9}"


def _length_step(clips: Sequence[CountedClip], fps: float) -> float:
    """Returns the width of a length group, s: a round number for about four groups, at least half a second."""
    lengths_s = [counted.clip.num_frames / fps for counted in clips]
    ticks = nice_ticks(min(lengths_s), max(lengths_s))
    return max(ticks[1] - ticks[0], SHORTEST_STEP_S)


def confidence_of(counted: CountedClip) -> float:
    """Returns exp(score), 0 to 1: the geometric mean of the probabilities of the characters read."""
    return math.exp(min(counted.clip.score, 0.0))


def calibration_of(clips: Sequence[CountedClip]) -> list[CalibrationBin]:
    """Returns up to ten bins of equally many clips, the least confident first, without clips that have no score."""
    scored = [counted for counted in clips if not math.isnan(counted.clip.score)]
    surest_last = sorted(scored, key=lambda counted: (confidence_of(counted), counted.clip.clip_id))
    num_bins = min(CALIBRATION_BINS, len(scored))
    bins = []
    for number in range(num_bins):
        members = surest_last[number * len(scored) // num_bins : (number + 1) * len(scored) // num_bins]
        confidences = [confidence_of(counted) for counted in members]
        counts = total(members)
        bins.append(
            CalibrationBin(
                confidences[0],
                confidences[-1],
                len(members),
                counts.num_chars,
                fmean(confidences),
                max(0.0, counts.accuracy),
            )
        )
    return bins


def calibration_error(bins: Sequence[CalibrationBin]) -> float | None:
    """Returns the expected calibration error: mean distance of confidence and accuracy over clips; None without bins.

    Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning"; bins of equally many clips.
    """
    if not bins:
        return None
    distances = [each.num_clips * abs(each.confidence - each.accuracy) for each in bins]
    return sum(distances) / sum(each.num_clips for each in bins)


def quality_bins(clips: Sequence[CountedClip], facts: ClipFactsById) -> dict[str, list[QualityBin]]:
    """Returns quarters of the clips by each quality in crops.parquet; fewer bins if values are equal.

    Leaves out a quality that was not measured or is equal in all clips.
    """
    found = {}
    for quality in QUALITIES:
        measured = [
            (facts[counted.clip.clip_id].qualities[quality.name], counted)
            for counted in clips
            if quality.name in facts.get(counted.clip.clip_id, UNKNOWN).qualities
        ]
        if bins := _quarters(measured):
            found[quality.name] = bins
    return found


def _quarters(measured: Sequence[tuple[float, CountedClip]]) -> list[QualityBin]:
    values = np.array([value for value, _ in measured])
    different = np.unique(values)
    if len(different) < 2:
        return []
    edges = np.quantile(values, np.arange(1, QUALITY_BINS) / QUALITY_BINS)
    # if most clips have the largest value, they are one bin and the rest another
    edges = np.unique(np.minimum(edges, different[-2]))
    number_of = np.searchsorted(edges, values)  # a value on an edge belongs below it
    bins = []
    for number in np.unique(number_of):
        members = np.flatnonzero(number_of == number).tolist()
        inside = values[members]
        counts = total(measured[index][1] for index in members)
        bins.append(QualityBin(float(inside.min()), float(inside.max()), len(members), counts))
    return bins
