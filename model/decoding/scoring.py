"""Reads every clip of a split, with or without sight of the lips."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from model.decoding.reader import LipReader
from model.decoding.result import Reading, ScoredClip, refuse_other_clips
from model.losses import LossParams, joint_loss_B
from model.settings import DecodeParams, TrainParams
from model.targets import targets_of
from shards.files import Progress
from shards.plan import plan_scoring
from shards.sample_reader import read_sample
from shards.settings import LoaderParams, MachineParams
from shards.store import ShardStore
from shards.stream import ShardStream


def score_split(
    reader: LipReader,
    samples: pa.Table,
    store: ShardStore,
    *,
    batch_size: int,
    loader: LoaderParams,
    machine: MachineParams,
    decode: DecodeParams,
    blind: bool = False,
    on_progress: Progress | None = None,
) -> list[ScoredClip]:
    """One ScoredClip a sample, in the table's order.

    Raises CheckpointError where the clips are of another frame rate or size than those that were learnt from.
    """
    _refuse_other_pack(reader, samples, store)
    batches = plan_scoring(samples, loader, batch_size)
    stream = ShardStream(store, samples, machine, reader.device.type == "cuda")
    scored = score_batches(
        reader, samples, stream, batches, decode=decode, blind=blind, on_progress=on_progress
    ).clips
    assert len(scored) == samples.num_rows, f"{samples.num_rows} samples, {len(scored)} scored"
    return scored


@dataclass
class DecoderScores:
    """What one decoder made of a split."""

    decoder: str
    clips: list[ScoredClip]
    """In the table's order."""
    decode_s: float = 0.0
    """From the encoder's output to text, over all clips."""


@torch.no_grad()
def score_decoders(
    reader: LipReader,
    samples: pa.Table,
    store: ShardStore,
    decodes: Sequence[DecodeParams],
    *,
    batch_size: int,
    loader: LoaderParams,
    machine: MachineParams,
    on_progress: Progress | None = None,
) -> tuple[list[DecoderScores], float]:
    """The split as each of `decodes` reads it, encoded once for all, and the seconds that encoding took.

    Raises as `score_split` does.
    """
    _refuse_other_pack(reader, samples, store)
    reader.network.eval()
    told = [DecoderScores(reader.decoder(decode), []) for decode in decodes]
    scored: list[dict[int, ScoredClip]] = [{} for _ in decodes]
    stream = ShardStream(store, samples, machine, reader.device.type == "cuda")
    encode_s = 0.0
    for batch in stream.batches(plan_scoring(samples, loader, batch_size)):
        start = time.perf_counter()
        encoded_BSE, num_steps_B = reader.encode(batch.video_BTHW, batch.num_frames_B)
        if reader.device.type == "cuda":
            torch.cuda.synchronize(reader.device)
        encode_s += time.perf_counter() - start
        for decode, one, of_decoder in zip(decodes, told, scored, strict=True):
            start = time.perf_counter()
            # ends with text, so the device is done
            readings = reader.decode(encoded_BSE, num_steps_B, batch.num_frames_B, decode)
            one.decode_s += time.perf_counter() - start
            of_decoder |= _scored_clips(reader, samples, batch.rows, readings, decode)
        if on_progress:
            on_progress(len(scored[0]), samples.num_rows)
    for one, of_decoder in zip(told, scored, strict=True):
        assert len(of_decoder) == samples.num_rows, f"{samples.num_rows} samples, {len(of_decoder)} scored"
        one.clips = [of_decoder[row] for row in sorted(of_decoder)]
    return told, encode_s


class Scores(NamedTuple):
    """The clips of some batches in the table's order, and their loss."""

    clips: list[ScoredClip]
    loss_sum: float
    """Nats; 0 where it was not asked for."""
    num_chars: int
    """Of the labels."""


@torch.no_grad()
def score_batches(
    reader: LipReader,
    samples: pa.Table,
    stream: ShardStream,
    batches: Sequence[np.ndarray],
    *,
    decode: DecodeParams,
    blind: bool = False,
    loss: TrainParams | None = None,
    on_progress: Progress | None = None,
) -> Scores:
    """What the reader makes of the samples of `batches`, and their loss where `loss` is given.

    The loss is that of training, with the network in eval mode and the decoder fed the true characters.
    `stream` may live on between calls.
    """
    reader.network.eval()
    scored: dict[int, ScoredClip] = {}
    loss_sum, num_chars = 0.0, 0
    for batch in stream.batches(batches):
        encoded_BSE, num_steps_B = reader.encode(batch.video_BTHW, batch.num_frames_B, blind)
        readings = reader.decode(encoded_BSE, num_steps_B, batch.num_frames_B, decode)
        if loss is not None:
            targets = targets_of(batch.labels, reader.vocabulary, reader.device)
            outputs = reader.network.outputs(encoded_BSE, num_steps_B, targets)
            loss_sum += float(joint_loss_B(outputs, targets, LossParams.of(loss)).sum())
        num_chars += sum(map(len, batch.labels))
        scored |= _scored_clips(reader, samples, batch.rows, readings, decode)
        if on_progress:
            on_progress(len(scored), samples.num_rows)
    return Scores([scored[row] for row in sorted(scored)], loss_sum, num_chars)


def _refuse_other_pack(reader: LipReader, samples: pa.Table, store: ShardStore) -> None:
    """All clips of a pack are alike: the first sample tells."""
    clip_THW, metadata = read_sample(store, samples.slice(0, 1).to_pylist()[0])
    refuse_other_clips(
        reader,
        float(str(metadata["fps"])),
        clip_THW.shape[1],
        f"those packed in {store.place('')}",
        "score the model that was trained on these, or crop and pack for this one with "
        f"crop.target_fps {reader.fps:g} and crop.size_px {reader.crop_px}",
    )


def _scored_clips(
    reader: LipReader,
    samples: pa.Table,
    rows: Sequence[int],
    readings: Sequence[Reading],
    decode: DecodeParams,
) -> dict[int, ScoredClip]:
    """By row of the table."""
    scored = {}
    for row, reading in zip(rows, readings, strict=True):
        record = samples.slice(row, 1).to_pylist()[0]
        scored[row] = ScoredClip(
            clip_id=record["clip_id"],
            split=record["split"],
            reference=reader.reference(record["label"], decode),
            hypothesis=reading.text,
            score=reading.score,
            num_frames=record["num_frames"],
            speaker=record["speaker"],
            topic=record["topic"],
            candidates=reading.candidates,
        )
    return scored
