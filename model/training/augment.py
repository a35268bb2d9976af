"""Turns a batch of the stream into augmented input of the network: drawn on the CPU, applied on the device.

A clip's augmentation depends only on (seed, epoch, clip_id, visit in the epoch). Batching, workers and resuming do not
change it.
Shapes: B clips, T frames, H×W px of the crop, Y×X px of the network's input (the window), M time masks.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

from model.losses import label_steps_needed
from model.networks.network_input import (
    Targets,
    inside,
    mean_frame,
    normalised,
    resized,
    resized_size,
    targets_of,
    window_of,
)
from model.networks.sound_head import sound_targets
from model.settings import AugmentParams, ModelParams
from model.training.compiling import to_bucket
from model.training.training_data import TrainingData, TrainingJob
from model.vocabulary import Vocabulary
from shards.stream import ClipBatch


@dataclass(frozen=True, slots=True)
class ClipChange:
    """The augmentation of one clip. The defaults change nothing."""

    mirror: bool = False
    shift_y_px: int = 0
    """Shift of the window over the crop, downwards: the picture moves up."""
    shift_x_px: int = 0
    zoom_y: float = 1.0
    """2 makes the picture twice as high."""
    zoom_x: float = 1.0
    rotation_deg: float = 0.0
    """Anticlockwise, about the window's centre, after the zoom and before the mirror."""
    speed: float = 1.0
    gain: float = 1.0
    """Contrast: multiplies the normalised gray levels. `offset` is added afterwards, in standard deviations."""
    offset: float = 0.0
    masks: tuple[tuple[float, float], ...] = ()
    """(start, length) as shares of the clip's duration."""

    @property
    def keeps_pixels(self) -> bool:
        """Whether each output pixel is exactly one pixel of the crop: only mirror and shift."""
        return self.zoom_y == self.zoom_x == 1 and self.rotation_deg == 0

    def num_frames(self, num_frames: int) -> int:
        """Returns the number of frames of a clip of `num_frames` when it is played at `speed`."""
        return max(1, round(num_frames / self.speed))


def draw_change(
    params: AugmentParams, seed: int, epoch: int, clip_id: str, duration_s: float, visit: int = 0
) -> ClipChange:
    """Returns the augmentation of `clip_id` in `epoch`; another one for each visit in an epoch."""
    again = f"/{visit}" if visit else ""
    digest = hashlib.sha256(f"{seed}/{epoch}/{clip_id}{again}".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16], "big"))
    # Every value is drawn, even if it is not used, and the masks, whose number varies, are drawn last. So
    # switching one change off leaves the others as they were.
    mirror = rng.random() < 0.5
    zoom_2 = np.exp(rng.normal(size=2) * params.zoom_sigma)
    speed = 1 + rng.uniform(-1, 1) * params.speed_change
    farthest_px = math.floor(params.shift_px)
    shift_2 = np.floor(rng.random(2) * (2 * farthest_px + 1)) - farthest_px  # whole pixels: no blur
    gain, offset = math.exp(rng.normal() * params.gain_sigma), rng.normal() * params.gain_sigma
    rotation_deg = rng.uniform(-1, 1) * params.rotation_deg
    # rounded up or down at random, so that the mean is time_masks_per_s masks per second
    num_masks = math.floor(params.time_masks_per_s * duration_s + rng.random())
    masks = tuple(_draw_mask(rng, params.time_mask_s / max(duration_s, 1e-6)) for _ in range(num_masks))
    return ClipChange(
        mirror=params.flip and bool(mirror),
        shift_y_px=int(shift_2[0]),
        shift_x_px=int(shift_2[1]),
        zoom_y=float(zoom_2[0]),
        zoom_x=float(zoom_2[1]),
        rotation_deg=float(rotation_deg),
        speed=float(speed),
        gain=gain,
        offset=float(offset),
        masks=masks,
    )


def _draw_mask(rng: np.random.Generator, longest: float) -> tuple[float, float]:
    """Returns start and length. The mask lies within the clip if it fits."""
    place, length = rng.random(), rng.random() * longest
    return place * max(1 - length, 0), length


