"""Error rates of read text: CER, WER, alignment, and the chance pairing. Imports no torch and no mediapipe.

CER = (S + D + I) / N, errors and characters each summed over all clips first (micro average), N the characters
of the references, spaces included.
"""

import random
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from statistics import fmean
from typing import NamedTuple

from rapidfuzz.distance import Levenshtein

from model.text import is_han, units_of

Pair = tuple[str, str]
"""(reference, hypothesis)."""

# Clips of like length that exchange references, at least; fewer would make the permutation near to fixed.
CHANCE_GROUP = 8
CHANCE_PAIRINGS, FEWEST_PAIRINGS, CHANCE_PAIRS = 200, 4, 1 << 19
"""Pairings of a split for its chance CER, of a large one as many as make so many pairs in all, but never fewer."""


class Op(StrEnum):
    EQUAL = "equal"
    SUBSTITUTE = "substitute"
    DELETE = "delete"
    INSERT = "insert"


_OPS = {"equal": Op.EQUAL, "replace": Op.SUBSTITUTE, "delete": Op.DELETE, "insert": Op.INSERT}


@dataclass(frozen=True, slots=True)
class EditCounts:
    """Substitutions, deletions, insertions, and the units (characters, or words) of the reference. Adds up."""

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    num_chars: int = 0

    def __add__(self, other: "EditCounts") -> "EditCounts":
        return EditCounts(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.num_chars + other.num_chars,
        )

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def cer(self) -> float:
        """errors / num_chars, 0 upwards; more than 1 where much is inserted.

        Without reference characters there is nothing to divide by: 1.0 if anything was read, else 0.0 (jiwer
        returns the bare number of insertions there). In a sum over clips such insertions count like any other.
        """
        if self.num_chars == 0:
            return 1.0 if self.errors else 0.0
        return self.errors / self.num_chars

    @property
    def accuracy(self) -> float:
        """1 - cer, as a share and not floored: negative where more is wrong than was said."""
        return 1.0 - self.cer


@dataclass(frozen=True, slots=True)
class AlignedPart:
    """A run of one operation. A substitution's two sides are equally long; one side of the others is empty."""

    op: Op
    reference: str
    hypothesis: str


def align(reference: str, hypothesis: str) -> list[AlignedPart]:
    """The cheapest way from reference to hypothesis, as runs; their sides join to the two texts again."""
    return [
        AlignedPart(
            _OPS[step.tag],
            reference[step.src_start : step.src_end],
            hypothesis[step.dest_start : step.dest_end],
        )
        for step in Levenshtein.opcodes(reference, hypothesis)
    ]


def edit_counts(reference: Sequence[str], hypothesis: Sequence[str]) -> EditCounts:
    """Counts between two texts (by character) or two lists of words. Levenshtein, all costs 1."""
    counted = {"replace": 0, "delete": 0, "insert": 0}
    for step in Levenshtein.editops(reference, hypothesis):
        counted[step.tag] += 1
    return EditCounts(counted["replace"], counted["delete"], counted["insert"], len(reference))


def unit_pairs(reference: Sequence[str], hypothesis: Sequence[str]) -> list[tuple[str, str]]:
    """What was said over what was read, unit by unit along the alignment; "" where either is missing."""
    pairs: list[tuple[str, str]] = []
    for step in Levenshtein.opcodes(reference, hypothesis):
        said = reference[step.src_start : step.src_end]
        read = hypothesis[step.dest_start : step.dest_end]
        pairs += zip_longest(said, read, fillvalue="")
    return pairs


def total_counts(pairs: Iterable[Pair]) -> EditCounts:
    """Counts by character over all pairs; its `.cer` is the micro CER."""
    return sum((edit_counts(reference, hypothesis) for reference, hypothesis in pairs), EditCounts())


def has_words(references: Iterable[str]) -> bool:
    """Whether words can be told apart: at least half of the references hold a space, or are one Latin word.

    A Latin word or two in a Mandarin corpus leave a space here and there, but no words to count by.
    """
    with_words = [" " in reference or _is_latin_word(reference) for reference in references]
    return bool(with_words) and 2 * sum(with_words) >= len(with_words)


