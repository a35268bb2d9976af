"""One measurement of `python -m benchmarks.loader`, in a separate process: `python -m benchmarks.loader_measure`.

Prints its figures as one line of JSON. Measurements share nothing, and each runs only on its own cores.
"""

import cProfile
import csv
import io
import json
import os
import pstats
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import torch

from benchmarks.loader_formats import lhotse_shar, litdata
from benchmarks.loader_material import Material, warm
from benchmarks.loader_peers import OWN_FORMATS, PaddedBatch, Reader
from pipeline.params import check, parse_yaml, recipe_text
from shards.codec import decode_clip, encode_clip
from shards.enums import TRAIN_SPLIT
from shards.machine import status_mb
from shards.packs import Packs
from shards.plan import plan_epoch
from shards.samples import STREAM_COLUMNS, read_samples
from shards.settings import MachineParams, PackParams
from shards.store import FolderStore
from shards.stream import ShardStream, read_sample

FILL_S = 1.0
"""Time in which the reader threads can fill their queue of batches."""
MEMORY_PASSES = 10
MEMORY_WORKERS = 2
PROFILE_LINES = 15

Figures = dict[str, Any]

READERS = {**OWN_FORMATS, "litdata": litdata, "lhotse": lhotse_shar}


@dataclass(frozen=True)
class Task:
    """The measurement and its number of cores; a kind ignores the fields that it does not use."""

    kind: str
    codec: str = "raw"
    reader: str = "ours"
    num_workers: int = 0
    seconds: float = 1.0
    """Minimum time; the measurement ends after a complete pass."""
    full_batches: bool = False
    """For memory: batches filled to the frame budget, instead of the recipe's number of clips."""
    num_rows: int = 0
    num_epochs: int = 0
    threads: int = 0
    """For training: value of machine.threads."""
    cores: int = 1


def figures(task: Task, material: Material) -> Figures:
    """Returns the figures of one task, measured in this process."""
    return KINDS[task.kind](task, material)


def speed(task: Task, material: Material) -> Figures:
    """Returns clips per second at the consumer, by wall time and by processor time of this process and its children."""
    reader = _warm_reader(task, material)
    num_clips = sum(len(batch.clip_ids) for batch in reader(0))
    assert num_clips == material.samples(task.codec).num_rows, f"{task.reader} lost clips"
    passes, start, start_cpu = 0, time.perf_counter(), _cpu_s()
    while not passes or time.perf_counter() - start < task.seconds:
        passes += 1
        for batch in reader(passes):
            _consume(batch)
    seconds, cpu_s = time.perf_counter() - start, _cpu_s() - start_cpu
    return {"clips_per_s": passes * num_clips / seconds, "clips_per_cpu_s": passes * num_clips / cpu_s}


def profile(task: Task, material: Material) -> Figures:
    """Returns a profile of a reader by cProfile, without the time of other threads."""
    reader = _warm_reader(task, material)
    for batch in reader(0):
        _consume(batch)
    profiler = cProfile.Profile()
    profiler.enable()
    for epoch in range(MEMORY_PASSES):
        for batch in reader(epoch):
            _consume(batch)
    profiler.disable()
    report = io.StringIO()
    pstats.Stats(profiler, stream=report).strip_dirs().sort_stats("tottime").print_stats(PROFILE_LINES)
    return {"profile": report.getvalue()}


def codec(task: Task, material: Material) -> Figures:
    """Returns size, speed on one thread, and error in gray levels of a codec."""
    rows = material.samples(task.codec).to_pylist()
    truth = {row["clip_id"]: row for row in material.samples("raw").to_pylist()}
    clips = [read_sample(material.store("raw"), truth[row["clip_id"]])[0] for row in rows]
    payloads = [material.payload(task.codec, row) for row in rows]
    params = PackParams.model_validate({"codec": task.codec})
    start = time.perf_counter()
    for clip_THW in clips:
        encode_clip(clip_THW, params)
    encode_s = time.perf_counter() - start
    start = time.perf_counter()
    for payload, row in zip(payloads, rows, strict=True):
        decode_clip(payload, task.codec, row["num_frames"])
    decode_s = time.perf_counter() - start
    errors = [
        np.abs(clip_THW.astype(np.int16) - decode_clip(payload, task.codec, len(clip_THW)))
        for clip_THW, payload in zip(clips, payloads, strict=True)
    ]
    return {
        "kb_a_clip": sum(map(len, payloads)) / len(rows) / 1e3,
        "encoded_per_s": len(rows) / encode_s,
        "decoded_per_s": len(rows) / decode_s,
        "mean_error": float(np.mean([error.mean() for error in errors])),
        "max_error": int(max(error.max() for error in errors)),
    }


