"""Greedy decoding and beam search with an attention decoder of any kind, over all clips of a batch at once.

The beam search uses the attention decoder alone or with CTC. Its score is that of Watanabe et al. 2017 (section III),
with a language model by shallow fusion:
(1 - ctc_share) * attention + ctc_share * CTC prefix + lm_weight * language model + length_bonus * characters.

Shapes: B clips that are not done, A of them that continue, K open texts (beams) of each clip, L characters, V tokens,
N = B * K.
"""

import heapq
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch.nn import functional

from model.decoding.ctc_prefix import CtcPrefixes
from model.decoding.ngram import LanguageModel
from model.settings import DecodeParams
from model.text import BLANK_ID, END_ID, START_ID, UNKNOWN_ID

NO_TEXT = [BLANK_ID, START_ID, UNKNOWN_ID]
"""Tokens that write nothing: no decoder outputs them."""


class Stepping(Protocol):
    """The state of a decoder that reads some clips character by character; it starts with one text per clip."""

    def logits(self, tokens_BK: torch.Tensor) -> torch.Tensor:
        """Appends a token of `tokens_BK` (int64) to each text; returns the logits (B, K, V) of the next token."""

    def reorder(self, clips_A: torch.Tensor, beams_AK: torch.Tensor) -> None:
        """Keeps only these clips (indices below B), and of each these texts; a text may occur twice."""


def next_log_probs(logits_BKV: torch.Tensor, must_end_B: torch.Tensor) -> torch.Tensor:
    """Returns log-probabilities (B, K, V), float32, nats.

    -inf for tokens that write nothing, and where a text must end for all tokens but the end.
    """
    log_probs_BKV = functional.log_softmax(logits_BKV.float(), dim=2)
    # one by one: a list would be copied to the device each time, which waits
    for token in NO_TEXT:
        log_probs_BKV[..., token] = -torch.inf
    is_end_V = torch.arange(log_probs_BKV.shape[2], device=log_probs_BKV.device) == END_ID
    return log_probs_BKV.masked_fill(must_end_B[:, None, None] & ~is_end_V, -torch.inf)


@torch.no_grad()
def read_greedily(stepping: Stepping, max_chars_B: torch.Tensor) -> tuple[list[list[int]], list[float]]:
    """Takes the most likely next character until the end token, which comes after `max_chars_B` at the latest.

    Returns ids and the log-probability of each text and its end, nats.
    """
    B, device = len(max_chars_B), max_chars_B.device
    tokens_B = torch.full((B,), START_ID, device=device)
    log_probability_B = torch.zeros(B, device=device)
    open_B = torch.ones(B, dtype=torch.bool, device=device)
    read: list[torch.Tensor] = []
    for position in range(int(max_chars_B.max()) + 1):
        log_probs_B1V = next_log_probs(stepping.logits(tokens_B[:, None]), position >= max_chars_B)
        best_B, tokens_B = log_probs_B1V[:, 0].max(dim=1)
        log_probability_B += best_B * open_B
        open_B = open_B & (tokens_B != END_ID)
        if not open_B.any():
            break
        # a closed clip stays closed, so END_ID marks the end of its text
        read.append(torch.where(open_B, tokens_B, END_ID))
    ids_BL = torch.stack(read, dim=1).tolist() if read else [[] for _ in range(B)]
    return [[token for token in ids if token != END_ID] for ids in ids_BL], log_probability_B.tolist()


@dataclass(frozen=True, slots=True, order=True)
class Hypothesis:
    """A complete text; a better hypothesis compares as greater."""

    rank_score: float
    log_probability: float
    """Log of the mean of the attention and CTC probabilities, weighted by their shares, nats. The rank uses the mean of
    the log-probabilities instead, which is not the log-probability of any distribution."""
    ids: tuple[int, ...]


