"""Counts what a scored split got right and writes the report: metrics, tables, curves and the page."""

import csv
import io
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from model.metrics import (
    EditCounts,
    chance_pairs,
    edit_counts,
    has_spaces,
    total_counts,
    word_error_rate,
)
from model.scored import ScoredClip
from shards.errors import ConfigError
from shards.files import table_from_rows, write_json, write_table, write_text
from shards.schema import PREDICTIONS
from stages.report_page import CountedClip, Group, PageData, ReportContext, render_page

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


def write_report(
    scored: Sequence[ScoredClip], blind: Sequence[ScoredClip], context: ReportContext, report_folder: Path
) -> dict[str, Any]:
    """Writes metrics.json, predictions.parquet, by_speaker.csv, by_topic.csv, curves.csv and report.html.

    `blind` holds the same clips read from their mean frame, or nothing where that was not done. Returns what
    stands in metrics.json: shares (not per cent) and counts; `blind_cer` and `chance_cer` are null where they
    cannot be known, `speaker_overlap` counts the speakers that were also trained on, `wer` is there only for
    text with spaces. Same input, same bytes: no date is written.
    Raises ConfigError where the split has no clips.
    """
    if not scored:
        raise ConfigError(f"report.split: {context.split!r} has no clips to report on; name a packed split")
    assert not blind or {clip.clip_id for clip in blind} == {clip.clip_id for clip in scored}
    # a fixed order, so that chance CER and files do not depend on how the clips were batched
    clips = [_counted(clip) for clip in sorted(scored, key=lambda clip: clip.clip_id)]
    metrics = _metrics(clips, blind, context.split, context.seed, context.speaker_overlap)
    speakers = _groups(clips, lambda clip: clip.speaker)
    topics = _groups(clips, lambda clip: clip.topic)
    worst, best = _examples(clips, context.num_examples)

    write_json(report_folder / "metrics.json", metrics)
    predictions = table_from_rows([_prediction(counted) for counted in clips], PREDICTIONS)
    write_table(report_folder / "predictions.parquet", predictions, PREDICTIONS)
    write_text(report_folder / "by_speaker.csv", _groups_csv(speakers))
    write_text(report_folder / "by_topic.csv", _groups_csv(topics))
    write_text(report_folder / "curves.csv", _csv(CURVE_COLUMNS, context.curves))
    page = render_page(PageData(context, metrics, speakers, topics, worst, best))
    write_text(report_folder / "report.html", page)
    return metrics


def split_metrics(
    scored: Sequence[ScoredClip],
    blind: Sequence[ScoredClip],
    split: str,
    seed: int,
    speaker_overlap: int = 0,
) -> dict[str, Any]:
    """What stands in metrics.json, without writing anything."""
    clips = [_counted(clip) for clip in sorted(scored, key=lambda clip: clip.clip_id)]
    return _metrics(clips, blind, split, seed, speaker_overlap)


def _counted(clip: ScoredClip) -> CountedClip:
    return CountedClip(clip, edit_counts(clip.reference, clip.hypothesis))


def _metrics(
    clips: Sequence[CountedClip],
    blind: Sequence[ScoredClip],
    split: str,
    seed: int,
    speaker_overlap: int,
) -> dict[str, Any]:
    pairs = [(counted.clip.reference, counted.clip.hypothesis) for counted in clips]
    chance = chance_pairs(pairs, seed)
    counts = _sum(clips)
    metrics: dict[str, Any] = {
        "split": split,
        "num_clips": len(clips),
        "num_chars": counts.num_chars,
        "cer": counts.cer,
        "cer_mean": fmean(counted.counts.cer for counted in clips),
        "accuracy": counts.accuracy,
        "substitutions": counts.substitutions,
        "deletions": counts.deletions,
        "insertions": counts.insertions,
        "blind_cer": total_counts((c.reference, c.hypothesis) for c in blind).cer if blind else None,
        "chance_cer": total_counts(chance).cer if chance is not None else None,
        "speaker_overlap": speaker_overlap,
    }
    if has_spaces(reference for reference, _ in pairs):
        metrics["wer"] = word_error_rate(pairs)
    return metrics


def _groups(clips: Sequence[CountedClip], key: Callable[[ScoredClip], str | None]) -> list[Group]:
    """One group a value, by name; clips without a value come last, under None."""
    members: dict[str | None, list[CountedClip]] = defaultdict(list)
    for counted in clips:
        members[key(counted.clip)].append(counted)
    names = sorted(members, key=lambda name: (name is None, name or ""))
    return [Group(name, len(members[name]), _sum(members[name])) for name in names]


def _examples(
    clips: Sequence[CountedClip], wanted: int
) -> tuple[tuple[CountedClip, ...], tuple[CountedClip, ...]]:
    """The worst and the best clips, each clip at most once; of equals the one with more text is shown."""
    best_first = sorted(clips, key=lambda c: (c.counts.cer, -c.counts.num_chars, c.clip.clip_id))
    worst_first = sorted(clips, key=lambda c: (-c.counts.cer, -c.counts.num_chars, c.clip.clip_id))
    num_worst = min(wanted, (len(clips) + 1) // 2)
    worst = tuple(worst_first[:num_worst])
    return worst, tuple([c for c in best_first if c not in worst][:wanted])


def _sum(clips: Iterable[CountedClip]) -> EditCounts:
    return sum((counted.counts for counted in clips), EditCounts())


def _prediction(counted: CountedClip) -> dict[str, Any]:
    clip, counts = counted.clip, counted.counts
    return {
        "clip_id": clip.clip_id,
        "split": clip.split,
        "reference": clip.reference,
        "hypothesis": clip.hypothesis,
        "cer": counts.cer,
        "substitutions": counts.substitutions,
        "deletions": counts.deletions,
        "insertions": counts.insertions,
        "score": clip.score,
    }


def _groups_csv(groups: Sequence[Group]) -> str:
    columns = ("group", "clips", "characters", "cer")
    rows = [(group.label, group.num_clips, group.counts.num_chars, group.counts.cer) for group in groups]
    return _csv(columns, [dict(zip(columns, row, strict=True)) for row in rows])


def _csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
