"""One measurement of `python -m benchmarks.train`, in a separate process: `python -m benchmarks.train_measure`.

Reads a Task as JSON, prints its figures as one line of JSON.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass

import torch

from model.device import Precision, choose_device, keep_freed_memory
from model.networks.network import num_parameters
from model.settings import DecodeParams
from model.training.augment import training_input
from model.training.epoch_figures import flop_utilisation, flops_per_frame, peak_flops_per_s, peak_memory_mb
from model.training.sound_tokens import learn_sound_tokens
from model.training.step import TrainingStep, set_up
from model.training.training_data import TrainingData
from model.training.training_state import TrainingState
from pipeline.params import check, parse_yaml, recipe_text
from pipeline.training_job import job_of
from shards.errors import ConfigError, PipelineError
from shards.machine import usable_cores
from shards.stream import ClipBatch

WARM_UP_STEPS = 2
RECIPE = "chinese_lips"
BAD_CONFIG = 2
"""Exit code of a ConfigError."""

Figures = dict[str, float]


@dataclass(frozen=True)
class Task:
    """The measurement; a kind ignores the fields that it does not use."""

    kind: str
    shards: str
    samples: str
    preset: str
    batch: int
    sizes: dict[str, int | tuple[int, ...]] | None = None
    """Replaces the preset's sizes."""
    settings: str = "ours"
    """ours: the settings of training. plain: eager, float32, contiguous, an optimiser that is not fused. kept: like
    plain, but freed memory is kept."""
    compile: bool = False
    """Has an effect only with our settings."""
    source: str = "cached"
    """For training: `cached` (one batch again and again) or `shards`."""
    audio_weight: float = 0.0
    """train.audio_weight; above 0, the pack must have sound."""
    decoder: str = "ctc"
    device: str = "auto"
    threads: int = 0
    seconds: float = 10.0
    """Minimum time; the measurement ends after a complete step."""


def figures(task: Task) -> Figures:
    """Returns the figures of one task, measured in this process."""
    return KINDS[task.kind](task)


def training(task: Task) -> Figures:
    """Returns clips per second of the trainer's steps, their peak memory, and model FLOP utilisation on a GPU."""
    step = _set_up(task)
    state, batches = step.state, _batches(task, step.data)
    first = next(batches)
    for _ in range(WARM_UP_STEPS):
        step([first], 0, 0.5)
    _wait(state.device)
    num_clips, num_steps, start, start_cpu = 0, 0, time.perf_counter(), time.process_time()
    for batch in batches:
        num_clips += step([batch], 0, 0.5).num_clips
        num_steps += 1
        if time.perf_counter() - start >= task.seconds:
            break
    _wait(state.device)
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    measured = {
        "clips_per_s": num_clips / seconds,
        "clips_per_cpu_s": num_clips / cpu_s,
        "steps": float(num_steps),
        "peak_mb": peak_memory_mb(state.device),
        "parameters": float(num_parameters(state.network)),
    }
    if peak_flops_per_s(state.device) is not None:
        flops = flops_per_frame(step, first, 0) * _frames_learnt(step, first) * num_steps
        measured["flop_utilisation"] = flop_utilisation(flops, seconds, state.device) or 0.0
    return measured


def _frames_learnt(step: TrainingStep, batch: ClipBatch) -> int:
    """Returns the padded frames after speed augmentation, without the frames that fill a bucket."""
    _, num_frames_B, _ = training_input(batch, step.job, step.data, 0, step.state.device)
    return len(num_frames_B) * int(num_frames_B.max())


