"""What greedy reading and beam search ask of an attention decoder of any kind.

Shapes: B clips, A of them that go on, K texts (beams) of each clip, V tokens.
"""

from typing import Protocol

import torch
from torch.nn import functional

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
