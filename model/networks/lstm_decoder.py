"""The baseline's decoder: one LSTM cell over characters that attends to the encoder's steps.

Shapes: B clips, S encoder steps, L label characters, V tokens, H hidden size, E encoder width;
while reading K texts (beams) of each clip, N = B * K texts in all; in training N = B.
"""

import torch
from torch import nn

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
        tokens_N: torch.Tensor,
        state: tuple[torch.Tensor, torch.Tensor],
        context_NE: torch.Tensor,
        encoded_BSE: torch.Tensor,
        padding_BS: torch.Tensor,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Logits (N, V) of the next character, and the new state and context; the texts of a clip stand together."""
        inputs_NI = torch.cat([self.dropout(self.embedding(tokens_N)), context_NE], dim=1)
        state = self.cell(inputs_NI, state)
        context_BKE, _ = self.attention(
            self.query(state[0]).unflatten(0, (len(encoded_BSE), -1)),
            encoded_BSE,
            encoded_BSE,
            key_padding_mask=padding_BS,
            need_weights=False,
        )
        context_NE = context_BKE.flatten(0, 1)
        return self.output(self.dropout(torch.cat([state[0], context_NE], dim=1))), state, context_NE

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

    def stepping(self, encoded_BSE: torch.Tensor, padding_BS: torch.Tensor) -> "LstmStepping":
        """At the start of these clips."""
        return LstmStepping(self, encoded_BSE, padding_BS)


class LstmStepping:
    """An LSTM decoder on its way through some clips (model/decoders/stepping.py)."""

    def __init__(self, decoder: LstmDecoder, encoded_BSE: torch.Tensor, padding_BS: torch.Tensor) -> None:
        self._decoder = decoder
        self._encoded_BSE, self._padding_BS = encoded_BSE, padding_BS
        _, self._state, self._context_NE = decoder.start(encoded_BSE)

    def logits(self, tokens_BK: torch.Tensor) -> torch.Tensor:
        """Logits (B, K, V) of what follows `tokens_BK`."""
        logits_NV, self._state, self._context_NE = self._decoder.step(
            tokens_BK.flatten(), self._state, self._context_NE, self._encoded_BSE, self._padding_BS
        )
        return logits_NV.view(*tokens_BK.shape, -1)

    def reorder(self, clips_A: torch.Tensor, beams_AK: torch.Tensor) -> None:
        """Goes on with these clips and texts. The encoder's side is one for all texts of a clip."""
        num_beams = len(self._context_NE) // len(self._encoded_BSE)
        texts_N = (clips_A[:, None] * num_beams + beams_AK).flatten()
        self._state = self._state[0][texts_N], self._state[1][texts_N]
        self._context_NE = self._context_NE[texts_N]
        if len(clips_A) < len(self._encoded_BSE):
            self._encoded_BSE, self._padding_BS = self._encoded_BSE[clips_A], self._padding_BS[clips_A]
