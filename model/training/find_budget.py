"""Finds the largest loader.frame_budget whose batches fit into memory, with real training steps.

Each budget is tried in its own process. If the process is killed because of its memory, the budget does not fit and
the search continues.
"""

import math
import multiprocessing
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pyarrow.compute as pc
import torch

from model.device import choose_device
from model.runs import logger
from model.training.epoch_figures import peak_memory_mb
from model.training.out_of_memory import MEMORY_ERRORS, MicroBatches, is_out_of_memory
from model.training.ranks import ranks_of
from model.training.step import set_up
from model.training.training_data import TrainingData, TrainingJob
from shards.errors import ConfigError, TrainingError
from shards.machine import available_mb, usable_cores
from shards.packs import Packs
from shards.store import FolderStore
from shards.stream import ClipBatch

MARGIN = 0.1
"""Share of the memory that stays free, for fragmentation and for other programs."""
NARROW_ENOUGH = 1.1
"""The search ends when the smallest failing budget is at most this factor above the largest fitting one."""
POLL_EVERY_S = 0.02
MOST_BATCHES = 2
"""Batches of a window in a trial. From the second batch on, the gradients of the first take memory too."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of a batch of a trial."""

    num_clips: int
    num_frames: int
    """Frames of each clip."""
    label: str
    """Label of each clip."""


@dataclass(frozen=True, slots=True)
class Trial:
    """The result for one budget."""

    frame_budget: int
    shapes: tuple[Shape, ...]
    """Sizes of the tried batches."""
    peak_mb: float | None
    """Peak memory of the GPU's tensors, or of the process on a CPU; None if memory ran out."""
    frames_per_s: float | None
    """Padded frames per second; None if memory ran out."""
    fits: bool


@dataclass(frozen=True, slots=True)
class FoundBudget:
    """The result of the search, with its trials."""

    frame_budget: int
    trials: tuple[Trial, ...]
    memory_mb: float
    """Available memory; a budget fits if its peak leaves a share of MARGIN free."""
    fits_all: bool
    """Whether train.batch_size clips of the longest length fit. Then a larger budget changes no batch."""
    current: int
    """The current loader.frame_budget."""
    speed_change: float
    """train.augment.speed_change; it makes the clips of the trials longer."""

    @property
    def current_fits(self) -> bool:
        return self.fits_all or self.current <= self.frame_budget


def find_budget(job: TrainingJob, memory_mb: float | None = None) -> FoundBudget:
    """Doubles the budget, starting with one clip of the longest length, until it does not fit, then bisects.

    Uses the job's network, precision and optimiser, with clips of the longest length at the slowest speed of the
    augmentation. `memory_mb` is the memory to use; None means the free memory of the device. Writes nothing. Raises
    TrainingError if not even one clip fits, ConfigError under torchrun.
    """
    if ranks_of(os.environ).world_size > 1:
        raise ConfigError("--find-budget measures a single process; start it without torchrun")
    search = _Search(job, memory_mb)
    lowest, most = search.longest, search.longest * job.train.batch_size
    fitting, failing = 0, 0
    while not failing and fitting < most:
        budget = min(max(lowest, 2 * fitting), most)
        if search.fits(budget):
            fitting = budget
        else:
            failing = budget
    if not fitting:
        raise TrainingError(
            f"{search.memory_mb:,.0f} MB are not enough for a training step on one clip of {lowest} frames; exclude "
            "long clips with loader.max_frames, or choose a smaller model.preset"
        )
    while failing > NARROW_ENOUGH * fitting and failing - fitting > 1:
        budget = (fitting + failing) // 2
        if search.fits(budget):
            fitting = budget
        else:
            failing = budget
    trials = tuple(sorted(search.trials, key=lambda trial: trial.frame_budget))
    return FoundBudget(
        fitting,
        trials,
        search.memory_mb,
        fits_all=fitting == most,
        current=job.loader.frame_budget,
        speed_change=job.train.augment.speed_change,
    )