def inference(task: Task) -> Figures:
    """Returns clips per second from uint8 batches to text, by greedy decoding."""
    step = _set_up(task)
    reader, batch = step.state.reader(step.precision), next(_batches(task, step.data))
    reader.network.eval()
    decode = DecodeParams.model_validate({"decoder": task.decoder})
    for _ in range(WARM_UP_STEPS):
        reader.read(batch.video_BTHW, batch.num_frames_B, decode)
    num_clips, start, start_cpu = 0, time.perf_counter(), time.process_time()
    while not num_clips or time.perf_counter() - start < task.seconds:
        reader.read(
            batch.video_BTHW, batch.num_frames_B, decode
        )  # returns text, so no work on the GPU is pending
        num_clips += len(batch.clip_ids)
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - start_cpu
    return {
        "clips_per_s": num_clips / seconds,
        "clips_per_cpu_s": num_clips / cpu_s,
        "peak_mb": peak_memory_mb(step.state.device),
    }


KINDS: Mapping[str, Callable[[Task], Figures]] = {"training": training, "inference": inference}


def main() -> None:
    """Reads the task as JSON from the command line. Reports a PipelineError like `pipeline`, without a traceback."""
    try:
        measured = figures(Task(**json.loads(sys.argv[1])))
    except PipelineError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(BAD_CONFIG if isinstance(error, ConfigError) else 1) from None
    sys.stdout.write(json.dumps(measured) + "\n")


def task_to_json(task: Task) -> str:
    """Returns the task as the argument of `main`."""
    return json.dumps(asdict(task))


def _set_up(task: Task) -> TrainingStep:
    """Returns the step with the trainer's settings, or with plain ones."""
    is_ours = task.settings == "ours"
    values = parse_yaml(recipe_text(RECIPE), RECIPE)
    values["model"] |= {"preset": task.preset, "sizes": task.sizes or {}}
    values["train"] |= {"batch_size": task.batch, "accumulation_steps": 1, "mixed_precision": is_ours}
    values["train"] |= {"compile": task.compile and is_ours, "audio_weight": task.audio_weight}
    # all batches from the first epoch on: no curriculum, no grouping by length
    values["loader"] |= {"max_frames": 0, "curriculum_epochs": 0, "frame_budget": 1_000_000}
    num_workers = values["machine"]["num_workers"] if task.source == "shards" else 0
    values["machine"] |= {"device": task.device, "num_workers": num_workers}
    values["paths"] |= {"shards": task.shards, "samples": task.samples}
    job = job_of(check(values, RECIPE))
    device = choose_device(task.device)
    torch.set_num_threads(task.threads or usable_cores())
    data = TrainingData(job)
    if task.audio_weight > 0:
        data.sound_tokens = learn_sound_tokens(
            job.packs.store, data.samples, job.train.audio_tokens, job.train.seed
        )
    if is_ours:
        return set_up(job, data, device)
    if task.settings == "kept":
        keep_freed_memory()
    torch.manual_seed(job.train.seed)
    precision = Precision(None)
    state = TrainingState(job, device, precision, data)
    _make_plain(state)
    state.network.train()
    return TrainingStep(job, data, state, precision)


def _make_plain(state: TrainingState) -> None:
    """Makes the weights contiguous and uses an optimiser that updates one parameter at a time."""
    for parameter in state.network.parameters():
        parameter.data = parameter.data.contiguous()
    names = ("params", "weight_decay", "rate_share")
    groups = [{name: group[name] for name in names} for group in state.optimizer.param_groups]
    state.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98), foreach=False, fused=False)


def _batches(task: Task, data: TrainingData) -> Iterator[ClipBatch]:
    """Yields full batches without end: from the shards, epoch after epoch, or always the first batch."""
    stream, _ = data.streams(pin_memory=choose_device(task.device).type == "cuda")

    def of_shards() -> Iterator[ClipBatch]:
        for epoch in itertools.count():
            plan = data.epoch(epoch)
            if (largest := max(map(len, plan.batches))) < task.batch:
                raise ConfigError(f"--batch {task.batch}: choose at most {largest}, the pack's largest batch")
            for batch in stream.batches(plan.batches):
                if len(batch.clip_ids) == task.batch:
                    yield batch

    return of_shards() if task.source == "shards" else itertools.repeat(next(of_shards()))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
