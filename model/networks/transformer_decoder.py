"""Transformer decoder over characters (Vaswani et al. 2017; layer norm before each part, Xiong et al. 2020).

Shapes: B clips, S encoder steps, L characters, V tokens, E encoder width, W decoder width, H heads, D = W / H;
while reading K texts (beams) of each clip, N = B * K texts in all.
"""

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from model.networks.conformer_encoder import NORM_EPSILON, FeedForward, sinusoids
from model.presets import ConformerSizes
from model.text import START_ID

KeysValues = tuple[torch.Tensor, torch.Tensor]
"""Keys and values of one attention, (B, H, S or L, D) each."""


class Attention(nn.Module):
    """Multi-head attention. Keys and values are separate from the queries, so they are computed only once."""

    def __init__(self, width: int, source_width: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(source_width, width)
        self.value = nn.Linear(source_width, width)
        self.output = nn.Linear(width, width)

    def keys_values(self, source: torch.Tensor) -> KeysValues:
        return self._heads(self.key(source)), self._heads(self.value(source))

    def forward(
        self,
        inputs_BLW: torch.Tensor,
        keys_values: KeysValues,
        shown_B11S: torch.Tensor | None = None,
        causal: bool = False,
    ) -> torch.Tensor:
        attended_BHLD = functional.scaled_dot_product_attention(
            self._heads(self.query(inputs_BLW)),
            *keys_values,
            attn_mask=shown_B11S,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=causal,
        )
        return self.output(attended_BHLD.transpose(1, 2).flatten(2))

    def _heads(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.unflatten(2, (self.num_heads, -1)).transpose(1, 2)


class DecoderBlock(nn.Module):
    """Attention to the characters so far, attention to the encoder's steps, feed-forward."""

    def __init__(self, encoder_width: int, sizes: ConformerSizes, dropout: float) -> None:
        super().__init__()
        width = sizes.hidden_dim
        self.norm_self_attention = nn.LayerNorm(width, NORM_EPSILON)
        self.self_attention = Attention(width, width, sizes.num_heads, dropout)
        self.norm_cross_attention = nn.LayerNorm(width, NORM_EPSILON)
        self.cross_attention = Attention(width, encoder_width, sizes.num_heads, dropout)
        self.norm_feed_forward = nn.LayerNorm(width, NORM_EPSILON)
        self.feed_forward = FeedForward(width, sizes.feed_forward_dim, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLW: torch.Tensor, encoded: KeysValues, shown_B11S: torch.Tensor) -> torch.Tensor:
        """Returns the output for the first characters of each text; each character sees only those before it."""
        inner_BLW = self.norm_self_attention(x_BLW)
        known = self.self_attention.keys_values(inner_BLW)
        x_BLW = x_BLW + self.dropout(self.self_attention(inner_BLW, known, causal=True))
        return self._attend_to_encoder(x_BLW, encoded, shown_B11S)

    def next(
        self, x_BKW: torch.Tensor, encoded: KeysValues, shown_B11S: torch.Tensor, past: KeysValues | None
    ) -> tuple[torch.Tensor, KeysValues]:
        """Returns the output for one more character of each text, and the keys and values (N, H, L, D) up to it."""
        inner_N1W = self.norm_self_attention(x_BKW).flatten(0, 1)[:, None]
        known = self.self_attention.keys_values(inner_N1W)
        if past is not None:
            known = torch.cat([past[0], known[0]], dim=2), torch.cat([past[1], known[1]], dim=2)
        x_BKW = x_BKW + self.dropout(self.self_attention(inner_N1W, known).view(x_BKW.shape))
        return self._attend_to_encoder(x_BKW, encoded, shown_B11S), known

    def _attend_to_encoder(
        self, x_BLW: torch.Tensor, encoded: KeysValues, shown_B11S: torch.Tensor
    ) -> torch.Tensor:
        """Applies the layers after self-attention to each of the L characters (or texts) independently."""
        inner_BLW = self.norm_cross_attention(x_BLW)
        x_BLW = x_BLW + self.dropout(self.cross_attention(inner_BLW, encoded, shown_B11S))
        return x_BLW + self.dropout(self.feed_forward(self.norm_feed_forward(x_BLW)))


class TransformerDecoder(nn.Module):
    """Computes next-character logits from the encoder's output and the characters so far."""

    def __init__(
        self, encoder_width: int, sizes: ConformerSizes, num_layers: int, num_tokens: int, dropout: float
    ) -> None:
        super().__init__()
        self.width = sizes.hidden_dim
        self.embedding = nn.Embedding(num_tokens, self.width)
        nn.init.normal_(self.embedding.weight, std=self.width**-0.5)  # `embedded` scales it to 1
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(DecoderBlock(encoder_width, sizes, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(self.width, NORM_EPSILON)
        self.output = nn.Linear(self.width, num_tokens)

    def logits(
        self, encoded_BSE: torch.Tensor, padding_BS: torch.Tensor, fed_BL: torch.Tensor
    ) -> torch.Tensor:
        """Returns logits (B, L, V) of the token after each of `fed_BL`, int64, which begins with the start token."""
        x_BLW, shown_B11S = self.embedded(fed_BL, 0), ~padding_BS[:, None, None]
        for block, encoded in zip(self.blocks, self.encoded(encoded_BSE), strict=True):
            x_BLW = block(x_BLW, encoded, shown_B11S)
        return self.output(self.norm(x_BLW))

    def teacher_forced(
        self,
        encoded_BSE: torch.Tensor,
        padding_BS: torch.Tensor,
        targets_BL: torch.Tensor,
        teacher_forcing: float,
    ) -> torch.Tensor:
        """Returns logits (B, L+1, V) for the characters of `targets_BL` and the end token after them.

        It uses one pass over the true characters. `teacher_forcing`, the LSTM decoder's scheduled sampling, is ignored,
        since feeding the decoder's own characters would need L passes in sequence.
        """
        del teacher_forcing
        return self.logits(encoded_BSE, padding_BS, functional.pad(targets_BL, (1, 0), value=START_ID))

    def stepping(self, encoded_BSE: torch.Tensor, padding_BS: torch.Tensor) -> "TransformerStepping":
        """Returns the decoder's state at the start of these clips."""
        return TransformerStepping(self, encoded_BSE, padding_BS)

    def encoded(self, encoded_BSE: torch.Tensor) -> list[KeysValues]:
        """Returns each block's keys and values of the encoder's steps: the same for every character."""
        blocks = cast(Iterable[DecoderBlock], self.blocks)
        return [block.cross_attention.keys_values(encoded_BSE) for block in blocks]

    def embedded(self, tokens_BL: torch.Tensor, first: int) -> torch.Tensor:
        """Embeds tokens at positions `first`, `first` + 1, …, scaled as in Vaswani et al. 2017, section 3.4."""
        positions_L = torch.arange(first, first + tokens_BL.shape[1], device=tokens_BL.device)
        x_BLW = self.embedding(tokens_BL) * math.sqrt(self.width)
        return self.dropout(x_BLW + sinusoids(positions_L, self.width).to(x_BLW.dtype))


class TransformerStepping:
    """The state of a Transformer decoder that reads some clips (model/decoding/attention.py)."""

    def __init__(
        self, decoder: TransformerDecoder, encoded_BSE: torch.Tensor, padding_BS: torch.Tensor
    ) -> None:
        self._decoder = decoder
        self._encoded = decoder.encoded(encoded_BSE)
        self._shown_B11S = ~padding_BS[:, None, None]
        self._past: list[KeysValues | None] = [None] * len(decoder.blocks)
        self._position = 0
        self._num_beams = 1

    def logits(self, tokens_BK: torch.Tensor) -> torch.Tensor:
        """Returns logits (B, K, V) of the tokens after `tokens_BK`."""
        decoder, self._num_beams = self._decoder, tokens_BK.shape[1]
        x_N1W = decoder.embedded(tokens_BK.flatten()[:, None], self._position)
        self._position += 1
        x_BKW = x_N1W.view(*tokens_BK.shape, -1)
        for layer, block in enumerate(cast(Iterable[DecoderBlock], decoder.blocks)):
            x_BKW, self._past[layer] = block.next(
                x_BKW, self._encoded[layer], self._shown_B11S, self._past[layer]
            )
        logits_BKV: torch.Tensor = decoder.output(decoder.norm(x_BKW))
        return logits_BKV

    def reorder(self, clips_A: torch.Tensor, beams_AK: torch.Tensor) -> None:
        """Keeps only these clips and texts. All texts of a clip share the encoder output."""
        texts_N = (clips_A[:, None] * self._num_beams + beams_AK).flatten()
        self._past = [past and (past[0][texts_N], past[1][texts_N]) for past in self._past]
        if len(clips_A) < len(self._shown_B11S):
            self._encoded = [(keys[clips_A], values[clips_A]) for keys, values in self._encoded]
            self._shown_B11S = self._shown_B11S[clips_A]
