"""The presets of `model.preset`, with the sizes of each network.

A preset's sizes are defaults: `model.sizes` in params.yaml overrides them.
"""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, model_validator

from shards.settings import Section

Channels = Annotated[int, Field(ge=1, le=4_096)]


class Cnn3dSizes(Section):
    """Sizes of the baseline: four 3D convolutions, a bidirectional LSTM, an LSTM decoder with attention."""

    channels: tuple[Channels, Channels, Channels, Channels] = Field(
        (32, 64, 128, 256), description="of the four 3D convolutions: frontend, frontend, middle, backend"
    )
    pool_grid: int = Field(
        1, ge=1, le=8, description="cells a side kept by the pooling over space; 1: global"
    )
    hidden_dim: int = Field(256, ge=8, le=4_096, description="of one direction of the LSTM, and the decoder")
    num_lstm_layers: int = Field(2, ge=1, le=8, description="layers of the bidirectional LSTM")
    num_heads: int = Field(4, ge=1, le=64, description="heads of the decoder's attention")

    @model_validator(mode="after")
    def _heads_divide(self) -> "Cnn3dSizes":
        if (2 * self.hidden_dim) % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide 2 * hidden_dim = {2 * self.hidden_dim}")
        return self


class ConformerSizes(Section):
    """Sizes of the conformer presets: 3D stem and ResNet, Conformer encoder, Transformer decoders."""

    channels: tuple[Channels, Channels, Channels, Channels] = Field(
        (64, 128, 256, 512), description="of the ResNet's four stages; the stem has the first one's"
    )
    blocks_per_stage: int = Field(2, ge=1, le=8, description="of the ResNet; 2: ResNet-18")
    pool_grid: int = Field(
        1, ge=1, le=8, description="cells a side kept by the pooling over space; 1: global"
    )
    hidden_dim: int = Field(768, ge=8, le=4_096, description="width of encoder and decoders")
    num_heads: int = Field(12, ge=1, le=64, description="of every attention")
    feed_forward_dim: int = Field(3_072, ge=8, le=16_384)
    num_encoder_layers: int = Field(12, ge=1, le=64, description="Conformer blocks")
    conv_kernel: int = Field(31, ge=3, le=127, description="of the blocks' convolution over time, steps; odd")
    num_decoder_layers: int = Field(6, ge=1, le=32)
    num_reverse_layers: int = Field(3, ge=1, le=32, description="of the decoder that reads backwards")

    @model_validator(mode="after")
    def _fits(self) -> "ConformerSizes":
        if self.hidden_dim % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide hidden_dim {self.hidden_dim}")
        if self.conv_kernel % 2 == 0:
            raise ValueError(
                f"conv_kernel {self.conv_kernel} must be odd, with as many steps before as after"
            )
        return self


Sizes = Cnn3dSizes | ConformerSizes

PRESET_SIZES: Mapping[str, Sizes] = {
    "cnn3d_bilstm_attention": Cnn3dSizes(),
    "conformer_tiny": ConformerSizes(
        channels=(16, 32, 64, 128),
        blocks_per_stage=1,
        hidden_dim=176,
        num_heads=4,
        feed_forward_dim=704,
        num_encoder_layers=4,
        num_decoder_layers=1,
        num_reverse_layers=1,
    ),
    "conformer_small": ConformerSizes(
        hidden_dim=256,
        num_heads=4,
        feed_forward_dim=1_024,
        num_encoder_layers=10,
        num_decoder_layers=3,
        num_reverse_layers=2,
    ),
    "conformer_base": ConformerSizes(
        hidden_dim=512,
        num_heads=8,
        feed_forward_dim=2_048,
        num_encoder_layers=10,
        num_decoder_layers=4,
        num_reverse_layers=2,
    ),
    "conformer_large": ConformerSizes(),
}
