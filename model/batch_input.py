"""A batch of training, from the stream's bytes to what the network is given, on the device."""

from dataclasses import replace

import torch

from model.augment import augmented_input, draw_change
from model.job import TrainingJob
from model.losses import label_steps_needed
from model.reader import as_channels_last
from model.targets import Targets, targets_of
from model.training_data import TrainingData
from shards.stream import ClipBatch


def training_input(
    batch: ClipBatch, job: TrainingJob, data: TrainingData, epoch: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, Targets]:
    """Normalised, augmented video (B, 1, T, Y, X), the clips' numbers of frames, and their labels."""
    changes = []
    for clip_id, label, num_frames in zip(
        batch.clip_ids, batch.labels, batch.num_frames_B.tolist(), strict=True
    ):
        change = draw_change(
            job.train.augment, job.loader.seed, epoch, clip_id, duration_s=num_frames / data.fps
        )
        # a clip is never played so fast that CTC could no longer spell its label
        fastest = num_frames / (label_steps_needed(label, data.vocabulary) * data.model.temporal_stride + 1)
        changes.append(replace(change, speed=min(change.speed, max(fastest, 1.0))))
    video_BCTYX, num_frames_B = augmented_input(
        batch.video_BTHW.to(device, non_blocking=True),
        batch.num_frames_B.to(device, non_blocking=True),
        changes,
        data.model,
    )
    return as_channels_last(video_BCTYX), num_frames_B, targets_of(batch.labels, data.vocabulary, device)
