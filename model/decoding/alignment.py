"""Time, confidence and alternatives of each unit of a text, by the CTC head, whichever decoder wrote the text.

Imports no torch. Shapes: S steps, V columns (tokens) of the head, L units of the text, P = 2L + 1 with the blanks
between them, K alternatives of a unit.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from model.decoding.calibration import UNCALIBRATED, ConfidenceScale
from model.decoding.result import Alternative, Reading, TimedCharacter
from model.text import BLANK_ID, SPECIAL_TOKENS, UNKNOWN_ID, Tokenizer

NUM_ALTERNATIVES = 5
"""For each unit. They carry nearly all probability of the texts that differ in this unit."""


LONGEST_HOLD_S = 0.2
"""A character lasts until the middle between its last step and the next character's first one, but at most this much
longer than its steps."""
MASK_S, MASK_EVERY_S = 0.28, 0.08
"""Length and distance of the masks that find the frames of a character (`masked_copies`), s."""
MASK_BATCH = 16
FRAME_COST, PAUSE_COST = 0.7, 2.0
"""What a unit must pay for a frame, and for a pause before it, as shares of its strongest evidence."""
LEAST_EVIDENCE = 0.1
"""Nats; less evidence is noise."""
MOST_LOG_ODDS = 30.0
EVIDENCE_HOLD_S = 0.08
"""A unit lasts this much longer than its evidence into a pause.

