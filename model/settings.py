"""The sections of params.yaml that `model` owns."""

from typing import Literal

from pydantic import Field, model_validator

from shards.settings import Section


class TextParams(Section):
    """The declared normaliser: how a transcript becomes a label (model/text.py)."""

    case_fold: bool = Field(True, description="A and a are one character")
    drop_punctuation: bool = Field(True, description="punctuation and symbols are no part of a label")


class ModelParams(Section):
    """Size and shape of the network: a checkpoint of other values is refused."""

    preset: Literal["cnn3d_bilstm_attention"] = Field("cnn3d_bilstm_attention", description="architecture")
    window_px: int = Field(
        96,
        ge=16,
        le=512,
        description="side of the crop's middle that the network sees, at most crop.size_px, px",
    )
    frame_height: int = Field(
        96, ge=16, le=512, description="input height, the window resized on the device, px"
    )
    frame_width: int = Field(
        96, ge=16, le=512, description="input width, the window resized on the device, px"
    )
    channels: tuple[int, int, int, int] = Field(
        (32, 64, 128, 256), description="of the four 3D convolutions: frontend, frontend, middle, backend"
    )
    subtract_mean: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the clip's mean frame taken from each frame: 1 leaves the motion",
    )
    standardise: Literal["fixed", "clip"] = Field(
        "fixed",
        description="gray levels by the mean and deviation of public lip readers' crops, or of each clip",
    )
    temporal_stride: Literal[1, 2] = Field(1, description="input frames for one encoder step")
    pool_grid: int = Field(
        1, ge=1, le=8, description="cells a side kept by the pooling over space; 1: global"
    )
    hidden_dim: int = Field(256, ge=8, le=4_096, description="of one direction of the LSTM, and the decoder")
    num_lstm_layers: int = Field(2, ge=1, le=8, description="layers of the bidirectional LSTM")
    num_heads: int = Field(4, ge=1, le=64, description="heads of the decoder's attention")
    dropout: float = Field(0.3, ge=0, lt=1, description="between layers")

    @model_validator(mode="after")
    def _heads_divide(self) -> "ModelParams":
        if (2 * self.hidden_dim) % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} must divide 2 * hidden_dim = {2 * self.hidden_dim}")
        return self


class AugmentParams(Section):
    """Changes to training clips, made on the device; none in scoring. 0 switches one off."""

    flip: bool = Field(True, description="mirror half of the clips")
    zoom_sigma: float = Field(0.0, ge=0, le=0.5, description="height and width, each by exp(N(0, sigma))")
    shift_px: float = Field(0.0, ge=0, le=32, description="largest shift of the picture, crop px")
    warp_sigma: float = Field(0.0, ge=0, le=0.5, description="speed of the clip, by exp(N(0, sigma))")
    gain_sigma: float = Field(0.0, ge=0, le=0.5, description="contrast and brightness")
    time_masks_per_s: float = Field(0.0, ge=0, le=5, description="masks that hold the clip's mean frame, 1/s")
    time_mask_s: float = Field(0.4, ge=0, le=2, description="longest mask, s")


class TrainParams(Section):
    """The optimiser and the loop. Names and defaults are those of the trainer this replaces."""

    batch_size: int = Field(8, ge=1, description="clips in a batch, at most")
    accumulation_steps: int = Field(4, ge=1, description="batches for one optimiser step")
    learning_rate: float = Field(1e-4, gt=0, le=1, description="peak, after the warm-up")
    weight_decay: float = Field(0.01, ge=0, description="of AdamW")
    num_epochs: int = Field(100, ge=1)
    warmup_epochs: float = Field(5, ge=0, description="linear rise of the learning rate, epochs")
    scheduler: Literal["cosine", "constant"] = Field("cosine", description="after the warm-up, by step")
    gradient_clip: float = Field(5.0, gt=0, description="largest norm of the gradient")
    label_smoothing: float = Field(0.1, ge=0, lt=1, description="of the attention decoder's loss")
    ctc_weight: float = Field(0.3, ge=0, le=1, description="share of the CTC loss; 1: no attention decoder")
    teacher_forcing: float = Field(1.0, ge=0, le=1, description="share of true characters fed, first epoch")
    teacher_forcing_end: float = Field(0.5, ge=0, le=1, description="the same, last epoch; linear between")
    mixed_precision: bool = Field(True, description="bfloat16 (float16 where a GPU lacks it)")
    seed: int = Field(0, ge=0, description="initial weights, dropout, teacher forcing")
    valid_every: int = Field(1, ge=1, description="epochs from one validation to the next")
    checkpoint_every: int = Field(10, ge=1, description="epochs from one checkpoint_epoch_N.pt to the next")
    augment: AugmentParams = AugmentParams()


class DecodeParams(Section):
    """How the network's output becomes text."""

    decoder: Literal["auto", "ctc", "attention"] = Field(
        "auto", description="greedy CTC or greedy attention; auto: attention where it was trained"
    )
    max_chars_per_s: float = Field(12.0, gt=0, description="where the attention decoder stops, characters/s")
