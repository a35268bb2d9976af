"""Exports a trained model for other programs: one folder with the model, its configuration and its card.

The card describes the checkpoint, the clips it was trained on, and its report.
"""

import csv
import json
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
import typer
from pydantic import ValidationError

from model.adapters import identity_of, load_adapted
from model.decoding.reader import LipReader
from model.exports.files import largest_difference, onnx_bytes, quantised_bytes, reader_config, weights_bytes
from model.exports.graph import ExportedNetwork
from model.exports.onnx_reader import NUM_FRAMES, VIDEO, OnnxReader
from model.metrics import EditCounts, edit_counts
from model.networks.network import num_parameters
from model.settings import DecodeParams
from pipeline.params import Params, read_mapping
from pipeline.training_job import packs_of
from shards.enums import TRAIN_SPLIT
from shards.errors import ConfigError, TableError
from shards.files import Progress, json_bytes, write_bytes
from shards.packs import Packs
from shards.pipes import refuse_pipe
from shards.store import FolderStore, ShardStore
from shards.stream import read_sample
from stages.cards.card import CARD as PACK_CARD
from stages.cards.licences import is_unknown, licence_of_card
from stages.cards.model_card import (
    CARD,
    FILES,
    ExportFacts,
    ExportFormat,
    FileFacts,
    Measured,
    TrainedOn,
    model_card,
)
from stages.reports.figures import UNKNOWN_GROUP, read_by
from stages.settings import CorpusParams

CONFIG_FILE = "config.json"
INT8_FILE = "model_int8.onnx"
EXPORT_FILES = frozenset({*FILES.values(), INT8_FILE, CONFIG_FILE, CARD, "model.torchscript.pt"})
"""Every file name that an export writes or once wrote. A new export removes those that it does not write itself."""

_DAMAGED = (OSError, ValueError, KeyError, AttributeError, TypeError)
"""Errors of reading a report file that was modified or truncated."""


def export(
    checkpoint: Path,
    format: ExportFormat,
    out: Path,
    params: Params,
    *,
    int8: bool = False,
    on_progress: Progress | None = None,
    adapter: Path | None = None,
) -> ExportFacts:
    """Writes the folder `out` and returns the facts in its card. If anything is invalid, nothing is written.

    After writing, removes the files of an older export and names them on stderr.

    `int8` adds a quantised model.onnx and scores both files on report.split. Raises ConfigError if the model has no
    head that a graph can hold, CheckpointError like `load_checkpoint` or if the export gives other outputs,
    MachineError if a package is missing or the disk is full.
    """
    if int8 and format != "onnx":
        raise ConfigError(f"--int8 quantises an ONNX file, not {format}; use --format onnx")
    state = load_adapted(checkpoint, adapter)
    reader = LipReader.from_checkpoint(checkpoint, torch.device("cpu"), adapter)
    config = reader_config(state)
    payloads, difference = _payloads(format, int8, state, reader, config)
    files = tuple(FileFacts(name, len(payload)) for name, payload in payloads.items())
    facts = replace(
        export_facts(checkpoint, state, reader, format, params, adapter), files=files, difference=difference
    )
    if int8:
        facts = _scored(facts, payloads, params, on_progress)
    payloads |= {CONFIG_FILE: json_bytes(config), CARD: model_card(facts).encode()}
    for name, payload in payloads.items():
        write_bytes(out / name, payload)
    _remove_older_export(out, payloads.keys())
    return facts


def _remove_older_export(out: Path, written: Collection[str]) -> None:
    """Removes the files of an older export, which the new card does not describe, and names them on stderr."""
    older = sorted(name for name in EXPORT_FILES.difference(written) if (out / name).is_file())
    for name in older:
        (out / name).unlink()
    if older:
        typer.echo(
            f"pipeline: {out}: removed the files of an older export: {', '.join(older)}; choose another --out to keep "
            "both exports",
            err=True,
        )


def _payloads(
    format: ExportFormat, int8: bool, state: dict[str, Any], reader: LipReader, config: dict[str, Any]
) -> tuple[dict[str, bytes], float | None]:
    """Returns the model's files by name, and the largest difference between graph and network."""
    name = FILES[format]
    if format == "safetensors":
        return {name: weights_bytes(state)}, None
    graph = ExportedNetwork(reader.network, reader.model, reader.crop_px)
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
    """Returns the facts with the CER and speed of each file on report.split."""
    split = params.report.split
    packs = packs_of(params)
    samples = packs.read(split)
    decode = params.decode.for_validation()  # greedy: a beam would hide the loss by quantisation
    files, decoder = [], ""
    for number, file in enumerate(facts.files):

        def report_progress(done: int, before: int = number * len(samples)) -> None:
            if on_progress:
                on_progress(before + done, len(facts.files) * len(samples))

        reader = OnnxReader.of_bytes(payloads[file.name], Path(file.name))
        decoder = reader.decoder(decode)
        counts, seconds = score_exported(reader, samples, packs.store, decode, report_progress)
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
    """Returns the errors over the samples, read one by one, and the seconds of reading (without fetching clips)."""
    counts, seconds = EditCounts(), 0.0
    for number, record in enumerate(samples.to_pylist(), start=1):
        clip_THW, _ = read_sample(store, record)
        start = time.perf_counter()
        text = reader.read_clip(clip_THW, decode).text
        seconds += time.perf_counter() - start
        counts += edit_counts(reader.reference(record["label"], decode), text)
        on_clip(number)
    return counts, seconds


