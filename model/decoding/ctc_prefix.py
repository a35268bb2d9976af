"""CTC prefix probabilities of open texts, for a search that extends texts character by character.

Graves 2008, section 7.5.1; as part of a joint score, Watanabe et al. 2017, algorithm 2. The recursions over time
are linear in the probabilities, so sums over time solve all steps at once (in float64, since terms cancel), and one
matrix product scores all tokens of all texts, where Seki et al. 2019 score a pre-selection.

Shapes: B clips, A of them that continue, K texts of each clip, S encoder steps, V tokens.
"""

import torch

from model.text import BLANK_ID, END_ID

LEAST = torch.finfo(torch.float64).min


class CtcPrefixes:
    """The open texts of some clips; at the start each clip has one, the empty text.

    `log_probs_BSV` is the log-softmax of the CTC head; its values after `num_steps_B` have no effect.
    """

    def __init__(self, log_probs_BSV: torch.Tensor, num_steps_B: torch.Tensor) -> None:
        B, S, _ = log_probs_BSV.shape
        self._log_probs_BSV = log_probs_BSV
        self._last_step_B = num_steps_B.to(log_probs_BSV.device) - 1
        steps_S = torch.arange(S, device=log_probs_BSV.device)
        self._outside_BS = steps_S > self._last_step_B[:, None]
        self._probs_BSV = log_probs_BSV.double().exp().masked_fill(self._outside_BS[:, :, None], 0.0)
        self._blank_BS = log_probs_BSV[:, :, BLANK_ID].double()
        # log-probabilities of all paths up to a step that spell the text and end in its last token, or in a blank
        self._in_blank_BKS = self._blank_BS.cumsum(1)[:, None]
        self._in_token_BKS = torch.full_like(self._in_blank_BKS, -torch.inf)
        # for an empty text: a token that no text contains
        self._last_token_BK = torch.full((B, 1), BLANK_ID, device=log_probs_BSV.device)

    def scores(self) -> torch.Tensor:
        """Returns for each text and token (B, K, V) the log-probability that a label starts with both, float64, nats.

        Column END_ID has the log-probability that the label is exactly the text. Columns of other special tokens are
        not defined.
        """
        before_BKS = self._before(self._last_token_BK)
        largest_BK1 = before_BKS.amax(2, keepdim=True).clamp(min=LEAST)
        scores_BKV = ((before_BKS - largest_BK1).exp() @ self._probs_BSV).log() + largest_BK1
        repeated_BK = (self._before_repeat() + self._log_probs_of(self._last_token_BK)).masked_fill(
            self._outside_BS[:, None], -torch.inf
        )
        scores_BKV.scatter_(2, self._last_token_BK[..., None], repeated_BK.logsumexp(2, keepdim=True))
        last_BK1 = self._last_step_B[:, None, None].expand(-1, before_BKS.shape[1], 1)
        whole_BKS = torch.logaddexp(self._in_token_BKS, self._in_blank_BKS)
        scores_BKV[..., END_ID] = whole_BKS.gather(2, last_BK1)[..., 0]
        return scores_BKV

    def extend(self, clips_A: torch.Tensor, beams_AK: torch.Tensor, tokens_AK: torch.Tensor) -> None:
        """Keeps only these clips and these of their texts, and appends a token to each text."""
        if len(clips_A) < len(self._blank_BS):
            self._log_probs_BSV, self._probs_BSV = self._log_probs_BSV[clips_A], self._probs_BSV[clips_A]
            self._outside_BS, self._blank_BS = self._outside_BS[clips_A], self._blank_BS[clips_A]
            self._last_step_B = self._last_step_B[clips_A]
        places = clips_A[:, None], beams_AK
        self._in_token_BKS, self._in_blank_BKS = self._in_token_BKS[places], self._in_blank_BKS[places]
        self._last_token_BK = self._last_token_BK[places]
        is_repeat_AK1 = (tokens_AK == self._last_token_BK)[..., None]
        before_AKS = torch.where(is_repeat_AK1, self._before_repeat(), self._before(self._last_token_BK))
        # in_token[s] = p[s] * (in_token[s - 1] + before[s]), divided by the product of p up to s
        token_AKS = self._log_probs_of(tokens_AK)
        product_AKS = token_AKS.cumsum(2)
        self._in_token_BKS = product_AKS + (before_AKS - product_AKS + token_AKS).logcumsumexp(2)
        # in_blank[s] = p_blank[s] * (in_blank[s - 1] + in_token[s - 1])
        product_A1S, blank_A1S = self._blank_BS.cumsum(1)[:, None], self._blank_BS[:, None]
        arrived_AKS = _one_step_later(self._in_token_BKS, -torch.inf)
        self._in_blank_BKS = product_A1S + (arrived_AKS - product_A1S + blank_A1S).logcumsumexp(2)
        self._last_token_BK = tokens_AK

    def _before(self, last_token_BK: torch.Tensor) -> torch.Tensor:
        """Returns the log-probability (B, K, S) of the paths that spell the text before each step."""
        whole_BKS = torch.logaddexp(self._in_token_BKS, self._in_blank_BKS)
        first_BK = torch.zeros_like(whole_BKS[..., 0]).masked_fill(last_token_BK != BLANK_ID, -torch.inf)
        return torch.cat([first_BK[..., None], whole_BKS[..., :-1]], dim=2)

    def _before_repeat(self) -> torch.Tensor:
        """Returns `_before` for a token that repeats the last token of the text, which needs a blank between them."""
        return _one_step_later(self._in_blank_BKS, -torch.inf)

    def _log_probs_of(self, tokens_BK: torch.Tensor) -> torch.Tensor:
        """Returns the log-probabilities (B, K, S) of these tokens at each step, float64."""
        steps_BSK = tokens_BK[:, None].expand(-1, self._log_probs_BSV.shape[1], -1)
        return self._log_probs_BSV.gather(2, steps_BSK).transpose(1, 2).double()


def _one_step_later(values_BKS: torch.Tensor, first: float) -> torch.Tensor:
    return torch.nn.functional.pad(values_BKS[..., :-1], (1, 0), value=first)
