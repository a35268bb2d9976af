"""Stage report: a checkpoint reads a split normally and blind, and the stage writes the report."""

import csv
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.adapters import identity_of
from model.decoding.ctc import Spikes, ctc_spikes, spiking_head
from model.decoding.fusion import open_checkpoints
from model.decoding.registry import describe_settings, unused_weights, uses_language_model
from model.decoding.result import Candidate, ScoredClip
from model.decoding.scoring import BatchReader, score_split
from model.device import choose_device
from model.networks.network import num_parameters
from model.settings import DecodeParams
from shards.files import (
    Progress,
    file_identity,
    json_bytes,
    table_bytes,
    table_from_rows,
    write_all_or_none,
)
from shards.packs import Packs
from shards.pipes import refuse_pipe
from shards.schema import PREDICTIONS
from shards.settings import LoaderParams, MachineParams
from shards.stream import read_sample
from stages.pages.report_page import render_page
from stages.reports.clip_tables import normaliser_of, read_clip_tables
from stages.reports.counting import NO_FACTS, counted_clips, figures_of
from stages.reports.csv_tables import BY_CORPUS, csv_tables
from stages.reports.figures import ClipFacts, CountedClip, ModelFacts, ReportContext, ReportFacts
from stages.reports.groups import UNKNOWN, confidence_of
from stages.reports.train_test_leakage import seen_in_training
from stages.settings import CorpusParams, ReportParams

REPORT_VERSION = 5
"""Increased when a report of the same checkpoint and clips changes: decoders, figures or page."""
SCORING_BATCH = 32
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReportJob:
    """The inputs and settings of a report."""

    checkpoints: Sequence[Path]
    packs: Packs
    curves: Path
    report: Path
    corpus: CorpusParams
    report_params: ReportParams
    loader: LoaderParams
    decode: DecodeParams
    machine: MachineParams
    lm: Path | None = None
    """The language model file for beam search."""
    adapter: Path | None = None


def score_checkpoint(
    checkpoints: Sequence[Path],
    packs: Packs,
    split: str,
    *,
    loader: LoaderParams,
    decode: DecodeParams,
    machine: MachineParams,
    lm: Path | None = None,
    on_progress: Progress | None = None,
    adapter: Path | None = None,
) -> tuple[BatchReader, list[ScoredClip], list[ScoredClip]]:
    """Returns the reader of the checkpoints and every clip of `split` as read normally, and as read blind."""
    reader = open_checkpoints(checkpoints, choose_device(machine.device), decode.views, adapter)
    if lm is not None:
        reader.open_language_model(lm, decode)
    if warning := unused_weights(decode, reader.heads):
        LOG.warning(warning)
    samples = packs.read(split)
    passes = []
    for number, blind in enumerate((False, True)):

        def on_clip(done: int, total: int, passed: int = number) -> None:
            if on_progress:
                on_progress(passed * total + done, 2 * total)

        scored = score_split(
            reader,
            samples,
            packs.store,
            batch_size=SCORING_BATCH,
            loader=loader,
            machine=machine,
            decode=decode,
            blind=blind,
            with_confidences=not blind,
            on_progress=on_clip,
        )
        passes.append(scored)
    return reader, passes[0], passes[1]


def report(job: ReportJob, on_progress: Progress | None = None) -> dict[str, Any]:
    """Writes the report folder and returns the contents of metrics.json."""
    reader, scored, blind = score_checkpoint(
        job.checkpoints,
        job.packs,
        job.report_params.split,
        loader=job.loader,
        decode=job.decode,
        machine=job.machine,
        lm=job.lm,
        on_progress=on_progress,
        adapter=job.adapter,
    )
    samples = job.packs.read(job.report_params.split)
    records = {record["clip_id"]: record for record in samples.to_pylist()}
    tables = read_clip_tables(job.packs, job.report_params.split, records.keys())
    seen = seen_in_training(job.packs, job.report_params.split, job.loader)

    def clip_of(clip_id: str) -> np.ndarray:
        return read_sample(job.packs.store, records[clip_id])[0]

    def spikes_of(clip_id: str) -> Spikes | None:
        head, vocabulary = spiking_head(reader.decoder(job.decode)), reader.vocabulary
        log_probs_SV = reader.ctc_log_probs(clip_of(clip_id), head)
        if log_probs_SV is None:
            return None
        table = vocabulary.syllables if head == "syllables" else vocabulary.characters
        assert table is not None
        return ctc_spikes(log_probs_SV, table, table.splitting.split(records[clip_id]["label"]))

    facts = reading_facts(reader, job.decode, job.checkpoints, job.packs, job.lm, tables.facts)
    context = ReportContext(
        corpus=", ".join(tables.corpora) or job.corpus.kind,
        split=job.report_params.split,
        seed=job.report_params.seed,
        num_examples=job.report_params.num_examples,
        resamples=job.report_params.resamples,
        model=ModelFacts(
            preset=" + ".join(model.model.preset for model in reader.models),
            num_parameters=sum(num_parameters(model.network) for model in reader.models),
            epoch=" + ".join(str(model.epoch) for model in reader.models),
            decoder=describe_settings(reader.settings(job.decode)),
        ),
        clip_of=clip_of,
        spikes_of=spikes_of,
        warnings=[*seen.warnings(), *tables.warnings()],
        speaker_overlap=seen.num_speakers,
        curves=_read_curves(job.curves),
        rejections=tables.rejections,
        clip_totals=tables.clip_totals,
        corpora=tables.corpora,
        fps=reader.fps,
    )
    return write_report(scored, blind, context, job.report, facts)


