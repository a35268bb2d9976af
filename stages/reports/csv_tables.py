"""Writes the figures of a report as CSV files, for `dvc plots` and other tools."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from shards.safe_text import write_csv_rows
from stages.reports.figures import Figures, Group

CURVE_COLUMNS = (
    "epoch",
    "train_loss",
    "val_loss",
    "val_cer",
    "learning_rate",
    "clips_per_s",
    "data_wait",
    "padding",
    "gradient_norm",
    "peak_memory_mb",
    "skipped",
    "flop_utilisation",
)
GROUP_COLUMNS = ("group", "clips", "characters", "cer", "cer_low", "cer_high", "interval_over", "speakers")
BY_CORPUS = "by_corpus.csv"
"""Written only for several packs."""
CORPUS_COLUMNS = {
    "clips": "num_clips",
    "rejected": "num_rejected",
    "characters": "num_chars",
    "cer": "cer",
    "cer_low": "cer_low",
    "cer_high": "cer_high",
    "interval_over": "cer_interval_over",
    "speakers": "num_speakers",
    "blind_cer": "blind_cer",
    "chance_cer": "chance_cer",
}
"""Column of by_corpus.csv → figure of the corpus in metrics.json."""
CALIBRATION_COLUMNS = ("low", "high", "num_clips", "num_chars", "confidence", "accuracy")
CONFUSION_COLUMNS = ("kind", "reference", "hypothesis", "count", "num_reference", "look_alike")
QUALITY_COLUMNS = ("quality", "low", "high", "clips", "characters", "cer")


def csv_tables(figures: Figures, curves: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns file name → CSV text of the figures."""
    tables = {f"by_{name}.csv": _groups_csv(groups) for name, groups in figures.groups.items()}
    kinds = {"character": figures.characters, "word": figures.words, "syllable": figures.syllables}
    confusions = [
        {
            "kind": kind,
            "reference": one.reference,
            "hypothesis": one.hypothesis,
            "count": one.count,
            "num_reference": one.num_reference,
            "look_alike": one.look_alike,
        }
        for kind, found in kinds.items()
        for one in found
    ]
    qualities = [
        {
            "quality": name,
            "low": one.low,
            "high": one.high,
            "clips": one.num_clips,
            "characters": one.counts.num_chars,
            "cer": one.counts.cer,
        }
        for name, bins in figures.qualities.items()
        for one in bins
    ]
    if corpora := figures.metrics.get("corpora"):
        rows = [
            {"group": name} | {column: found[key] for column, key in CORPUS_COLUMNS.items()}
            for name, found in corpora.items()
        ]
        tables[BY_CORPUS] = _csv(("group", *CORPUS_COLUMNS), rows)
    return tables | {
        "calibration.csv": _csv(CALIBRATION_COLUMNS, [asdict(one) for one in figures.calibration]),
        "confusions.csv": _csv(CONFUSION_COLUMNS, confusions),
        "qualities.csv": _csv(QUALITY_COLUMNS, qualities),
        "curves.csv": _csv(CURVE_COLUMNS, curves),
    }


def _groups_csv(groups: Sequence[Group]) -> str:
    rows = [
        {
            "group": group.label,
            "clips": group.num_clips,
            "characters": group.counts.num_chars,
            "cer": group.counts.cer,
            "cer_low": group.interval.low if group.interval else None,
            "cer_high": group.interval.high if group.interval else None,
            "interval_over": group.over if group.interval else None,
            "speakers": group.num_speakers,
        }
        for group in groups
    ]
    return _csv(GROUP_COLUMNS, rows)


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    write_csv_rows(text, [columns, *(map(row.get, columns) for row in rows)])
    return text.getvalue()