These constants are chosen on 24 validation clips of GRID, whose words last 0.25 s, and on 24 drawn clips, whose
characters last 0.35 s and have known times: borders are within 2 and 0.8 frames in the median. Masks of 0.2 s do not
make a slow character doubtful."""


class AlignedUnit(NamedTuple):
    """A unit of the text, emitted in the steps `first` to `last` (included) of the best path."""

    first: int
    last: int
    confidence: float
    """Probability of the text among itself, the texts with an alternative here, and the text without this unit."""
    alternatives: tuple[tuple[int, float], ...]
    """Tokens and their probabilities by the same measure, best first."""
    log_odds: float
    """Logarithm of confidence / (1 - confidence), exact also where the confidence is 1 by rounding."""


def align(log_probs_SV: np.ndarray, tokens: Sequence[int]) -> list[AlignedUnit] | None:
    """Returns each token of a text with its steps; None if the text needs more steps than the clip has.

    Steps are those of the most probable path that spells the text (Viterbi; Graves et al. 2006). A confidence is exact:
    it compares the probabilities of whole texts, each summed over all its paths.
    """
    log_probs_SV = np.asarray(log_probs_SV, np.float64)
    column_P = _columns(tokens)
    skips_P = _skips(column_P)
    spans = _emissions(log_probs_SV[:, column_P], skips_P)
    if not spans:
        return None if spans is None else []
    forward_SP, backward_SP = forward_backward(log_probs_SV[:, column_P], skips_P)
    own = np.logaddexp.reduce(forward_SP[-1] + backward_SP[-1])
    candidate_LK = _candidates(log_probs_SV, tokens, spans)
    changed_LK = _with_other_unit(log_probs_SV, column_P, forward_SP, backward_SP, candidate_LK)
    without_L = _without_unit(log_probs_SV, column_P, forward_SP, backward_SP)
    scores_LM = np.column_stack([np.full(len(tokens), own), changed_LK, without_L])
    shares_LM = np.exp(scores_LM - np.logaddexp.reduce(scores_LM, axis=1, keepdims=True))
    log_odds_L = own - np.logaddexp.reduce(scores_LM[:, 1:], axis=1)
    units = []
    for (first, last), candidates, shares, log_odds in zip(
        spans, candidate_LK.tolist(), shares_LM.tolist(), log_odds_L.tolist(), strict=True
    ):
        ranked = sorted(zip(candidates, shares[1:-1], strict=True), key=lambda pair: -pair[1])
        units.append(AlignedUnit(first, last, shares[0], tuple(ranked), log_odds))
    return units


def with_times(
    reading: Reading,
    log_probs_SV: np.ndarray,
    table: Tokenizer,
    num_frames: int,
    fps: float,
    scale: ConfidenceScale = UNCALIBRATED,
    masked: Iterable[tuple[int, np.ndarray]] = (),
) -> Reading:
    """Returns the reading with its characters' times and confidences; without them if it cannot be aligned.

    `log_probs_SV` are of the head that writes the units of `table`. With `masked`, the middle frame of each mask and
    the log-probabilities of the masked clip, the times are of the frames that show a unit; else of the best path.
    """
    places = list(_units_of(reading.text, table))
    tokens = table.encode(unit for unit, _, _ in places)
    units = align(log_probs_SV, tokens)
    if not units:
        return reading
    # a network with stride 2 makes one step of the last frame if their number is odd
    times_s = _times(
        [(unit.first, unit.last) for unit in units],
        -(-num_frames // len(log_probs_SV)) / fps,
        num_frames / fps,
    )
    if drops := [(frame, _lost_evidence(units, align(of_mask, tokens))) for frame, of_mask in masked]:
        frames, drop_CL = zip(*drops, strict=True)
        times_s = times_by_evidence(np.array(frames), np.array(drop_CL), num_frames, fps)
    characters: list[TimedCharacter] = []
    for unit, (_, start, stop), (first_s, last_s) in zip(units, places, times_s, strict=True):
        confidence = scale.calibrated(unit.confidence)
        if start == stop and characters:  # a further letter of a Hangul syllable
            first = characters.pop()
            confidence *= first.confidence
            characters.append(TimedCharacter(first.text, first.start_s, last_s, confidence))
            continue
        borders_s = np.linspace(first_s, last_s, stop - start + 1).tolist()
        # the alternatives share the rest in the same proportions
        rest = (1 - confidence) / max(1 - unit.confidence, 1e-9)
        others = tuple(Alternative(table.unit(token), share * rest) for token, share in unit.alternatives)
        for character, span_s in zip(reading.text[start:stop], pairwise(borders_s), strict=True):
            alternatives = others if stop - start == 1 else ()
            characters.append(TimedCharacter(character, *span_s, confidence, alternatives))
    return replace(reading, characters=tuple(characters))


def masked_copies(clip_THW: np.ndarray, fps: float) -> Iterator[tuple[list[int], np.ndarray]]:
    """Yields copies of a clip that hide a short time by the clip's mean frame, as the time masks of training do.

    In batches: the middle frames of the masks, and the copies (B, T, H, W).
    """
    num_frames, half = len(clip_THW), round(MASK_S * fps) // 2
    mean_HW = clip_THW.mean(axis=0).round().astype(np.uint8)
    middles = range(0, num_frames, max(1, round(MASK_EVERY_S * fps)))
    for start in range(0, len(middles), MASK_BATCH):
        batch = list(middles[start : start + MASK_BATCH])
        copies_BTHW = np.repeat(clip_THW[None], len(batch), axis=0)
        for copy_THW, middle in zip(copies_BTHW, batch, strict=True):
            copy_THW[max(middle - half, 0) : middle + half + 1] = mean_HW
        yield batch, copies_BTHW


def _lost_evidence(units: Sequence[AlignedUnit], masked: Sequence[AlignedUnit] | None) -> list[float]:
    """Returns by how much a mask lowers the log-odds of each unit, 0 or more.

    Not its confidence: a unit that no single mask makes doubtful still has frames that matter most.
    """
    assert masked is not None, "the same text in as many steps"
    return [
        max(min(unit.log_odds, MOST_LOG_ODDS) - min(other.log_odds, MOST_LOG_ODDS), 0.0)
        for unit, other in zip(units, masked, strict=True)
    ]


def times_by_evidence(
    frame_C: np.ndarray, drop_CL: np.ndarray, num_frames: int, fps: float
) -> list[tuple[float, float]]:
    """Returns start and end of each unit, s: the frames without which the model is less sure of it.

    `drop_CL` is the evidence that a mask around each frame takes from each unit. The units share the frames in their
    order, so that the sum of their evidence minus the costs is largest (dynamic programming); pauses belong to none. A
    CTC head can write a unit far from the frames that show it, since its encoder sees the whole clip.
    """
    strongest_L = np.maximum(drop_CL.max(axis=0), LEAST_EVIDENCE)
    all_T = np.arange(num_frames)
    evidence_TL = np.stack(
        [
            np.interp(all_T, frame_C, drop_C / strongest)
            for drop_C, strongest in zip(drop_CL.T, strongest_L, strict=True)
        ],
        axis=1,
    )
    score_TP = np.zeros((num_frames, 2 * drop_CL.shape[1] + 1))
    score_TP[:, 1::2] = evidence_TL - FRAME_COST
    entry_P = np.zeros(score_TP.shape[1])
    entry_P[2:-1:2] = -PAUSE_COST
    spans = _emissions(score_TP, np.ones(score_TP.shape[1], bool), entry_P)
    assert spans is not None, "as many frames as units"
    shown = []
    for unit, (first, last) in enumerate(spans):
        frames = first + np.flatnonzero(evidence_TL[first : last + 1, unit] > 0.0)
        shown.append((int(frames[0]), int(frames[-1])) if len(frames) else (first, last))
    return _times(shown, 1 / fps, num_frames / fps, EVIDENCE_HOLD_S)


def _times(
    spans: Sequence[tuple[int, int]], step_s: float, duration_s: float, hold_s: float = LONGEST_HOLD_S
) -> list[tuple[float, float]]:
    """Returns start and end of each unit, s, from its first and last step.

    Neighbours share the time between them, unless it is a pause.
    """
    starts_s = [max(spans[0][0] * step_s - hold_s, 0.0)]
    ends_s = []
    for (_, last), (following, _) in pairwise(spans):
        last_s, next_s = (last + 1) * step_s, following * step_s
        is_pause = next_s - last_s > 2 * LONGEST_HOLD_S
        ends_s.append(last_s + hold_s if is_pause else (last_s + next_s) / 2)
        starts_s.append(next_s - hold_s if is_pause else ends_s[-1])
    ends_s.append(min((spans[-1][1] + 1) * step_s + hold_s, duration_s))
    return list(zip(starts_s, ends_s, strict=True))


def _units_of(text: str, table: Tokenizer) -> Iterator[tuple[str, int, int]]:
    """Yields the units of a text and the characters (start, stop) that each writes; together they are all of the text.

    A table of syllables is for their text, in which they are separated, and for the characters that have them.
    """
    splitting = table.splitting
    if splitting.kind == "pinyin":
        syllables = text.split(table.joiner)
        if UNKNOWN_ID not in table.encode(syllables):
            units, stops = syllables, np.cumsum([len(one) + len(table.joiner) for one in syllables]).tolist()
        else:
            units = splitting.split(text)
            stops = [place + 1 for place, character in enumerate(text) if not character.isspace()]
    else:
        units = splitting.split(text)
        stops = [len(splitting.join(units[: number + 1])) for number in range(len(units))]
    start = 0
    for number, unit in enumerate(units):
        stop = min(stops[number], len(text)) if number + 1 < len(units) else len(text)
        yield unit, start, max(stop, start)
        start = max(stop, start)


def _columns(tokens: Sequence[int]) -> np.ndarray:
    column_P = np.full(2 * len(tokens) + 1, BLANK_ID)
    column_P[1::2] = tokens
    return column_P


def _skips(column_P: np.ndarray) -> np.ndarray:
    """Returns for each position whether a path may reach it from two positions before."""
    skips_P = np.zeros(len(column_P), bool)
    skips_P[2:] = (column_P[2:] != BLANK_ID) & (column_P[2:] != column_P[:-2])
    return skips_P


def _emissions(
    log_probs_SP: np.ndarray, skips_P: np.ndarray, entry_P: np.ndarray | float = 0.0
) -> list[tuple[int, int]] | None:
    """Returns first and last step of each unit on the best path; of equal paths, the one that emits later."""
    S, P = log_probs_SP.shape
    best_P, from_SP = np.full(P, -np.inf), np.zeros((S, P), np.int64)
    best_P[0] = 0.0  # a virtual blank before the first step
    for step in range(S):
        reached_3P = np.full((3, P), -np.inf)
        reached_3P[0], reached_3P[1, 1:] = best_P, best_P[:-1]
        reached_3P[2, 2:] = np.where(skips_P[2:], best_P[:-2], -np.inf)
        reached_3P[1:] += entry_P
        from_SP[step] = reached_3P.argmax(axis=0)
        best_P = reached_3P.max(axis=0) + log_probs_SP[step]
    position = P - 1 if P == 1 or best_P[-1] >= best_P[-2] else P - 2
    if best_P[position] == -np.inf:
        return None
    spans: list[tuple[int, int]] = [(S, -1)] * (P // 2)
    for step in reversed(range(S)):
        if position % 2:
            first, last = spans[position // 2]
            spans[position // 2] = (min(first, step), max(last, step))
        position -= int(from_SP[step, position])
    return spans


def forward_backward(log_probs_SP: np.ndarray, skips_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the log-probabilities (S + 1, P) of all path starts and of all path ends, by position and step, nats.

    Row t is before step t: the starts have passed steps 0 to t - 1, the ends pass steps t to S - 1. So in each row the
    products of both sum to the probability of the text.
    """
    S, P = log_probs_SP.shape
    forward_SP, backward_SP = np.full((S + 1, P), -np.inf), np.full((S + 1, P), -np.inf)
    forward_SP[0, 0] = 0.0  # a virtual blank before the first step
    backward_SP[S, max(P - 2, 0) :] = 0.0
    for step in range(S):
        before_P, now_P = forward_SP[step], forward_SP[step + 1]
        now_P[:] = before_P
        now_P[1:] = np.logaddexp(now_P[1:], before_P[:-1])
        now_P[2:] = np.where(skips_P[2:], np.logaddexp(now_P[2:], before_P[:-2]), now_P[2:])
        now_P += log_probs_SP[step]
    for step in reversed(range(S)):
        after_P, now_P = backward_SP[step + 1] + log_probs_SP[step], backward_SP[step]
        now_P[:] = after_P
        now_P[:-1] = np.logaddexp(now_P[:-1], after_P[1:])
        now_P[:-2] = np.where(skips_P[2:], np.logaddexp(now_P[:-2], after_P[2:]), now_P[:-2])
    return forward_SP, backward_SP


