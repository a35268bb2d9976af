"""Compares a pack with its catalogue as other programs see it: read through `shards.webdataset`, without offsets."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from shards.clip_pipeline import ClipPipeline, shards_of
from shards.errors import PipelineError, ShardError
from shards.files import Progress
from shards.open_shards import OpenShards
from shards.sample_reader import read_sample_of
from shards.samples import read_samples, splits_of
from shards.store import ShardStore
from shards.tar import INDEX
from shards.tar_stream import StreamedShard
from shards.verify import Verification
from shards.verify_shard import Problem


def verify_foreign(
    found: Verification,
    store: ShardStore,
    samples_path: Path,
    split: str | None = None,
    on_progress: Progress | None = None,
) -> Verification:
    """Returns `found` with the problems of reading the pack through `shards.webdataset`, and the time that it took.

    Each clip of samples.parquet must be in its shard once, with its label, its number of frames and the pixels that
    our own reader gives. Raises as `verify` does.
    """
    began = time.monotonic()
    problems: list[Problem] = []
    root, clips, num_done = store.place("").rstrip("/"), OpenShards(store), 0
    for name in sorted(splits_of(samples_path)) if split is None else [split]:
        of_shard: dict[str, dict[str, dict[str, Any]]] = {}
        for row in read_samples(samples_path, name).to_pylist():
            of_shard.setdefault(row["shard"], {})[row["clip_id"]] = row
        try:
            shards = {shard.url.removeprefix(f"{root}/"): shard for shard in shards_of(root, name)}
        except ShardError as error:
            lost = tuple(clip_id for rows in of_shard.values() for clip_id in rows)
            problems.append(Problem(f"{name}/{INDEX}", f"webdataset: {error}", lost))
            continue
        for shard in sorted(shards.keys() | of_shard.keys()):
            rows = of_shard.get(shard, {})
            streamed = shards.get(shard, StreamedShard(f"{root}/{shard}"))
            problems += _compare(streamed, shard, rows, clips)
            num_done += len(rows)
            if on_progress:
                on_progress(num_done, found.num_samples)
    return replace(
        found, problems=(*found.problems, *problems), seconds=found.seconds + time.monotonic() - began
    )


def _compare(
    streamed: StreamedShard, shard: str, rows: Mapping[str, Mapping[str, Any]], clips: OpenShards
) -> Iterator[Problem]:
    seen: set[str] = set()
    failure = ""
    try:
        for sample in ClipPipeline([streamed]):
            clip_id = sample["clip_id"]
            row = rows.get(clip_id)
            if row is None or clip_id in seen:
                what = "has this clip twice" if row else "has a clip that samples.parquet does not have there"
                yield Problem(shard, f"webdataset: {what}", (clip_id,))
                continue
            seen.add(clip_id)
            if what := _difference(sample, row, clips):
                yield Problem(shard, f"webdataset: {what}", (clip_id,))
    except PipelineError as error:
        failure = f" ({error})"
    if failure or len(seen) < len(rows):
        missing = tuple(clip_id for clip_id in rows if clip_id not in seen)
        yield Problem(shard, f"webdataset: {len(missing)} clips were not read{failure}", missing)


def _difference(sample: Mapping[str, Any], row: Mapping[str, Any], clips: OpenShards) -> str:
    """Returns how a clip differs from its row and from the pixels of our own reader; empty if it does not."""
    for name, value in (("label", sample["label"]), ("num_frames", len(sample["video_THW"]))):
        if value != row[name]:
            return f"{name} is {value!r}, samples.parquet says {row[name]!r}"
    try:
        clip_THW, _ = read_sample_of(clips, row)
    except ShardError as error:
        return f"reads a clip that our own reader does not: {error}"
    return "" if np.array_equal(clip_THW, sample["video_THW"]) else "the pixels differ from our own reader's"
