"""The baseline's decoder: one LSTM cell over characters that attends to the encoder's steps.

Shapes: B clips, S encoder steps, L label characters, V tokens, H hidden size, E encoder width.
"""

import torch
from torch import nn

from model.decoders.attention_greedy import read_greedily
from model.presets import Cnn3dSizes
from model.text import START_ID


class LstmDecoder(nn.Module):
    """One LSTM cell over characters that attends to the encoder's steps."""

    def __init__(self, encoder_width: int, sizes: Cnn3dSizes, num_tokens: int, dropout: float) -> None:
        super().__init__()
        H, encoder_dim = sizes.hidden_dim, encoder_width
        self.embedding = nn.Embedding(num_tokens, H)
        self.cell = nn.LSTMCell(H + encoder_dim, H)
        self.query = nn.Linear(H, encoder_dim)
        self.attention = nn.MultiheadAttention(encoder_dim, sizes.num_heads, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(H + encoder_dim, num_tokens)

    def start(
        self, encoded_BSE: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        """First tokens, LSTM state and context of a decoding."""
        B = len(encoded_BSE)
        zeros_BH = encoded_BSE.new_zeros(B, self.cell.hidden_size)
        tokens_B = torch.full((B,), START_ID, device=encoded_BSE.device)
        return tokens_B, (zeros_BH, zeros_BH), encoded_BSE.new_zeros(B, encoded_BSE.shape[2])

    def step(
        self,
        tokens_B: torch.Tensor,
        state: tuple[torch.Tensor, torch.Tensor],
        context_BE: torch.Tensor,
        encoded_BSE: torch.Tensor,
        padding_BS: torch.Tensor,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Logits (B, V) of the next character, and the new state and context."""
        inputs = torch.cat([self.dropout(self.embedding(tokens_B)), context_BE], dim=1)
        state = self.cell(inputs, state)
        context_B1E, _ = self.attention(
            self.query(state[0])[:, None],
            encoded_BSE,
            encoded_BSE,
            key_padding_mask=padding_BS,
            need_weights=False,
        )
        context_BE = context_B1E[:, 0]
        return self.output(self.dropout(torch.cat([state[0], context_BE], dim=1))), state, context_BE

    def teacher_forced(
        self,
        encoded_BSE: torch.Tensor,
        padding_BS: torch.Tensor,
        targets_BL: torch.Tensor,
        teacher_forcing: float,
    ) -> torch.Tensor:
        """Logits (B, L+1, V) for the characters of `targets_BL` and the end token after them.

        At each step a clip is fed its true character with probability `teacher_forcing`, else the one that
        the decoder itself would have read.
        """
        tokens_B, state, context_BE = self.start(encoded_BSE)
        logits = []
        for position in range(targets_BL.shape[1] + 1):
            logits_BV, state, context_BE = self.step(tokens_B, state, context_BE, encoded_BSE, padding_BS)
            logits.append(logits_BV)
            if position < targets_BL.shape[1]:
                tokens_B = targets_BL[:, position]
                if teacher_forcing < 1:
                    own_B = logits_BV.detach().argmax(dim=1)
                    forced_B = torch.rand(len(own_B), device=own_B.device) < teacher_forcing
                    tokens_B = torch.where(forced_B, tokens_B, own_B)
        return torch.stack(logits, dim=1)

    @torch.no_grad()
    def greedy(
        self, encoded_BSE: torch.Tensor, padding_BS: torch.Tensor, max_chars_B: torch.Tensor
    ) -> tuple[list[list[int]], list[float]]:
        """Most likely next character until the end token or `max_chars_B`; ids and summed log-probability."""
        _, state, context_BE = self.start(encoded_BSE)

        def next_logits(tokens_B: torch.Tensor) -> torch.Tensor:
            nonlocal state, context_BE
            logits_BV, state, context_BE = self.step(tokens_B, state, context_BE, encoded_BSE, padding_BS)
            return logits_BV

        return read_greedily(next_logits, max_chars_B)
