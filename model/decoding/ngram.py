"""A backoff n-gram model: the probability of each next character, for many contexts at once.

It is built and stored in numpy, and evaluated in numpy or in torch on a device.
Shapes: N contexts, W words of the model, V tokens of a tokenizer, M n-grams of one order, K that order, L characters.

The n-grams are the nodes of a tree, numbered order by order, each order sorted: node 0 is the empty context, nodes 1
to W are the words. A context is an integer: the node of its longest n-gram in the model. A context of the longest
order has no children, so its suffix decides what follows.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from model.decoding.arrays import Array, on_device_of
from model.text import END_ID, SPECIAL_TOKENS, Tokenizer

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
"""Sentence start, sentence end and the unknown word, as in ARPA files."""
LN_10 = float(np.log(10.0))


class NgramFault(ValueError):
    """An invalid n-gram: its order, its row and the fault."""

    def __init__(self, order: int, row: int, fault: str) -> None:
        super().__init__(fault)
        self.order, self.row, self.fault = order, row, fault


@dataclass(frozen=True, slots=True)
class Level:
    """All n-grams of one order."""

    words_MK: np.ndarray
    """Word ids, int32."""
    log10_M: np.ndarray
    """Probability of the last word after the ones before it, float32."""
    backoff_log10_M: np.ndarray
    """Backoff weight for the next shorter context if this n-gram is the context, float32; 0 in the longest order."""


@dataclass(frozen=True, slots=True)
class NgramTree:
    """The n-grams as nodes; all arrays are of one library, on one device."""

    num_words: int
    key_M: Array
    """Parent node · W + word, int64, sorted over all orders. Node n is in row n - 1."""
    log10_M: Array
    """This and the following arrays have one row per node, including node 0."""
    backoff_M: Array
    suffix_M: Array
    first_child_M: Array

    def find(self, nodes_N: Array, words_N: Array) -> Array:
        """Returns the node of each context followed by the word; 0 if the model does not have this n-gram."""
        xp = array_namespace(nodes_N)
        key_N = nodes_N * self.num_words + words_N
        at_N = xp.searchsorted(self.key_M, key_N)
        found_N = self.key_M[xp.clip(at_N, None, len(self.key_M) - 1)] == key_N
        return xp.where(found_N, at_N + 1, 0)

    def walk(self, nodes_N: Array, words_N: Array) -> tuple[Array, Array]:
        """Returns log10 of the product of backoff weights, and the node of the longest context followed by the word."""
        xp = array_namespace(nodes_N)
        nodes_N, backoff_N = xp.asarray(nodes_N, copy=True), xp.zeros_like(nodes_N, dtype=xp.float64)
        found_N = self.find(nodes_N, words_N)
        # every word follows the empty context, so the loop ends there at the latest
        while len(missing := xp.nonzero(found_N == 0)[0]):
            backoff_N[missing] += self.backoff_M[nodes_N[missing]]
            nodes_N[missing] = self.suffix_M[nodes_N[missing]]
            found_N[missing] = self.find(nodes_N[missing], words_N[missing])
        return backoff_N, found_N

    def step(self, states_N: Array, words_N: Array) -> tuple[Array, Array]:
        """Returns log10 of each word's probability after its context (N,), and the new contexts (N,)."""
        backoff_N, found_N = self.walk(states_N, words_N)
        return backoff_N + self.log10_M[found_N], found_N

    def rows(self, states_N: Array) -> Array:
        """Returns log10 of the probability of every word after each context, (N, W) float32."""
        xp = array_namespace(states_N)
        contexts, weights = [states_N], [xp.zeros_like(states_N, dtype=xp.float32)]
        while xp.any(contexts[-1] > 0):
            weights.append(weights[-1] + self.backoff_M[contexts[-1]])
            contexts.append(self.suffix_M[contexts[-1]])
        rows_NW = self.log10_M[None, 1 : self.num_words + 1] + weights[-1][:, None]
        # the longest context comes last and overwrites the values of shorter ones
        for context_N, weight_N in zip(contexts[-2::-1], weights[-2::-1], strict=True):
            first_N = self.first_child_M[context_N]
            count_N = xp.where(context_N > 0, self.first_child_M[context_N + 1] - first_N, 0)
            row_C = xp.repeat(xp.arange(len(states_N), device=device(states_N)), count_N)
            before_N = xp.cumulative_sum(count_N) - count_N
            child_C = xp.arange(len(row_C), device=device(states_N)) + (first_N - before_N)[row_C]
            rows_NW[row_C, self.key_M[child_C - 1] % self.num_words] = self.log10_M[child_C] + weight_N[row_C]
        return rows_NW

    def on_device_of(self, other: Array) -> "NgramTree":
        """Returns the same tree with arrays of the library and on the device of `other`."""
        xp = array_namespace(other)
        names = [field.name for field in fields(self) if field.name.endswith("_M")]
        return replace(self, **{name: on_device_of(getattr(self, name), other, xp) for name in names})


