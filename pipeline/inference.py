"""Reads any video: the crop code of preprocessing, then the network."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from model.metrics import edit_counts
from model.reading import ClipReader
from model.text import normalise
from pipeline.params import Params
from pipeline.readers import open_reader
from shards.errors import ClipRejected
from shards.schema import Reason
from stages.chatter import NATIVE_LOG, native_stderr_to
from stages.cropping import crop_video
from stages.video import sniff_media_kind


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the video and what was read there."""

    start_s: float
    end_s: float
    text: str
    confidence: float


@dataclass(frozen=True, slots=True)
class VideoReading:
    """What `pipeline inference` says of one video; `reason` is null where it could be read."""

    path: str
    text: str
    confidence: float | None
    """Geometric mean of the characters' probabilities."""
    cer: float | None
    num_frames: int | None
    reason: str | None
    segments: tuple[Segment, ...]


def read_videos(
    paths: Sequence[Path], checkpoint: Path, params: Params, ground_truth: str | None = None
) -> list[VideoReading]:
    """One reading a path, in order; a video that cannot be read gets the ledger's reason.

    `ground_truth` is normalised as the labels of training were. Raises CheckpointError.
    """
    native_stderr_to(Path(params.machine.cache_dir) / NATIVE_LOG)
    reader = open_reader(checkpoint, params)
    return [read_video(path, reader, params, ground_truth) for path in paths]


def read_video(
    path: Path, reader: ClipReader, params: Params, ground_truth: str | None = None
) -> VideoReading:
    """What is said in one video."""
    try:
        if not path.is_file():
            raise ClipRejected(Reason.MISSING_FILE, f"{path} is not there")
        mouth = crop_video(path, sniff_media_kind(path), params.crop)
    except ClipRejected as error:
        return VideoReading(str(path), "", None, None, None, str(error), ())
    reading = reader.read_clip(mouth.clip_THW, params.decode)
    cer = None
    if ground_truth is not None:
        reference = reader.reference(normalise(ground_truth, reader.text), params.decode)
        cer = edit_counts(reference, reading.text).cer
    confidence = math.exp(reading.score)
    num_frames = len(mouth.clip_THW)
    whole = Segment(0.0, num_frames / params.crop.target_fps, reading.text, confidence)
    return VideoReading(str(path), reading.text, confidence, cer, num_frames, None, (whole,))


def print_readings(readings: Sequence[VideoReading], as_json: bool) -> None:
    """Text to stdout, and why a video could not be read to stderr."""
    if as_json:
        typer.echo(json.dumps([asdict(reading) for reading in readings], ensure_ascii=False, indent=2))
        return
    for reading in readings:
        name = f"{reading.path}: " if len(readings) > 1 else ""
        if reading.reason is not None:
            typer.echo(f"{reading.path}: {reading.reason}", err=True)
            continue
        typer.echo(f"{name}{reading.text}")
        if reading.cer is not None:
            typer.echo(f"{name}CER {reading.cer:.4f} (accuracy {1 - reading.cer:.2%})")
