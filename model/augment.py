"""From uint8 batches to network input, on the device; and the changes made to training clips.

A clip's augmentation is a function of (seed, epoch, clip_id) alone: batching, workers and resuming do
not change it. Shapes: B clips, T frames, H×W px of the crop, Y×X px of the network's input, the window.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from model.masks import step_mask
from model.settings import AugmentParams, ModelParams

# A clip of one gray level has no variance to divide by; a tenth of a gray level of 255, squared.
SMALLEST_VARIANCE = (0.1 / 255) ** 2


@dataclass(frozen=True, slots=True)
class ClipChange:
    """What is done to one clip."""

    mirror: bool
    zoom_y: float
    zoom_x: float
    shift_y_px: float
    shift_x_px: float
    speed: float
    gain: float
    offset: float
    masks: tuple[tuple[float, float], ...]
    """(start, length) as shares of the clip's duration."""


def draw_change(params: AugmentParams, seed: int, epoch: int, clip_id: str, duration_s: float) -> ClipChange:
    """The change for `clip_id` in `epoch`."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{clip_id}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16], "big"))
    # every value is drawn, used or not: switching one change off leaves the others as they were
    mirror = bool(rng.random() < 0.5) and params.flip
    zoom_y, zoom_x = np.exp(rng.normal(size=2) * params.zoom_sigma)
    speed = 1 + rng.uniform(-1, 1) * params.speed_change
    shift_y_px, shift_x_px = rng.uniform(-1, 1, 2) * params.shift_px
    gain, offset = math.exp(rng.normal() * params.gain_sigma), rng.normal() * params.gain_sigma
    num_masks = int(rng.poisson(params.time_masks_per_s * duration_s))
    masks = tuple(
        (float(rng.random()), float(rng.random()) * params.time_mask_s / max(duration_s, 1e-6))
        for _ in range(num_masks)
    )
    return ClipChange(mirror, zoom_y, zoom_x, shift_y_px, shift_x_px, speed, gain, offset, masks)


def network_input(
    video_BTHW: torch.Tensor, num_frames_B: torch.Tensor, params: ModelParams, blind: bool = False
) -> torch.Tensor:
    """uint8 clips as normalised float32 (B, 1, T, Y, X), zero behind each clip's end.

    `blind` shows each frame as the clip's mean frame: what a model reads then, it reads not from the lips.
    """
    pixels_BTYX = _middle(_resized(video_BTHW, params), params)
    if blind:
        pixels_BTYX = _mean_frame(pixels_BTYX, num_frames_B).expand_as(pixels_BTYX)
    return _normalised(pixels_BTYX, num_frames_B, params)[:, None]


def augmented_input(
    video_BTHW: torch.Tensor,
    num_frames_B: torch.Tensor,
    changes: list[ClipChange],
    params: ModelParams,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `network_input`, with `changes` made; the second tensor holds the clips' new lengths (speed)."""
    device = video_BTHW.device
    pixels_BTYX = _in_space(_resized(video_BTHW, params), changes, video_BTHW.shape[2], params)
    pixels_BTYX, num_frames_B = _in_time(pixels_BTYX, num_frames_B, changes)
    hidden_BT = torch.zeros(pixels_BTYX.shape[:2], dtype=torch.bool)
    for clip, (change, num_frames) in enumerate(zip(changes, num_frames_B.tolist(), strict=True)):
        for start, length in change.masks:
            first = int(start * num_frames)
            hidden_BT[clip, first : first + round(length * num_frames)] = True
    mean_B1YX = _mean_frame(pixels_BTYX, num_frames_B)
    pixels_BTYX = torch.where(hidden_BT.to(device)[:, :, None, None], mean_B1YX, pixels_BTYX)
    gain_B = torch.tensor([change.gain for change in changes], device=device)
    offset_B = torch.tensor([change.offset for change in changes], device=device)
    # after the standardisation of single clips, which would undo them
    changed_BTYX = (
        _normalised(pixels_BTYX, num_frames_B, params) * gain_B[:, None, None, None]
        + offset_B[:, None, None, None]
    )
    return (changed_BTYX * _mask(num_frames_B, pixels_BTYX))[:, None], num_frames_B


def _resized(video_BTHW: torch.Tensor, params: ModelParams) -> torch.Tensor:
    """Gray levels 0..1 of the whole crop, at the scale at which the window has the network's size.

    Averaging over areas keeps thin lips when shrinking. ValueError where the window is larger than the crop.
    """
    pixels_BTHW = video_BTHW.float() / 255
    sides = pixels_BTHW.shape[2:]
    if params.window_px > min(sides):
        raise ValueError(f"model.window_px {params.window_px} is more than the crops' {min(sides)} px")
    # the margin on each side is a whole number of pixels, so that the middle needs no resampling
    size = [
        frame + 2 * round(frame * (side / params.window_px - 1) / 2)
        for frame, side in zip((params.frame_height, params.frame_width), sides, strict=True)
    ]
    if list(sides) == size:
        return pixels_BTHW
    if size[0] <= sides[0] and size[1] <= sides[1]:
        return functional.interpolate(pixels_BTHW, size, mode="area")
    return functional.interpolate(pixels_BTHW, size, mode="bilinear", align_corners=False)


