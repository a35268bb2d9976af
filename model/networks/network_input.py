"""Converts uint8 crops to the network's input: the central window, resized and normalised.

Also masks the steps of a padded batch that belong to a clip, and converts labels to targets of the heads.

Shapes: B clips, T frames, H×W px of the crop, Y×X px of the network's input (the resized window), L characters and K
syllables of the longest label.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

from model.settings import ModelParams
from model.text import DOUBTFUL, END_ID
from model.vocabulary import Vocabulary

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


class Targets(NamedTuple):
    """Labels of a batch, padded with END_ID, on the network's device. `num_…_B` are their lengths, on the CPU."""

    characters_BL: torch.Tensor
    num_characters_B: torch.Tensor
    reversed_BL: torch.Tensor
    """The characters of each label from its last to its first."""
    syllables_BK: torch.Tensor | None
    num_syllables_B: torch.Tensor | None
    weight_B: torch.Tensor | None = None
    """Weight of each label in the loss, float32; None: all count fully."""
    sound_BJ: torch.Tensor | None = None
    """Sound tokens in step with the input (model/networks/sound_head.py); None: no sound."""
    has_doubtful: bool = False
    """Whether UNKNOWN_ID stands for any unit (DOUBTFUL), not for one that the vocabulary lacks."""


def targets_of(labels: Sequence[str], vocabulary: Vocabulary, device: torch.device) -> Targets:
    """Returns the targets of `labels` for all heads; `syllables_BK` is None if the vocabulary has no syllables."""
    characters = [vocabulary.characters.encode(label) for label in labels]
    characters_BL, num_characters_B = _padded(characters, device)
    reversed_BL, _ = _padded([ids[::-1] for ids in characters], device)
    syllables_BK, num_syllables_B = None, None
    if vocabulary.syllables:
        syllables_BK, num_syllables_B = _padded(
            [vocabulary.encode_syllables(label) for label in labels], device
        )
    return Targets(
        characters_BL,
        num_characters_B,
        reversed_BL,
        syllables_BK,
        num_syllables_B,
        has_doubtful=any(DOUBTFUL in label for label in labels),
    )


def _padded(ids: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    lengths_B = torch.tensor([len(label) for label in ids])
    padded = torch.full((len(ids), max(map(len, ids), default=0)), END_ID)
    for row, label in enumerate(ids):
        padded[row, : len(label)] = torch.tensor(label, dtype=torch.long)
    return padded.to(device, non_blocking=True), lengths_B