def memory(task: Task, material: Material) -> Figures:
    """Returns the memory beyond that after imports, peak and per pass, MB; two threads read as far ahead as allowed."""
    params = check(parse_yaml(recipe_text("chinese_lips"), "recipe"), "recipe")
    samples = material.samples(task.codec)
    batch_size = params.loader.frame_budget if task.full_batches else params.train.batch_size
    plans = [plan_epoch(samples, params.loader, batch_size, epoch) for epoch in range(MEMORY_PASSES)]
    machine = MachineParams(num_workers=MEMORY_WORKERS, prefetch=params.machine.prefetch)
    before = status_mb("VmRSS")
    stream = ShardStream(material.store(task.codec), samples, machine)
    # one long epoch of all passes, so that the queue is also full after a large batch
    batches = iter(stream.batches([batch for plan in plans for batch in plan.batches]))
    after_pass, largest = [], 0
    for plan in plans:
        highest = 0.0
        for position in range(len(plan.batches)):
            batch = next(batches)
            largest = max(largest, batch.video_BTHW.nbytes)
            if not position:
                time.sleep(FILL_S * task.seconds)
            highest = max(highest, status_mb("VmRSS"))
        after_pass.append(highest - before)
    return {
        "peak_mb": status_mb("VmHWM") - before,
        "workers": MEMORY_WORKERS,
        "pass_mb": after_pass,
        "batch_mb": largest / 1e6,
    }


def catalogue(task: Task, material: Material) -> Figures:
    """Returns the memory of a trainer and its stream for `num_rows` synthetic clips, MB per million rows."""
    from benchmarks.synthetic_catalogue import write_catalogue

    with tempfile.TemporaryDirectory(dir=material.folder) as place:
        write_catalogue(Path(place), task.num_rows)
        samples = read_samples(Path(place) / "samples.parquet", TRAIN_SPLIT, STREAM_COLUMNS)
        before = status_mb("VmRSS")
        stream = ShardStream(FolderStore(Path(place)), samples, MachineParams())
        grown = status_mb("VmRSS") - before
        assert stream is not None
    millions = samples.num_rows / 1e6
    return {"table_mb": samples.nbytes / 1e6 / millions, "stream_mb": grown / millions}


def training(task: Task, material: Material) -> Figures:
    """Returns the share of each epoch spent waiting for data, with the model and batches of the recipe `grid`.

    Before the first epoch the shards are removed from the page cache.
    """
    from pipeline.training_job import job_of
    from stages.train import train

    values = parse_yaml(recipe_text("grid"), "recipe")
    values["train"] |= {"num_epochs": task.num_epochs, "warmup_epochs": 1}
    values["machine"] |= {"num_workers": task.num_workers, "threads": task.threads, "device": "cpu"}
    params = check(values, "recipe")
    for path in material.shards(task.codec):
        _forget(path)
    with tempfile.TemporaryDirectory(dir=material.folder) as place:
        folder = Path(place)
        train(
            replace(
                job_of(params),
                packs=Packs.single(material.samples_path(task.codec), material.store(task.codec)),
                runs=folder / "runs",
                checkpoints=folder / "checkpoints",
                logs=folder / "logs",
            )
        )
        with (folder / "logs" / "curves.csv").open(encoding="utf-8", newline="") as file:
            curves = list(csv.DictReader(file))
    return {
        "data_wait": [float(epoch["data_wait"]) for epoch in curves],
        "clips_per_s": [float(epoch["clips_per_s"]) for epoch in curves],
    }


KINDS: Mapping[str, Callable[[Task, Material], Figures]] = {
    "speed": speed,
    "profile": profile,
    "codec": codec,
    "memory": memory,
    "catalogue": catalogue,
    "training": training,
}


def main() -> None:
    """Reads the task as JSON and the folder of the material from the command line."""
    task, material = Task(**json.loads(sys.argv[1])), Material(Path(sys.argv[2]))
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-task.cores :])
    cv2.setNumThreads(task.cores)
    torch.set_num_threads(task.cores)
    cores = {"cores": len(os.sched_getaffinity(0))}
    sys.stdout.write(json.dumps(figures(task, material) | cores) + "\n")


def _warm_reader(task: Task, material: Material) -> Reader:
    reader = READERS[task.reader](material, task.codec, task.num_workers)
    of_peer = material.peer(task.reader, task.codec)
    files = material.mp4s() if task.reader == "mp4" else material.shards(task.codec)
    warm([path for path in of_peer.iterdir() if path.is_file()] if of_peer.exists() else files)
    return reader


def _consume(batch: PaddedBatch) -> None:
    """Does the minimum of a consumer: keeps the batch until the next one."""
    assert batch.video_BTHW.dtype == torch.uint8


def _cpu_s() -> float:
    """Returns the processor time of this process and its running children."""
    children = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    # psutil counts hundredths of a second, too coarse for a reader without children
    return time.process_time() + sum(times.user + times.system for times in children)


def _forget(path: Path) -> None:
    """Asks the kernel to drop a file from the page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