def _is_latin_word(text: str) -> bool:
    letters = [character for character in text if character.isalpha()]
    return bool(letters) and all(unicodedata.name(letter, "").startswith("LATIN ") for letter in letters)


def unit_error_rate(pairs: Iterable[Pair], units: Callable[[str], Sequence[str]]) -> float:
    """The micro error rate over other units than characters: those that `units` makes of a text."""
    counts = (edit_counts(units(reference), units(hypothesis)) for reference, hypothesis in pairs)
    return sum(counts, EditCounts()).cer


def word_error_rate(pairs: Iterable[Pair]) -> float:
    """The micro error rate by words, parted at white space; meant for text that `has_words`."""
    return unit_error_rate(pairs, str.split)


def mixed_error_rate(pairs: Iterable[Pair]) -> float:
    """The micro error rate over Han characters and words of other scripts, as code-switched speech is scored.

    Shi et al. 2020, "The ASRU 2019 Mandarin-English code-switching speech recognition challenge".
    """
    return unit_error_rate(pairs, units_of)


def mixes_scripts(references: Iterable[str]) -> bool:
    """Whether there are Han characters and words of other scripts, so that the mixed error rate says something."""
    kinds = {is_han(unit) for reference in references for unit in units_of(reference)}
    return len(kinds) == 2


class Chance(NamedTuple):
    """The chance CER, and the pairings that it is the mean of."""

    cer: float
    num_pairings: int


def chance_cer(pairs: Sequence[Pair]) -> Chance | None:
    """The mean CER of many `chance_pairs`, always the same ones; None where there is no other clip.

    A single pairing hangs on its seed: two points up or down, over a split of thirty clips.
    """
    num_pairings = max(FEWEST_PAIRINGS, min(CHANCE_PAIRINGS, CHANCE_PAIRS // max(1, len(pairs))))
    cers = [
        EditCounts(num_chars=sum(len(given) for given, _ in paired), substitutions=_num_errors(paired)).cer
        for seed in range(num_pairings)
        if (paired := chance_pairs(pairs, seed)) is not None
    ]
    return Chance(fmean(cers), num_pairings) if cers else None


def _num_errors(pairs: Iterable[Pair]) -> int:
    return sum(Levenshtein.distance(reference, hypothesis) for reference, hypothesis in pairs)


def chance_pairs(pairs: Sequence[Pair], seed: int) -> list[Pair] | None:
    """Each hypothesis with another clip's reference of like length; None where there is no other clip.

    The CER of such pairs is what the model's sentences score when they cannot come from the lips they are held
    against. Clips are sorted by (length of the reference, seeded random number of its
    sentence, of the clip), cut into groups of like length, and in each group the references move on in a circle:
    every reference is used once, and nobody keeps his own. Several speakers may say one sentence, so groups
    hold at least twice as many clips as say the commonest one, and the circle steps over a whole run of
    equals: nobody gets his own sentence from another speaker, unless more than half of the split says it.
    """
    if len(pairs) < 2:
        return None
    references = [reference for reference, _ in pairs]
    draw = random.Random(seed)
    sentence_keys = {sentence: draw.random() for sentence in dict.fromkeys(references)}
    clip_keys = [(len(text), sentence_keys[text], draw.random()) for text in references]
    order = sorted(range(len(pairs)), key=clip_keys.__getitem__)
    num_groups = max(1, len(order) // max(CHANCE_GROUP, 2 * _most_common(references)))
    given = list(references)
    for group in range(num_groups):
        members = order[group * len(order) // num_groups : (group + 1) * len(order) // num_groups]
        step = min(_most_common([references[i] for i in members]), len(members) - 1)
        for taker, giver in zip(members, members[step:] + members[:step], strict=True):
            given[taker] = references[giver]
    return [(reference, hypothesis) for reference, (_, hypothesis) in zip(given, pairs, strict=True)]


def _most_common(sentences: Sequence[str]) -> int:
    return max(Counter(sentences).values())
