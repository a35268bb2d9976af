"""Reads every clip of a split, normally or blind."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import torch

from model.decoding.calibration import ConfidenceScale
from model.decoding.reader import LipReader
from model.decoding.result import ClipReader, Reading, ScoredClip, refuse_other_clips
from model.losses import LossParams, joint_loss_B
from model.networks.network_input import targets_of
from model.settings import DecodeParams, Head, TrainParams
from model.vocabulary import Vocabulary
from shards.blend import packs_of
from shards.files import Progress
from shards.plan import plan_scoring
from shards.sample_reader import read_sample
from shards.settings import LoaderParams, MachineParams
from shards.store import ShardStore
from shards.stream import ShardStream


class BatchReader(ClipReader, Protocol):
    """LipReader, or FusedReader of several models and views."""

    vocabulary: Vocabulary
    device: torch.device

    @property
    def confidence_scale(self) -> ConfidenceScale:
        """Returns how the confidences of characters were calibrated."""

    @property
    def models(self) -> Sequence[LipReader]:
        """Returns the models, of which the first one is the only one or gives what several share."""

    @property
    def heads(self) -> list[Head]:
        """Returns the heads of every model."""

    @property
    def num_views(self) -> int:
        """Returns how many views of a clip are encoded."""

    def encode(
        self, video_BTHW: torch.Tensor, num_frames_B: torch.Tensor, blind: bool = False
    ) -> tuple[Any, torch.Tensor]:
        """Returns what `decode` needs of uint8 clips, and the numbers of steps (B,)."""

    def decode(
        self, encoded: Any, /, num_steps_B: torch.Tensor, num_frames_B: torch.Tensor, params: DecodeParams
    ) -> list[Reading]:
        """Returns the text of each clip, read by the decoder of `params`."""

    def with_part_scores(
        self, readings: Sequence[Reading], encoded: Any, /, num_steps_B: torch.Tensor
    ) -> list[Reading]:
        """Returns the readings with the score of each candidate by each part of the first model."""

    def timed(
        self,
        readings: Sequence[Reading],
        encoded: Any,
        /,
        num_steps_B: torch.Tensor,
        num_frames_B: torch.Tensor,
        params: DecodeParams,
    ) -> list[Reading]:
        """Returns the readings with times and confidences of their characters, if a model can give them."""

    def decoder(self, params: DecodeParams) -> str:
        """Returns the decoder of `params`. Raises ConfigError if a model lacks its heads or its language model."""

    def settings(self, params: DecodeParams) -> dict[str, Any]:
        """Returns the decoder's name and the settings of `params` that reading uses."""

    def open_language_model(self, path: Path, params: DecodeParams) -> None:
        """Opens the ARPA file at `path` if the decoder of `params` uses a language model."""

    def ctc_log_probs(self, clip_THW: np.ndarray, head: Head = "ctc") -> np.ndarray | None:
        """Returns the first model's log-probabilities (S, V) of one uint8 clip; None if the head is missing."""


def score_split(
    reader: BatchReader,
    samples: pa.Table,
    store: ShardStore,
    *,
    batch_size: int,
    loader: LoaderParams,
    machine: MachineParams,
    decode: DecodeParams,
    blind: bool = False,
    with_confidences: bool = False,
    on_progress: Progress | None = None,
) -> list[ScoredClip]:
    """Returns one ScoredClip per sample, in the table's order; `with_confidences` of its characters, if the model can.

    Raises CheckpointError if the clips have another frame rate or size than the training clips.
    """
    refuse_other_pack(reader, samples, store)
    batches = _planned(reader, samples, loader, batch_size)
    stream = ShardStream(store, samples, machine, reader.device.type == "cuda")
    scored = score_batches(
        reader,
        samples,
        stream,
        batches,
        decode=decode,
        blind=blind,
        with_confidences=with_confidences,
        on_progress=on_progress,
    ).clips
    assert len(scored) == samples.num_rows, f"{samples.num_rows} samples, {len(scored)} scored"
    return scored


@dataclass
class DecoderScores:
    """The result of one decoder for a split."""

    decoder: str
    clips: list[ScoredClip]
    """In the table's order."""
    decode_s: float = 0.0
    """From the encoder's output to text, over all clips."""