def _middle(pixels_BTHW: torch.Tensor, params: ModelParams) -> torch.Tensor:
    top = (pixels_BTHW.shape[2] - params.frame_height) // 2
    left = (pixels_BTHW.shape[3] - params.frame_width) // 2
    return pixels_BTHW[:, :, top : top + params.frame_height, left : left + params.frame_width]


def _mask(num_frames_B: torch.Tensor, pixels_BTYX: torch.Tensor) -> torch.Tensor:
    return step_mask(num_frames_B, pixels_BTYX.shape[1])[:, :, None, None]


def _mean_frame(pixels_BTYX: torch.Tensor, num_frames_B: torch.Tensor) -> torch.Tensor:
    """(B, 1, Y, X): the mean over each clip's own frames."""
    total_B1YX = (pixels_BTYX * _mask(num_frames_B, pixels_BTYX)).sum(1, keepdim=True)
    return total_B1YX / num_frames_B[:, None, None, None]


def _normalised(pixels_BTYX: torch.Tensor, num_frames_B: torch.Tensor, params: ModelParams) -> torch.Tensor:
    """Mean 0 and deviation about 1, zero behind each clip's end."""
    mask_BT11 = _mask(num_frames_B, pixels_BTYX)
    if params.subtract_mean:
        pixels_BTYX = pixels_BTYX - params.subtract_mean * _mean_frame(pixels_BTYX, num_frames_B)
    if params.standardise != "clip":
        return (pixels_BTYX - (1 - params.subtract_mean) * params.input_mean) / params.input_std * mask_BT11
    count_B111 = (num_frames_B * pixels_BTYX.shape[2] * pixels_BTYX.shape[3])[:, None, None, None]
    mean_B111 = (pixels_BTYX * mask_BT11).sum((1, 2, 3), keepdim=True) / count_B111
    centred_BTYX = (pixels_BTYX - mean_B111) * mask_BT11
    variance_B111 = centred_BTYX.square().sum((1, 2, 3), keepdim=True) / count_B111
    return centred_BTYX / (variance_B111 + SMALLEST_VARIANCE).sqrt()


def _in_space(
    pixels_BTHW: torch.Tensor, changes: list[ClipChange], crop_px: int, params: ModelParams
) -> torch.Tensor:
    """The window, mirrored, zoomed and shifted: one affine resampling for all of a clip's frames."""
    height, width = params.frame_height, params.frame_width
    share_y, share_x = height / pixels_BTHW.shape[2], width / pixels_BTHW.shape[3]
    theta_B23 = torch.tensor(
        [
            [
                [(-1 if c.mirror else 1) * share_x / c.zoom_x, 0, 2 * c.shift_x_px / crop_px],
                [0, share_y / c.zoom_y, 2 * c.shift_y_px / crop_px],
            ]
            for c in changes
        ],
        dtype=torch.float32,
        device=pixels_BTHW.device,
    )
    B, T = pixels_BTHW.shape[:2]
    grid = functional.affine_grid(theta_B23, [B, T, height, width], align_corners=False)
    return functional.grid_sample(pixels_BTHW, grid, padding_mode="border", align_corners=False)


def _in_time(
    pixels_BTYX: torch.Tensor, num_frames_B: torch.Tensor, changes: list[ClipChange]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Plays each clip at its speed, linear between frames."""
    if all(change.speed == 1 for change in changes):
        return pixels_BTYX, num_frames_B
    device = pixels_BTYX.device
    speed_B = torch.tensor([change.speed for change in changes], device=device)
    new_num_frames_B = (num_frames_B / speed_B).round().long().clamp(min=1)
    position_BT = torch.arange(int(new_num_frames_B.max()), device=device)[None] * speed_B[:, None]
    last_B1 = (num_frames_B - 1)[:, None]
    position_BT = position_BT.clamp(max=last_B1)
    before_BT = position_BT.floor().long()
    after_BT = torch.minimum(before_BT + 1, last_B1)
    share_BT11 = (position_BT - before_BT)[:, :, None, None]
    clip_B1 = torch.arange(len(changes), device=device)[:, None]
    return torch.lerp(
        pixels_BTYX[clip_B1, before_BT], pixels_BTYX[clip_B1, after_BT], share_BT11
    ), new_num_frames_B
