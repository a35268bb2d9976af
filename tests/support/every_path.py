"""References for beam searches: exact CTC sums over all paths, and language model scores character by character."""

import itertools
from collections import defaultdict

import numpy as np

from model.decoding.ngram import LanguageModel
from model.text import BLANK_ID, END_ID, Tokenizer


def scores(num_steps: int, num_tokens: int, seed: int, sharpness: float = 2.0) -> np.ndarray:
    """Returns random log-probabilities (S, V), float32 like those of a network."""
    logits = np.random.default_rng(seed).normal(0, sharpness, (num_steps, num_tokens))
    return (logits - np.logaddexp.reduce(logits, axis=1)[:, None]).astype(np.float32)


def collapsed(path: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(token for token, _ in itertools.groupby(path) if token != BLANK_ID)


def every_text(log_probs_SV: np.ndarray, table: Tokenizer) -> dict[str, float]:
    """Returns the exact log-probability of every text, summed over all paths."""
    sums: dict[str, list[float]] = defaultdict(list)
    num_steps, num_tokens = log_probs_SV.shape
    for path in itertools.product(range(num_tokens), repeat=num_steps):
        sums[table.decode(collapsed(path))].append(
            sum(float(log_probs_SV[step, token]) for step, token in enumerate(path))
        )
    return {text: float(np.logaddexp.reduce(logs)) for text, logs in sums.items()}


def lm_score(text: str, lm: LanguageModel, table: Tokenizer) -> float:
    state_N, total = np.array([lm.start()]), 0.0
    for token in [*table.encode(text), END_ID]:
        total += float(lm.log_probs(state_N)[0, token])
        state_N = lm.advance(state_N, np.array([token]))
    return total
