"""Greedy reading by an attention decoder of any kind.

Shapes: B clips, L characters read, V tokens.
"""

from collections.abc import Callable

import torch
from torch.nn import functional

from model.text import END_ID, START_ID

NextLogits = Callable[[torch.Tensor], torch.Tensor]
"""From the last token of each clip (B,) to the logits of the next (B, V); keeps its own state."""


@torch.no_grad()
def read_greedily(next_logits: NextLogits, max_chars_B: torch.Tensor) -> tuple[list[list[int]], list[float]]:
    """Most likely next character until the end token or `max_chars_B`; ids and summed log-probability, nats."""
    B, device = len(max_chars_B), max_chars_B.device
    tokens_B = torch.full((B,), START_ID, device=device)
    log_probability_B = torch.zeros(B, device=device)
    open_B = torch.ones(B, dtype=torch.bool, device=device)
    read: list[torch.Tensor] = []
    for position in range(int(max_chars_B.max())):
        best_B, tokens_B = functional.log_softmax(next_logits(tokens_B).float(), dim=1).max(dim=1)
        open_B = open_B & (position < max_chars_B)
        log_probability_B += best_B * open_B
        open_B = open_B & (tokens_B != END_ID)
        if not open_B.any():
            break
        # a clip once closed stays closed, so END_ID marks where its text stops
        read.append(torch.where(open_B, tokens_B, END_ID))
    ids_BL = torch.stack(read, dim=1).tolist() if read else [[] for _ in range(B)]
    return [[token for token in ids if token != END_ID] for ids in ids_BL], log_probability_B.tolist()
