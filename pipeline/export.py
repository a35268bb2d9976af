"""A trained reader for other programs: one folder with the model, its configuration and its card."""

import io
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import typer

from model.checkpoints import load_checkpoint
from model.exports.check import largest_difference
from model.exports.graph import ExportedNetwork, tracing
from model.exports.names import NUM_FRAMES, VIDEO
from model.exports.onnx_file import onnx_bytes, quantised_bytes
from model.exports.onnx_reader import OnnxReader
from model.exports.safetensors_file import reader_config, weights_bytes
from model.exports.torchscript_file import torchscript_bytes
from model.metrics import EditCounts, edit_counts
from model.reader import LipReader
from model.settings import DecodeParams
from pipeline.export_facts import export_facts
from pipeline.params import Params
from shards.errors import ConfigError
from shards.files import Progress, json_bytes, write_bytes
from shards.open_store import open_store
from shards.samples import read_samples
from shards.store import ShardStore
from shards.stream import read_sample
from stages.cards.model_card import CARD, ExportFacts, FileFacts, model_card
from stages.cards.model_card_examples import FILES, ExportFormat

CONFIG_FILE = "config.json"
INT8_FILE = "model_int8.onnx"
OURS = frozenset({*FILES.values(), INT8_FILE, CONFIG_FILE, CARD})
"""All that an export may write: what of it a new one does not write, an older one left."""


def export(
    checkpoint: Path,
    format: ExportFormat,
    out: Path,
    params: Params,
    *,
    int8: bool = False,
    on_progress: Progress | None = None,
) -> ExportFacts:
    """Writes the folder `out` and gives what its card tells; nothing is written where something is wrong.

    Once all is written, what an older export left there is removed, and named on stderr.

    `int8` adds a quantised model.onnx, and scores both on report.split. Raises ConfigError where the model has no head
    that a graph can hold, CheckpointError as `load_checkpoint` does and where the export reads differently,
    MachineError where a package is missing or the disk full.
    """
    if int8 and format != "onnx":
        raise ConfigError(f"--int8 quantises an ONNX file, not {format}; use --format onnx")
    state = load_checkpoint(checkpoint)
    reader = LipReader.from_checkpoint(checkpoint, torch.device("cpu"))
    config = reader_config(state)
    payloads, difference = _payloads(format, int8, state, reader, config)
    files = tuple(FileFacts(name, len(payload)) for name, payload in payloads.items())
    facts = replace(
        export_facts(checkpoint, state, reader, format, params), files=files, difference=difference
    )
    if int8:
        facts = _scored(facts, payloads, params, on_progress)
    payloads |= {CONFIG_FILE: json_bytes(config), CARD: model_card(facts).encode()}
    for name, payload in payloads.items():
        write_bytes(out / name, payload)
    _clear_older(out, payloads.keys())
    return facts


def _clear_older(out: Path, written: Collection[str]) -> None:
    """Takes an older export's files out of the folder, whose card does not tell of them, and says which."""
    older = sorted(name for name in OURS.difference(written) if (out / name).is_file())
    for name in older:
        (out / name).unlink()
    if older:
        typer.echo(
            f"pipeline: {out}: {', '.join(older)} of an older export removed, its card is of this one; another --out "
            "keeps both",
            err=True,
        )


def _payloads(
    format: ExportFormat, int8: bool, state: dict[str, Any], reader: LipReader, config: dict[str, Any]
) -> tuple[dict[str, bytes], float | None]:
    """The model's files by name, and how far the graph's outputs are from the network's."""
    name = FILES[format]
    if format == "safetensors":
        return {name: weights_bytes(state)}, None
    graph = ExportedNetwork(reader.network, reader.model, reader.crop_px)
    if format == "torchscript":
        payload = torchscript_bytes(graph, config)
        with tracing():
            loaded = torch.jit.load(io.BytesIO(payload))
            found = largest_difference(lambda *fed: [o.numpy() for o in loaded(*fed)], graph, reader)
        return {name: payload}, found
    payload = onnx_bytes(graph, config)
    session = OnnxReader.of_bytes(payload, Path(name)).session

    def run(video_BTHW: torch.Tensor, num_frames_B: torch.Tensor) -> Any:
        fed = {VIDEO: video_BTHW.numpy(), NUM_FRAMES: num_frames_B.numpy()}
        return session.run(list(graph.outputs), fed)

    difference = largest_difference(run, graph, reader)
    return {name: payload} | ({INT8_FILE: quantised_bytes(payload)} if int8 else {}), difference


def _scored(
    facts: ExportFacts, payloads: dict[str, bytes], params: Params, on_progress: Progress | None
) -> ExportFacts:
    """The facts, with what each file reads of report.split."""
    split = params.report.split
    samples = read_samples(Path(params.paths.samples), split)
    store = open_store(params.paths.shards, params.machine)
    decode = params.decode.while_training()  # the greedy one: what quantising costs is not hidden by a beam
    files, decoder = [], ""
    for number, file in enumerate(facts.files):

        def tell(done: int, before: int = number * len(samples)) -> None:
            if on_progress:
                on_progress(before + done, len(facts.files) * len(samples))

        reader = OnnxReader.of_bytes(payloads[file.name], Path(file.name))
        decoder = reader.decoder(decode)
        counts, seconds = score_exported(reader, samples, store, decode, tell)
        files.append(replace(file, cer=counts.cer, clips_per_s=len(samples) / seconds))
    return replace(
        facts, files=tuple(files), scored_split=split, scored_clips=len(samples), scored_decoder=decoder
    )


def score_exported(
    reader: OnnxReader,
    samples: pa.Table,
    store: ShardStore,
    decode: DecodeParams,
    on_clip: Callable[[int], None] = lambda _: None,
) -> tuple[EditCounts, float]:
    """Errors over the samples, read one by one, and the seconds that reading took (without fetching the clips)."""
    counts, seconds = EditCounts(), 0.0
    for number, record in enumerate(samples.to_pylist(), start=1):
        clip_THW, _ = read_sample(store, record)
        start = time.perf_counter()
        text = reader.read_clip(clip_THW, decode).text
        seconds += time.perf_counter() - start
        counts += edit_counts(reader.reference(record["label"], decode), text)
        on_clip(number)
    return counts, seconds
