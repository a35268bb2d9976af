"""Stage report: a checkpoint reads a split, sighted and blind, and the report is written."""

import csv
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from model.device import choose_device
from model.network import num_parameters
from model.reader import LipReader
from model.scored import ScoredClip
from model.scoring import score_split
from model.settings import DecodeParams
from model.text import describe_normaliser
from shards import schema
from shards.files import Progress, read_table
from shards.plan import read_samples
from shards.settings import LoaderParams, MachineParams
from shards.store import ShardStore
from shards.stream import read_sample
from shards.terms import TRAIN_SPLIT
from stages.report import write_report
from stages.report_page import ModelFacts, ReportContext
from stages.settings import CorpusParams, ReportParams

SCORING_BATCH = 32
NAMES_SHOWN = 5


@dataclass(frozen=True)
class ReportJob:
    """All that one report needs."""

    checkpoint: Path
    clips: Path
    crops: Path
    samples: Path
    shards: ShardStore
    curves: Path
    report: Path
    corpus: CorpusParams
    report_params: ReportParams
    loader: LoaderParams
    decode: DecodeParams
    machine: MachineParams


def score_checkpoint(
    checkpoint: Path,
    samples_path: Path,
    store: ShardStore,
    split: str,
    *,
    loader: LoaderParams,
    decode: DecodeParams,
    machine: MachineParams,
    on_progress: Progress | None = None,
) -> tuple[LipReader, list[ScoredClip], list[ScoredClip]]:
    """The reader of a checkpoint, and every clip of `split` as it read it, sighted and blind."""
    reader = LipReader.from_checkpoint(checkpoint, choose_device(machine.device))
    samples = read_samples(samples_path, split)
    passes = []
    for number, blind in enumerate((False, True)):

        def tell(done: int, total: int, passed: int = number) -> None:
            if on_progress:
                on_progress(passed * total + done, 2 * total)

        scored = score_split(
            reader,
            samples,
            store,
            batch_size=SCORING_BATCH,
            loader=loader,
            machine=machine,
            decode=decode,
            blind=blind,
            on_progress=tell,
        )
        passes.append(scored)
    return reader, passes[0], passes[1]


def report(job: ReportJob, on_progress: Progress | None = None) -> dict[str, Any]:
    """Writes the report folder and returns what stands in metrics.json."""
    reader, scored, blind = score_checkpoint(
        job.checkpoint,
        job.samples,
        job.shards,
        job.report_params.split,
        loader=job.loader,
        decode=job.decode,
        machine=job.machine,
        on_progress=on_progress,
    )
    clips = read_table(job.clips, schema.CLIPS, "pipeline ingest")
    crops = read_table(job.crops, schema.CROPS, "pipeline crop")
    samples = read_samples(job.samples, job.report_params.split)
    shared = shared_speakers(job.samples, job.report_params.split)
    records = {record["clip_id"]: record for record in samples.to_pylist()}

    def clip_of(clip_id: str) -> np.ndarray:
        return read_sample(job.shards, records[clip_id])[0]

    context = ReportContext(
        corpus=job.corpus.kind,
        split=job.report_params.split,
        seed=job.report_params.seed,
        num_examples=job.report_params.num_examples,
        model=ModelFacts(
            preset=reader.model.preset,
            num_parameters=num_parameters(reader.network),
            epoch=reader.epoch,
            normaliser=describe_normaliser(reader.text),
        ),
        clip_of=clip_of,
        warnings=_speaker_warnings(shared, job.report_params.split),
        speaker_overlap=len(shared),
        curves=_read_curves(job.curves),
        rejections=Counter(reason for reason in crops["reason"].to_pylist() if reason is not None),
        clip_totals=_usable_clips(clips, crops),
        fps=reader.fps,
    )
    return write_report(scored, blind, context, job.report)


def _usable_clips(clips: Any, crops: Any) -> Mapping[str, int]:
    usable = set(crops.filter(pc.equal(crops["status"], schema.Status.OK.value))["clip_id"].to_pylist())
    pairs = zip(clips["clip_id"].to_pylist(), clips["split"].to_pylist(), strict=True)
    return Counter(split for clip_id, split in pairs if clip_id in usable)


def shared_speakers(samples_path: Path, split: str) -> tuple[str, ...]:
    """Speakers of `split` whose clips were also packed for training, by name: a score on them flatters."""
    table = read_table(samples_path, schema.SAMPLES, "pipeline pack")

    def speakers_of(name: str) -> set[str]:
        column = table.filter(pc.equal(table["split"], name))["speaker"]
        return {speaker for speaker in column.unique().to_pylist() if speaker is not None}

    return tuple(sorted(speakers_of(split) & speakers_of(TRAIN_SPLIT)))


def _speaker_warnings(shared: Sequence[str], split: str) -> list[str]:
    if not shared:
        return []
    names = ", ".join(shared[:NAMES_SHOWN]) + (", …" if len(shared) > NAMES_SHOWN else "")
    return [
        f"{len(shared)} speakers of split {split} were also seen in training ({names}): "
        "the CER on people the model has never seen will be higher."
    ]


def _read_curves(path: Path) -> list[dict[str, float | None]]:
    """The training curves; none where the checkpoint came without them."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]
