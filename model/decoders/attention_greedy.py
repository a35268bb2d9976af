"""Greedy reading by an attention decoder of any kind.

Shapes: B clips, L characters read, V tokens.
"""

import torch

from model.decoders.stepping import Stepping, next_log_probs
from model.text import END_ID, START_ID


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