@torch.no_grad()
def joint_beam(
    stepping: Stepping,
    ctc: CtcPrefixes | None,
    lm: LanguageModel | None,
    max_chars_B: torch.Tensor,
    params: DecodeParams,
) -> list[list[Hypothesis]]:
    """Returns the best texts of each clip, at most `params.beam` and at least one, the best first.

    Each step keeps the `params.beam` best of all texts that continue or end; texts that end are set aside. A clip is
    done when none of its open texts can become one of the `params.num_candidates` best of those: as a text grows,
    every part of the score except the length bonus only falls. After `max_chars_B` characters a text must end. Without
    `ctc`, or with `params.ctc_share` 0, only the attention decoder reads. `lm` is used if `params.lm_weight` is not 0.
    With beam 1 and without CTC, language model and bonus this is `read_greedily`.
    """
    # CTC with share 0 is not used: it may give -inf to a text of the attention decoder, and 0 * inf is nan
    ctc = ctc if params.ctc_share > 0 else None
    lm = lm.on_device_of(max_chars_B) if lm is not None and params.lm_weight > 0 else None
    search = _Search(stepping, ctc, lm, max_chars_B, params)
    while search.clips:
        scores = search.scores()
        search.extend(scores, search.set_aside(scores))
    return search.found


class _Scores(NamedTuple):
    """Scores of every open text extended by every token, nats."""

    attention_BKV: torch.Tensor
    ctc_BKV: torch.Tensor | None
    lm_scores_BKV: torch.Tensor | None
    """Of the language model."""
    ranks_BKV: torch.Tensor
    """The total score; -inf for impossible extensions."""


