"""The figures of a run while it trains: its journal, which trackers are sent, and TensorBoard's event files."""

import html
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from model.decoding.result import ScoredClip
from model.metrics import edit_counts
from model.progress import Progress
from model.runs import Curve, RunFolder
from model.training.metric_journal import MetricJournal
from model.training.step import StepFigures
from model.training.training_data import TrainingJob
from shards.enums import VALID_SPLIT
from shards.errors import TrainingError
from shards.sample_reader import read_sample
from shards.samples import STREAM_COLUMNS
from shards.store import ShardStore

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FLUSH_EVERY_S = 30
NUM_CLIPS = 6
"""Number of valid clips whose text and frames are written."""
FRAMES_A_CLIP = 12
EPOCH_TAGS = {
    "epoch": "epoch/number",
    "train_loss": "epoch/train_loss",
    "val_loss": "valid/loss",
    "val_cer": "valid/cer",
    "clips_per_s": "speed/clips_per_s",
    "data_wait": "speed/data_wait_share",
    "padding": "speed/padded_share",
    "flop_utilisation": "speed/model_flop_utilisation",
    "peak_memory_mb": "epoch/peak_memory_mb",
    "skipped": "epoch/skipped_steps",
    "pseudo_labels": "self_training/clips",
    "pseudo_kept": "self_training/kept_share",
    "pseudo_confidence": "self_training/confidence",
    "pseudo_cer": "self_training/cer",
    "pseudo_cer_kept": "self_training/cer_of_kept",
    "pseudo_doubtful": "self_training/doubtful_characters",
    "pseudo_wrong_learnt": "self_training/wrong_learnt_characters",
    "audio_loss": "epoch/audio_loss",
    "audio_accuracy": "epoch/audio_accuracy",
}
"""Columns of an epoch's row, and their names in TensorBoard and other trackers."""


class MetricLogger:
    """Writes into the run's folder, where files survive a rerun, and to the trackers. Steps are optimiser steps."""

    def __init__(self, job: TrainingJob, run: RunFolder, progress: Progress) -> None:
        """Continues after `progress.steps`: later steps, which a killed run has written, are hidden.

        Starts the trackers, unless the training is over. Raises TrainingError if one cannot start, or if the folder's
        path is not UTF-8, which TensorBoard requires, and ConfigError if one is not installed.
        """
        self._job, self._progress = job, progress
        self._first_step = progress.steps + 1
        self._folder = tensorboard_folder(run)
        names = [name for name in dict.fromkeys(job.machine.trackers) if name != "tensorboard"]
        self._has_events = "tensorboard" in job.machine.trackers
        try:
            str(self._folder).encode()
        except UnicodeEncodeError:
            raise TrainingError(
                f"paths.runs: {run.folder.parent} is not UTF-8, which TensorBoard requires; rename the folder, or "
                "set paths.runs to another folder"
            ) from None
        self._writer: SummaryWriter | None = None
        config = {
            name: section.model_dump(mode="json")
            for name, section in {**job.deciding_sections, "loader": job.loader}.items()
        }
        self._journal = MetricJournal(run, names, config, progress)
        if not progress.is_over(job.train):
            self._journal.start()

    def step(self, progress: Progress, figures: StepFigures) -> None:
        """Writes the figures of an optimiser step. A skipped step has none."""
        if not figures.was_taken:
            return
        values = {
            "step/loss": figures.loss_sum / max(figures.num_chars, 1),
            "step/gradient_norm": figures.gradient_norm,
            "step/learning_rate": figures.learning_rate,
        }
        if figures.audio_tokens:
            values["step/audio_loss"] = figures.audio_loss_sum / figures.audio_tokens
        self._add(values, progress.steps)

    def epoch(self, curve: Curve, scored: Sequence[ScoredClip]) -> None:
        """Writes the figures of an epoch. `scored` holds the valid clips if the epoch was validated."""
        step = self._progress.steps
        self._add(
            {tag: value for name, tag in EPOCH_TAGS.items() if (value := curve.get(name)) is not None}, step
        )
        if not self._has_events:
            return
        events = self._events()
        if scored:
            chosen = _evenly(scored, NUM_CLIPS)
            events.add_text("valid/read", _table(chosen), step)
            if all(earlier["val_cer"] is None for earlier in self._progress.curves[:-1]):
                clips = [clip.clip_id for clip in chosen]
                events.add_image("valid/mouths", mouth_strips(self._job, clips), step, dataformats="HW")
        events.flush()

    def close(self) -> None:
        """Writes and sends the buffered figures, and closes the files."""
        if self._writer is not None:
            self._writer.close()
        self._journal.close(self._progress.is_over(self._job.train))

    def _add(self, values: Mapping[str, float], step: int) -> None:
        self._journal.add(step, values)
        for tag, value in values.items() if self._has_events else ():
            if math.isfinite(value):
                self._events().add_scalar(tag, value, step)

    def _events(self) -> "SummaryWriter":
        if self._writer is None:  # a run that was already finished writes no file
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(
                str(self._folder), purge_step=self._first_step, flush_secs=FLUSH_EVERY_S
            )
        return self._writer


def tensorboard_folder(run: RunFolder) -> Path:
    """Returns the folder of a run's event files; `tensorboard --logdir runs` shows all runs."""
    return run.folder / "tensorboard"


def _evenly(scored: Sequence[ScoredClip], count: int) -> list[ScoredClip]:
    """Returns `count` clips spread evenly over the split: the same ones in every epoch."""
    return [scored[i] for i in np.linspace(0, len(scored) - 1, min(count, len(scored))).round().astype(int)]


def _table(clips: Sequence[ScoredClip]) -> str:
    """Returns a Markdown table; texts are escaped, because a hypothesis may contain markup."""
    rows = [
        (_plain(clip.clip_id), _plain(clip.reference), _plain(clip.hypothesis), f"{100 * cer:.0f} %")
        for clip in clips
        for cer in [edit_counts(clip.reference, clip.hypothesis).cer]
    ]
    head = [("clip", "reference", "hypothesis", "CER"), ("---",) * 4]
    return "\n".join("| " + " | ".join(row) + " |" for row in [*head, *rows])


def _plain(text: str) -> str:
    return re.sub(r"[\\`*_{}\[\]()#+.!|~-]", lambda match: f"&#{ord(match[0])};", html.escape(text))


def mouth_strips(job: TrainingJob, clip_ids: Sequence[str]) -> np.ndarray:
    """Returns one row of evenly spread frames for each valid clip, as they are packed: uint8."""
    samples = job.packs.read(VALID_SPLIT, STREAM_COLUMNS)
    rows = {
        row["clip_id"]: row
        for row in samples.filter(pc.is_in(samples["clip_id"], pa.array(clip_ids))).to_pylist()
    }
    return np.concatenate([_strip(job.packs.store, rows[clip_id]) for clip_id in clip_ids])


def _strip(store: ShardStore, row: dict[str, object]) -> np.ndarray:
    clip_THW, _ = read_sample(store, row)
    chosen = np.linspace(0, len(clip_THW) - 1, FRAMES_A_CLIP).round().astype(int)
    return np.concatenate(list(clip_THW[chosen]), axis=1)
