"""The baseline's encoder and decoder.

The encoder is a bidirectional LSTM on packed sequences, so padding never affects a clip. The decoder is one LSTM cell
over characters that attends to the encoder's steps.

Shapes: B clips, S encoder steps, F features of a step, L label characters, V tokens, H hidden size, E encoder width;
while reading K texts (beams) of each clip, N = B * K texts in all; in training N = B.
"""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from model.presets import Cnn3dSizes
from model.text import START_ID


class BilstmEncoder(nn.Module):
    """Encodes features (B, S, F) into (B, S, E). Pass the numbers of steps on the CPU: else it waits for the device."""

    def __init__(self, num_features: int, sizes: Cnn3dSizes, dropout: float) -> None:
        super().__init__()
        self.width = 2 * sizes.hidden_dim
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(
            num_features,
            sizes.hidden_dim,
            sizes.num_lstm_layers,
            batch_first=True,
            bidirectional=True,
            dropout=dropout if sizes.num_lstm_layers > 1 else 0.0,
        )
        _open_forget_gates(self.lstm)

    def forward(self, features_BSF: torch.Tensor, num_steps_B: torch.Tensor) -> torch.Tensor:
        device, num_steps_B = features_BSF.device, num_steps_B.cpu()
        # sorted here: pack_padded_sequence waits for the device when it restores the order
        order_B = num_steps_B.argsort(descending=True, stable=True)
        sort_B, unsort_B = (order.to(device, non_blocking=True) for order in (order_B, order_B.argsort()))
        # the LSTM sums over time, so it runs in float32
        with torch.autocast(device.type, enabled=False):
            sorted_BSF = self.dropout(features_BSF.float()).index_select(0, sort_B)
            packed = pack_padded_sequence(sorted_BSF, num_steps_B[order_B], batch_first=True)
            encoded_BSE, _ = pad_packed_sequence(
                self.lstm(packed)[0], batch_first=True, total_length=features_BSF.shape[1]
            )
            return self.dropout(encoded_BSE.index_select(0, unsort_B))


def _open_forget_gates(lstm: nn.LSTM) -> None:
    """Initialises the biases of the forget gates to 1 (Jozefowicz et al. 2015, section 2.2)."""
    for name, bias in lstm.named_parameters():
        if name.startswith("bias_ih"):
            nn.init.ones_(bias.data[lstm.hidden_size : 2 * lstm.hidden_size])


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
        """Returns the first tokens, LSTM state and context."""
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
        """Returns logits (N, V) of the next character, and the new state and context. A clip's texts are adjacent."""
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
        """Returns logits (B, L+1, V) for the characters of `targets_BL` and the end token after them.

        After each step a clip is fed its true character with probability `teacher_forcing`, else the most likely
        character of the decoder.
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
        """Returns the decoder's state at the start of these clips."""
        return LstmStepping(self, encoded_BSE, padding_BS)


class LstmStepping:
    """The state of an LSTM decoder that reads some clips (model/decoding/attention.py)."""

    def __init__(self, decoder: LstmDecoder, encoded_BSE: torch.Tensor, padding_BS: torch.Tensor) -> None:
        self._decoder = decoder
        self._encoded_BSE, self._padding_BS = encoded_BSE, padding_BS
        _, self._state, self._context_NE = decoder.start(encoded_BSE)

    def logits(self, tokens_BK: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, K, V) of the tokens after `tokens_BK`."""
        logits_NV, self._state, self._context_NE = self._decoder.step(
            tokens_BK.flatten(), self._state, self._context_NE, self._encoded_BSE, self._padding_BS
        )
        return logits_NV.view(*tokens_BK.shape, -1)

    def reorder(self, clips_A: torch.Tensor, beams_AK: torch.Tensor) -> None:
        """Keeps only these clips and texts. All texts of a clip share the encoder output."""
        num_beams = len(self._context_NE) // len(self._encoded_BSE)
        texts_N = (clips_A[:, None] * num_beams + beams_AK).flatten()
        self._state = self._state[0][texts_N], self._state[1][texts_N]
        self._context_NE = self._context_NE[texts_N]
        if len(clips_A) < len(self._encoded_BSE):
            self._encoded_BSE, self._padding_BS = self._encoded_BSE[clips_A], self._padding_BS[clips_A]
