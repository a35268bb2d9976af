"""A trained model for other programs: an ONNX file, or model.safetensors with weights; each with its configuration.

Also compares an export with its network.

Shapes: B clips, T frames, S encoder steps, V characters or syllables.
"""

import contextlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch.nn import functional

from model.decoding.reader import LipReader
from model.exports.graph import ExportedNetwork, tracing
from model.exports.onnx_reader import CONFIG, NUM_FRAMES, NUM_STEPS, VIDEO
from model.runs import RunFolder
from model.settings import TextParams
from model.text import describe_normaliser
from shards.errors import CheckpointError, MachineError
from shards.files import write_bytes, write_json

CONFIG_VERSION = 1
OPSET = 18
"""From 2022; onnxruntime reads it since 1.14."""


def write_weights(run: RunFolder, state: Mapping[str, Any]) -> None:
    """Writes weights and configuration of the best model, with checkpoint `state`, next to it. Raises MachineError."""
    write_bytes(run.weights, weights_bytes(state))
    write_json(run.reader_config, reader_config(state))


def weights_bytes(state: Mapping[str, Any]) -> bytes:
    """Returns the weights of checkpoint `state` by name, as a .safetensors file."""
    weights = {name: tensor.contiguous() for name, tensor in state["model_state_dict"].items()}
    return safetensors.torch.save(weights, {"format": "pt"})


def reader_config(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what reading needs in addition to the weights of checkpoint `state`, as plain JSON values."""
    return {
        "version": CONFIG_VERSION,
        "epoch": state["epoch"],
        "valid_cer": state["val_cer"],
        "fps": state["fps"],
        "crop_px": state["crop_px"],
        # the network
        "model": state["model_params"],
        "heads": list(state["heads"]),
        "characters": state["tokenizer"],
        "syllables": state["syllables"],
        # the text
        "normaliser": {
            "version": state["normaliser_version"],
            "description": describe_normaliser(
                TextParams.model_validate(state["text_params"]), state["normaliser_version"]
            ),
            "params": state["text_params"],
        },
        "decode": state["decode_params"],
        "confidence_scale": state.get("confidence_scale"),
    }


def onnx_bytes(graph: ExportedNetwork, config: Mapping[str, Any]) -> bytes:
    """Returns the file. The same weights and configuration give the same bytes.

    Uses torch's tracing exporter. The newer one (dynamo, torch 2.13) freezes the time axis of outputs after an LSTM,
    and fails on the Conformer's reshapes with dynamic axes. Raises MachineError if onnx is not installed.
    """
    onnx = _onnx()
    axes = {name: {0: "batch", 1: "steps"} for name in graph.outputs}
    axes |= {VIDEO: {0: "batch", 1: "frames"}, NUM_FRAMES: {0: "batch"}, NUM_STEPS: {0: "batch"}}
    with tracing(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        # torch warns that a graph with an LSTM may not support other batch sizes; tests show that this one does
        warnings.filterwarnings("ignore", category=UserWarning, module="torch.onnx")
        torch.onnx.export(
            graph,
            graph.example(),
            file,
            input_names=[VIDEO, NUM_FRAMES],
            output_names=list(graph.outputs),
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
        model = onnx.load(file)
    _without_traces(model.graph)
    _embed(model, config)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString(deterministic=True))


def quantised_bytes(onnx_file: bytes) -> bytes:
    """Returns the same model with int8 weights in its matrix products and LSTMs, with one scale per column.

    The int8 weights are -64 to 64 (reduce_range). Processors without VNNI add pairs of 8-bit products in 16 bits, which
    saturate above 32,767; 2 · 255 · 64 = 32,640 does not. So one file gives the same results on both kinds.

    Quantisation is dynamic: activations stay float32, and each of these operations quantises its input by its range.
    Convolutions stay float32: onnxruntime's int8 convolutions are slower on a CPU.
    """
    onnx = _onnx()
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with tempfile.TemporaryDirectory() as folder, _unwarned():
        out = Path(folder) / "int8.onnx"
        quantize_dynamic(
            onnx.load_model_from_string(onnx_file),
            out,
            op_types_to_quantize=["MatMul", "Gemm", "LSTM"],
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
        model = onnx.load(out)
    _embed(model, _config_in(onnx.load_model_from_string(onnx_file)))
    return bytes(model.SerializeToString(deterministic=True))


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """Hides the advice to run shape pre-processing, which does not apply to dynamic axes."""
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


def _onnx() -> Any:
    try:
        import onnx
    except ImportError:
        raise MachineError(
            "the package onnx is missing; it comes with `pip install 'lip-pipeline[export]'`"
        ) from None
    return onnx


def _without_traces(graph: Any) -> None:
    """Removes the source locations of operations, which name files of this machine."""
    for node in graph.node:
        node.ClearField("doc_string")
        node.ClearField("metadata_props")
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _without_traces(attribute.g)


def _embed(model: Any, config: Mapping[str, Any]) -> None:
    del model.metadata_props[:]
    model.metadata_props.add(key=CONFIG, value=json.dumps(config, ensure_ascii=False, sort_keys=True))


def _config_in(model: Any) -> dict[str, Any]:
    (text,) = (entry.value for entry in model.metadata_props if entry.key == CONFIG)
    config: dict[str, Any] = json.loads(text)
    return config


TOLERANCE = 1e-3
"""Allowed difference of log-probabilities, nats, plus a ten-thousandth of them (matters below e^-10)."""
CHECKED = ((23,), (40, 31, 8), (64, 64), (1_000,))
"""Frames of the clips in each batch: other lengths and batch sizes than the traced example, padding, and a clip of the
default `crop.max_frames`, where rounding errors add up."""

Run = Callable[[torch.Tensor, torch.Tensor], Sequence[np.ndarray]]
"""Runs an export: from video_BTHW and num_frames_B to its outputs."""


@torch.no_grad()
def largest_difference(run: Run, graph: ExportedNetwork, reader: LipReader) -> float:
    """Returns the largest difference of log-probabilities, nats, over batches of noise.

    Raises CheckpointError if it exceeds TOLERANCE.
    """
    largest = 0.0
    for seed, num_frames in enumerate(CHECKED):
        video_BTHW, num_frames_B = graph.example(num_frames, seed)
        *exported, num_steps_B = run(video_BTHW, num_frames_B)
        encoded_BSE, true_steps_B = reader.encode(video_BTHW, num_frames_B)
        logits = (reader.network.ctc_logits(encoded_BSE), reader.network.syllable_logits(encoded_BSE))
        expected = [functional.log_softmax(head, dim=2).cpu().numpy() for head in logits if head is not None]
        steps = true_steps_B.tolist()
        assert list(num_steps_B) == steps, f"{num_steps_B} steps, not {steps}"
        for theirs_BSV, ours_BSV in zip(exported, expected, strict=True):
            for number, count in enumerate(steps):
                theirs_SV, ours_SV = theirs_BSV[number, :count], ours_BSV[number, :count]
                largest = max(largest, float(np.abs(theirs_SV - ours_SV).max()))
                if not np.allclose(theirs_SV, ours_SV, rtol=TOLERANCE / 10, atol=TOLERANCE):
                    raise CheckpointError(
                        f"the export differs from the network by {largest:g} in a log-probability (allowed: "
                        f"{TOLERANCE:g}); nothing was written. Check that the weights are finite, and that the "
                        "versions of torch and onnxruntime are those of constraints.txt"
                    )
    return largest
