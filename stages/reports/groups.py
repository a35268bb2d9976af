"""Clips of a report put together: by what the corpus says, by length, by confidence, by quality."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from model.bootstrap import Over, rate_interval
from model.metrics import EditCounts
from stages.reports.figures import CalibrationBin, ClipFacts, CountedClip, Group, Interval, QualityBin
from stages.statistics.axis_ticks import nice_ticks
from stages.statistics.quality import QUALITIES

CALIBRATION_BINS = 10
QUALITY_BINS = 4
SHORTEST_STEP_S = 0.5
UNKNOWN = ClipFacts()

ClipFactsById = Mapping[str, ClipFacts]


def total(clips: Iterable[CountedClip]) -> EditCounts:
    return sum((counted.counts for counted in clips), EditCounts())


def cer_interval(clips: Sequence[CountedClip], resamples: int, seed: int) -> tuple[Interval | None, Over]:
    """95 % interval of the CER of `clips`, over their speakers or, where fewer than two are known, over the clips.

    None where that would say nothing (`why_no_interval`).
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
    """Groups by speaker, gender, age (decades), topic and length (s); clips of which it is not known come last."""
    step_s = _length_step(clips, fps)

    def facts_of(counted: CountedClip) -> ClipFacts:
        return facts.get(counted.clip.clip_id, UNKNOWN)

    def made(key: Callable[[CountedClip], Any], name: Callable[[Any], str] = str) -> list[Group]:
        members: dict[Any, list[CountedClip]] = defaultdict(list)
        for counted in clips:
            members[key(counted)].append(counted)
        keys = sorted(members, key=lambda one: (one is None, one))
        return [
            Group(
                None if one is None else name(one),
                len(members[one]),
                total(members[one]),
                *cer_interval(members[one], resamples, seed),
                num_speakers=len({counted.clip.speaker for counted in members[one]} - {None}),
            )
            for one in keys
        ]

    def decade(counted: CountedClip) -> int | None:
        age = facts_of(counted).age
        return None if age is None else age // 10

    return {
        "speaker": made(lambda counted: counted.clip.speaker),
        "gender": made(lambda counted: facts_of(counted).gender),
        "age": made(decade, decade_name),
        "topic": made(lambda counted: counted.clip.topic),
        "length": made(
            lambda counted: math.floor(counted.clip.num_frames / fps / step_s + 1e-9),
            lambda number: f"{number * step_s:g}–{(number + 1) * step_s:g}\u202fs",
        ),
    }


def decade_name(decade: int) -> str:
    """The ages of a decade of life, the first is 0."""
    return f"{10 * decade}–{10 * decade + 9}"


def _length_step(clips: Sequence[CountedClip], fps: float) -> float:
    """Seconds of a group of like length: a round number that gives some four of them, half a second at least."""
    lengths_s = [counted.clip.num_frames / fps for counted in clips]
    ticks = nice_ticks(min(lengths_s), max(lengths_s))
    return max(ticks[1] - ticks[0], SHORTEST_STEP_S)


def confidence_of(counted: CountedClip) -> float:
    """exp(score), 0 to 1: the geometric mean of the probabilities of what was read, a character."""
    return math.exp(min(counted.clip.score, 0.0))


def calibration_of(clips: Sequence[CountedClip]) -> list[CalibrationBin]:
    """Up to ten bins of as many clips each, the least confident first; clips without a score are left out."""
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
    """Expected calibration error: mean distance of confidence and accuracy, a clip; None without any.

    Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning", with bins of equal clips.
    """
    if not bins:
        return None
    distances = [one.num_clips * abs(one.confidence - one.accuracy) for one in bins]
    return sum(distances) / sum(one.num_clips for one in bins)


def quality_bins(clips: Sequence[CountedClip], facts: ClipFactsById) -> dict[str, list[QualityBin]]:
    """Quarters of the clips by each figure of the ledger; equal values stay together, so there may be fewer.

    A figure that was not measured, or in which all clips are alike, is left out.
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
    # where most clips share the largest value, they are one bin and the rest another
    edges = np.unique(np.minimum(edges, different[-2]))
    number_of = np.searchsorted(edges, values)  # a value on an edge belongs below it
    bins = []
    for number in np.unique(number_of):
        members = np.flatnonzero(number_of == number).tolist()
        inside = values[members]
        counts = total(measured[index][1] for index in members)
        bins.append(QualityBin(float(inside.min()), float(inside.max()), len(members), counts))
    return bins