def augmented_input(
    video_BTHW: torch.Tensor,
    num_frames_B: torch.Tensor,
    changes: Sequence[ClipChange],
    params: ModelParams,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what `network_input` returns, with `changes` applied, and the clips' new lengths (speed).

    The input is on the device of `video_BTHW`. The lengths stay on the CPU: reading them there does not wait for the
    device.
    """
    lengths = num_frames_B.tolist()
    played_B = torch.tensor([change.num_frames(n) for change, n in zip(changes, lengths, strict=True)])
    drawn = _on_device(changes, lengths, video_BTHW, params)
    if all(change.keeps_pixels for change in changes):
        if any(change.mirror or change.shift_y_px or change.shift_x_px for change in changes):
            video_BTHW = _moved(video_BTHW, drawn)
        pixels_BTYX = window_of(video_BTHW, params)
    else:
        pixels_BTYX = _resampled(resized(video_BTHW, params), drawn.theta_B23, params)
    if any(change.speed != 1 for change in changes):
        pixels_BTYX = _played(pixels_BTYX, drawn, int(played_B.max()))
    values_BTYX = normalised(pixels_BTYX, drawn.played_frames_B, params)
    if drawn.masks_BM2.shape[1]:
        values_BTYX = _masked(values_BTYX, drawn)
    # after the standardisation of each clip, which would undo gain and offset
    values_BTYX = values_BTYX * drawn.gain_B[:, None, None, None] + drawn.offset_B[:, None, None, None]
    return (values_BTYX * inside(drawn.played_frames_B, values_BTYX))[:, None], played_B


class _Drawn(NamedTuple):
    """The changes of a batch as tensors on the device: float32, frame counts int64."""

    sign_B: torch.Tensor
    """-1 if mirrored."""
    shift_B2: torch.Tensor
    """y, x"""
    theta_B23: torch.Tensor
    """Maps positions in the window to positions in the crop, in the form that affine_grid expects."""
    speed_B: torch.Tensor
    gain_B: torch.Tensor
    offset_B: torch.Tensor
    num_frames_B: torch.Tensor
    played_frames_B: torch.Tensor
    """Frame counts at `speed_B`."""
    masks_BM2: torch.Tensor
    """First frame of each mask, and the first one after it."""


def _on_device(
    changes: Sequence[ClipChange], lengths: Sequence[int], video_BTHW: torch.Tensor, params: ModelParams
) -> _Drawn:
    """Copies the changes to the device in one small tensor: many copies would wait for the device many times."""
    crop_HW = video_BTHW.shape[2:]
    num_masks = max((len(change.masks) for change in changes), default=0)
    values_BK = np.zeros((len(changes), 14 + 2 * num_masks), np.float32)
    for values_K, change, num_frames in zip(values_BK, changes, lengths, strict=True):
        played = change.num_frames(num_frames)
        masks = [
            edge
            for start, length in change.masks
            for edge in (int(start * played), int(start * played) + round(length * played))
        ]
        values_K[: 14 + len(masks)] = (
            *(-1 if change.mirror else 1, change.shift_y_px, change.shift_x_px),
            *_theta(change, crop_HW, params),
            *(change.speed, change.gain, change.offset, num_frames, played),
            *masks,
        )
    sign_B1, shift_B2, theta_B6, speed_B1, gain_B1, offset_B1, num_frames_B1, played_B1, masks_BE = (
        torch.from_numpy(values_BK)
        .to(video_BTHW.device, non_blocking=True)
        .split([1, 2, 6, 1, 1, 1, 1, 1, 2 * num_masks], dim=1)
    )
    return _Drawn(
        sign_B=sign_B1[:, 0],
        shift_B2=shift_B2,
        theta_B23=theta_B6.unflatten(1, (2, 3)),
        speed_B=speed_B1[:, 0],
        gain_B=gain_B1[:, 0],
        offset_B=offset_B1[:, 0],
        num_frames_B=num_frames_B1[:, 0].long(),
        played_frames_B=played_B1[:, 0].long(),
        masks_BM2=masks_BE.unflatten(1, (num_masks, 2)),
    )


def _theta(change: ClipChange, crop_HW: Sequence[int], params: ModelParams) -> Sequence[float]:
    """Returns the 2×3 matrix, row by row, that undoes the mirror, then the rotation, then the zoom, then the shift.

    It maps (x, y), in half-sides of the window from its centre, to half-sides of the crop.
    """
    H, W = crop_HW
    resized_H, resized_W = resized_size(crop_HW, params)
    # half-sides of the window in crop px: the rotation is that of the crop, also if the window has another aspect ratio
    half_y, half_x = params.frame_height / resized_H * H, params.frame_width / resized_W * W
    sign = -1 if change.mirror else 1
    cos, sin = math.cos(math.radians(change.rotation_deg)), math.sin(math.radians(change.rotation_deg))
    return (
        *(sign * cos / change.zoom_x * half_x / W, -sin / change.zoom_x * half_y / W),
        2 * change.shift_x_px / W,
        *(sign * sin / change.zoom_y * half_x / H, cos / change.zoom_y * half_y / H),
        2 * change.shift_y_px / H,
    )


def _moved(video_BTHW: torch.Tensor, drawn: _Drawn) -> torch.Tensor:
    """Mirrors and shifts by whole pixels, exactly. Outside the crop, the border pixels are repeated."""
    H, W = video_BTHW.shape[2:]
    row_H = torch.arange(H, device=video_BTHW.device)
    column_W = torch.arange(W, device=video_BTHW.device)
    shift_B2 = drawn.shift_B2.long()
    row_BH = (row_H + shift_B2[:, :1]).clamp(0, H - 1)
    column_BW = torch.where(drawn.sign_B[:, None] < 0, W - 1 - column_W, column_W)
    column_BW = (column_BW + shift_B2[:, 1:]).clamp(0, W - 1)
    place_BP = (row_BH[:, :, None] * W + column_BW[:, None]).flatten(1)
    place_BTP = place_BP[:, None].expand(-1, video_BTHW.shape[1], -1)
    return video_BTHW.flatten(2).gather(2, place_BTP).unflatten(2, (H, W))


def _resampled(pixels_BTHW: torch.Tensor, theta_B23: torch.Tensor, params: ModelParams) -> torch.Tensor:
    """Zooms, rotates, mirrors and shifts the window: one bilinear resampling for all frames of a clip."""
    size = [*pixels_BTHW.shape[:2], params.frame_height, params.frame_width]
    grid = functional.affine_grid(theta_B23, size, align_corners=False)
    return functional.grid_sample(pixels_BTHW, grid, padding_mode="border", align_corners=False)


def _played(pixels_BTYX: torch.Tensor, drawn: _Drawn, num_frames: int) -> torch.Tensor:
    """Plays each clip at its speed, linear between frames. The longest result has `num_frames` frames."""
    last_B1 = (drawn.num_frames_B - 1)[:, None]
    position_BT = torch.arange(num_frames, device=pixels_BTYX.device) * drawn.speed_B[:, None]
    position_BT = torch.minimum(position_BT, last_B1)
    before_BT = position_BT.floor().long()
    after_BT = torch.minimum(before_BT + 1, last_B1)
    share_BT11 = (position_BT - before_BT)[:, :, None, None]
    clip_B1 = torch.arange(len(pixels_BTYX), device=pixels_BTYX.device)[:, None]
    return torch.lerp(pixels_BTYX[clip_B1, before_BT], pixels_BTYX[clip_B1, after_BT], share_BT11)


def _masked(values_BTYX: torch.Tensor, drawn: _Drawn) -> torch.Tensor:
    """Replaces the masked frames with the clip's mean frame."""
    frame_T = torch.arange(values_BTYX.shape[1], device=values_BTYX.device)
    first_BM1, stop_BM1 = drawn.masks_BM2[:, :, :1], drawn.masks_BM2[:, :, 1:]
    hidden_BT = ((first_BM1 <= frame_T) & (frame_T < stop_BM1)).any(dim=1)
    mean_B1YX = mean_frame(values_BTYX, drawn.played_frames_B)
    return torch.where(hidden_BT[:, :, None, None], mean_B1YX, values_BTYX)


def training_input(
    batch: ClipBatch, job: TrainingJob, data: TrainingData, epoch: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, Targets]:
    """Returns normalised, augmented video (B, 1, T, Y, X), the frame counts (on the CPU), and the labels."""
    changes, (labels, weight_B) = [], data.labels_of(batch)
    for clip_id, label, num_frames, row in zip(
        batch.clip_ids, labels, batch.num_frames_B.tolist(), batch.rows, strict=True
    ):
        change = draw_change(
            job.train.augment,
            job.loader.seed,
            epoch,
            clip_id,
            duration_s=num_frames / data.fps,
            visit=row // max(data.samples.num_rows, 1),
        )
        changes.append(limit_speed(change, label, num_frames, data.vocabulary, data.model))
    video_BCTYX, num_frames_B = augmented_input(
        batch.video_BTHW.to(device, non_blocking=True),
        batch.num_frames_B,
        changes,
        data.model,
    )
    if job.train.compile:
        video_BCTYX = to_bucket(video_BCTYX)
    targets = targets_of(labels, data.vocabulary, device)
    if (weight_B != 1).any():
        targets = targets._replace(weight_B=torch.from_numpy(weight_B).to(device, non_blocking=True))
    if data.sound_tokens and batch.audio_BTKM is not None:
        assert batch.has_audio_B is not None
        tokens_BJ = data.sound_tokens.of(batch.audio_BTKM.to(device, non_blocking=True))
        speeds = [change.speed for change in changes]
        targets = targets._replace(
            sound_BJ=sound_targets(tokens_BJ, batch.num_frames_B, num_frames_B, speeds, batch.has_audio_B)
        )
    return video_BCTYX, num_frames_B, targets


def limit_speed(
    change: ClipChange, label: str, num_frames: int, vocabulary: Vocabulary, model: ModelParams
) -> ClipChange:
    """Limits the speed so that CTC can still spell the label; else its loss would be infinite."""
    fewest_frames = (label_steps_needed(label, vocabulary) - 1) * model.temporal_stride + 1
    return replace(change, speed=min(change.speed, max(num_frames / max(fewest_frames, 1), 1.0)))