def export_facts(
    checkpoint: Path,
    state: Mapping[str, Any],
    reader: LipReader,
    format: ExportFormat,
    params: Params,
    adapter: Path | None = None,
) -> ExportFacts:
    """Returns the known facts about a checkpoint; unknown ones are None."""
    identity = identity_of(checkpoint, adapter)
    packs = packs_of(params)
    trained_on = _trained_on(state, packs, reader.fps)
    if of_blend := (state["plan_identity"].get("blend") or {}).get("packs"):
        corpus: str | None = f"blend ({', '.join(of_blend)})"
        license = _licence_of_packs(packs) if trained_on else ""
    else:
        section = _corpus(checkpoint, params if trained_on else None)
        corpus, license = (section.kind, section.license) if section else (None, "")
    valid_cer = state["val_cer"]
    return ExportFacts(
        format=format,
        preset=reader.model.preset,
        num_parameters=num_parameters(reader.network),
        heads=tuple(state["heads"]),
        num_characters=len(reader.vocabulary.characters.units),
        units=reader.vocabulary.characters.splitting.plural,
        epoch=reader.epoch,
        checkpoint=identity,
        valid_cer=valid_cer if isinstance(valid_cer, float) and math.isfinite(valid_cer) else None,
        train=dict(state["train_params"]),
        normaliser=reader.normaliser,
        fps=reader.fps,
        crop_px=reader.crop_px,
        corpus=corpus,
        license=license,
        trained_on=trained_on,
        measured=_measured(Path(params.paths.report), identity),
        files=(),
    )


def _corpus(checkpoint: Path, params: Params | None) -> CorpusParams | None:
    """Returns the corpus in the config.yaml that training wrote next to the checkpoint, else that of `params`.

    `params` is None if its clips are not the training clips.
    """
    file = checkpoint.parent / "config.yaml"
    section = read_mapping(file).get("corpus") if file.exists() else None
    if section is None:
        return params.corpus if params else None
    try:
        return CorpusParams.model_validate(section)
    except ValidationError as error:
        raise ConfigError(f"{file}: its section corpus is invalid: {error.errors()[0]['msg']}") from error


def _licence_of_packs(packs: Packs) -> str:
    """Returns the licences in the cards of the packs, joined by AND; empty (unknown) if one is not known."""
    found = []
    for pack in packs.packs:
        if pack.splits_for(TRAIN_SPLIT):
            card = pack.store.folder / PACK_CARD if isinstance(pack.store, FolderStore) else None
            found.append(licence_of_card(card.read_text("utf-8")) if card and card.exists() else "")
    return "" if any(map(is_unknown, found)) else " AND ".join(dict.fromkeys(found))


def _trained_on(state: Mapping[str, Any], packs: Packs, fps: float) -> TrainedOn | None:
    """Returns figures of the training split, if the packs are those of the checkpoint's epoch plan."""
    tables = [(pack.samples, *((pack.clips, pack.crops) if packs.where else ())) for pack in packs.packs]
    if not all(table.exists() for of_pack in tables for table in of_pack if table):
        return None
    if packs.training_hash != state["plan_identity"].get("samples"):
        return None
    samples = packs.read(TRAIN_SPLIT)
    hours = sum(samples["num_frames"].to_pylist()) / fps / 3600
    speakers = set(samples["speaker"].to_pylist()) - {None}
    return TrainedOn(samples.num_rows, hours, len(speakers) or None)


def _measured(report: Path, checkpoint: str) -> Measured | None:
    """Returns the results of the report in that folder; None if it is of another checkpoint."""
    file = report / "metrics.json"
    if not file.exists():
        return None
    refuse_pipe(file)
    try:
        metrics = json.loads(file.read_text("utf-8"))
        if metrics.get("checkpoint") != checkpoint:
            return None
        return Measured(
            split=metrics["split"],
            decoder=metrics.get("decoder"),
            num_clips=metrics["num_clips"],
            num_chars=metrics["num_chars"],
            cer=metrics["cer"],
            cer_low=metrics.get("cer_low"),
            cer_high=metrics.get("cer_high"),
            interval_over=metrics.get("cer_interval_over"),
            num_speakers=metrics.get("num_speakers"),
            blind_cer=metrics.get("blind_cer"),
            chance_cer=metrics.get("chance_cer"),
            speaker_overlap=metrics.get("speaker_overlap"),
            speaker_cers=_speaker_cers(report / "by_speaker.csv"),
            read_by=read_by(metrics),
            lm_weight=metrics["decode"]["lm_weight"] if metrics.get("language_model") else None,
            num_rejected=metrics.get("num_rejected") or 0,
        )
    except TableError:
        raise
    except _DAMAGED as error:
        raise _damaged(file, error) from error


def _speaker_cers(file: Path) -> tuple[float, ...]:
    """Returns the CERs in ascending order; empty if the clips have no speakers."""
    refuse_pipe(file)
    try:
        with file.open(newline="", encoding="utf-8") as rows:
            named = [row for row in csv.DictReader(rows) if row["group"] != UNKNOWN_GROUP]
        return tuple(sorted(float(row["cer"]) for row in named))
    except (*_DAMAGED, csv.Error) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> TableError:
    return TableError(f"{file} is damaged ({error!r}); `pipeline report` writes it again")
