"""CTC prefix beam search over units that a head's columns say, with shallow fusion. Imports no torch.

Graves and Jaitly 2014 (algorithm 1); Hannun et al. 2014 ("First-pass large vocabulary continuous speech recognition
using bi-directional recurrent DNNs", algorithm 1): a prefix keeps the summed probability of its paths that end in a
blank and of those that end in its last unit, apart.

A step looks at few units and loses nothing by it: a language model adds no more than 0, so no prefix is extended by
a unit to more than best + log p(unit) + bonus, and units for which that lies below the `beam`-th best score already
found cannot enter the beam. The result is that of a search which tries every unit (tests compare it with one).

Shapes: S steps, E columns of the head, U units, V tokens of the language model, B prefixes in the beam, K units tried.
"""

from dataclasses import dataclass, field

import numpy as np

from model.decoders.ngram import LanguageModel
from model.text import BLANK_ID, END_ID, SPECIAL_TOKENS

ROUNDING = 1e-4
"""The bound on a unit is lowered by it, nats: the language model's figures are float32."""


@dataclass(frozen=True, slots=True)
class Units:
    """What a text is written with: characters, or characters with one of their syllables each."""

    column_U: np.ndarray
    """The head's column that says the unit."""
    token_U: np.ndarray
    """The language model's token for it."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """What is added to CTC's log-probability of a prefix, so that beams are compared by it."""

    lm: LanguageModel | None = None
    lm_weight: float = 0.0
    length_bonus: float = 0.0
    """For each unit, nats."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """A text that the search ended with."""

    units: tuple[int, ...]
    log_probability: float
    """Summed over the paths that the beam kept, nats."""
    rank_score: float
    """With the language model, end of text included, and the bonus."""


def without_special_tokens(log_probs_SE: np.ndarray) -> np.ndarray:
    """The same, float64, with the probability of every special token in the blank's column.

    They write nothing, as the blank does, so every text keeps its probability.
    """
    merged_SE = log_probs_SE.astype(np.float64)
    first = len(SPECIAL_TOKENS)
    merged_SE[:, BLANK_ID] = np.logaddexp.reduce(merged_SE[:, :first], axis=1)
    merged_SE[:, BLANK_ID + 1 : first] = -np.inf
    return merged_SE


@dataclass(slots=True)
class _Tree:
    """Every prefix that was ever kept: a node, found again by its parent and last unit when it comes back."""

    parents: list[int] = field(default_factory=lambda: [-1])
    units: list[int] = field(default_factory=lambda: [-1])
    _children: dict[tuple[int, int], int] = field(default_factory=dict)

    def child(self, parent: int, unit: int) -> int:
        node = self._children.setdefault((parent, unit), len(self.parents))
        if node == len(self.parents):
            self.parents.append(parent)
            self.units.append(unit)
        return node

    def path(self, node: int) -> tuple[int, ...]:
        found = []
        while node:
            found.append(self.units[node])
            node = self.parents[node]
        return tuple(reversed(found))


@dataclass(slots=True)
class _Beam:
    """Prefixes and the log of their summed probabilities."""

    node_B: np.ndarray
    parent_B: np.ndarray
    """Node of the prefix without its last unit; -1: of the empty one."""
    unit_B: np.ndarray
    """Last unit; -1: of the empty prefix."""
    blank_B: np.ndarray
    spoken_B: np.ndarray
    """Of paths that end in the last unit."""
    fused_B: np.ndarray
    """What language model and bonus add."""
    state_B: np.ndarray
    lm_BV: np.ndarray
    """Weighted log-probability of every next token; no columns without a language model."""

    @property
    def total_B(self) -> np.ndarray:
        return np.logaddexp(self.blank_B, self.spoken_B)


def prefix_beam(log_probs_SE: np.ndarray, units: Units, beam: int, fusion: Fusion) -> list[Prefix]:
    """At most `beam` texts, the best first; none where no text is possible.

    `log_probs_SE` are a clip's log-probabilities with the blank's column first.
    """
    search = _Search(units, beam, fusion)
    for log_prob_E in log_probs_SE:
        search.step(log_prob_E)
    return search.prefixes()


class _Search:
    def __init__(self, units: Units, beam: int, fusion: Fusion) -> None:
        self._units, self._size, self._fusion = units, beam, fusion
        self._lm = fusion.lm if fusion.lm_weight > 0 else None
        self._tree = _Tree()
        state_B = np.array([self._lm.start() if self._lm else 0], np.int64)
        self._beam = _Beam(
            node_B=np.array([0]),
            parent_B=np.array([-1]),
            unit_B=np.array([-1]),
            blank_B=np.zeros(1),
            spoken_B=np.full(1, -np.inf),
            fused_B=np.zeros(1),
            state_B=state_B,
            lm_BV=self._weighted(state_B),
        )

    def _weighted(self, state_N: np.ndarray) -> np.ndarray:
        if self._lm is None:
            return np.zeros((len(state_N), 0), np.float32)
        # another program's model may miss 1 by its rounding, and the bound above needs no more than 0
        return np.minimum(self._lm.log_probs(state_N), 0) * np.float32(self._fusion.lm_weight)

    def step(self, log_prob_E: np.ndarray) -> None:
        old = self._beam
        log_prob_U = log_prob_E[self._units.column_U]
        blank_B = old.total_B + log_prob_E[BLANK_ID]
        spoken_B = self._stays_spoken(log_prob_U)
        stay_B = np.logaddexp(blank_B, spoken_B) + old.fused_B
        unit_K = self._units_to_try(log_prob_U, stay_B)
        ctc_BK, score_BK = self._extended(unit_K, log_prob_U)
        scores = np.concatenate([stay_B, score_BK.ravel()])
        kept = _best(scores, self._size)
        stays, added = kept[kept < len(stay_B)], kept[kept >= len(stay_B)] - len(stay_B)
        from_A, column_A = np.divmod(added, max(len(unit_K), 1))
        unit_A, ctc_A = unit_K[column_A], ctc_BK[from_A, column_A]
        node_A = [
            self._tree.child(parent, unit)
            for parent, unit in zip(old.node_B[from_A].tolist(), unit_A.tolist(), strict=True)
        ]
        state_A = old.state_B[from_A]
        if self._lm is not None and len(added):
            state_A = self._lm.advance(state_A, self._units.token_U[unit_A])
        self._beam = _Beam(
            node_B=np.concatenate([old.node_B[stays], np.array(node_A, np.int64)]),
            parent_B=np.concatenate([old.parent_B[stays], old.node_B[from_A]]),
            unit_B=np.concatenate([old.unit_B[stays], unit_A]),
            blank_B=np.concatenate([blank_B[stays], np.full(len(added), -np.inf)]),
            spoken_B=np.concatenate([spoken_B[stays], ctc_A]),
            fused_B=np.concatenate([old.fused_B[stays], score_BK[from_A, column_A] - ctc_A]),
            state_B=np.concatenate([old.state_B[stays], state_A]),
            lm_BV=np.concatenate([old.lm_BV[stays], self._weighted(state_A)])
            if len(added)
            else old.lm_BV[stays],
        )

    def _column_of_last(self) -> np.ndarray:
        unit_B = self._beam.unit_B
        return np.where(unit_B >= 0, self._units.column_U[unit_B], -1)

    def _stays_spoken(self, log_prob_U: np.ndarray) -> np.ndarray:
        """Of each prefix that gets no new unit: its last one goes on, or a shorter prefix of the beam reaches it."""
        beam, column_B = self._beam, self._column_of_last()
        last_B = np.where(beam.unit_B >= 0, log_prob_U[beam.unit_B], -np.inf)
        spoken_B = beam.spoken_B + last_B
        longer, shorter = np.nonzero(beam.parent_B[:, None] == beam.node_B)
        # the same sound twice needs a blank between
        repeats = column_B[longer] == column_B[shorter]
        before = np.where(repeats, beam.blank_B[shorter], beam.total_B[shorter])
        spoken_B[longer] = np.logaddexp(spoken_B[longer], before + last_B[longer])
        return spoken_B

    def _units_to_try(self, log_prob_U: np.ndarray, stay_B: np.ndarray) -> np.ndarray:
        """Those that may enter the beam, in order."""
        beam, size = self._beam, self._size
        best = (
            float((beam.total_B + beam.fused_B).max(initial=-np.inf)) + self._fusion.length_bonus + ROUNDING
        )

        def possible(scores: np.ndarray) -> np.ndarray:
            least = np.partition(scores, -size)[-size] if len(scores) >= size else -np.inf
            return np.flatnonzero((log_prob_U + best >= least) & (log_prob_U > -np.inf))

        found_K = possible(stay_B)
        if len(found_K) > 2 * size:
            likely_K = np.sort(np.argpartition(log_prob_U, -2 * size)[-2 * size :])
            _, score_BK = self._extended(likely_K, log_prob_U)
            found_K = possible(np.concatenate([stay_B, score_BK.ravel()]))
        return found_K

    def _extended(self, unit_K: np.ndarray, log_prob_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """CTC's log-probability of each prefix with each unit behind it, and the score; -inf: it is in the beam."""
        beam, column_B = self._beam, self._column_of_last()
        repeats_BK = column_B[:, None] == self._units.column_U[unit_K]
        ctc_BK = log_prob_U[unit_K] + np.where(repeats_BK, beam.blank_B[:, None], beam.total_B[:, None])
        score_BK = ctc_BK + (beam.fused_B + self._fusion.length_bonus)[:, None]
        if self._lm is not None:
            score_BK += beam.lm_BV[:, self._units.token_U[unit_K]]
        longer, shorter = np.nonzero(beam.parent_B[:, None] == beam.node_B)
        if len(unit_K):
            at = np.minimum(np.searchsorted(unit_K, beam.unit_B[longer]), len(unit_K) - 1)
            tried = unit_K[at] == beam.unit_B[longer]
            score_BK[shorter[tried], at[tried]] = -np.inf
        return ctc_BK, score_BK

    def prefixes(self) -> list[Prefix]:
        beam = self._beam
        rank_B = beam.total_B + beam.fused_B
        if self._lm is not None:
            rank_B = rank_B + beam.lm_BV[:, END_ID]
        return [
            Prefix(
                self._tree.path(int(beam.node_B[row])),
                min(float(beam.total_B[row]), 0.0),  # sums of rounded terms can pass 0 by a hair
                float(rank_B[row]),
            )
            for row in _best(rank_B, len(rank_B))
        ]


def _best(scores: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` highest finite scores, the highest first, earlier places first among equals."""
    if count < len(scores):
        least = np.partition(scores, -count)[-count]
        places = np.flatnonzero(scores >= least)
    else:
        places = np.arange(len(scores))
    places = places[scores[places] > -np.inf]
    return places[np.argsort(-scores[places], kind="stable")][:count]
