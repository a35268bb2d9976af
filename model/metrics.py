"""Error rates: CER, WER, alignment and the chance CER. Imports neither torch nor mediapipe.

CER = (S + D + I) / N, with errors and characters first summed over all clips (micro average). N is the number of
characters of the references, including spaces.
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

# At least as many clips of similar length exchange references; with fewer, the permutation would be nearly fixed.
CHANCE_GROUP = 8
CHANCE_PAIRINGS, FEWEST_PAIRINGS, CHANCE_PAIRS = 200, 4, 1 << 19
"""The chance CER of a split uses CHANCE_PAIRINGS pairings. A large split uses fewer, so that all pairings together have
about CHANCE_PAIRS pairs, but at least FEWEST_PAIRINGS."""


class Op(StrEnum):
    EQUAL = "equal"
    SUBSTITUTE = "substitute"
    DELETE = "delete"
    INSERT = "insert"


_OPS = {"equal": Op.EQUAL, "replace": Op.SUBSTITUTE, "delete": Op.DELETE, "insert": Op.INSERT}


@dataclass(frozen=True, slots=True)
class EditCounts:
    """Numbers of substitutions, deletions, insertions and reference units (characters, or words). Can be added."""

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
        """Returns errors / num_chars, 0 or more; many insertions make it larger than 1.

        Without reference characters: 1.0 if the hypothesis is not empty, else 0.0 (jiwer returns the number of
        insertions). In a sum over clips these insertions count like any other.
        """
        if self.num_chars == 0:
            return 1.0 if self.errors else 0.0
        return self.errors / self.num_chars

    @property
    def accuracy(self) -> float:
        """Returns 1 - cer, as a share; negative where there are more errors than reference characters."""
        return 1.0 - self.cer


@dataclass(frozen=True, slots=True)
class AlignedPart:
    """A run of one operation. A substitution's sides are equally long; deletion and insertion have an empty side."""

    op: Op
    reference: str
    hypothesis: str


def align(reference: str, hypothesis: str) -> list[AlignedPart]:
    """Returns a cheapest alignment as runs; their sides, joined, are the two texts again."""
    return [
        AlignedPart(
            _OPS[step.tag],
            reference[step.src_start : step.src_end],
            hypothesis[step.dest_start : step.dest_end],
        )
        for step in Levenshtein.opcodes(reference, hypothesis)
    ]


def edit_counts(reference: Sequence[str], hypothesis: Sequence[str]) -> EditCounts:
    """Returns the Levenshtein counts between two texts (by character) or two lists of words; all costs are 1."""
    counted = {"replace": 0, "delete": 0, "insert": 0}
    for step in Levenshtein.editops(reference, hypothesis):
        counted[step.tag] += 1
    return EditCounts(counted["replace"], counted["delete"], counted["insert"], len(reference))


def unit_pairs(reference: Sequence[str], hypothesis: Sequence[str]) -> list[tuple[str, str]]:
    """Returns (reference unit, hypothesis unit) pairs along the alignment; "" where one of the two is missing."""
    pairs: list[tuple[str, str]] = []
    for step in Levenshtein.opcodes(reference, hypothesis):
        said = reference[step.src_start : step.src_end]
        read = hypothesis[step.dest_start : step.dest_end]
        pairs += zip_longest(said, read, fillvalue="")
    return pairs


def total_counts(pairs: Iterable[Pair]) -> EditCounts:
    """Returns the character counts over all pairs; its `.cer` is the micro CER."""
    return sum((edit_counts(reference, hypothesis) for reference, hypothesis in pairs), EditCounts())


def has_words(references: Iterable[str]) -> bool:
    """Returns whether the texts have words: at least half of the references hold a space, or are one Latin word.

    A few Latin words in a Mandarin corpus add some spaces, but do not divide the text into words.
    """
    with_words = [" " in reference or _is_latin_word(reference) for reference in references]
    return bool(with_words) and 2 * sum(with_words) >= len(with_words)


def _is_latin_word(text: str) -> bool:
    letters = [character for character in text if character.isalpha()]
    return bool(letters) and all(unicodedata.name(letter, "").startswith("LATIN ") for letter in letters)


def unit_error_rate(pairs: Iterable[Pair], units: Callable[[str], Sequence[str]]) -> float:
    """Returns the micro error rate over the units into which `units` splits a text."""
    counts = (edit_counts(units(reference), units(hypothesis)) for reference, hypothesis in pairs)
    return sum(counts, EditCounts()).cer


def word_error_rate(pairs: Iterable[Pair]) -> float:
    """Returns the micro word error rate, split at white space; meant for text that `has_words`."""
    return unit_error_rate(pairs, str.split)


def mixed_error_rate(pairs: Iterable[Pair]) -> float:
    """Returns the micro error rate over Han characters and words of other scripts, as used for code-switched speech.

    Shi et al. 2020, "The ASRU 2019 Mandarin-English code-switching speech recognition challenge".
    """
    return unit_error_rate(pairs, units_of)


def mixes_scripts(references: Iterable[str]) -> bool:
    """Returns whether there are both Han characters and words of other scripts, so the mixed error rate is useful."""
    kinds = {is_han(unit) for reference in references for unit in units_of(reference)}
    return len(kinds) == 2


class Chance(NamedTuple):
    """The chance CER, and the number of pairings over which it is the mean."""

    cer: float
    num_pairings: int


def chance_cer(pairs: Sequence[Pair]) -> Chance | None:
    """Returns the mean CER of many `chance_pairs` with fixed seeds; None if there is no other clip.

    A single pairing depends on its seed: by two points up or down for a split of thirty clips.
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
    """Pairs each hypothesis with another clip's reference of similar length; None if there is no other clip.

    So their CER is that of hypotheses which cannot come from the lips. Clips are sorted by (length of the reference,
    seeded random number of its sentence, of the clip) and cut into groups of similar length. In each group the
    references rotate: every reference is used once, and no clip keeps its own. Several speakers may say the same
    sentence, so a group holds at least twice as many clips as say the most common one, and the rotation skips a whole
    run of equal sentences: a clip gets its own sentence only if more than half of the split says it.
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
