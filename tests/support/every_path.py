"""References for beam searches: exact CTC sums over all paths, and language model scores character by character."""

import itertools
import math
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
    """Returns the exact log-probability of every possible text, summed over all paths."""
    steps = [
        [(token, log_prob) for token, log_prob in enumerate(log_prob_V) if log_prob > -math.inf]
        for log_prob_V in log_probs_SV.tolist()
    ]
    sums: dict[tuple[int, ...], list[float]] = defaultdict(list)
    for path in itertools.product(*steps):
        tokens, log_probs = zip(*path, strict=True) if path else ((), ())
        sums[collapsed(tokens)].append(sum(log_probs))
    texts: dict[str, list[float]] = defaultdict(list)
    for tokens, logs in sums.items():
        texts[table.decode(tokens)] += logs
    return {text: float(np.logaddexp.reduce(logs)) for text, logs in texts.items()}


def lm_score(text: str, lm: LanguageModel, table: Tokenizer) -> float:
    state_N, total = np.array([lm.start()]), 0.0
    for token in [*table.encode(text), END_ID]:
        total += float(lm.log_probs(state_N)[0, token])
        state_N = lm.advance(state_N, np.array([token]))
    return total
