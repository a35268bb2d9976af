"""Converts uint8 crops to the network's input: the central window, resized and normalised.

Also masks the steps of a padded batch that belong to a clip.

Shapes: B clips, T frames, H×W px of the crop, Y×X px of the network's input (the resized window).
"""

from collections.abc import Sequence

import torch
from torch.nn import functional

from model.settings import ModelParams

# A tenth of a gray level of 255, squared: avoids a division by 0 for a clip of a single gray level.
SMALLEST_VARIANCE = (0.1 / 255) ** 2


def step_mask(num_steps_B: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Returns (B, num_steps) bool: true within each clip."""
    return torch.arange(num_steps, device=num_steps_B.device) < num_steps_B[:, None]


def network_input(
    video_BTHW: torch.Tensor, num_frames_B: torch.Tensor, params: ModelParams, blind: bool = False
) -> torch.Tensor:
    """Returns uint8 clips as normalised float32 (B, 1, T, Y, X), zero after each clip's end.

    `blind` replaces each frame by the clip's mean frame, so the model cannot read the moving lips.
    """
    pixels_BTYX = window_of(video_BTHW, params)
    if blind:
        pixels_BTYX = mean_frame(pixels_BTYX, num_frames_B).expand_as(pixels_BTYX)
    return normalised(pixels_BTYX, num_frames_B, params)[:, None]


def window_of(video_BTHW: torch.Tensor, params: ModelParams) -> torch.Tensor:
    """Returns the central window of uint8 crops at the network's input size: gray levels 0..1, float32 (B, T, Y, X).

    Raises ValueError if the window is larger than the crop.
    """
    pixels_BTHW = resized(video_BTHW, params)
    top = (pixels_BTHW.shape[2] - params.frame_height) // 2
    left = (pixels_BTHW.shape[3] - params.frame_width) // 2
    return pixels_BTHW[:, :, top : top + params.frame_height, left : left + params.frame_width]


def resized(video_BTHW: torch.Tensor, params: ModelParams) -> torch.Tensor:
    """Returns gray levels 0..1 of the whole crop, at the scale at which the window has the network's input size.

    Area averaging keeps thin lips when shrinking. Raises ValueError if the window is larger than the crop.
    """
    sides, size = list(video_BTHW.shape[2:]), list(resized_size(video_BTHW.shape[2:], params))
    pixels_BTHW = video_BTHW.float() / 255
    if sides == size:
        return pixels_BTHW
    if size[0] <= sides[0] and size[1] <= sides[1]:
        return functional.interpolate(pixels_BTHW, size, mode="area")
    return functional.interpolate(pixels_BTHW, size, mode="bilinear", align_corners=False)


def resized_size(crop_HW: Sequence[int], params: ModelParams) -> tuple[int, int]:
    """Returns the height and width of `resized` for a crop of `crop_HW`. Raises the same ValueError."""
    if params.window_px > min(crop_HW):
        raise ValueError(
            f"model.window_px must be at most the crop size, {min(crop_HW)} (got {params.window_px})"
        )
    # each margin is a whole number of pixels, so the window needs no resampling
    height, width = (
        frame + 2 * round(frame * (side / params.window_px - 1) / 2)
        for frame, side in zip((params.frame_height, params.frame_width), crop_HW, strict=True)
    )
    return height, width


def inside(num_frames_B: torch.Tensor, pixels_BTYX: torch.Tensor) -> torch.Tensor:
    """Returns (B, T, 1, 1) bool: true within each clip."""
    return step_mask(num_frames_B, pixels_BTYX.shape[1])[:, :, None, None]


def mean_frame(pixels_BTYX: torch.Tensor, num_frames_B: torch.Tensor) -> torch.Tensor:
    """Returns (B, 1, Y, X): the mean over each clip's frames, without padding."""
    total_B1YX = (pixels_BTYX * inside(num_frames_B, pixels_BTYX)).sum(1, keepdim=True)
    return total_B1YX / num_frames_B[:, None, None, None]


def normalised(pixels_BTYX: torch.Tensor, num_frames_B: torch.Tensor, params: ModelParams) -> torch.Tensor:
    """Returns pixels with mean 0 and deviation about 1, zero after each clip's end."""
    mask_BT11 = inside(num_frames_B, pixels_BTYX)
    if params.subtract_mean:
        pixels_BTYX = pixels_BTYX - params.subtract_mean * mean_frame(pixels_BTYX, num_frames_B)
    if params.standardise != "clip":
        return (pixels_BTYX - (1 - params.subtract_mean) * params.input_mean) / params.input_std * mask_BT11
    count_B111 = (num_frames_B * pixels_BTYX.shape[2] * pixels_BTYX.shape[3])[:, None, None, None]
    mean_B111 = _total(pixels_BTYX * mask_BT11) / count_B111
    centred_BTYX = (pixels_BTYX - mean_B111) * mask_BT11
    variance_B111 = _total(centred_BTYX.square()) / count_B111
    return centred_BTYX / (variance_B111 + SMALLEST_VARIANCE).sqrt()


def _total(values_BTYX: torch.Tensor) -> torch.Tensor:
    """Returns (B, 1, 1, 1): each clip's sum, axis by axis.

    onnxruntime sums several axes into one float32, with an error of 1 in 10,000 after 1,000 frames.
    """
    return values_BTYX.sum(3, keepdim=True).sum(2, keepdim=True).sum(1, keepdim=True)
