"""Turns a batch of the stream into the input of the network, on the device."""

from dataclasses import replace

import torch

from model.losses import label_steps_needed
from model.networks.network_input import Targets, targets_of
from model.training.augment import ClipChange, augmented_input, draw_change
from model.training.compiling import to_bucket
from model.training.job import TrainingJob
from model.training.training_data import TrainingData
from shards.stream import ClipBatch


def training_input(
    batch: ClipBatch, job: TrainingJob, data: TrainingData, epoch: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, Targets]:
    """Returns normalised, augmented video (B, 1, T, Y, X), the frame counts (on the CPU), and the labels."""
    changes = []
    for clip_id, label, num_frames in zip(
        batch.clip_ids, batch.labels, batch.num_frames_B.tolist(), strict=True
    ):
        change = draw_change(
            job.train.augment, job.loader.seed, epoch, clip_id, duration_s=num_frames / data.fps
        )
        changes.append(_limit_speed(change, label, num_frames, data))
    video_BCTYX, num_frames_B = augmented_input(
        batch.video_BTHW.to(device, non_blocking=True),
        batch.num_frames_B,
        changes,
        data.model,
    )
    if job.train.compile:
        video_BCTYX = to_bucket(video_BCTYX)
    return video_BCTYX, num_frames_B, targets_of(batch.labels, data.vocabulary, device)


def _limit_speed(change: ClipChange, label: str, num_frames: int, data: TrainingData) -> ClipChange:
    """Limits the speed so that CTC can still spell the label; else its loss would be infinite."""
    fewest_frames = (label_steps_needed(label, data.vocabulary) - 1) * data.model.temporal_stride + 1
    return replace(change, speed=min(change.speed, max(num_frames / max(fewest_frames, 1), 1.0)))
