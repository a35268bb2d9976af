"""Sound as a teacher: a linear head that predicts sound tokens from the encoder's output (SyncVSR, Ahn et al. 2024).

It exists in training only, outside the network that is saved and exported as the model. Sound tokens are the nearest of
V centres to a log-mel vector and its change over time.
Shapes: B clips, T frames, K vectors of a frame, M bands, J = 4T vectors of a clip, D = 2M features of a vector,
V tokens, S encoder steps, E encoder width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from model.networks.network import LipNetwork, Outputs
from model.networks.network_input import Targets
from shards.sound import VECTORS_A_FRAME

IGNORED = -100
"""Token of padding and of silent clips."""


class SoundTokens(NamedTuple):
    """The centres of k-means over standardised features of sound."""

    mean_D: torch.Tensor
    deviation_D: torch.Tensor
    centre_VD: torch.Tensor

    def of(self, audio_BTKM: torch.Tensor) -> torch.Tensor:
        """Returns the token of each vector (B, J), int64."""
        mean_D, deviation_D, centre_VD = (tensor.to(audio_BTKM.device, non_blocking=True) for tensor in self)
        features_BJD = (sound_features(audio_BTKM) - mean_D) / deviation_D
        return nearest(features_BJD, centre_VD)


def sound_features(audio_BTKM: torch.Tensor) -> torch.Tensor:
    """Returns each log-mel vector and its difference from the previous one (B, J, D), float32."""
    vectors_BJM = audio_BTKM.flatten(1, 2).float()
    change_BJM = functional.pad(vectors_BJM.diff(dim=1), (0, 0, 1, 0))
    return torch.cat([vectors_BJM, change_BJM], dim=2)


def nearest(features_ND: torch.Tensor, centre_VD: torch.Tensor) -> torch.Tensor:
    """Returns the number of the nearest centre of each vector."""
    with torch.autocast(features_ND.device.type, enabled=False):
        return (features_ND @ centre_VD.T - centre_VD.square().sum(dim=1) / 2).argmax(dim=-1)


def sound_targets(
    tokens_BJ: torch.Tensor,
    num_frames_B: torch.Tensor,
    played_frames_B: torch.Tensor,
    speeds: Sequence[float],
    has_audio_B: torch.Tensor,
) -> torch.Tensor:
    """Returns the tokens of clips that are played at `speeds` (B, J'); `IGNORED` outside clips and for silent ones.

    Vector j of the result lasts from j to j + 1 quarters of a frame; its middle was at (j + 1/2) speed in the clip.
    """
    place_J = torch.arange(int(played_frames_B.max()) * VECTORS_A_FRAME, dtype=torch.float64)
    speed_B1 = torch.tensor(speeds, dtype=torch.float64)[:, None]
    last_B1 = VECTORS_A_FRAME * num_frames_B[:, None].cpu() - 1
    source_BJ = torch.minimum(((place_J + 0.5) * speed_B1).long(), last_B1)
    inside_BJ = (place_J < VECTORS_A_FRAME * played_frames_B[:, None].cpu()) & has_audio_B[:, None].cpu()
    device = tokens_BJ.device
    found_BJ = tokens_BJ.gather(1, source_BJ.to(device, non_blocking=True))
    return found_BJ.masked_fill(~inside_BJ.to(device, non_blocking=True), IGNORED)


class SoundHead(nn.Linear):
    """Predicts the tokens of all vectors of an encoder step."""

    def __init__(self, network: LipNetwork, num_tokens: int) -> None:
        self.vectors_a_step = VECTORS_A_FRAME * network.temporal_stride
        super().__init__(network.encoder.width, self.vectors_a_step * num_tokens)

    def logits(self, encoded_BSE: torch.Tensor) -> torch.Tensor:
        """Returns logits of each vector (B, J, V), float32; J is rounded up to whole steps."""
        with torch.autocast(encoded_BSE.device.type, enabled=False):
            logits_BSO: torch.Tensor = self(encoded_BSE.float())
        return logits_BSO.unflatten(2, (self.vectors_a_step, -1)).flatten(1, 2)


class SoundLearner(nn.Module):
    """The network and the sound head: what training with sound calls, also distributed."""

    def __init__(self, network: LipNetwork, head: SoundHead) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(
        self,
        video_BCTYX: torch.Tensor,
        num_frames_B: torch.Tensor,
        targets: Targets,
        teacher_forcing: float = 1.0,
    ) -> Outputs:
        """Returns the outputs of the network, with the logits of sound tokens."""
        encoded_BSE, num_steps_B = self.network.encode(video_BCTYX, num_frames_B)
        outputs = self.network.outputs(encoded_BSE, num_steps_B, targets, teacher_forcing)
        return outputs._replace(sound_logits_BJV=self.head.logits(encoded_BSE))


class SoundLoss(NamedTuple):
    """Means over the sound tokens of each clip; 0 for silent clips."""

    entropy_B: torch.Tensor
    """Cross-entropy, nats."""
    accuracy_B: torch.Tensor
    """Share of tokens that are predicted as the most likely."""


def sound_loss(logits_BJV: torch.Tensor, sound_BJ: torch.Tensor | None) -> SoundLoss:
    """Returns the loss of the tokens `sound_BJ`; None: no clip has sound."""
    if sound_BJ is None:
        sound_BJ = logits_BJV.new_full(logits_BJV.shape[:2], IGNORED, dtype=torch.int64)
    missing = logits_BJV.shape[1] - sound_BJ.shape[1]
    wanted_BJ = functional.pad(sound_BJ, (0, missing), value=IGNORED)
    entropy_BJ = functional.cross_entropy(
        logits_BJV.transpose(1, 2), wanted_BJ, ignore_index=IGNORED, reduction="none"
    )
    num_B = (wanted_BJ != IGNORED).sum(dim=1).clamp(min=1)
    right_B = (logits_BJV.detach().argmax(dim=2) == wanted_BJ).sum(dim=1)
    return SoundLoss(entropy_BJ.sum(dim=1) / num_B, right_B / num_B)