def _candidates(
    log_probs_SV: np.ndarray, tokens: Sequence[int], spans: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Returns for each unit the K other tokens that are most probable at a step between its neighbours (L, K)."""
    num_candidates = min(NUM_ALTERNATIVES, log_probs_SV.shape[1] - len(SPECIAL_TOKENS) - 1)
    chosen_LK = np.zeros((len(tokens), num_candidates), np.int64)
    for place, token in enumerate(tokens):
        start = spans[place - 1][1] + 1 if place else 0
        stop = spans[place + 1][0] if place + 1 < len(spans) else len(log_probs_SV)
        best_V = log_probs_SV[start:stop].max(axis=0)
        best_V[[*range(len(SPECIAL_TOKENS)), token]] = -np.inf
        chosen_LK[place] = np.argsort(-best_V, kind="stable")[:num_candidates]
    return chosen_LK


def _with_other_unit(
    log_probs_SV: np.ndarray,
    column_P: np.ndarray,
    forward_SP: np.ndarray,
    backward_SP: np.ndarray,
    candidate_LK: np.ndarray,
) -> np.ndarray:
    """Returns the log-probability of the text with each unit replaced by each of its candidates (L, K), nats."""
    S, L = len(log_probs_SV), len(candidate_LK)
    token_L1 = column_P[1::2, None]
    # a unit that equals its neighbour is reached only through the blank between them
    after_other_LK = candidate_LK != np.vstack([[[-1]], token_L1])[:-1]
    before_other_LK = candidate_LK != np.vstack([token_L1, [[-1]]])[1:]
    inside_LK = np.full(candidate_LK.shape, -np.inf)
    total_LK = np.full(candidate_LK.shape, -np.inf)
    for step in range(S):
        before_L1 = forward_SP[step, 0:-1:2, None]
        unit_before_L1 = np.vstack([[[-np.inf]], forward_SP[step, 1:-2:2, None]])
        entered_LK = np.logaddexp(before_L1, np.where(after_other_LK, unit_before_L1, -np.inf))
        inside_LK = np.logaddexp(inside_LK, entered_LK) + log_probs_SV[step, candidate_LK]
        left_LK = np.full(candidate_LK.shape, -np.inf)
        if step + 1 < S:
            ends_P = log_probs_SV[step + 1, column_P] + backward_SP[step + 2]
            unit_after_L1 = np.append(ends_P[3::2], -np.inf)[:, None]
            left_LK = np.logaddexp(ends_P[2::2, None], np.where(before_other_LK, unit_after_L1, -np.inf))
        else:
            left_LK[L - 1] = 0.0
        total_LK = np.logaddexp(total_LK, inside_LK + left_LK)
    return total_LK


def _without_unit(
    log_probs_SV: np.ndarray, column_P: np.ndarray, forward_SP: np.ndarray, backward_SP: np.ndarray
) -> np.ndarray:
    """Returns the log-probability of the text without each of its units (L,), nats."""
    S, L = len(log_probs_SV), len(column_P) // 2
    total_L = np.full(L, -np.inf)
    for place in range(L):
        blank, unit_before, unit_after = 2 * place, 2 * place - 1, 2 * place + 3
        starts_S = forward_SP[:, blank].copy()
        is_last = place == L - 1
        if place and (is_last or column_P[unit_before] != column_P[unit_after]):
            starts_S = np.logaddexp(starts_S, forward_SP[:, unit_before])
        if is_last:
            total_L[place] = starts_S[S]
        else:
            ends_S = log_probs_SV[:, column_P[unit_after]] + backward_SP[1:, unit_after]
            total_L[place] = np.logaddexp.reduce(starts_S[:-1] + ends_S)
    return total_L
