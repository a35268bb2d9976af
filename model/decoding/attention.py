"""What greedy reading and beam search ask of an attention decoder of any kind.

Shapes: B clips, A of them that go on, K texts (beams) of each clip, V tokens.

Greedy reading by an attention decoder of any kind.

Shapes: B clips, L characters read, V tokens.

Beam search by an attention decoder, alone or together with CTC, over all clips of a batch at once.

The score is that of Watanabe et al. 2017 (section III), with a language model by shallow fusion:
(1 - ctc_share) * attention + ctc_share * CTC prefix + lm_weight * language model + length_bonus * characters.

Shapes: B clips still open, A of them that go on, K open texts (beams) of each clip, V tokens, N = B * K.
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
"""Tokens that write nothing: no decoder reads them."""


class Stepping(Protocol):
    """A decoder on its way through some clips, a character at a time; it starts with one text a clip."""

    def logits(self, tokens_BK: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, V) of what follows, each text having gone on by its token of `tokens_BK`, int64."""

    def reorder(self, clips_A: torch.Tensor, beams_AK: torch.Tensor) -> None:
        """Goes on with these clips (indices below B), and for each with these of its texts, some of them twice."""


def next_log_probs(logits_BKV: torch.Tensor, must_end_B: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (B, K, V), float32, nats: -inf for what writes nothing; where a text must end, for all else."""
    log_probs_BKV = functional.log_softmax(logits_BKV.float(), dim=2)
    # one by one: a list of them would be sent to the device each time, and waited for
    for token in NO_TEXT:
        log_probs_BKV[..., token] = -torch.inf
    is_end_V = torch.arange(log_probs_BKV.shape[2], device=log_probs_BKV.device) == END_ID
    return log_probs_BKV.masked_fill(must_end_B[:, None, None] & ~is_end_V, -torch.inf)


@torch.no_grad()
def read_greedily(stepping: Stepping, max_chars_B: torch.Tensor) -> tuple[list[list[int]], list[float]]:
    """Most likely next character until the end token, which must come after `max_chars_B` at the latest.

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
        # a clip once closed stays closed, so END_ID marks where its text stops
        read.append(torch.where(open_B, tokens_B, END_ID))
    ids_BL = torch.stack(read, dim=1).tolist() if read else [[] for _ in range(B)]
    return [[token for token in ids if token != END_ID] for ids in ids_BL], log_probability_B.tolist()


@dataclass(frozen=True, slots=True, order=True)
class Hypothesis:
    """A text that was read to its end; the better one is the greater."""

    rank_score: float
    log_probability: float
    """Of attention and CTC, nats: of their probabilities' mean by their shares. The rank has the mean of their
    log-probabilities, which are those of no distribution."""
    ids: tuple[int, ...]


@torch.no_grad()
def joint_beam(
    stepping: Stepping,
    ctc: CtcPrefixes | None,
    lm: LanguageModel | None,
    max_chars_B: torch.Tensor,
    params: DecodeParams,
) -> list[list[Hypothesis]]:
    """The best texts of each clip, at most `params.beam` and at least one, the best first.

    Each step keeps the `params.beam` best of all that goes on or ends; what ends is set aside. A clip is done when
    none of its open texts can come among the `params.num_candidates` best of those: every part of the score but the
    length bonus only falls as a text grows. After `max_chars_B` characters a text must end. Without `ctc`, or with
    `params.ctc_share` 0, the attention decoder reads alone; `lm` is asked where `params.lm_weight` is not 0. With
    beam 1 and neither CTC, language model nor bonus this is `read_greedily`.
    """
    # a share of 0 is none: CTC may hold impossible what attention reads, and 0 times infinity is no number
    ctc = ctc if params.ctc_share > 0 else None
    lm = lm.on_device_of(max_chars_B) if lm is not None and params.lm_weight > 0 else None
    search = _Search(stepping, ctc, lm, max_chars_B, params)
    while search.clips:
        scores = search.scores()
        search.go_on(scores, search.set_aside(scores))
    return search.found


class _Scores(NamedTuple):
    """Of every open text with every token behind it, nats."""

    attention_BKV: torch.Tensor
    ctc_BKV: torch.Tensor | None
    lm_scores_BKV: torch.Tensor | None
    """Of the language model."""
    ranks_BKV: torch.Tensor
    """All together; -inf for what cannot be."""


class _Search:
    """The open texts of all clips; `clips` are those not done, in the order of the rows."""

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
        cannot_be_BKV = attention_BKV.isneginf() | ~self.is_open_BK[..., None]
        return _Scores(
            attention_BKV, ctc_BKV, lm_scores_BKV, ranks_BKV.masked_fill(cannot_be_BKV, -torch.inf)
        )

    def set_aside(self, scores: _Scores) -> list[list[int]]:
        """Takes the texts that end here; of each clip those that go on, as places in its (K, V), the best first."""
        num_tokens, params = scores.ranks_BKV.shape[2], self.params
        ranks_BM = scores.ranks_BKV.flatten(1)
        ranks_BK, places_BK = ranks_BM.topk(min(params.beam, ranks_BM.shape[1]), dim=1)
        heads_BK = self._log_probabilities(scores, places_BK)
        going = []
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
            most_to_come = max(params.length_bonus, 0.0) * (self.max_chars[clip] - self.num_chars - 1)
            wanted = min(params.num_candidates, params.beam)
            to_beat = ended[wanted - 1].rank_score if len(ended) >= wanted else -np.inf
            going.append([place for rank, place in longer if rank + most_to_come > to_beat])
        return going

    def _log_probabilities(self, scores: _Scores, places_BK: torch.Tensor) -> torch.Tensor:
        """By the heads (B, K), nats, of what stands in these places of each clip's (K, V)."""
        attention_BK = scores.attention_BKV.flatten(1).gather(1, places_BK)
        if scores.ctc_BKV is None:
            return attention_BK
        ctc_BK = scores.ctc_BKV.flatten(1).gather(1, places_BK)
        return torch.logaddexp(attention_BK + self.log_shares[0], ctc_BK + self.log_shares[1])

    def go_on(self, scores: _Scores, going: list[list[int]]) -> None:
        """Every open text longer by a character; clips without any are done."""
        rows = [row for row, places in enumerate(going) if places]
        self.clips = [self.clips[row] for row in rows]
        self.num_chars += 1
        if not rows:
            return
        # where other clips have more open texts, copies that are not open fill up
        K = max(map(len, going))
        places_AK = np.array([(going[row] + going[row][:1] * K)[:K] for row in rows])
        is_open_AK = np.array([[beam < len(going[row]) for beam in range(K)] for row in rows])
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
