"""A trained lip reader: frames in, text out. Scoring and inference read with this one class."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import ValidationError
from torch.nn import functional

from model.augment import network_input
from model.checkpoints import load_checkpoint
from model.cnn3d_bilstm_attention import Cnn3dBilstmAttention, step_mask
from model.decoding import greedy_ctc
from model.device import Precision
from model.network import build_network
from model.settings import DecodeParams, ModelParams, TextParams
from model.text import Tokenizer
from shards.errors import CheckpointError, ConfigError


@dataclass(frozen=True, slots=True)
class Reading:
    """What was read from one clip."""

    text: str
    score: float
    """Log-probability a character, nats; the blank path's for an empty text."""


@dataclass
class LipReader:
    """A network with all it takes to read."""

    network: Cnn3dBilstmAttention
    tokenizer: Tokenizer
    model: ModelParams
    text: TextParams
    fps: float
    device: torch.device
    precision: Precision
    ctc_weight: float
    crop_px: int
    """Side of the mouth crops it was trained on."""
    epoch: int = -1

    @classmethod
    def from_checkpoint(cls, path: Path, device: torch.device) -> "LipReader":
        """In float32 on `device`. Raises CheckpointError as `load_checkpoint` does."""
        state = load_checkpoint(path)
        try:
            model = ModelParams.model_validate(state["model_params"])
        except ValidationError as error:
            raise CheckpointError(
                f"checkpoint {path} is of a model that this program does not know: {error.errors()[0]['loc']} "
                f"{error.errors()[0]['msg']}"
            ) from error
        tokenizer = Tokenizer.from_json(state["tokenizer"], str(path))
        network = build_network(model, tokenizer.num_tokens, state["with_decoder"])
        network.load_state_dict(state["model_state_dict"])
        network.to(device).eval()
        text = TextParams.model_validate(state["text_params"])
        return cls(
            network,
            tokenizer,
            model,
            text,
            state["fps"],
            device,
            Precision(None),
            state["ctc_weight"],
            state["crop_px"],
            epoch=state["epoch"],
        )

    def encode(
        self, video_BTHW: torch.Tensor, num_frames_B: torch.Tensor, blind: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encoder output (B, S, E) and number of steps (B,) of uint8 clips."""
        num_frames_B = num_frames_B.to(self.device)
        inputs = network_input(video_BTHW.to(self.device), num_frames_B, self.model, blind)
        with self.precision.autocast(self.device):
            return self.network.encode(as_channels_last(inputs), num_frames_B)

    def decode(
        self,
        encoded_BSE: torch.Tensor,
        num_steps_B: torch.Tensor,
        num_frames_B: torch.Tensor,
        params: DecodeParams,
    ) -> list[Reading]:
        """Greedy text of each clip, by the decoder that `params` names."""
        decoder = params.decoder
        if decoder == "auto":
            decoder = "ctc" if self.network.decoder is None else "attention"
        if decoder == "ctc" and self.ctc_weight == 0:
            raise ConfigError(
                "decode.decoder: this model was trained with ctc_weight 0: its CTC head knows nothing"
            )
        if decoder == "attention":
            if self.network.decoder is None:
                raise ConfigError(
                    "decode.decoder: this model was trained with ctc_weight 1: it has no attention decoder"
                )
            padding_BS = ~step_mask(num_steps_B, encoded_BSE.shape[1])
            duration_s_B = num_frames_B.to(self.device) / self.fps
            max_chars_B = (duration_s_B * params.max_chars_per_s).ceil().long().clamp(min=1)
            ids, scores = self.network.decoder.greedy(encoded_BSE, padding_BS, max_chars_B)
            return [self._reading(i, s) for i, s in zip(ids, scores, strict=True)]
        log_probs_BSV = functional.log_softmax(self.network.ctc_logits(encoded_BSE), dim=2).cpu().numpy()
        paths = [
            greedy_ctc(log_probs_SV[:steps])
            for log_probs_SV, steps in zip(log_probs_BSV, num_steps_B.tolist(), strict=True)
        ]
        return [self._reading(i, s) for i, s in paths]

    @torch.no_grad()
    def read(
        self,
        video_BTHW: torch.Tensor,
        num_frames_B: torch.Tensor,
        params: DecodeParams,
        blind: bool = False,
    ) -> list[Reading]:
        """Text of each uint8 clip; `blind` shows the model each clip's mean frame only."""
        assert not self.network.training, "a reader scores in eval mode"
        encoded_BSE, num_steps_B = self.encode(video_BTHW, num_frames_B, blind)
        return self.decode(encoded_BSE, num_steps_B, num_frames_B, params)

    def read_clip(self, clip_THW: np.ndarray, params: DecodeParams) -> Reading:
        """Text of one uint8 clip."""
        video_BTHW = torch.from_numpy(np.ascontiguousarray(clip_THW))[None]
        return self.read(video_BTHW, torch.tensor([len(clip_THW)]), params)[0]

    def _reading(self, ids: Sequence[int], log_probability: float) -> Reading:
        return Reading(self.tokenizer.decode(ids), log_probability / max(len(ids), 1))


def as_channels_last(video_BCTYX: torch.Tensor) -> torch.Tensor:
    """The memory order in which 3D convolutions run faster (docs/benchmarks.md)."""
    return video_BCTYX.contiguous(memory_format=torch.channels_last_3d)
