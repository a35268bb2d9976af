"""Trains an n-gram model of units by interpolated modified Kneser-Ney, on whole arrays. Imports no torch.

Chen and Goodman 1998, "An empirical study of smoothing techniques for language modeling", section 3 and equations
26 (interpolation) and 17 (discounts, at the end of 4.1.6). As there, the count of an n-gram below the longest order is
the number of different units before it; an n-gram at the start of a sentence keeps its own count.

Shapes: T units of all sentences, with starts and ends, M n-grams of one order, K that order.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from model.decoding.ngram import END, START, UNKNOWN, Level, NgramModel
from shards.errors import ConfigError

LM_VERSION = 3
"""A DVC parameter: a new version trains the language model again."""
FALLBACK_DISCOUNTS = (0.5, 1.0, 1.5)
"""For counts 1, 2, and 3 or more, if a text is too small to estimate discounts (KenLM's --discount_fallback)."""
NEVER_LOG10 = -99.0
"""The log-probability of the start of a sentence, which is never predicted, in ARPA files."""
_UNKNOWN_ID, _START_ID, _END_ID, _NUM_SPECIAL = 0, 1, 2, 3


@dataclass(frozen=True, slots=True)
class _Grams:
    """The sorted n-grams of one order."""

    words_MK: np.ndarray
    parent_M: np.ndarray
    """Row of the n-gram without its last word, in the order below."""
    suffix_M: np.ndarray
    """Row of the n-gram without its first word, in the order below."""
    count_M: np.ndarray


def train(labels: Iterable[Sequence[str]], order: int) -> NgramModel:
    """Returns a model of the units of `labels`, or of the characters of a label that is a string.

    Each label is a sentence; empty ones are left out.

    Its order is lower than `order` if no label is long enough. Raises ConfigError if there is no label.
    """
    lines = [label for label in labels if label]
    if not lines:
        raise ConfigError("the language model has no text to learn from: every line is empty")
    units, word_T, left_T = _sentences(lines)
    words = (UNKNOWN, START, END, *units)
    grams = _grams(word_T, left_T, len(words), order)
    return NgramModel(words, _levels(grams, len(words)))


def _sentences(lines: list[Sequence[str]]) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Returns the distinct units, the word ids of all sentences, and for each the words left in its sentence."""
    texts = [line for line in lines if isinstance(line, str)]
    if len(texts) == len(lines):
        code_T = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
        found, id_T = np.unique(code_T, return_inverse=True)
        units = list(map(chr, found.tolist()))
    else:
        units = sorted({unit for line in lines for unit in line})
        ids = {unit: number for number, unit in enumerate(units)}
        id_T = np.array([ids[unit] for line in lines for unit in line])
    length_N = np.fromiter(map(len, lines), np.int64, len(lines)) + 2
    end_N = np.cumsum(length_N)
    word_T = np.full(end_N[-1], -1, np.int64)
    word_T[end_N - length_N], word_T[end_N - 1] = _START_ID, _END_ID
    word_T[word_T < 0] = id_T + _NUM_SPECIAL
    return units, word_T, np.repeat(end_N, length_N) - np.arange(end_N[-1])


def _grams(word_T: np.ndarray, left_T: np.ndarray, num_words: int, order: int) -> list[_Grams]:
    """Returns the raw counts of all orders, with one sort per order: an n-gram's key starts with its parent's row."""
    none_M = np.zeros(num_words, np.int64)
    unigrams = _Grams(np.arange(num_words)[:, None], none_M, none_M, np.bincount(word_T, minlength=num_words))
    grams, row_T = [unigrams], word_T
    for length in range(2, order + 1):
        start_P = np.flatnonzero(left_T >= length)
        if not len(start_P):
            break
        key_P = row_T[start_P] * num_words + word_T[start_P + length - 1]
        key_M, first_M, row_P, count_M = np.unique(
            key_P, return_index=True, return_inverse=True, return_counts=True
        )
        parent_M = key_M // num_words
        words_MK = np.hstack([grams[-1].words_MK[parent_M], (key_M % num_words)[:, None]])
        grams.append(_Grams(words_MK, parent_M, row_T[start_P[first_M] + 1], count_M))
        row_T = np.full(len(word_T), -1, np.int64)
        row_T[start_P] = row_P
    return grams


def _levels(grams: list[_Grams], num_words: int) -> list[Level]:
    levels: list[Level] = []
    # order 0: all words except the start are equally likely
    below_M, backoff_M = np.full(1, 1 / (num_words - 1)), np.zeros(0)
    for number, level in enumerate(grams):
        count_M = _adjusted(grams, number)
        discount_M = _discounts(count_M)[np.minimum(count_M, 3)]
        num_parents = len(below_M)
        with np.errstate(invalid="ignore"):
            total_P = np.bincount(level.parent_M, count_M, num_parents)
            backoff_P = np.bincount(level.parent_M, discount_M, num_parents) / total_P
        own_M = (count_M - discount_M) / total_P[level.parent_M]
        probability_M = own_M + backoff_P[level.parent_M] * below_M[level.suffix_M]
        if number:
            # a context without following words (the end of a sentence) passes all probability to the shorter one
            backoff_M = np.where(total_P > 0, backoff_P, 1.0)
            levels[-1] = Level(
                levels[-1].words_MK, levels[-1].log10_M, np.log10(backoff_M).astype(np.float32)
            )
        log10_M = np.log10(probability_M).astype(np.float32)
        if not number:
            log10_M[_START_ID] = NEVER_LOG10
        levels.append(Level(level.words_MK, log10_M, np.zeros_like(log10_M)))
        below_M = probability_M
    return levels


def _adjusted(grams: list[_Grams], number: int) -> np.ndarray:
    """Returns the Kneser-Ney counts: of the n-gram in the longest order, else of the different characters before it."""
    level = grams[number]
    if number == len(grams) - 1:
        count_M = level.count_M.copy()
    else:
        before_M = np.bincount(grams[number + 1].suffix_M, minlength=len(level.count_M))
        count_M = np.where(level.words_MK[:, 0] == _START_ID, level.count_M, before_M)
    if not number:
        count_M[_START_ID] = 0
    return count_M


def _discounts(count_M: np.ndarray) -> np.ndarray:
    """Returns the discounts of counts 0, 1, 2, and 3 or more."""
    n = np.bincount(count_M[(count_M > 0) & (count_M < 5)], minlength=5).astype(float)
    if (n[1:] > 0).all():
        shared = n[1] / (n[1] + 2 * n[2])
        discounts = [k - (k + 1) * shared * n[k + 1] / n[k] for k in (1, 2, 3)]
        if all(0 < discount <= k for k, discount in enumerate(discounts, start=1)):
            return np.array([0.0, *discounts])
    return np.array([0.0, *FALLBACK_DISCOUNTS])
