"""Votes over the texts of several readings (ROVER, Fiscus 1997). Imports no torch.

A reading votes with its confidence, which its candidates share by their probabilities. The texts are aligned one after
another with a row of slots; in each slot the unit with the most votes is written. Units are Han characters and words of
other scripts, so that no word is written that nobody has read.
"""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np

from model.decoding.result import Candidate, Reading
from model.units import Splitting

WORDS = Splitting("words")
Slot = dict[str, float]
"""The votes for each unit; "" is no unit."""
PAIR, SKIP, NEW = range(3)
"""How a text goes on: its next unit in the next slot, no unit in the next slot, its next unit in a slot of its own."""


def rover(readings: Sequence[Reading]) -> Reading:
    """Returns the text that the readings of one clip vote for; its candidates are that text and those voted on.

    Its score is the logarithm of the share of votes, summed over the slots, for each character.
    """
    votes: dict[str, float] = {}
    for reading in readings:
        candidates = reading.candidates or (Candidate(reading.text, 0.0, 0.0),)
        ranks = np.array([candidate.log_probability for candidate in candidates])
        if not np.isfinite(ranks).any():
            ranks[:] = 0.0
        shares = np.exp(ranks - np.logaddexp.reduce(ranks))
        confidence = 0.0 if math.isnan(reading.score) else math.exp(min(reading.score, 0.0))
        for candidate, share in zip(candidates, shares.tolist(), strict=True):
            votes[candidate.text] = votes.get(candidate.text, 0.0) + confidence * share
    ranked = sorted(votes, key=lambda text: -votes[text])
    total = sum(votes.values())
    if not total:  # no reading is at all sure
        return readings[0]
    slots = slots_of([(WORDS.split(text), votes[text] / total) for text in ranked])
    chosen = [max(slot, key=lambda unit: round(slot[unit], 9)) for slot in slots]
    log_share = sum(math.log(slot[unit]) for slot, unit in zip(slots, chosen, strict=True))
    text = WORDS.join(chosen)
    others = [
        Candidate(other, math.log(votes[other] / total), math.log(votes[other] / total))
        for other in ranked
        if other != text and votes[other]
    ]
    log_probability = min(log_share, 0.0)
    best = Candidate(text, log_probability, max([log_probability, *(other.rank_score for other in others)]))
    return Reading(text, log_probability / max(len(text), 1), (best, *others))


def slots_of(texts: Sequence[tuple[Sequence[str], float]]) -> list[Slot]:
    """Returns the slots of the texts (units, votes), aligned in this order. The votes of a slot are those of all."""
    slots: list[Slot] = []
    counted = 0.0
    for units, votes in texts:
        slots = _aligned(slots, units, votes, counted)
        counted += votes
    return slots


def _aligned(slots: Sequence[Slot], units: Sequence[str], votes: float, counted: float) -> list[Slot]:
    """Adds a text to the slots where it costs least: a unit costs the share of the votes that differ from it."""
    total = counted or 1.0
    cost_IU = np.zeros((len(slots) + 1, len(units) + 1))
    move_IU = np.zeros(cost_IU.shape, np.int64)
    for row, column in product(range(len(slots) + 1), range(len(units) + 1)):
        costs = [np.inf, np.inf, np.inf]
        if row and column:
            pair = 1 - slots[row - 1].get(units[column - 1], 0.0) / total
            costs[PAIR] = cost_IU[row - 1, column - 1] + pair
        if row:
            costs[SKIP] = cost_IU[row - 1, column] + 1 - slots[row - 1].get("", 0.0) / total
        if column:  # all texts before have no unit there
            costs[NEW] = cost_IU[row, column - 1] + 1
        if row or column:
            # rounded, so that rounding errors decide no tie
            move_IU[row, column] = min((PAIR, SKIP, NEW), key=lambda move: round(costs[move], 9))
            cost_IU[row, column] = costs[move_IU[row, column]]
    aligned: list[Slot] = []
    row, column = len(slots), len(units)
    while row or column:
        move = move_IU[row, column]
        slot = {"": counted} if move == NEW else slots[row - 1]
        unit = "" if move == SKIP else units[column - 1]
        aligned.append({**slot, unit: slot.get(unit, 0.0) + votes})
        row, column = row - (move != NEW), column - (move != SKIP)
    return aligned[::-1]