class NgramModel:
    """An n-gram model; `words` are in the order of their ids."""

    def __init__(self, words: Sequence[str], levels: Sequence[Level]) -> None:
        """`levels` starts with order 1, which holds each word once; the rows of a level may have any order.

        Raises NgramFault if an n-gram occurs twice, or if the n-gram without its last word is missing.
        """
        self.words = tuple(words)
        self.ids = {word: number for number, word in enumerate(self.words)}
        self.order = len(levels)
        self.counts = tuple(len(level.log10_M) for level in levels)
        root = np.zeros(1, np.float32)
        self.tree = NgramTree(
            len(words), np.zeros(0, np.int64), root, root, np.zeros(1, np.int64), np.zeros(0, np.int64)
        )
        for order, level in enumerate(levels, start=1):
            self._add(order, level)
        W, M = len(self.words), len(self.tree.log10_M)
        first_child_M = np.searchsorted(self.tree.key_M, np.arange(M + 1) * W) + 1
        self.tree = replace(self.tree, first_child_M=first_child_M)

    def _add(self, order: int, level: Level) -> None:
        tree, words_MK = self.tree, level.words_MK.astype(np.int64)
        parent_M = np.zeros(len(words_MK), np.int64)
        for word_M in words_MK.T[:-1]:
            parent_M = tree.find(parent_M, word_M)
            if not parent_M.all():
                raise NgramFault(
                    order, int(np.argmin(parent_M)), "the n-gram without its last word is missing"
                )
        key_M = parent_M * len(self.words) + words_MK[:, -1]
        sorted_M = np.argsort(key_M, kind="stable")
        parent_M, word_M, key_M = parent_M[sorted_M], words_MK[sorted_M, -1], key_M[sorted_M]
        if len(twice := np.flatnonzero(key_M[1:] == key_M[:-1])):
            raise NgramFault(order, int(sorted_M[twice[0] + 1]), "this n-gram is already in the file")
        suffix_M = np.zeros(len(key_M), np.int64)
        if order > 1:
            _, suffix_M = tree.walk(tree.suffix_M[parent_M], word_M)
        self.tree = replace(
            tree,
            key_M=np.concatenate([tree.key_M, key_M]),
            log10_M=np.concatenate([tree.log10_M, level.log10_M[sorted_M]]),
            backoff_M=np.concatenate([tree.backoff_M, level.backoff_log10_M[sorted_M]]),
            suffix_M=np.concatenate([tree.suffix_M, suffix_M]),
        )

    def levels(self) -> list[Level]:
        """Returns the levels of the model, sorted."""
        tree, W, levels = self.tree, len(self.words), []
        words_MK = np.zeros((1, 0), np.int32)
        first_parent, first = 0, 1
        for count in self.counts:
            key_M = tree.key_M[first - 1 : first - 1 + count]
            words_MK = np.hstack([words_MK[key_M // W - first_parent], (key_M % W)[:, None].astype(np.int32)])
            rows = slice(first, first + count)
            levels.append(Level(words_MK, tree.log10_M[rows], tree.backoff_M[rows]))
            first_parent, first = first, first + count
        return levels

    def start(self) -> int:
        """Returns the context of a sentence's first word."""
        return int(self.tree.find(np.zeros(1, np.int64), np.array([self.ids[START]]))[0])

    def of_tokens(self, table: Tokenizer) -> "LanguageModel":
        return LanguageModel(self, table)


class LanguageModel:
    """An n-gram model over the tokens of one tokenizer, of the same units. States are contexts, int64.

    It takes and returns numpy arrays; `on_device_of` returns a model for other arrays. Units that the model never saw
    share the probability of `<unk>` evenly.
    """

    def __init__(self, model: NgramModel, table: Tokenizer) -> None:
        unknown = model.ids[UNKNOWN]
        units_V = [model.ids.get(unit, unknown) for unit in table.units]
        special = [model.ids[END] if token == END_ID else unknown for token in range(len(SPECIAL_TOKENS))]
        self._start = model.start()
        self._tree, self._word_V = model.tree, np.array([*special, *units_V], np.int64)
        self.unseen_V = self._word_V == unknown
        """Whether each token is a unit that the model does not know; a numpy array."""
        self.unseen_V[: len(SPECIAL_TOKENS)] = False
        self._share_V = np.zeros(table.num_tokens, np.float32)
        self._share_V[self.unseen_V] = -np.log(max(int(self.unseen_V.sum()), 1))
        self._share_V[[token for token in range(len(SPECIAL_TOKENS)) if token != END_ID]] = -np.inf
        self._elsewhere: dict[Any, LanguageModel] = {}

    def start(self) -> int:
        """Returns the state before a text's first character."""
        return self._start

    def on_device_of(self, other: Array) -> "LanguageModel":
        """Returns the same model for arrays of the library and on the device of `other`; copies it there only once."""
        if isinstance(other, np.ndarray):
            return self
        if (where := device(other)) not in self._elsewhere:
            xp, moved = array_namespace(other), copy(self)
            moved._tree = self._tree.on_device_of(other)
            moved._word_V = on_device_of(self._word_V, other, xp)
            moved._share_V = on_device_of(self._share_V, other, xp)
            self._elsewhere[where] = moved
        return self._elsewhere[where]

    def log_probs(self, states_N: Array) -> Array:
        """Returns the log-probability of each next token, nats, (N, V) float32; -inf for special tokens but the end."""
        rows_NV = array_namespace(states_N).take(self._tree.rows(states_N), self._word_V, axis=1)
        rows_NV *= LN_10
        rows_NV += self._share_V
        return rows_NV

    def advance(self, states_N: Array, tokens_N: Array) -> Array:
        """Returns the states after one more token each, (N,) int64; a special token does not change its state."""
        _, next_N = self._tree.step(states_N, self._word_V[tokens_N])
        return array_namespace(states_N).where(tokens_N < len(SPECIAL_TOKENS), states_N, next_N)

    def text_log_probability(self, tokens: Sequence[int]) -> float:
        """Returns the log-probability of a text and its end, nats; of a model for numpy arrays."""
        states = [np.array([self.start()])]
        for token in tokens:
            states.append(self.advance(states[-1], np.array([token])))
        rows_NV = self.log_probs(np.concatenate(states))
        return float(rows_NV[np.arange(len(states)), [*tokens, END_ID]].sum(dtype=np.float64))


@dataclass(frozen=True, slots=True)
class Perplexity:
    """How well a model predicts texts."""

    perplexity: float
    """exp of the mean of -log p over known units and ends of texts; about W for a model that learnt nothing."""
    num_texts: int
    num_units: int
    num_unknown: int
    """Units that the model never saw: they are contexts, but do not count in the mean."""


def perplexity(model: NgramModel, texts: Sequence[Sequence[str]]) -> Perplexity:
    """Returns the perplexity of the units of `texts` (of a text, its characters); nan if there is no text."""
    unknown, end = model.ids[UNKNOWN], model.ids[END]
    lines = sorted(texts, key=len, reverse=True)
    words = [[*(model.ids.get(unit, unknown) for unit in line), end] for line in lines]
    state_N = np.full(len(lines), model.start(), np.int64)
    total, num_known, num_unknown = 0.0, 0, 0
    open_texts = len(lines)
    for position in range(len(words[0]) if words else 0):
        while len(words[open_texts - 1]) <= position:
            open_texts -= 1
        word_N = np.array([line[position] for line in words[:open_texts]], np.int64)
        log10_N, state_N = model.tree.step(state_N[:open_texts], word_N)
        known_N = word_N != unknown
        total += float(log10_N[known_N].sum())
        num_known += int(known_N.sum())
        num_unknown += int((~known_N).sum())
    mean = total / num_known if num_known else float("nan")
    return Perplexity(10.0**-mean, len(lines), sum(map(len, lines)), num_unknown)
