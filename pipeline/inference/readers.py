"""Opens what reads clips: a checkpoint by torch, or an exported model.onnx without it."""

import logging
from pathlib import Path
from typing import Protocol

from model.decoding.registry import unused_weights
from model.decoding.result import ClipReader, refuse_other_clips
from model.settings import Head
from model.vocabulary import Vocabulary
from pipeline.params import Params
from shards.errors import ConfigError

ONNX = ".onnx"
LOG = logging.getLogger("pipeline.inference.readers")


def model_of(checkpoint: Path | None, onnx: Path | None, values: Params) -> Path:
    """The file to read with: a checkpoint, the best one by default, or an exported model.

    Raises ConfigError where both are given, or --onnx a file that is none by its name: readers go by it.
    """
    if checkpoint is not None and onnx is not None:
        raise ConfigError("--checkpoint and --onnx are two models; give one")
    if onnx is not None and onnx.suffix != ONNX:
        raise ConfigError(
            f"--onnx: {onnx} is no ONNX model by its name, which must end in {ONNX}; rename it, or give a checkpoint "
            "with --checkpoint (`pipeline export --format onnx` makes an ONNX model of one)"
        )
    return onnx or checkpoint or Path(values.paths.checkpoints) / "best_model.pt"


class OpenedReader(ClipReader, Protocol):
    """A reader that knows what its model has learnt to read by, and what it can write."""

    vocabulary: Vocabulary

    @property
    def heads(self) -> list[Head]:
        """The model's heads."""


def open_reader(source: Path, params: Params) -> OpenedReader:
    """The reader of a checkpoint, or of a file whose name ends in .onnx, fit for clips cut with these parameters.

    Raises CheckpointError where it was trained on clips of another frame rate or size; ConfigError where it has not
    learnt decode.decoder, TableError where the language model that this asks is missing.
    """
    reader = _onnx_reader(source, params) if source.suffix == ONNX else _checkpoint_reader(source, params)
    refuse_other_clips(
        reader,
        params.crop.target_fps,
        params.crop.size_px,
        "those that crop.target_fps and crop.size_px ask for",
        f"set crop.target_fps to {reader.fps:g} and crop.size_px to {reader.crop_px}, or take all of the parameters "
        f"that {source} was trained with (config.yaml beside a checkpoint)",
    )
    return reader


def _checkpoint_reader(checkpoint: Path, params: Params) -> OpenedReader:
    from model.decoding.reader import LipReader
    from model.device import choose_device

    reader = LipReader.from_checkpoint(checkpoint, choose_device(params.machine.device))
    reader.open_language_model(Path(params.paths.lm), params.decode)
    if told := unused_weights(params.decode, reader.heads):
        LOG.warning(told)
    return reader


def _onnx_reader(file: Path, params: Params) -> OpenedReader:
    from model.exports.onnx_reader import OnnxReader

    reader = OnnxReader.open(file)
    reader.open_language_model(Path(params.paths.lm), params.decode)
    if told := unused_weights(params.decode, reader.heads):
        LOG.warning(told)
    return reader
