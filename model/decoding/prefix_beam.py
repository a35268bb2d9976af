"""CTC prefix beam search over units of a head, with shallow fusion, over all clips of a batch at once.

Graves and Jaitly 2014 (algorithm 1); Hannun et al. 2014 ("First-pass large vocabulary continuous speech recognition
using bi-directional recurrent DNNs", algorithm 1): for each prefix it keeps two sums of probability, over the paths
that end in a blank and over the paths that end in the prefix's last unit.

A step tries only few units, without changing the result. A language model adds at most 0, so a prefix extended by a
unit scores at most best + log p(unit) + bonus. If this is below the `beam`-th best score found so far, the unit cannot
enter the beam. Tests compare the result with a search that tries every unit.

Shapes: B clips, S steps, E columns of the head, U units, V tokens of the language model, K prefixes in the beam, N in
the next beam, T tried units.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from array_api_compat import array_namespace, device

from model.decoding.arrays import Array, largest, on_device_of, to_host
from model.decoding.ngram import LanguageModel
from model.text import BLANK_ID, END_ID, SPECIAL_TOKENS

ROUNDING = 1e-4
"""Margin of the bound on a unit, nats: the language model's numbers are float32."""
HASH_FACTOR = 6364136223846793005
"""From Knuth's linear congruential generator MMIX. A 64-bit hash of its units identifies a prefix."""
NO_PREFIX, NO_PARENT = -2, -3
"""The hash of an empty place of the beam, and the parent hash of the empty prefix."""


@dataclass(frozen=True, slots=True)
class Units:
    """The units of a text: characters, or characters with one of their syllables each."""

    column_U: np.ndarray
    """The head's column of each unit."""
    token_U: np.ndarray
    """The language model's token of each unit."""