class _Search:
    """Runs and keeps the trials of one job."""

    def __init__(self, job: TrainingJob, memory_mb: float | None) -> None:
        data = TrainingData(job)
        samples, max_frames = data.samples, job.loader.max_frames
        if max_frames:
            samples = samples.filter(pc.field("num_frames") <= max_frames)
            if not samples:
                raise TrainingError(
                    f"every clip is longer than loader.max_frames ({max_frames} frames); raise it"
                )
        self._frames_N = samples["num_frames"].to_numpy()
        self._label_lengths_N = pc.utf8_length(samples["label"]).to_numpy()
        self._labels = samples["label"]
        self.longest = int(self._frames_N.max())
        # no trial reads the shards or the table, so they are not sent to its process
        self._job = replace(job, packs=Packs.single(Path(), FolderStore(Path())), resume=None, on_batch=None)
        self._data = data.without_tables(self._job)
        self._limit_mb = memory_mb
        if memory_mb is None and choose_device(job.machine.device).type == "cpu":
            self._limit_mb = available_mb()
        self.memory_mb = self._limit_mb or 0.0
        """On a GPU it is known after the first trial."""
        self.trials: list[Trial] = []

    def fits(self, budget: int) -> bool:
        """Runs a trial and returns whether batches of this budget fit."""
        shapes = self._shapes(budget)
        figures = _run_trial(self._job, self._data, shapes, self._limit_mb)
        if figures is None:
            trial = Trial(budget, shapes, None, None, fits=False)
        else:
            peak_mb, frames_per_s, self.memory_mb = figures
            trial = Trial(budget, shapes, peak_mb, frames_per_s, peak_mb <= (1 - MARGIN) * self.memory_mb)
        self.trials.append(trial)
        result = (
            "out of memory"
            if figures is None
            else f"{trial.peak_mb:,.0f} MB, {trial.frames_per_s:.0f} frames/s"
        )
        logger.info("loader.frame_budget=%d: %s", budget, result)
        return trial.fits

    def _shapes(self, budget: int) -> tuple[Shape, ...]:
        """Returns the batch of the longest clips, and the batch with the most padded frames if it is different."""
        batch_size = self._job.train.batch_size
        shapes = []
        for frames in (self.longest, min(max(budget // batch_size, int(self._frames_N.min())), self.longest)):
            # the longest label among clips of at most this length, so that CTC can spell it
            row = int((self._label_lengths_N * (self._frames_N <= frames)).argmax())
            slowest = math.ceil(frames / (1 - self._job.train.augment.speed_change))
            shapes.append(Shape(min(batch_size, budget // frames), slowest, self._labels[row].as_py()))
        return tuple(dict.fromkeys(shapes))


Figures = tuple[float, float, float]
"""Peak memory, MB; padded frames per second; available memory, MB."""


def _run_trial(
    job: TrainingJob, data: TrainingData, shapes: Sequence[Shape], limit_mb: float | None
) -> Figures | None:
    """Returns the figures of a trial, run in its own process; None if it does not fit."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(
        target=_trial_process, args=(job, data, tuple(shapes), limit_mb, sender), daemon=True
    )
    process.start()
    sender.close()
    on_cpu = choose_device(job.machine.device).type == "cpu"
    try:
        while not receiver.poll(POLL_EVERY_S):
            if on_cpu and limit_mb is not None and _resident_mb(process.pid) > limit_mb:
                return None  # before the kernel kills this process, or even another one
        figures: Figures | None = receiver.recv()
        return figures
    except EOFError:
        process.join()
        if process.exitcode and process.exitcode > 0:
            raise TrainingError("a trial failed with an error that is not about memory; see above") from None
        return None  # killed, or aborted by a library that got no memory
    finally:
        process.kill()
        process.join()
        receiver.close()


def _resident_mb(process_id: int | None) -> float:
    with suppress(psutil.NoSuchProcess):
        return float(psutil.Process(process_id).memory_info().rss / 1e6)
    return 0.0


# -- in the process of a trial -------------------------------------------------------------------------------


class _WholeBatches(MicroBatches):
    """Does not split batches: a trial checks whether the whole batch fits."""

    def shrink(self, piece: ClipBatch, error: BaseException) -> None:
        raise MemoryError from error


def _trial_process(
    job: TrainingJob,
    data: TrainingData,
    shapes: Sequence[Shape],
    memory_mb: float | None,
    sender: "Connection[Figures | None, None]",
) -> None:
    """Sends the figures of training steps on these shapes, or None if memory runs out."""
    with suppress(OSError):  # not Linux
        Path("/proc/self/oom_score_adj").write_text("1000")  # the kernel kills this process first
    figures = None
    try:
        figures = _figures(job, data, shapes, memory_mb)
    except MEMORY_ERRORS as error:
        if not is_out_of_memory(error):
            raise
    sender.send(figures)


def _figures(
    job: TrainingJob, data: TrainingData, shapes: Sequence[Shape], memory_mb: float | None
) -> Figures:
    device = choose_device(job.machine.device)
    on_gpu = device.type == "cuda"
    if memory_mb is None:
        memory_mb = torch.cuda.mem_get_info(device)[0] / 1e6
    torch.set_num_threads(job.machine.threads or usable_cores())
    # the lengths of the shapes already include the speed
    augment = job.train.augment.model_copy(update={"speed_change": 0.0})
    job = replace(job, train=job.train.model_copy(update={"augment": augment}))
    step = set_up(job, data, device)
    step.micro_batches = _WholeBatches()
    batches = [_synthetic_batch(shape, data.crop_HW) for shape in shapes]
    read_ahead = _read_ahead(job, batches)
    num_batches = min(MOST_BATCHES, job.train.accumulation_steps)
    seconds, frames = 0.0, 0
    for batch in batches:
        step([batch], 0, 0.5)  # warm-up: autotuning, compiling, the optimiser's state
    for batch in batches:
        start = time.perf_counter()
        step([batch] * num_batches, 0, 0.5)  # waits for the device, except for the update of the weights
        if on_gpu:
            torch.cuda.synchronize(device)
        seconds += time.perf_counter() - start
        frames += num_batches * batch.video_BTHW.shape[:2].numel()
    peak_mb = peak_memory_mb(device)
    del read_ahead
    return peak_mb, frames / seconds, memory_mb


def _synthetic_batch(shape: Shape, crop_HW: tuple[int, int]) -> ClipBatch:
    B, T = shape.num_clips, shape.num_frames
    video_BTHW = torch.randint(0, 256, (B, T, *crop_HW), dtype=torch.uint8)
    clip_ids = tuple(f"trial-{number}" for number in range(B))
    return ClipBatch(video_BTHW, torch.full((B,), T), clip_ids, (shape.label,) * B, tuple(range(B)))


def _read_ahead(job: TrainingJob, batches: Sequence[ClipBatch]) -> list[torch.Tensor]:
    """Fills as much memory as the batches that a stream reads ahead."""
    largest = max((batch.video_BTHW for batch in batches), key=torch.Tensor.numel)
    machine = job.machine
    return [torch.full_like(largest, 1) for _ in range(machine.num_workers * machine.prefetch)]
