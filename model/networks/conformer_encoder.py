"""Conformer encoder (Gulati et al. 2020) with the relative positions of Transformer-XL (Dai et al. 2019).

Shapes: B clips, S encoder steps, F features of a step, E encoder width, H heads, D = E / H,
R = 2 S - 1 offsets from one step to another.

In eval mode padding never affects a clip: the attention masks its keys, and the depthwise convolution sees zeros after
a clip's end, the same as for a clip without padding. In training BatchNorm's mean and variance include the padding of
the batch.
"""

import math

import torch
from torch import nn
from torch.nn import functional

from model.networks.network_input import step_mask
from model.presets import ConformerSizes

# For every layer norm. Tensors of the public encoders show this value: 1e-6 off, but 5e-5 off with torch's 1e-5.
NORM_EPSILON = 1e-12


def sinusoids(positions_P: torch.Tensor, width: int) -> torch.Tensor:
    """Returns (P, width) float32: alternately sine and cosine of each position, at width / 2 frequencies.

    Vaswani et al. 2017, section 3.5. Positions may be negative.
    """
    even = torch.arange(0, width, 2, dtype=torch.float32, device=positions_P.device)
    angles = positions_P.float()[:, None] * torch.exp(even * (-math.log(10_000) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]


def offset_sinusoids(num_steps: int, width: int, device: torch.device) -> torch.Tensor:
    """Returns (R, width) float32 for the offsets from a query to a key, S - 1 (the key is first) down to 1 - S."""
    return sinusoids(torch.arange(num_steps - 1, -num_steps, -1, device=device), width)


class FeedForward(nn.Module):
    """Passes each step separately through a wider layer."""

    def __init__(self, width: int, inner_width: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(width, inner_width)
        self.contract = nn.Linear(inner_width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs_BSE: torch.Tensor) -> torch.Tensor:
        return self.contract(self.dropout(functional.relu(self.expand(inputs_BSE))))


class RelativeAttention(nn.Module):
    """Self-attention whose scores depend on the distance between two steps, not on their positions.

    The score of query i and key j is ((q_i + content_bias) · k_j + (q_i + position_bias) · p_(i - j)) / sqrt(D),
    p being the projected sinusoids of the offset (Dai et al. 2019, section 3.3).
    """

    def __init__(self, width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.position = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width)
        self.content_bias = nn.Parameter(torch.zeros(num_heads, width // num_heads))
        self.position_bias = nn.Parameter(torch.zeros(num_heads, width // num_heads))

    def forward(
        self, inputs_BSE: torch.Tensor, offsets_RE: torch.Tensor, padding_BS: torch.Tensor
    ) -> torch.Tensor:
        query_BHSD, key_BHSD, value_BHSD = (
            self._heads(layer(inputs_BSE)) for layer in (self.query, self.key, self.value)
        )
        position_1HRD = self._heads(self.position(offsets_RE)[None])
        position_query_BHSD = query_BHSD + self.position_bias[:, None].to(query_BHSD.dtype)
        scores_BHSR = (position_query_BHSD @ position_1HRD.transpose(2, 3)) * query_BHSD.shape[3] ** -0.5
        scores_BHSS = by_key(scores_BHSR).masked_fill(padding_BS[:, None, None], -math.inf)
        attended_BHSD = functional.scaled_dot_product_attention(
            query_BHSD + self.content_bias[:, None].to(query_BHSD.dtype),
            key_BHSD,
            value_BHSD,
            attn_mask=scores_BHSS,
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.output(attended_BHSD.transpose(1, 2).flatten(2))

    def _heads(self, inputs_BSE: torch.Tensor) -> torch.Tensor:
        B, S, _ = inputs_BSE.shape
        # an ONNX export would freeze the sizes of unflatten
        return inputs_BSE.view(B, S, self.num_heads, -1).transpose(1, 2)


def by_key(scores_BHSR: torch.Tensor) -> torch.Tensor:
    """Returns (B, H, S, S): the scores of keys 0 to S - 1 for each query, from scores in `offset_sinusoids` order.

    Row i of the result is row i of the input from column S - 1 - i on. With a column added in front and the first S
    values removed, each row of R values starts one column further left (Dai et al. 2019, appendix B).
    """
    B, H, S, R = scores_BHSR.shape
    return functional.pad(scores_BHSR, (1, 0)).flatten(2)[:, :, S:].view(B, H, S, R)[:, :, :, :S]


class Convolution(nn.Module):
    """Gated expansion, depthwise convolution over time, batch normalisation, SiLU (Gulati et al., figure 2)."""

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 2 * width)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.BatchNorm1d(width)
        self.contract = nn.Linear(width, width)

    def forward(self, inputs_BSE: torch.Tensor, padding_BS: torch.Tensor) -> torch.Tensor:
        gated_BSE = functional.glu(self.expand(inputs_BSE), dim=2).masked_fill(padding_BS[:, :, None], 0)
        mixed_BES = functional.silu(self.norm(self.depthwise(gated_BSE.transpose(1, 2))))
        return self.contract(mixed_BES.transpose(1, 2))


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward; each is residual (Gulati et al., eq. 1)."""

    def __init__(self, sizes: ConformerSizes, dropout: float) -> None:
        super().__init__()
        width = sizes.hidden_dim
        self.norm_first_feed_forward = nn.LayerNorm(width, NORM_EPSILON)
        self.first_feed_forward = FeedForward(width, sizes.feed_forward_dim, dropout)
        self.norm_attention = nn.LayerNorm(width, NORM_EPSILON)
        self.attention = RelativeAttention(width, sizes.num_heads, dropout)
        self.norm_convolution = nn.LayerNorm(width, NORM_EPSILON)
        self.convolution = Convolution(width, sizes.conv_kernel)
        self.norm_second_feed_forward = nn.LayerNorm(width, NORM_EPSILON)
        self.second_feed_forward = FeedForward(width, sizes.feed_forward_dim, dropout)
        self.norm_output = nn.LayerNorm(width, NORM_EPSILON)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x_BSE: torch.Tensor, offsets_RE: torch.Tensor, padding_BS: torch.Tensor
    ) -> torch.Tensor:
        x_BSE = x_BSE + 0.5 * self.dropout(self.first_feed_forward(self.norm_first_feed_forward(x_BSE)))
        x_BSE = x_BSE + self.dropout(self.attention(self.norm_attention(x_BSE), offsets_RE, padding_BS))
        x_BSE = x_BSE + self.dropout(self.convolution(self.norm_convolution(x_BSE), padding_BS))
        x_BSE = x_BSE + 0.5 * self.dropout(self.second_feed_forward(self.norm_second_feed_forward(x_BSE)))
        return self.norm_output(x_BSE)


class ConformerEncoder(nn.Module):
    """Encodes the features of each step into `width` numbers."""

    def __init__(self, num_features: int, sizes: ConformerSizes, dropout: float) -> None:
        super().__init__()
        self.width = sizes.hidden_dim
        self.project = nn.Linear(num_features, self.width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(ConformerBlock(sizes, dropout) for _ in range(sizes.num_encoder_layers))
        self.norm = nn.LayerNorm(self.width, NORM_EPSILON)

    def forward(self, features_BSF: torch.Tensor, num_steps_B: torch.Tensor) -> torch.Tensor:
        """Returns the encoder output (B, S, E) of features (B, S, F); after a clip's end it is finite but undefined."""
        S = features_BSF.shape[1]
        padding_BS = ~step_mask(num_steps_B.to(features_BSF.device, non_blocking=True), S)
        offsets_RE = self.dropout(offset_sinusoids(S, self.width, features_BSF.device))
        x_BSE = self.dropout(self.project(features_BSF) * math.sqrt(self.width))
        for block in self.blocks:
            x_BSE = block(x_BSE, offsets_RE, padding_BS)
        return self.norm(x_BSE)
