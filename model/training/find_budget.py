"""The largest loader.frame_budget whose batches fit into memory, found by real training steps.

Each budget is tried in a process of its own: one that is killed for its memory is an answer, not the end of
the search.
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
from model.training.job import TrainingJob
from model.training.out_of_memory import MEMORY_ERRORS, MicroBatches, is_out_of_memory
from model.training.ranks import ranks_of
from model.training.step import set_up
from model.training.training_data import TrainingData
from shards.errors import ConfigError, TrainingError
from shards.machine import available_mb, usable_cores
from shards.store import FolderStore
from shards.stream import ClipBatch

MARGIN = 0.1
"""Share of the memory that stays free: for fragments, and for what else the machine does."""
NARROW_ENOUGH = 1.1
"""The search ends where the smallest budget that did not fit is at most so many times the largest that did."""
POLL_EVERY_S = 0.02
MOST_BATCHES = 2
"""Of a window, in a trial: while the second is computed, gradients take their place too, as in any later one."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A batch of a trial."""

    num_clips: int
    num_frames: int
    """Of each of its clips."""
    label: str
    """Of each of its clips."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What a budget came to."""

    frame_budget: int
    shapes: tuple[Shape, ...]
    """The batches tried."""
    peak_mb: float | None
    """Of the GPU's tensors, or of the process on a CPU; None where memory ran out."""
    frames_per_s: float | None
    """Padded frames; None where memory ran out."""
    fits: bool


@dataclass(frozen=True, slots=True)
class FoundBudget:
    """The answer, and how it came about."""

    frame_budget: int
    trials: tuple[Trial, ...]
    memory_mb: float
    """What there is; a budget fits where its peak leaves MARGIN of it free."""
    fits_all: bool
    """Whether train.batch_size clips of the longest fit: a larger budget would change no batch."""
    current: int
    """loader.frame_budget as it is."""
    speed_change: float
    """train.augment.speed_change, by which the clips of the trials are longer."""

    @property
    def current_fits(self) -> bool:
        return self.fits_all or self.current <= self.frame_budget


def find_budget(job: TrainingJob, memory_mb: float | None = None) -> FoundBudget:
    """Doubles the budget, from one longest clip on, until it does not fit, then narrows it down.

    Takes the job's network, precision and optimiser, clips as long as its longest and as slow as augmentation
    makes them. `memory_mb`: what may be used; None: what the device has free. Writes nothing. Raises
    TrainingError where not even one clip fits.
    """
    if ranks_of(os.environ).world_size > 1:
        raise ConfigError("--find-budget looks for what one process can take: start it without torchrun")
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
            f"{search.memory_mb:,.0f} MB are too little for a training step on one clip of {lowest} frames; leave long "
            "clips out with loader.max_frames, or take a smaller model.preset"
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
    """The trials of one job, and what they know of each other."""

    def __init__(self, job: TrainingJob, memory_mb: float | None) -> None:
        data = TrainingData(job)
        samples, max_frames = data.samples, job.loader.max_frames
        if max_frames:
            samples = samples.filter(pc.field("num_frames") <= max_frames)
            if not samples:
                raise TrainingError(f"no clip has at most loader.max_frames {max_frames} frames")
        self._frames_N = samples["num_frames"].to_numpy()
        self._label_lengths_N = pc.utf8_length(samples["label"]).to_numpy()
        self._labels = samples["label"]
        self.longest = int(self._frames_N.max())
        # neither the shards nor the table go to another process, and no trial reads them
        self._job = replace(job, shards=FolderStore(Path()), resume=None, on_batch=None)
        self._data = data.without_tables(self._job)
        self._limit_mb = memory_mb
        if memory_mb is None and choose_device(job.machine.device).type == "cpu":
            self._limit_mb = available_mb()
        self.memory_mb = self._limit_mb or 0.0
        """A GPU tells it in the first trial."""
        self.trials: list[Trial] = []

    def fits(self, budget: int) -> bool:
        """Whether batches of this budget fit; a trial more."""
        shapes = self._shapes(budget)
        figures = _run_trial(self._job, self._data, shapes, self._limit_mb)
        if figures is None:
            trial = Trial(budget, shapes, None, None, fits=False)
        else:
            peak_mb, frames_per_s, self.memory_mb = figures
            trial = Trial(budget, shapes, peak_mb, frames_per_s, peak_mb <= (1 - MARGIN) * self.memory_mb)
        self.trials.append(trial)
        told = (
            "memory runs out"
            if figures is None
            else f"{trial.peak_mb:,.0f} MB, {trial.frames_per_s:.0f} frames/s"
        )
        logger.info("loader.frame_budget=%d: %s", budget, told)
        return trial.fits

    def _shapes(self, budget: int) -> tuple[Shape, ...]:
        """The batch of the longest clips, and that of the most padded frames, where it is another."""
        batch_size = self._job.train.batch_size
        shapes = []
        for frames in (self.longest, min(max(budget // batch_size, int(self._frames_N.min())), self.longest)):
            # the longest label of clips as short: CTC can spell it
            row = int((self._label_lengths_N * (self._frames_N <= frames)).argmax())
            slowest = math.ceil(frames / (1 - self._job.train.augment.speed_change))
            shapes.append(Shape(min(batch_size, budget // frames), slowest, self._labels[row].as_py()))
        return tuple(dict.fromkeys(shapes))


Figures = tuple[float, float, float]
"""Peak of memory, MB; padded frames a second; memory that there is, MB."""


def _run_trial(
    job: TrainingJob, data: TrainingData, shapes: Sequence[Shape], limit_mb: float | None
) -> Figures | None:
    """Figures of a trial in a process of its own; None where it does not fit."""
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
                return None  # before the kernel kills, and perhaps another
        figures: Figures | None = receiver.recv()
        return figures
    except EOFError:
        process.join()
        if process.exitcode and process.exitcode > 0:
            raise TrainingError(
                "a trial ended with an error that is not about memory; it stands above"
            ) from None
        return None  # killed, or ended by a library that got no memory
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
    """A trial wants to know whether a batch fits whole."""

    def shrink(self, piece: ClipBatch, error: BaseException) -> None:
        raise MemoryError from error


def _trial_process(
    job: TrainingJob,
    data: TrainingData,
    shapes: Sequence[Shape],
    memory_mb: float | None,
    sender: "Connection[Figures | None, None]",
) -> None:
    """Sends figures of training steps on these shapes, or None where memory runs out."""
    with suppress(OSError):  # no Linux
        Path("/proc/self/oom_score_adj").write_text("1000")  # the kernel kills this one first
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
    # their speed is in the shapes' lengths
    augment = job.train.augment.model_copy(update={"speed_change": 0.0})
    job = replace(job, train=job.train.model_copy(update={"augment": augment}))
    step = set_up(job, data, device)
    step.micro_batches = _WholeBatches()
    batches = [_synthetic_batch(shape, data.crop_HW) for shape in shapes]
    read_ahead = _read_ahead(job, batches)
    num_batches = min(MOST_BATCHES, job.train.accumulation_steps)
    seconds, frames = 0.0, 0
    for batch in batches:
        step([batch], 0, 0.5)  # what is chosen or compiled once, and the optimiser's state
    for batch in batches:
        start = time.perf_counter()
        step([batch] * num_batches, 0, 0.5)  # ends with waiting for the device, but for the weights' change
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
    """Memory that is filled as it is by the batches that a stream keeps ready."""
    largest = max((batch.video_BTHW for batch in batches), key=torch.Tensor.numel)
    machine = job.machine
    return [torch.full_like(largest, 1) for _ in range(machine.num_workers * machine.prefetch)]
