"""CTC without a search: the exact log-probability of given texts and of their syllables, greedy CTC, and the best path.

Imports no torch. Units are characters or syllables of toneless pinyin.

Shapes: B clips, S steps, V columns (tokens) of the head, N texts, L units of the longest text, P = 2L + 1 with the
blanks between them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from model.decoding.arrays import Array, on_device_of, to_host
from model.decoding.registry import HEADS_OF_DECODER
from model.settings import Head
from model.text import BLANK_ID, Tokenizer


def ctc_log_probabilities(
    log_probs_BSV: Array, clips: Sequence[int], targets: Sequence[Sequence[int]]
) -> np.ndarray:
    """Returns the log of the summed probability of all paths that spell each target in its clip (N,), nats.

    -inf if a target needs more steps than its clip has. After the end of a clip the blank must have all probability.
    Graves et al. 2006, section 4.1 (the forward variables).
    """
    xp = array_namespace(log_probs_BSV)
    N, L = len(targets), max(map(len, targets), default=0)
    host_column_NP = np.full((N, 2 * L + 1), BLANK_ID)
    for row, target in enumerate(targets):
        host_column_NP[row, 1 : 2 * len(target) : 2] = target
    host_skips_NP = np.zeros(host_column_NP.shape, bool)
    host_skips_NP[:, 2:] = (host_column_NP[:, 2:] != BLANK_ID) & (
        host_column_NP[:, 2:] != host_column_NP[:, :-2]
    )
    host_last_N = 2 * np.fromiter(map(len, targets), np.int64, N)
    if not log_probs_BSV.shape[1]:
        return np.where(host_last_N == 0, 0.0, -np.inf)
    clip_N, column_NP, skips_NP, last_N = (
        on_device_of(array, log_probs_BSV, xp)
        for array in (np.asarray(clips, np.int64), host_column_NP, host_skips_NP, host_last_N)
    )
    alpha_NP = xp.full_like(column_NP, -np.inf, dtype=xp.float64)
    # before the first step the paths are at a virtual blank in front, from which they reach the first two positions
    alpha_NP[:, :2] = 0.0
    for step in range(log_probs_BSV.shape[1]):
        if step:
            stayed_NP = xp.logaddexp(alpha_NP[:, 1:], alpha_NP[:, :-1])
            skipped_NP = xp.where(skips_NP[:, 2:], alpha_NP[:, :-2], -np.inf)
            alpha_NP[:, 1:] = stayed_NP
            alpha_NP[:, 2:] = xp.logaddexp(stayed_NP[:, 1:], skipped_NP)
        alpha_NP += xp.astype(log_probs_BSV[:, step], xp.float64)[clip_N[:, None], column_NP]
    rows = xp.arange(N, device=alpha_NP.device)
    before_N = xp.where(last_N > 0, alpha_NP[rows, last_N - 1], -np.inf)
    return np.minimum(to_host(xp.logaddexp(alpha_NP[rows, last_N], before_N)), 0.0)


@dataclass(frozen=True, slots=True)
class SyllableScores:
    """The output of a model's syllable head for some clips."""

    log_probs_BSW: Array
    """After the end of a clip the blank has all probability."""
    table: Tokenizer


def syllable_log_probabilities(
    texts: Sequence[Sequence[str]], syllables: SyllableScores
) -> list[list[float]]:
    """Returns the syllable head's CTC log-probability of the toneless syllables of each clip's texts, nats."""
    pairs = [
        [(clip, tuple(syllables.table.encode(text))) for text in of_clip]
        for clip, of_clip in enumerate(texts)
    ]
    distinct = list(
        dict.fromkeys(pair for of_clip in pairs for pair in of_clip)
    )  # homophones are scored once
    found_N = ctc_log_probabilities(
        syllables.log_probs_BSW, [clip for clip, _ in distinct], [target for _, target in distinct]
    )
    scores = dict(zip(distinct, found_N.tolist(), strict=True))
    return [[scores[pair] for pair in of_clip] for of_clip in pairs]


def greedy_ctc(log_probs_BSV: Array) -> list[tuple[list[int], float]]:
    """Returns for each clip the tokens of the best path, without repeats and blanks, and their log-probability, nats.

    The log-probability is over all paths that spell the tokens: that of the best path alone would be far too low. After
    the end of a clip the blank must have all probability. Graves et al. 2006, section 3.2 (best path decoding).
    """
    best_BS = to_host(array_namespace(log_probs_BSV).argmax(log_probs_BSV, axis=2))
    before_BS = np.pad(best_BS, ((0, 0), (1, 0)), constant_values=BLANK_ID)[:, :-1]
    says_BS = (best_BS != before_BS) & (best_BS != BLANK_ID)
    texts = [best_S[says_S].tolist() for best_S, says_S in zip(best_BS, says_BS, strict=True)]
    log_probability_B = ctc_log_probabilities(log_probs_BSV, range(len(texts)), texts)
    return list(zip(texts, log_probability_B.tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Spike:
    """One unit of the best path, at the step where its probability is highest."""

    step: int
    text: str
    probability: float


@dataclass(frozen=True, slots=True)
class Spikes:
    """The best path of a clip over time."""

    blank_S: tuple[float, ...]
    """Probability of the blank at each encoder step."""
    spikes: tuple[Spike, ...]
    """In order of time. Their texts, joined with the table's joiner, are the greedy CTC text."""
    reference: Sequence[str] | None = None
    """The reference in units of the head; None: its characters."""


def spiking_head(decoder: str | None) -> Head:
    """Returns the CTC head whose spikes explain a decoder: the syllable head if the decoder uses no other head."""
    return "syllables" if HEADS_OF_DECODER.get(decoder or "") == ("syllables",) else "ctc"


def ctc_spikes(log_probs_SV: np.ndarray, table: Tokenizer, reference: Sequence[str] | None = None) -> Spikes:
    """Returns the best path: one spike for each run of the same token, without blanks."""
    best_S, sure_S = log_probs_SV.argmax(axis=1), np.exp(log_probs_SV.max(axis=1))
    spikes: list[Spike] = []
    start = 0
    for step in range(1, len(best_S) + 1):
        if step == len(best_S) or best_S[step] != best_S[start]:
            text = table.unit(int(best_S[start]))
            if text:
                surest = start + int(sure_S[start:step].argmax())
                spikes.append(Spike(surest, text, float(sure_S[surest])))
            start = step
    return Spikes(tuple(np.exp(log_probs_SV[:, BLANK_ID]).tolist()), tuple(spikes), reference)
