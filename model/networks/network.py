"""The whole network: frontend, encoder and heads, as set in ModelParams.

Shapes: B clips, T frames, S encoder steps (T / temporal_stride, rounded up), L label characters, V tokens,
W syllables, F features of a step, E encoder width, C channels, (Y, X) px.
"""

from collections.abc import Collection, Mapping
from typing import NamedTuple

import torch
from torch import nn

from model.networks.conformer_encoder import ConformerEncoder
from model.networks.frontends import Cnn3dFrontend, ResNetFrontend
from model.networks.lstm import BilstmEncoder, LstmDecoder
from model.networks.network_input import Targets, step_mask
from model.networks.transformer_decoder import TransformerDecoder
from model.presets import Cnn3dSizes
from model.settings import Head, ModelParams
from model.vocabulary import Vocabulary


class Outputs(NamedTuple):
    """The outputs of the heads for a batch, float32 or the autocast type; None for a missing head."""

    num_steps_B: torch.Tensor
    ctc_logits_BSV: torch.Tensor | None
    decoder_logits_BLV: torch.Tensor | None
    """(B, L + 1, V): the characters and the end token after them."""
    reverse_logits_BLV: torch.Tensor | None
    """Like decoder_logits_BLV, for the label from its last character to its first."""
    syllable_logits_BSW: torch.Tensor | None
    sound_logits_BJV: torch.Tensor | None = None
    """Of the sound head, which the network does not have (model/networks/sound_head.py)."""


class LipNetwork(nn.Module):
    """Computes the encoder output and the logits of every head from normalised video (B, 1, T, Y, X).

    Initial weights are drawn from torch's global random state.
    """

    def __init__(self, params: ModelParams, vocabulary: Vocabulary, heads: Collection[Head]) -> None:
        super().__init__()
        sizes, dropout, num_tokens = params.sizes, params.dropout, vocabulary.characters.num_tokens
        self.temporal_stride = params.temporal_stride
        self.frontend: Cnn3dFrontend | ResNetFrontend
        self.encoder: BilstmEncoder | ConformerEncoder
        self.decoder: LstmDecoder | TransformerDecoder | None = None
        self.reverse_decoder: LstmDecoder | TransformerDecoder | None = None
        if isinstance(sizes, Cnn3dSizes):
            self.frontend = Cnn3dFrontend(sizes, params.temporal_stride)
            self.encoder = BilstmEncoder(self.frontend.num_features, sizes, dropout)
            width = self.encoder.width
            if "decoder" in heads:
                self.decoder = LstmDecoder(width, sizes, num_tokens, dropout)
            if "reverse_decoder" in heads:
                self.reverse_decoder = LstmDecoder(width, sizes, num_tokens, dropout)
        else:
            self.frontend = ResNetFrontend(sizes, params.temporal_stride)
            self.encoder = ConformerEncoder(self.frontend.num_features, sizes, dropout)
            width = self.encoder.width
            if "decoder" in heads:
                self.decoder = TransformerDecoder(width, sizes, sizes.num_decoder_layers, num_tokens, dropout)
            if "reverse_decoder" in heads:
                self.reverse_decoder = TransformerDecoder(
                    width, sizes, sizes.num_reverse_layers, num_tokens, dropout
                )
        self.ctc_head = nn.Linear(width, num_tokens) if "ctc" in heads else None
        self.syllable_head = nn.Linear(width, vocabulary.num_syllables) if "syllables" in heads else None

    def encode(
        self, video_BCTYX: torch.Tensor, num_frames_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the encoder output (B, S, E) and the clips' numbers of steps (B,).

        The numbers of steps are on the device of `num_frames_B`; on the CPU, reading them needs no wait for a GPU.
        """
        num_steps_B = (num_frames_B + self.temporal_stride - 1) // self.temporal_stride
        features_BSF, _ = self.frontend(video_BCTYX, num_frames_B.to(video_BCTYX.device, non_blocking=True))
        return self.encoder(features_BSF, num_steps_B), num_steps_B

    def ctc_logits(self, encoded_BSE: torch.Tensor) -> torch.Tensor | None:
        """Returns logits (B, S, V) of the characters, float32; None without the head."""
        return _in_float32(self.ctc_head, encoded_BSE)

    def syllable_logits(self, encoded_BSE: torch.Tensor) -> torch.Tensor | None:
        """Returns logits (B, S, W) of the syllables, float32; None without the head."""
        return _in_float32(self.syllable_head, encoded_BSE)

    def outputs(
        self,
        encoded_BSE: torch.Tensor,
        num_steps_B: torch.Tensor,
        targets: Targets,
        teacher_forcing: float = 1.0,
    ) -> Outputs:
        """Returns the outputs of every head; the attention decoders are fed `targets`."""
        padding_BS = ~step_mask(num_steps_B.to(encoded_BSE.device, non_blocking=True), encoded_BSE.shape[1])
        decoder_logits_BLV, reverse_logits_BLV = None, None
        if self.decoder is not None:
            decoder_logits_BLV = self.decoder.teacher_forced(
                encoded_BSE, padding_BS, targets.characters_BL, teacher_forcing
            )
        if self.reverse_decoder is not None:
            reverse_logits_BLV = self.reverse_decoder.teacher_forced(
                encoded_BSE, padding_BS, targets.reversed_BL, teacher_forcing
            )
        return Outputs(
            num_steps_B,
            self.ctc_logits(encoded_BSE),
            decoder_logits_BLV,
            reverse_logits_BLV,
            self.syllable_logits(encoded_BSE),
        )

    def forward(
        self,
        video_BCTYX: torch.Tensor,
        num_frames_B: torch.Tensor,
        targets: Targets,
        teacher_forcing: float = 1.0,
    ) -> Outputs:
        """Returns `outputs` of `encode`, in one call for distributed training."""
        return self.outputs(*self.encode(video_BCTYX, num_frames_B), targets, teacher_forcing)


def _in_float32(head: nn.Linear | None, encoded_BSE: torch.Tensor) -> torch.Tensor | None:
    if head is None:
        return None
    with torch.autocast(encoded_BSE.device.type, enabled=False):
        logits: torch.Tensor = head(encoded_BSE.float())
        return logits


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def differences(ours: Mapping[str, object], theirs: Mapping[str, object]) -> list[str]:
    """Returns one line for each key whose value differs, also within nested sections."""
    lines = []
    for key in sorted(ours.keys() | theirs.keys()):
        our, their = ours.get(key, "absent"), theirs.get(key, "absent")
        if isinstance(our, Mapping) and isinstance(their, Mapping):
            lines += [f"{key}.{line}" for line in differences(our, their)]
        elif our != their:
            lines.append(f"{key}: {their} there, {our} here")
    return lines