class _Search:
    """The open texts of all clips; `clips` are the clips that are not done, in the order of the rows."""

    def __init__(
        self,
        stepping: Stepping,
        ctc: CtcPrefixes | None,
        lm: LanguageModel | None,
        max_chars_B: torch.Tensor,
        params: DecodeParams,
    ) -> None:
        self.stepping, self.ctc, self.lm, self.params = stepping, ctc, lm, params
        self.device = max_chars_B.device
        self.max_chars = [int(most) for most in max_chars_B.tolist()]
        self.clips = list(range(len(self.max_chars)))
        self.found: list[list[Hypothesis]] = [[] for _ in self.clips]
        self.num_chars = 0
        share = torch.tensor(params.ctc_share, dtype=torch.float64, device=self.device)
        self.log_shares = torch.stack([1 - share, share]).log()
        self.texts: list[list[tuple[int, ...]]] = [[()] for _ in self.clips]
        shape = len(self.clips), 1
        self.tokens_BK = torch.full(shape, START_ID, device=self.device)
        self.is_open_BK = torch.ones(shape, dtype=torch.bool, device=self.device)
        self.attention_BK = torch.zeros(shape, device=self.device)
        self.lm_scores_BK = torch.zeros(shape, device=self.device)
        self.states_BK = torch.full(shape, lm.start() if lm else 0, device=self.device)

    def scores(self) -> _Scores:
        params = self.params
        must_end_B = torch.tensor([self.num_chars >= self.max_chars[clip] for clip in self.clips])
        next_BKV = next_log_probs(
            self.stepping.logits(self.tokens_BK), must_end_B.to(self.device, non_blocking=True)
        )
        attention_BKV = self.attention_BK[..., None] + next_BKV
        heads_BKV, ctc_BKV = attention_BKV, None
        if self.ctc is not None:
            ctc_BKV = self.ctc.scores()
            heads_BKV = (1 - params.ctc_share) * attention_BKV + params.ctc_share * ctc_BKV
        ranks_BKV = heads_BKV + params.length_bonus * (self.num_chars + 1)
        ranks_BKV[..., END_ID] -= params.length_bonus
        lm_scores_BKV = None
        if self.lm is not None:
            rows_NV = self.lm.log_probs(self.states_BK.flatten())
            lm_scores_BKV = self.lm_scores_BK[..., None] + rows_NV.view(attention_BKV.shape)
            ranks_BKV += params.lm_weight * lm_scores_BKV
        impossible_BKV = attention_BKV.isneginf() | ~self.is_open_BK[..., None]
        return _Scores(
            attention_BKV, ctc_BKV, lm_scores_BKV, ranks_BKV.masked_fill(impossible_BKV, -torch.inf)
        )

    def set_aside(self, scores: _Scores) -> list[list[int]]:
        """Stores the texts that end here. Returns the best continuations of each clip as places in its (K, V)."""
        num_tokens, params = scores.ranks_BKV.shape[2], self.params
        ranks_BM = scores.ranks_BKV.flatten(1)
        ranks_BK, places_BK = ranks_BM.topk(min(params.beam, ranks_BM.shape[1]), dim=1)
        heads_BK = self._log_probabilities(scores, places_BK)
        continuing = []
        for row, (ranks, heads, places) in enumerate(
            zip(ranks_BK.tolist(), heads_BK.tolist(), places_BK.tolist(), strict=True)
        ):
            clip = self.clips[row]
            ended, longer = self.found[clip], []
            for rank, head, place in zip(ranks, heads, places, strict=True):
                beam, token = divmod(place, num_tokens)
                if rank > -np.inf and token == END_ID:
                    ended.append(Hypothesis(rank, head, self.texts[row][beam]))
                elif rank > -np.inf:
                    longer.append((rank, place))
            self.found[clip] = ended = heapq.nlargest(params.beam, ended)
            largest_bonus_left = max(params.length_bonus, 0.0) * (self.max_chars[clip] - self.num_chars - 1)
            wanted = min(params.num_candidates, params.beam)
            score_to_beat = ended[wanted - 1].rank_score if len(ended) >= wanted else -np.inf
            continuing.append([place for rank, place in longer if rank + largest_bonus_left > score_to_beat])
        return continuing

    def _log_probabilities(self, scores: _Scores, places_BK: torch.Tensor) -> torch.Tensor:
        """Returns the heads' log-probabilities (B, K), nats, at these places of each clip's (K, V)."""
        attention_BK = scores.attention_BKV.flatten(1).gather(1, places_BK)
        if scores.ctc_BKV is None:
            return attention_BK
        ctc_BK = scores.ctc_BKV.flatten(1).gather(1, places_BK)
        return torch.logaddexp(attention_BK + self.log_shares[0], ctc_BK + self.log_shares[1])

    def extend(self, scores: _Scores, continuing: list[list[int]]) -> None:
        """Extends every open text by a character; clips without open texts are done."""
        rows = [row for row, places in enumerate(continuing) if places]
        self.clips = [self.clips[row] for row in rows]
        self.num_chars += 1
        if not rows:
            return
        # clips with fewer open texts than others are padded with copies that are not open
        K = max(map(len, continuing))
        places_AK = np.array([(continuing[row] + continuing[row][:1] * K)[:K] for row in rows])
        is_open_AK = np.array([[beam < len(continuing[row]) for beam in range(K)] for row in rows])
        beams_AK, tokens_AK = np.divmod(places_AK, scores.ranks_BKV.shape[2])
        self.texts = [
            [(*self.texts[row][beam], token) for beam, token in zip(beams, tokens, strict=True)]
            for row, beams, tokens in zip(rows, beams_AK.tolist(), tokens_AK.tolist(), strict=True)
        ]
        clips_A, kept_AK, texts_AK, self.tokens_BK, self.is_open_BK = (
            torch.from_numpy(array).to(self.device, non_blocking=True)
            for array in (np.array(rows), places_AK, beams_AK, tokens_AK, is_open_AK)
        )
        self.stepping.reorder(clips_A, texts_AK)
        self.attention_BK = scores.attention_BKV.flatten(1)[clips_A].gather(1, kept_AK)
        if self.ctc is not None:
            self.ctc.extend(clips_A, texts_AK, self.tokens_BK)
        if self.lm is not None and scores.lm_scores_BKV is not None:
            self.lm_scores_BK = scores.lm_scores_BKV.flatten(1)[clips_A].gather(1, kept_AK)
            states_AK = self.states_BK[clips_A[:, None], texts_AK]
            self.states_BK = self.lm.advance(states_AK.flatten(), self.tokens_BK.flatten()).view(len(rows), K)
