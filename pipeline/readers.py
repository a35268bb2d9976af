"""Opens what reads clips: a checkpoint."""

import math
from pathlib import Path

from model.reading import ClipReader
from pipeline.params import Params
from shards.errors import CheckpointError


def open_reader(checkpoint: Path, params: Params) -> ClipReader:
    """The reader of a checkpoint, fit for clips that are cut with these parameters.

    Raises CheckpointError where it was trained on clips of another frame rate.
    """
    from model.device import choose_device
    from model.reader import LipReader

    reader = LipReader.from_checkpoint(checkpoint, choose_device(params.machine.device))
    if not math.isclose(reader.fps, params.crop.target_fps):
        raise CheckpointError(
            f"{checkpoint} was trained at {reader.fps:g} frames/s, crop.target_fps is "
            f"{params.crop.target_fps:g}; use the params.yaml it was trained with (config.yaml beside it)"
        )
    return reader