@torch.no_grad()
def score_decoders(
    reader: BatchReader,
    samples: pa.Table,
    store: ShardStore,
    decodes: Sequence[DecodeParams],
    *,
    batch_size: int,
    loader: LoaderParams,
    machine: MachineParams,
    on_progress: Progress | None = None,
) -> tuple[list[DecoderScores], float]:
    """Reads the split with each of `decodes`, but encodes it only once. Also returns the seconds of encoding.

    Raises like `score_split`.
    """
    refuse_other_pack(reader, samples, store)
    for model in reader.models:
        model.network.eval()
    results = [DecoderScores(reader.decoder(decode), []) for decode in decodes]
    scored: list[dict[int, ScoredClip]] = [{} for _ in decodes]
    stream = ShardStream(store, samples, machine, reader.device.type == "cuda")
    encode_s = 0.0
    for batch in stream.batches(_planned(reader, samples, loader, batch_size)):
        start = time.perf_counter()
        encoded, num_steps_B = reader.encode(batch.video_BTHW, batch.num_frames_B)
        if reader.device.type == "cuda":
            torch.cuda.synchronize(reader.device)
        encode_s += time.perf_counter() - start
        for decode, result, of_decoder in zip(decodes, results, scored, strict=True):
            start = time.perf_counter()
            # returns text, so the device has finished
            readings = reader.decode(encoded, num_steps_B, batch.num_frames_B, decode)
            result.decode_s += time.perf_counter() - start
            of_decoder |= _scored_clips(reader, samples, batch.rows, readings, decode)
        if on_progress:
            on_progress(len(scored[0]), samples.num_rows)
    for result, of_decoder in zip(results, scored, strict=True):
        assert len(of_decoder) == samples.num_rows, f"{samples.num_rows} samples, {len(of_decoder)} scored"
        result.clips = [of_decoder[row] for row in sorted(of_decoder)]
    return results, encode_s


class Scores(NamedTuple):
    """The clips of some batches in the table's order, and their loss."""

    clips: list[ScoredClip]
    loss_sum: float
    """Nats; 0 if no loss was requested."""
    num_chars: int
    """Of the labels."""


@torch.no_grad()
def score_batches(
    reader: BatchReader,
    samples: pa.Table,
    stream: ShardStream,
    batches: Sequence[np.ndarray],
    *,
    decode: DecodeParams,
    blind: bool = False,
    with_confidences: bool = False,
    loss: TrainParams | None = None,
    on_progress: Progress | None = None,
) -> Scores:
    """Reads the samples of `batches`, and computes their loss if `loss` is given.

    The loss is the training loss, with the network in eval mode and the decoder fed the true characters.
    `stream` can be reused by the next call.
    """
    for model in reader.models:
        model.network.eval()
    scored: dict[int, ScoredClip] = {}
    loss_sum, num_chars = 0.0, 0
    for batch in stream.batches(batches):
        encoded, num_steps_B = reader.encode(batch.video_BTHW, batch.num_frames_B, blind)
        readings = reader.decode(encoded, num_steps_B, batch.num_frames_B, decode)
        if not blind:
            readings = reader.with_part_scores(readings, encoded, num_steps_B)
        if with_confidences:
            readings = reader.timed(readings, encoded, num_steps_B, batch.num_frames_B, decode)
        if loss is not None:
            (model,) = reader.models
            targets = targets_of(batch.labels, reader.vocabulary, reader.device)
            outputs = model.network.outputs(encoded, num_steps_B, targets)
            loss_sum += float(joint_loss_B(outputs, targets, LossParams.of(loss)).sum())
        num_chars += sum(map(len, batch.labels))
        scored |= _scored_clips(reader, samples, batch.rows, readings, decode)
        if on_progress:
            on_progress(len(scored), samples.num_rows)
    return Scores([scored[row] for row in sorted(scored)], loss_sum, num_chars)


def refuse_other_pack(reader: BatchReader, samples: pa.Table, store: ShardStore) -> None:
    """Checks only the first sample of each pack: all clips of a pack have the same frame rate and size."""
    names, pack_N = packs_of(samples)
    for pack, row in zip(*np.unique(pack_N, return_index=True), strict=True):
        clip_THW, metadata = read_sample(store, samples.slice(row, 1).to_pylist()[0])
        refuse_other_clips(
            reader,
            float(str(metadata["fps"])),
            clip_THW.shape[1],
            f"those packed in {store.place(f'{names[pack]}/' if names[pack] else '')}",
            "score a model that was trained on these clips, or crop and pack them for this model with "
            f"crop.target_fps={reader.fps:g} and crop.size_px={reader.crop_px}",
        )


def _planned(
    reader: BatchReader, samples: pa.Table, loader: LoaderParams, batch_size: int
) -> tuple[np.ndarray, ...]:
    """Returns batches that need as much memory with all views as others with one."""
    frame_budget = max(1, loader.frame_budget // reader.num_views)
    loader = loader.model_copy(update={"frame_budget": frame_budget})
    return plan_scoring(samples, loader, max(1, batch_size // reader.num_views))


def _scored_clips(
    reader: BatchReader,
    samples: pa.Table,
    rows: Sequence[int],
    readings: Sequence[Reading],
    decode: DecodeParams,
) -> dict[int, ScoredClip]:
    """Returns the scored clips by row of the table."""
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
            confidences=tuple(character.confidence for character in reading.characters),
        )
    return scored
