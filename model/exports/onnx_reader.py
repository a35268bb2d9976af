"""Reads clips with an exported model.onnx, using onnxruntime and numpy, without torch.

Also the names of its inputs, its outputs and its configuration.

Shapes: T frames, H×W px, S encoder steps, V characters, W syllables.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from model.decoding.alignment import masked_copies, with_times
from model.decoding.arpa import load_language_model
from model.decoding.calibration import UNCALIBRATED, ConfidenceScale
from model.decoding.ctc import spiking_head
from model.decoding.ctc_beam import ctc_readings
from model.decoding.ngram import LanguageModel
from model.decoding.part_scores import with_part_scores
from model.decoding.registry import chosen_decoder, ready_decoder, uses_language_model
from model.decoding.result import Reading
from model.settings import DecodeParams, Head, TextParams
from model.text import READABLE_NORMALISERS, Tokenizer
from model.vocabulary import Vocabulary
from shards.errors import CheckpointError, MachineError
from shards.machine import usable_cores
from shards.pipes import refuse_pipe

VIDEO = "video"
"""uint8 (B, T, H, W): mouth crops, padded to the longest clip."""
NUM_FRAMES = "num_frames"
"""int64 (B,): the lengths of the clips without padding."""
LOG_PROBS = "log_probs"
"""float32 (B, S, V): log-probabilities of blank and characters at each encoder step."""
SYLLABLE_LOG_PROBS = "syllable_log_probs"
"""float32 (B, S, W): log-probabilities of blank and syllables."""
NUM_STEPS = "num_steps"
"""int64 (B,): encoder steps of each clip; outputs after them have no meaning."""
CONFIG = "config"
"""JSON, the same as config.json next to the file: the configuration of the model."""
MAX_FILE_BYTES = 4 << 30
"""Ten times the largest preset; protobuf has a limit of 2 GB."""
MAX_CONFIG_CHARS = 8_000_000
MAX_CROP_PX = 512
MAX_FPS = 120.0
HEAD_OF_OUTPUT: Mapping[str, Head] = {LOG_PROBS: "ctc", SYLLABLE_LOG_PROBS: "syllables"}


@dataclass
class OnnxReader:
    """An exported network with everything that reading needs."""

    session: Any
    vocabulary: Vocabulary
    text: TextParams
    fps: float
    crop_px: int
    """Side of the mouth crops; other sizes are rejected."""
    outputs: tuple[str, ...]
    language_model: LanguageModel | None = None
    """Over the vocabulary's characters, for beam searches."""
    confidence_scale: ConfidenceScale = UNCALIBRATED
    times_by_evidence: bool = False

    @property
    def heads(self) -> list[Head]:
        """The heads in the file, which never include an attention decoder."""
        return [head for output, head in HEAD_OF_OUTPUT.items() if output in self.outputs]

    @classmethod
    def open(cls, path: Path, threads: int = 0) -> "OnnxReader":
        """Opens the file `path`. `threads` 0 means one thread per core. Raises the errors of `of_bytes`."""
        return cls.of_bytes(_file_bytes(path), path, threads)

    @classmethod
    def of_bytes(cls, file: bytes, path: Path, threads: int = 0) -> "OnnxReader":
        """Opens the bytes of a file, which messages call `path`.

        Raises CheckpointError if the file is missing, damaged, too large or not written by `pipeline export`,
        MachineError if onnxruntime is not installed.
        """
        session = _session(file, path, threads)
        outputs = _checked_outputs(session, path)
        config = _config(session, path)
        try:
            text = TextParams.model_validate(config["normaliser"]["params"])
            version = config["normaliser"]["version"]
            fps, crop_px = float(config["fps"]), int(config["crop_px"])
            tables = (config["characters"], config["syllables"])
            scale = ConfidenceScale.of(config.get("confidence_scale"))
        except (KeyError, TypeError, ValueError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else repr(error)
            raise CheckpointError(
                f"{path}: its configuration was not written by `pipeline export`: {reason}"
            ) from error
        if version not in READABLE_NORMALISERS:
            raise CheckpointError(
                f"{path} was trained on labels of normaliser version {version}, but this program supports only "
                f"{', '.join(map(str, READABLE_NORMALISERS))}"
            )
        if not (0 < fps <= MAX_FPS and 0 < crop_px <= MAX_CROP_PX):
            raise CheckpointError(
                f"{path} has an invalid configuration: {fps:g} frames/s and crops of {crop_px} px"
            )
        vocabulary = Vocabulary(
            Tokenizer.from_json(tables[0], str(path)),
            Tokenizer.from_json(tables[1], f"{path} (syllables)") if tables[1] is not None else None,
        )
        reader = cls(session, vocabulary, text, fps, crop_px, outputs, confidence_scale=scale)
        reader._refuse_other_sizes(path)
        return reader

    def decoder(self, params: DecodeParams) -> str:
        """Returns the decoder that `params` names. Raises ConfigError if the file lacks its head."""
        return ready_decoder(params, self.heads, self.language_model is not None)

    def open_language_model(self, path: Path, params: DecodeParams) -> None:
        """Opens the ARPA file `path` if the decoder of `params` uses a language model. Raises TableError."""
        if self.language_model is None and uses_language_model(chosen_decoder(params, self.heads), params):
            self.language_model = load_language_model(path, self.vocabulary.characters, self.text)

    def log_probs(self, clip_THW: np.ndarray) -> dict[str, np.ndarray]:
        """Returns float32 (S, V or W) per output, of one uint8 clip. Raises CheckpointError for another crop size."""
        return {name: log_probs_BSV[0] for name, log_probs_BSV in self._run(clip_THW[None]).items()}

    def _run(self, video_BTHW: np.ndarray) -> dict[str, np.ndarray]:
        """Returns float32 (B, S, V or W) per output, of uint8 clips of the same length."""
        if video_BTHW.shape[2:] != (self.crop_px, self.crop_px):
            height, width = video_BTHW.shape[2:]
            raise CheckpointError(
                f"the model needs mouth clips of {self.crop_px} × {self.crop_px} px, this one has {width} × {height}; "
                f"set crop.size_px to {self.crop_px}"
            )
        num_clips, num_frames = video_BTHW.shape[:2]
        assert video_BTHW.dtype == np.uint8 and num_frames
        fed = {
            VIDEO: np.ascontiguousarray(video_BTHW),
            NUM_FRAMES: np.full(num_clips, num_frames, np.int64),
        }
        *log_probs, num_steps_B = self.session.run(list(self.outputs), fed)
        heads = zip(self.outputs, log_probs, strict=False)
        return {name: log_probs_BSV[:, : int(num_steps_B[0])] for name, log_probs_BSV in heads}

    def ctc_log_probs(self, clip_THW: np.ndarray) -> np.ndarray | None:
        """Returns log-probabilities (S, V) of the characters of one uint8 clip; None without a CTC head."""
        return self.log_probs(clip_THW).get(LOG_PROBS)

    def read_clip(self, clip_THW: np.ndarray, params: DecodeParams) -> Reading:
        """Returns the text of one uint8 clip, with the times and confidences of its characters, as LipReader does."""
        name, vocabulary, lm = self.decoder(params), self.vocabulary, self.language_model
        of_clip = self._run(clip_THW[None])
        characters_1SV, syllables_1SW = of_clip.get(LOG_PROBS), of_clip.get(SYLLABLE_LOG_PROBS)
        (reading,) = ctc_readings(name, characters_1SV, syllables_1SW, vocabulary, params, lm)
        characters, syllables = (None if one is None else one[0] for one in (characters_1SV, syllables_1SW))
        reading = with_part_scores(reading, characters, syllables, vocabulary, lm)
        output, table = LOG_PROBS, self.vocabulary.characters
        if characters is None or spiking_head(name) == "syllables":
            assert self.vocabulary.syllables is not None
            output, table = SYLLABLE_LOG_PROBS, self.vocabulary.syllables
        masked = (
            (frame, log_probs_SV)
            for frames, copies_BTHW in (masked_copies(clip_THW, self.fps) if self.times_by_evidence else ())
            for frame, log_probs_SV in zip(frames, self._run(copies_BTHW)[output], strict=True)
        )
        scale = self.confidence_scale
        return with_times(reading, of_clip[output][0], table, len(clip_THW), self.fps, scale, masked)

    def reference(self, label: str, params: DecodeParams) -> str:
        """Returns the reference for this decoder: the label, or its syllables."""
        return self.vocabulary.pinyin_of(label) if self.decoder(params) == "syllables" else label

    def _refuse_other_sizes(self, path: Path) -> None:
        """Raises CheckpointError if the tables do not fit the outputs, or the crop size does not fit the input."""
        shapes = {node.name: node.shape for node in (*self.session.get_inputs(), *self.session.get_outputs())}
        tables = {LOG_PROBS: self.vocabulary.characters, SYLLABLE_LOG_PROBS: self.vocabulary.syllables}
        for name in self.outputs[:-1]:
            table = tables[name]
            if table is None or shapes[name][-1] != table.num_tokens:
                raise CheckpointError(f"{path}: the size of its table differs from its output {name}")
        if shapes[VIDEO][2:] != [self.crop_px, self.crop_px]:
            raise CheckpointError(
                f"{path}: its input does not fit the crops of {self.crop_px} px in its configuration"
            )


def _file_bytes(path: Path) -> bytes:
    refuse_pipe(path)
    try:
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise CheckpointError(f"{path} has {size:,} bytes, more than the limit of {MAX_FILE_BYTES:,}")
        return path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; `pipeline export --format onnx` writes it") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def _session(file: bytes, path: Path, threads: int) -> Any:
    try:
        import onnxruntime
        from onnxruntime.capi import onnxruntime_pybind11_state as states
    except ImportError:
        raise MachineError(
            "the package onnxruntime is missing; it comes with `pip install 'lip-pipeline[export]'`"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.log_severity_level = 4  # errors are raised, not logged
    # the folder for weights outside the file: none; by default it is the working directory
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    damaged = (
        states.Fail,
        states.InvalidArgument,
        states.InvalidGraph,
        states.InvalidProtobuf,
        states.NotImplemented,
        states.RuntimeException,
    )
    try:
        return onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except damaged as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(f"{path} is damaged or not an ONNX model that can be run: {reason}") from error


def _checked_outputs(session: Any, path: Path) -> tuple[str, ...]:
    inputs = {node.name for node in session.get_inputs()}
    outputs = tuple(node.name for node in session.get_outputs())
    known = [name for name in (LOG_PROBS, SYLLABLE_LOG_PROBS) if name in outputs]
    if inputs != {VIDEO, NUM_FRAMES} or not known or set(outputs) != {*known, NUM_STEPS}:
        raise CheckpointError(
            f"{path} was not written by `pipeline export`: its inputs are {', '.join(sorted(inputs))[:100]}, its "
            f"outputs {', '.join(outputs)[:100]}"
        )
    return (*known, NUM_STEPS)


def _config(session: Any, path: Path) -> dict[str, Any]:
    text = session.get_modelmeta().custom_metadata_map.get(CONFIG, "")
    if not text or len(text) > MAX_CONFIG_CHARS:
        raise CheckpointError(f"{path} has no configuration of `pipeline export`, or it is too long")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: its configuration is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: its configuration is not a JSON object")
    return config
