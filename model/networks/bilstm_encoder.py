"""The baseline's encoder: a bidirectional LSTM on packed sequences, so that no padding reaches a clip.

Shapes: B clips, S encoder steps, F features of a step, E encoder width.
"""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from model.presets import Cnn3dSizes


class BilstmEncoder(nn.Module):
    """Features (B, S, F) to (B, S, E). Numbers of steps are best on the CPU: it waits for them else."""

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
        _remember(self.lstm)

    def forward(self, features_BSF: torch.Tensor, num_steps_B: torch.Tensor) -> torch.Tensor:
        device, num_steps_B = features_BSF.device, num_steps_B.cpu()
        # sorted here, not by pack_padded_sequence, whose way back waits for the device
        order_B = num_steps_B.argsort(descending=True, stable=True)
        there_B, back_B = (places.to(device, non_blocking=True) for places in (order_B, order_B.argsort()))
        # the LSTM's sums over time are kept in float32
        with torch.autocast(device.type, enabled=False):
            sorted_BSF = self.dropout(features_BSF.float()).index_select(0, there_B)
            packed = pack_padded_sequence(sorted_BSF, num_steps_B[order_B], batch_first=True)
            encoded_BSE, _ = pad_packed_sequence(
                self.lstm(packed)[0], batch_first=True, total_length=features_BSF.shape[1]
            )
            return self.dropout(encoded_BSE.index_select(0, back_B))


def _remember(lstm: nn.LSTM) -> None:
    """Opens the forget gates at the start, by a bias of 1 (Jozefowicz et al. 2015, section 2.2)."""
    for name, bias in lstm.named_parameters():
        if name.startswith("bias_ih"):
            nn.init.ones_(bias.data[lstm.hidden_size : 2 * lstm.hidden_size])