def write_report(
    scored: Sequence[ScoredClip],
    blind: Sequence[ScoredClip],
    context: ReportContext,
    report_folder: Path,
    facts: ReportFacts = NO_FACTS,
) -> dict[str, Any]:
    """Writes metrics.json, predictions.parquet, tables for plots (by_*.csv, …) and report.html, all or none.

    `blind` contains the same clips read from their mean frame, or is empty if that was not done. Returns the contents
    of metrics.json (`split_metrics`). The same input gives the same bytes: no date is written.
    Raises ConfigError if the split has no clips.
    """
    figures = figures_of(scored, blind, context, facts)
    clips = counted_clips(scored)
    predictions = table_from_rows([_prediction(counted, facts) for counted in clips], PREDICTIONS)
    tables = csv_tables(figures, context.curves) | {"report.html": render_page(figures, context)}
    files = {name: text.encode() for name, text in tables.items()} | {
        "metrics.json": json_bytes(figures.metrics),
        "predictions.parquet": table_bytes(predictions, PREDICTIONS),
    }
    write_all_or_none(report_folder, files)
    if BY_CORPUS not in files:  # of a former report on several packs
        (report_folder / BY_CORPUS).unlink(missing_ok=True)
    return dict(figures.metrics)


def _prediction(counted: CountedClip, facts: ReportFacts) -> dict[str, Any]:
    clip, counts = counted.clip, counted.counts
    known = facts.clips.get(clip.clip_id, UNKNOWN)
    return {
        "clip_id": clip.clip_id,
        "split": clip.split,
        "speaker": clip.speaker,
        "gender": known.gender,
        "age": known.age,
        "topic": clip.topic,
        "num_frames": clip.num_frames,
        "num_chars": counts.num_chars,
        "reference": clip.reference,
        "hypothesis": clip.hypothesis,
        "cer": counts.cer,
        "substitutions": counts.substitutions,
        "deletions": counts.deletions,
        "insertions": counts.insertions,
        "score": clip.score,
        "confidence": confidence_of(counted),
        "oracle_errors": counted.oracle_errors,
        "candidates": [_candidate(one) for one in clip.candidates] or None,
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    values = asdict(candidate)
    parts = values.pop("parts") or {}
    return values | parts


def reading_facts(
    reader: BatchReader,
    decode: DecodeParams,
    checkpoints: Sequence[Path],
    packs: Packs,
    lm: Path | None = None,
    clips: Mapping[str, ClipFacts] | None = None,
    adapter: Path | None = None,
) -> ReportFacts:
    """Returns the decoder and its settings, the units that it writes, and the identities of its files.

    Also the normalisers of the references (`normaliser_of`) and of the learnt labels.
    """
    decoder, vocabulary = reader.decoder(decode), reader.vocabulary
    table = vocabulary.syllables if decoder == "syllables" else vocabulary.characters
    language_model = file_identity(lm) if lm is not None and uses_language_model(decoder, decode) else None
    return ReportFacts(
        decoder,
        table,
        clips or {},
        identities_of(checkpoints, adapter),
        reader.settings(decode),
        language_model,
        normaliser_of(packs),
        reader.models[0].normaliser,
        reader.confidence_scale,
    )


def identities_of(checkpoints: Sequence[Path], adapter: Path | None = None) -> str:
    """Returns the identities of the checkpoints' bytes, one after another; of a single one with its adapter's."""
    return " + ".join(identity_of(path, adapter) for path in checkpoints)


def _read_curves(path: Path) -> list[dict[str, float | None]]:
    """Reads the training curves; empty if the checkpoint came without them."""
    if not path.exists():
        return []
    refuse_pipe(path)
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]
