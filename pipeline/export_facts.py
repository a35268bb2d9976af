"""What an export's card tells: of the checkpoint, of the clips it was trained on, and of the report on it."""

import csv
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from model.networks.network import num_parameters
from model.reader import LipReader
from pipeline.params import Params, read_mapping
from shards.errors import ConfigError, TableError
from shards.files import file_identity
from shards.pipes import refuse_pipe
from shards.samples import read_samples, samples_hash
from shards.terms import TRAIN_SPLIT
from stages.cards.model_card import ExportFacts, Measured, TrainedOn
from stages.cards.model_card_examples import ExportFormat
from stages.reports.figures import UNKNOWN_GROUP, read_by
from stages.settings import CorpusParams


def export_facts(
    checkpoint: Path, state: Mapping[str, Any], reader: LipReader, format: ExportFormat, params: Params
) -> ExportFacts:
    """All that is known of a checkpoint; what is not is None."""
    identity = file_identity(checkpoint)
    trained_on = _trained_on(state, Path(params.paths.samples), reader.fps)
    corpus = _corpus(checkpoint, params if trained_on else None)
    valid_cer = state["val_cer"]
    return ExportFacts(
        format=format,
        preset=reader.model.preset,
        num_parameters=num_parameters(reader.network),
        heads=tuple(state["heads"]),
        num_characters=len(reader.vocabulary.characters.units),
        epoch=reader.epoch,
        checkpoint=identity,
        valid_cer=valid_cer if isinstance(valid_cer, float) and math.isfinite(valid_cer) else None,
        train=dict(state["train_params"]),
        normaliser=reader.normaliser,
        fps=reader.fps,
        crop_px=reader.crop_px,
        corpus=corpus.kind if corpus else None,
        license=corpus.license if corpus else "",
        trained_on=trained_on,
        measured=_measured(Path(params.paths.report), identity),
        files=(),
    )


def _corpus(checkpoint: Path, params: Params | None) -> CorpusParams | None:
    """As config.yaml beside the checkpoint says, which training left there; without it, as params.yaml does.

    `params` is None where the clips there are not those that were learnt from.
    """
    file = checkpoint.parent / "config.yaml"
    section = read_mapping(file).get("corpus") if file.exists() else None
    if section is None:
        return params.corpus if params else None
    try:
        return CorpusParams.model_validate(section)
    except ValidationError as error:
        raise ConfigError(f"{file}: its section corpus is not one: {error.errors()[0]['msg']}") from error


def _trained_on(state: Mapping[str, Any], samples_path: Path, fps: float) -> TrainedOn | None:
    """The training split's figures where samples.parquet is the one that the checkpoint's plan was made of."""
    if not samples_path.exists():
        return None
    samples = read_samples(samples_path, TRAIN_SPLIT)
    if samples_hash(samples) != state["plan_identity"].get("samples"):
        return None
    hours = sum(samples["num_frames"].to_pylist()) / fps / 3600
    speakers = set(samples["speaker"].to_pylist()) - {None}
    return TrainedOn(samples.num_rows, hours, len(speakers) or None)


def _measured(report: Path, checkpoint: str) -> Measured | None:
    """Of the report in that folder, where it is of this checkpoint."""
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
    """Ascending; none where the clips name no speakers."""
    refuse_pipe(file)
    try:
        with file.open(newline="", encoding="utf-8") as rows:
            named = [row for row in csv.DictReader(rows) if row["group"] != UNKNOWN_GROUP]
        return tuple(sorted(float(row["cer"]) for row in named))
    except (*_DAMAGED, csv.Error) as error:
        raise _damaged(file, error) from error


_DAMAGED = (OSError, ValueError, KeyError, AttributeError, TypeError)
"""What reading a file of a report raises that was altered or cut short."""


def _damaged(file: Path, error: Exception) -> TableError:
    return TableError(f"{file} is damaged ({error!r}); `pipeline report` makes it again")
