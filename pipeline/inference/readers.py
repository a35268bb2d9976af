"""Opens readers: a checkpoint with torch, or an exported model.onnx without torch."""

import logging
from collections.abc import Sequence
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


def models_of(checkpoints: Sequence[Path] | None, onnx: Path | None, values: Params) -> Sequence[Path]:
    """Returns the model files: the given checkpoints or exported model, by default the best checkpoint.

    Raises ConfigError if both are given, or if the name given with --onnx does not end in .onnx, which decides how the
    file is opened.
    """
    if checkpoints and onnx is not None:
        raise ConfigError(
            "--checkpoint and --onnx cannot be used together, since an ONNX model is read alone; give only one of them"
        )
    if onnx is not None and onnx.suffix != ONNX:
        raise ConfigError(
            f"--onnx {onnx}: the name of an ONNX model must end in {ONNX}; rename the file, or give a checkpoint with "
            "--checkpoint (`pipeline export --format onnx` makes an ONNX model from a checkpoint)"
        )
    return [onnx] if onnx else checkpoints or [Path(values.paths.checkpoints) / "best_model.pt"]


class OpenedReader(ClipReader, Protocol):
    """A reader that also has the model's vocabulary and its trained heads."""

    vocabulary: Vocabulary
    times_by_evidence: bool
    """Whether times are those of the frames that show a character, for which a clip is read many times."""

    @property
    def heads(self) -> list[Head]:
        """The model's heads."""


def open_reader(sources: Sequence[Path], params: Params, adapter: Path | None = None) -> OpenedReader:
    """Opens checkpoints (one with its adapter), or one .onnx file, for clips cropped with these parameters.

    Raises CheckpointError if the model was trained on clips of another frame rate or size, ConfigError if it has no
    head for decode.decoder or an adapter is given for an .onnx, TableError if the language model that decode.decoder
    needs is missing.
    """
    onnx = [source for source in sources if source.suffix == ONNX]
    if onnx and (len(sources) > 1 or params.decode.views):
        raise ConfigError(
            f"{onnx[0]} is an ONNX model, which is read alone and without decode.views; give checkpoints with "
            "--checkpoint instead, or set decode.views=[]"
        )
    if adapter is not None and onnx:
        raise ConfigError(
            f"--adapter {adapter} changes a checkpoint, not {onnx[0]}; export the model with it: pipeline export "
            f"--adapter {adapter}"
        )
    reader = _onnx_reader(onnx[0], params) if onnx else _checkpoint_reader(sources, params, adapter)
    refuse_other_crops(reader, params, sources[0])
    return reader


def refuse_other_crops(reader: ClipReader, params: Params, source: Path) -> None:
    """Raises CheckpointError if the model of `source` was trained on clips of another frame rate or size."""
    refuse_other_clips(
        reader,
        params.crop.target_fps,
        params.crop.size_px,
        "those that crop.target_fps and crop.size_px ask for",
        f"set crop.target_fps to {reader.fps:g} and crop.size_px to {reader.crop_px}, or use all the parameters that "
        f"{source} was trained with (config.yaml next to a checkpoint)",
    )


def _checkpoint_reader(
    checkpoints: Sequence[Path], params: Params, adapter: Path | None = None
) -> OpenedReader:
    from model.decoding.fusion import open_checkpoints
    from model.device import choose_device

    device = choose_device(params.machine.device)
    reader = open_checkpoints(checkpoints, device, params.decode.views, adapter)
    reader.open_language_model(Path(params.paths.lm), params.decode)
    if message := unused_weights(params.decode, reader.heads):
        LOG.warning(message)
    return reader


def _onnx_reader(file: Path, params: Params) -> OpenedReader:
    from model.exports.onnx_reader import OnnxReader

    reader = OnnxReader.open(file)
    reader.open_language_model(Path(params.paths.lm), params.decode)
    if message := unused_weights(params.decode, reader.heads):
        LOG.warning(message)
    return reader