@dataclass(frozen=True, slots=True)
class Fusion:
    """The scores that are added to the CTC log-probability of a prefix to rank it."""

    lm: LanguageModel | None = None
    lm_weight: float = 0.0
    length_bonus: float = 0.0
    """For each unit, nats."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """A text of the final beam."""

    units: tuple[int, ...]
    log_probability: float
    """Summed over the paths that the beam kept, nats."""
    rank_score: float
    """With the language model, including the end of the text, and the bonus."""


@dataclass(slots=True)
class _Beam:
    """The prefixes and the log of their summed probabilities."""

    hash_BK: Array
    parent_BK: Array
    """Hash of the prefix without its last unit."""
    unit_BK: Array
    """The last unit; -1 for the empty prefix."""
    blank_BK: Array
    spoken_BK: Array
    """Over paths that end in the last unit."""
    fused_BK: Array
    """The sum of language model and bonus."""
    state_BK: Array
    lm_BKV: Array | None
    """Weighted log-probability of every next token; None without a language model."""

    @property
    def total_BK(self) -> Array:
        return array_namespace(self.blank_BK).logaddexp(self.blank_BK, self.spoken_BK)


class _Extended(NamedTuple):
    """Each prefix extended by each tried unit, (B, K, T)."""

    ctc_BKT: Array
    fused_BKT: Array
    score_BKT: Array
    """The sum of both; -inf for a prefix that is already in the beam."""


def prefix_beam(log_probs_BSE: Array, units: Units, beam: int, fusion: Fusion) -> list[list[Prefix]]:
    """Returns at most `beam` texts of each clip, the best first; none if no text is possible.

    `log_probs_BSE` are log-probabilities with the special tokens' columns first. After the end of a clip the blank must
    have all probability. Like the blank, special tokens write nothing: their probability is added to the blank's.
    """
    search = _Search(log_probs_BSE, units, beam, fusion)
    for step in range(log_probs_BSE.shape[1]):
        search.step(log_probs_BSE[:, step])
    return search.prefixes()


class _Search:
    def __init__(self, log_probs_BSE: Array, units: Units, beam: int, fusion: Fusion) -> None:
        self._xp = xp = array_namespace(log_probs_BSE)
        where = device(log_probs_BSE)
        self._size, self._fusion = beam, fusion
        self._lm = (
            fusion.lm.on_device_of(log_probs_BSE) if fusion.lm is not None and fusion.lm_weight > 0 else None
        )
        self._column_U, self._token_U = (
            on_device_of(array, log_probs_BSE, xp) for array in (units.column_U, units.token_U)
        )
        self._clip_B1 = xp.arange(len(log_probs_BSE), device=where)[:, None]
        self._turns: list[tuple[Array, Array]] = []
        """For each change of the beam, (B, N): the previous place of each prefix, and its new unit, or -1."""

        def filled(value: float, dtype: object) -> Array:
            return xp.full((len(log_probs_BSE), 1), value, dtype=dtype, device=where)

        state_BK = filled(self._lm.start() if self._lm else 0, xp.int64)
        self._beam = _Beam(
            hash_BK=filled(0, xp.int64),
            parent_BK=filled(NO_PARENT, xp.int64),
            unit_BK=filled(-1, xp.int64),
            blank_BK=filled(0, xp.float64),
            spoken_BK=filled(-np.inf, xp.float64),
            fused_BK=filled(0, xp.float64),
            state_BK=state_BK,
            lm_BKV=self._weighted(state_BK[:, 0])[:, None] if self._lm else None,
        )
        self._relate()

    def _weighted(self, state_N: Array) -> Array:
        assert self._lm is not None
        # the sum of another program's model may exceed 1 by rounding, and the bound needs at most 0
        return self._xp.clip(self._lm.log_probs(state_N), None, 0.0) * self._fusion.lm_weight

    def _relate(self) -> None:
        """Finds the parents of the prefixes within the beam; needed after each change of the beam."""
        xp, beam = self._xp, self._beam
        self._column_BK = xp.where(beam.unit_BK >= 0, self._column_U[beam.unit_BK], -1)
        is_parent_BKK = beam.parent_BK[:, :, None] == beam.hash_BK[:, None]
        self._has_parent_BK = xp.any(is_parent_BKK, axis=2)
        self._parent_BK = xp.argmax(xp.astype(is_parent_BKK, xp.uint8), axis=2)
        # the same column twice needs a blank between
        self._repeats_parent_BK = self._column_BK == self._column_BK[self._clip_B1, self._parent_BK]

    def step(self, log_prob_BE: Array) -> None:
        xp, beam = self._xp, self._beam
        log_prob_BE = xp.astype(log_prob_BE, xp.float64)
        log_prob_BU = log_prob_BE[:, self._column_U]
        total_BK = beam.total_BK
        blank_BK = total_BK + self._silence(log_prob_BE)[:, None]
        spoken_BK = self._stays_spoken(log_prob_BU, total_BK)
        stay_BK = xp.logaddexp(blank_BK, spoken_BK) + beam.fused_BK
        tried_BT = self._units_to_try(log_prob_BU, stay_BK, total_BK)
        extended = self._extended(tried_BT, log_prob_BU, total_BK) if tried_BT.shape[1] else None
        beam.blank_BK, beam.spoken_BK = blank_BK, spoken_BK
        if extended is not None:
            self._choose(stay_BK, tried_BT, extended)
            self._relate()

    def _silence(self, log_prob_BE: Array) -> Array:
        """Returns the log-probability (B,) of the blank and the other special tokens together."""
        silence_B = log_prob_BE[:, BLANK_ID]
        for column in range(BLANK_ID + 1, len(SPECIAL_TOKENS)):
            silence_B = self._xp.logaddexp(silence_B, log_prob_BE[:, column])
        return silence_B

    def _stays_spoken(self, log_prob_BU: Array, total_BK: Array) -> Array:
        """Returns `spoken_BK` after a step, for prefixes in the beam: the last unit repeats, or the parent adds it."""
        xp, beam, clip_B1 = self._xp, self._beam, self._clip_B1
        shorter = clip_B1, self._parent_BK
        before_BK = xp.where(self._repeats_parent_BK, beam.blank_BK[shorter], total_BK[shorter])
        before_BK = xp.where(self._has_parent_BK, before_BK, -np.inf)
        last_BK = xp.where(beam.unit_BK >= 0, log_prob_BU[clip_B1, beam.unit_BK], -np.inf)
        return xp.logaddexp(beam.spoken_BK, before_BK) + last_BK

    def _units_to_try(self, log_prob_BU: Array, stay_BK: Array, total_BK: Array) -> Array:
        """Returns the units that may enter the beam of their clip (B, T), padded with the next most likely units."""
        xp, size = self._xp, self._size
        best_B = xp.max(total_BK + self._beam.fused_BK, axis=1) + self._fusion.length_bonus + ROUNDING

        def num_possible(score_BM: Array) -> int:
            """Returns the largest number of possible units of a clip, given the scores found so far."""
            is_possible_BU = log_prob_BU > -np.inf
            if score_BM.shape[1] >= size:
                least_B = largest(score_BM, size)[0][:, -1]
                is_possible_BU &= log_prob_BU + best_B[:, None] >= least_B[:, None]
            return int(xp.max(xp.count_nonzero(is_possible_BU, axis=1)))

        num_tried = num_possible(stay_BK)
        if num_tried > 2 * size:
            likely_BT = largest(log_prob_BU, 2 * size)[1]
            likely = self._extended(likely_BT, log_prob_BU, total_BK)
            num_tried = num_possible(xp.concat([stay_BK, _flat(likely.score_BKT)], axis=1))
        return largest(log_prob_BU, num_tried)[1]

    def _extended(self, tried_BT: Array, log_prob_BU: Array, total_BK: Array) -> _Extended:
        xp, beam, clip_B1 = self._xp, self._beam, self._clip_B1
        repeats_BKT = self._column_BK[:, :, None] == self._column_U[tried_BT][:, None]
        before_BKT = xp.where(repeats_BKT, beam.blank_BK[:, :, None], total_BK[:, :, None])
        ctc_BKT = before_BKT + log_prob_BU[clip_B1, tried_BT][:, None]
        fused_BK1 = beam.fused_BK[:, :, None] + self._fusion.length_bonus
        if beam.lm_BKV is None:
            fused_BKT = xp.broadcast_to(fused_BK1, ctc_BKT.shape)
        else:
            place_1K1 = xp.arange(ctc_BKT.shape[1], device=device(ctc_BKT))[None, :, None]
            fused_BKT = fused_BK1 + beam.lm_BKV[clip_B1[:, None], place_1K1, self._token_U[tried_BT][:, None]]
        score_BKT = ctc_BKT + fused_BKT
        is_kept_BKT = (tried_BT[:, None] == beam.unit_BK[:, :, None]) & self._has_parent_BK[:, :, None]
        clips, places, columns = xp.nonzero(is_kept_BKT)
        score_BKT[clips, self._parent_BK[clips, places], columns] = -np.inf
        return _Extended(ctc_BKT, fused_BKT, score_BKT)

    def _choose(self, stay_BK: Array, tried_BT: Array, extended: _Extended) -> None:
        """Chooses the next beam from the prefixes that stay and the extended ones."""
        xp, old, clip_B1 = self._xp, self._beam, self._clip_B1
        K, T = extended.score_BKT.shape[1:]
        rank_BM = xp.concat([stay_BK, _flat(extended.score_BKT)], axis=1)
        rank_BN, place_BN = largest(rank_BM, min(self._size, K * (T + 1)))
        is_new_BN = place_BN >= K
        place_BN = xp.where(is_new_BN, place_BN - K, place_BN)
        new = clip_B1, place_BN
        from_BN = xp.where(is_new_BN, place_BN // T, place_BN)
        before = clip_B1, from_BN
        unit_BN = xp.where(is_new_BN, tried_BT[clip_B1, place_BN % T], -1)
        # places without a possible prefix are marked as empty, so no prefix is in the beam twice
        is_kept_BN = rank_BN > -np.inf
        hash_BN = old.hash_BK[before]
        new_hash_BN = xp.where(is_new_BN, hash_BN * HASH_FACTOR + unit_BN + 1, hash_BN)
        new_parent_BN = xp.where(is_new_BN, hash_BN, old.parent_BK[before])
        spoken_BN = xp.where(is_new_BN, _flat(extended.ctc_BKT)[new], old.spoken_BK[before])
        self._turns.append((from_BN, unit_BN))
        self._beam = _Beam(
            hash_BK=xp.where(is_kept_BN, new_hash_BN, NO_PREFIX),
            parent_BK=xp.where(is_kept_BN, new_parent_BN, NO_PARENT),
            unit_BK=xp.where(is_new_BN, unit_BN, old.unit_BK[before]),
            blank_BK=xp.where(is_new_BN, -np.inf, old.blank_BK[before]),
            spoken_BK=xp.where(is_kept_BN, spoken_BN, -np.inf),
            fused_BK=xp.where(is_new_BN, _flat(extended.fused_BKT)[new], old.fused_BK[before]),
            state_BK=old.state_BK[before],
            lm_BKV=None if old.lm_BKV is None else old.lm_BKV[before],
        )
        if self._lm is not None and self._beam.lm_BKV is not None:
            extended_N = xp.nonzero(is_new_BN)
            state_N = self._lm.advance(self._beam.state_BK[extended_N], self._token_U[unit_BN[extended_N]])
            self._beam.state_BK[extended_N] = state_N
            self._beam.lm_BKV[extended_N] = self._weighted(state_N)

    def prefixes(self) -> list[list[Prefix]]:
        beam, total_BK = self._beam, self._beam.total_BK
        rank_BK = total_BK + beam.fused_BK
        if beam.lm_BKV is not None:
            rank_BK = rank_BK + beam.lm_BKV[:, :, END_ID]
        rank_BK, place_BK = largest(rank_BK, rank_BK.shape[1])
        total_BK, rank_BK = to_host(total_BK[self._clip_B1, place_BK]), to_host(rank_BK)
        return [
            [
                # by rounding, a sum can be slightly above 0
                Prefix(tuple(unit for unit in units if unit >= 0), min(total, 0.0), rank)
                for units, total, rank in zip(units_KS, total_K, rank_K, strict=True)
                if rank > -np.inf
            ]
            for units_KS, total_K, rank_K in zip(
                self._units_back_from(to_host(place_BK)).tolist(),
                total_BK.tolist(),
                rank_BK.tolist(),
                strict=True,
            )
        ]

    def _units_back_from(self, place_BK: np.ndarray) -> np.ndarray:
        """Returns the units (B, K, S) of the prefixes at these places, with -1 for steps without a new unit."""
        clip_B1, units_SBK = np.arange(len(place_BK))[:, None], []
        for from_BN, unit_BN in reversed(self._turns):
            units_SBK.append(to_host(unit_BN)[clip_B1, place_BK])
            place_BK = to_host(from_BN)[clip_B1, place_BK]
        return np.stack(units_SBK[::-1] or [np.full(place_BK.shape, -1)], axis=2)


def _flat(array_BKT: Array) -> Array:
    return array_namespace(array_BKT).reshape(array_BKT, (len(array_BKT), -1))
