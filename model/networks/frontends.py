"""Frontends, which turn frames into features.

The frontend of the baseline is four 3D convolutions. The other is a 3D stem over five frames, then a ResNet (He et al.
2016) on each step separately (Stafylakis and Tzimiropoulos 2017, section 3).

In eval mode padding never affects a clip. The baseline zeroes every convolution's output after the clip's end, the
ResNet frontend zeroes the frames after it before the stem, its only part across time. Both see the same zeros as at the
end of a clip without padding. In training BatchNorm's mean and variance include the padding of the batch.

Shapes: B clips, T frames, S encoder steps (T / temporal_stride, rounded up), N = B S pictures, C channels, F features
of a step, (Y, X) px.
"""

import torch
from torch import nn
from torch.nn import functional

from model.networks.network_input import step_mask
from model.presets import Cnn3dSizes, ConformerSizes

STEM_KERNEL = (5, 7, 7)


class ConvBlock(nn.Module):
    """3D convolution, batch normalisation, ReLU; the output is zero after each clip's end."""

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
    """Turns normalised video (B, 1, T, Y, X) into features (B, S, F) and the clips' numbers of steps (B,)."""

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


class Stem(nn.Module):
    """3D convolution, batch normalisation, SiLU, pooling over space; height and width become a quarter."""

    def __init__(self, num_channels: int, temporal_stride: int) -> None:
        super().__init__()
        self.temporal_stride = temporal_stride
        # never called: it only holds the weight, which the forward pass uses in a 2D convolution
        self.convolution = nn.Conv3d(1, num_channels, STEM_KERNEL, bias=False)
        self.norm = nn.BatchNorm2d(num_channels)

    def forward(self, video_BTYX: torch.Tensor) -> torch.Tensor:
        """Returns pictures (N, C, Y / 4, X / 4)."""
        frames, height, width = STEM_KERNEL
        padded_BTYX = functional.pad(video_BTYX, (0, 0, 0, 0, frames // 2, frames // 2))
        # Five neighbouring frames become five channels, last in memory. This gives the same sums as a 3D convolution
        # over one channel in a sixth less CPU time, forward and backward (bfloat16, 75 × 88 × 88, one core).
        pictures_NYXC = padded_BTYX.unfold(1, frames, self.temporal_stride).flatten(0, 1)
        features_NCYX = functional.conv2d(
            pictures_NYXC.permute(0, 3, 1, 2),
            self.convolution.weight[:, 0],
            stride=2,
            padding=(height // 2, width // 2),
        )
        return functional.max_pool2d(functional.silu(self.norm(features_NCYX)), 3, stride=2, padding=1)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut for the input (He et al. 2016, figure 2), with SiLU."""

    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(num_in, num_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(num_out)
        self.conv2 = nn.Conv2d(num_out, num_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(num_out)
        self.shortcut = nn.Sequential()
        # oneDNN (3.12 in torch 2.13) computes wrong weight gradients of a 1×1 convolution with a stride, or corrupts
        # the heap, for fewer than 8 input channels on AVX2 and 16 on AVX-512 (its issue 6035). So pooling skips the
        # pixels, and the convolution has a stride of 1: the same values at the same speed.
        self.shortcut_stride = stride
        if stride != 1 or num_in != num_out:
            self.shortcut.append(nn.Conv2d(num_in, num_out, 1, bias=False))
            self.shortcut.append(nn.BatchNorm2d(num_out))

    def forward(self, pictures_NCYX: torch.Tensor) -> torch.Tensor:
        inner_NCYX = functional.silu(self.norm1(self.conv1(pictures_NCYX)))
        if self.shortcut_stride != 1:
            # indexing gives the same, but its backward pass makes a step of conformer_tiny a fifth slower
            pictures_NCYX = functional.avg_pool2d(pictures_NCYX, 1, self.shortcut_stride)
        return functional.silu(self.norm2(self.conv2(inner_NCYX)) + self.shortcut(pictures_NCYX))


class ResNetFrontend(nn.Module):
    """Turns normalised video into `num_features` features per step."""

    def __init__(self, sizes: ConformerSizes, temporal_stride: int) -> None:
        super().__init__()
        self.stem = Stem(sizes.channels[0], temporal_stride)
        self.stages = nn.ModuleList()
        num_in = sizes.channels[0]
        for stage, num_out in enumerate(sizes.channels):
            blocks = nn.Sequential()
            for block in range(sizes.blocks_per_stage):
                blocks.append(BasicBlock(num_in, num_out, stride=2 if stage and not block else 1))
                num_in = num_out
            self.stages.append(blocks)
        self.pool_grid = sizes.pool_grid
        self.num_features = num_in * sizes.pool_grid**2
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")  # He et al. 2015

    def forward(
        self, video_BCTYX: torch.Tensor, num_frames_B: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns features (B, S, F) of gray video (B, 1, T, Y, X), and the clips' numbers of steps (B,)."""
        B, _, T, _, _ = video_BCTYX.shape
        mask_BT = step_mask(num_frames_B, T)
        # where, not a product: values after a clip's end may be infinite or nan
        video_BTYX = torch.where(mask_BT[:, :, None, None], video_BCTYX[:, 0], 0)
        pictures_NCYX = self.stem(video_BTYX)
        for stage in self.stages:
            pictures_NCYX = stage(pictures_NCYX)
        if self.pool_grid == 1:
            # the same result, but adaptive pooling is slow in bfloat16 on a CPU
            features_NF = pictures_NCYX.mean((2, 3))
        else:
            features_NF = functional.adaptive_avg_pool2d(pictures_NCYX, self.pool_grid).flatten(1)
        stride = self.stem.temporal_stride
        return features_NF.unflatten(0, (B, -1)), (num_frames_B + stride - 1) // stride
