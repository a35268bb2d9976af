"""The seed model: 3D CNN, bidirectional LSTM, CTC head and attention decoder over characters.

Shapes: B clips, T frames, S encoder steps (T / temporal_stride, rounded up), L label characters,
V tokens, H hidden size, C channels, (Y, X) px.

Padding never reaches a clip: every convolution's output is zeroed behind the clip's end, which is what the
convolution would see at the end of a clip of its own, and the LSTM runs on packed sequences.
"""

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from model.settings import ModelParams
from model.text import END_ID, START_ID

# Of crops in the geometry of public lip readers (auto_avsr), as shares of white.
INPUT_MEAN, INPUT_STD = 0.421, 0.165


class ConvBlock(nn.Module):
    """3D convolution, batch normalisation, ReLU; zero behind each clip's end."""

    def __init__(
        self, num_in: int, num_out: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.temporal_stride = stride[0]
        self.convolution = nn.Conv3d(num_in, num_out, kernel, stride, padding, bias=False)
        self.norm = nn.BatchNorm3d(num_out)

    def forward(
        self, video_BCTYX: torch.Tensor, num_frames_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        num_steps_B = (num_frames_B + self.temporal_stride - 1) // self.temporal_stride
        features_BCTYX = functional.relu(self.norm(self.convolution(video_BCTYX)))
        mask_BT = step_mask(num_steps_B, features_BCTYX.shape[2])
        return features_BCTYX * mask_BT[:, None, :, None, None].to(features_BCTYX.dtype), num_steps_B


class AttentionDecoder(nn.Module):
    """One LSTM cell over characters that attends to the encoder's steps."""

    def __init__(self, params: ModelParams, num_tokens: int) -> None:
        super().__init__()
        H, encoder_dim = params.hidden_dim, 2 * params.hidden_dim
        self.embedding = nn.Embedding(num_tokens, H)
        self.cell = nn.LSTMCell(H + encoder_dim, H)
        self.query = nn.Linear(H, encoder_dim)
        self.attention = nn.MultiheadAttention(encoder_dim, params.num_heads, batch_first=True)
        self.dropout = nn.Dropout(params.dropout)
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
        tokens_B, state, context_BE = self.start(encoded_BSE)
        B = len(tokens_B)
        ids: list[list[int]] = [[] for _ in range(B)]
        log_probability_B = encoded_BSE.new_zeros(B)
        open_B = torch.ones(B, dtype=torch.bool, device=encoded_BSE.device)
        for position in range(int(max_chars_B.max())):
            logits_BV, state, context_BE = self.step(tokens_B, state, context_BE, encoded_BSE, padding_BS)
            best_B, tokens_B = functional.log_softmax(logits_BV.float(), dim=1).max(dim=1)
            open_B = open_B & (position < max_chars_B)
            log_probability_B += best_B * open_B
            open_B = open_B & (tokens_B != END_ID)
            if not open_B.any():
                break
            for clip, (token, is_open) in enumerate(zip(tokens_B.tolist(), open_B.tolist(), strict=True)):
                if is_open:
                    ids[clip].append(token)
        return ids, log_probability_B.tolist()


class Cnn3dBilstmAttention(nn.Module):
    """Video (B, 1, T, Y, X), normalised, to CTC logits and, where `with_decoder`, an attention decoder."""

    def __init__(self, params: ModelParams, num_tokens: int, with_decoder: bool) -> None:
        super().__init__()
        c0, c1, c2, c3 = params.channels
        temporal = params.temporal_stride
        self.frontend = nn.ModuleList(
            [
                ConvBlock(1, c0, (5, 5, 5), (temporal, 2, 2)),
                ConvBlock(c0, c1, (3, 3, 3), (1, 2, 2)),
            ]
        )
        self.middle = ConvBlock(c1, c2, (3, 3, 3), (1, 2, 2))
        self.backend = ConvBlock(c2, c3, (3, 3, 3), (1, 1, 1))
        self.pool_grid = params.pool_grid
        self.dropout = nn.Dropout(params.dropout)
        self.encoder = nn.LSTM(
            c3 * params.pool_grid**2,
            params.hidden_dim,
            params.num_lstm_layers,
            batch_first=True,
            bidirectional=True,
            dropout=params.dropout if params.num_lstm_layers > 1 else 0.0,
        )
        _remember(self.encoder)
        self.ctc_head = nn.Linear(2 * params.hidden_dim, num_tokens)
        self.decoder = AttentionDecoder(params, num_tokens) if with_decoder else None

    def encode(
        self, video_BCTYX: torch.Tensor, num_frames_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoder output (B, S, 2H) and the clips' numbers of steps (B,)."""
        features, num_steps_B = video_BCTYX, num_frames_B
        for block in [*self.frontend, self.middle, self.backend]:
            features, num_steps_B = block(features, num_steps_B)
        B, C, S, _, _ = features.shape
        grid = self.pool_grid
        if features.shape[3:] != (grid, grid):
            features = functional.adaptive_avg_pool3d(features, (S, grid, grid))
        features_BSF = features.permute(0, 2, 1, 3, 4).reshape(B, S, C * grid * grid)
        # the LSTM's sums over time are kept in float32
        with torch.autocast(features_BSF.device.type, enabled=False):
            packed = pack_padded_sequence(
                self.dropout(features_BSF.float()),
                num_steps_B.cpu(),
                batch_first=True,
                enforce_sorted=False,
            )
            encoded_BSE, _ = pad_packed_sequence(self.encoder(packed)[0], batch_first=True, total_length=S)
            return self.dropout(encoded_BSE), num_steps_B

    def ctc_logits(self, encoded_BSE: torch.Tensor) -> torch.Tensor:
        """Logits (B, S, V), float32."""
        with torch.autocast(encoded_BSE.device.type, enabled=False):
            return self.ctc_head(encoded_BSE.float())


def _remember(lstm: nn.LSTM) -> None:
    """Opens the forget gates at the start, by a bias of 1 (Jozefowicz et al. 2015, section 2.2)."""
    for name, bias in lstm.named_parameters():
        if name.startswith("bias_ih"):
            nn.init.ones_(bias.data[lstm.hidden_size : 2 * lstm.hidden_size])


def step_mask(num_steps_B: torch.Tensor, num_steps: int) -> torch.Tensor:
    """(B, num_steps) bool: true where a clip has a step."""
    return torch.arange(num_steps, device=num_steps_B.device) < num_steps_B[:, None]
