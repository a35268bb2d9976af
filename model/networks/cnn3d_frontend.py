"""The baseline's eyes: four 3D convolutions.

Shapes: B clips, T frames, S encoder steps (T / temporal_stride, rounded up), F features of a step, C channels,
(Y, X) px.

In eval mode padding never reaches a clip: every convolution's output is zeroed behind the clip's end, which is
what the convolution would see at the end of a clip of its own. In training BatchNorm's mean and variance are over
all of a batch, its padding included.
"""

import torch
from torch import nn
from torch.nn import functional

from model.networks.masks import step_mask
from model.presets import Cnn3dSizes


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


class Cnn3dFrontend(nn.Module):
    """Video (B, 1, T, Y, X), normalised, to features (B, S, F) and the clips' numbers of steps (B,)."""

    def __init__(self, sizes: Cnn3dSizes, temporal_stride: int) -> None:
        super().__init__()
        c0, c1, c2, c3 = sizes.channels
        self.blocks = nn.ModuleList(
            [
                ConvBlock(1, c0, (5, 5, 5), (temporal_stride, 2, 2)),
                ConvBlock(c0, c1, (3, 3, 3), (1, 2, 2)),
                ConvBlock(c1, c2, (3, 3, 3), (1, 2, 2)),
                ConvBlock(c2, c3, (3, 3, 3), (1, 1, 1)),
            ]
        )
        self.pool_grid = sizes.pool_grid
        self.num_features = c3 * sizes.pool_grid**2

    def forward(
        self, video_BCTYX: torch.Tensor, num_frames_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        features, num_steps_B = video_BCTYX, num_frames_B
        for block in self.blocks:
            features, num_steps_B = block(features, num_steps_B)
        B, _, S, _, _ = features.shape
        grid = self.pool_grid
        if features.shape[3:] != (grid, grid):
            features = functional.adaptive_avg_pool3d(features, (S, grid, grid))
        return features.permute(0, 2, 1, 3, 4).reshape(B, S, self.num_features), num_steps_B
