"""Figures of a scored split, for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from model.metrics import edit_counts
from model.scored import ScoredClip

EXAMPLES = 3


def print_metrics(metrics: Mapping[str, Any], console: Console) -> None:
    """CER, what it is made of, and what a reader that sees no lips would score."""
    table = Table(title=f"split {metrics['split']}: {metrics['num_clips']} clips", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("meaning", style="dim")
    counts = f"{metrics['substitutions']} + {metrics['deletions']} + {metrics['insertions']}"
    table.add_row("CER", _percent(metrics["cer"]), f"(S + D + I) / N = ({counts}) / {metrics['num_chars']}")
    table.add_row("CER, mean a clip", _percent(metrics["cer_mean"]), "each clip counts the same")
    table.add_row("accuracy", _percent(metrics["accuracy"]), "1 - CER")
    if "wer" in metrics:
        table.add_row("WER", _percent(metrics["wer"]), "by words")
    table.add_row("blind CER", _percent(metrics["blind_cer"]), "the same model on each clip's mean frame")
    table.add_row("chance CER", _percent(metrics["chance_cer"]), "the same texts against other clips")
    console.print(table)
    # a report of before this figure was counted has none
    if overlap := metrics.get("speaker_overlap", 0):
        console.print(
            f"{overlap} speakers of split {metrics['split']} were also trained on: these scores flatter, the CER on "
            "people the model has never seen will be higher.",
            markup=False,
            highlight=False,
        )


def print_examples(scored: Sequence[ScoredClip], console: Console) -> None:
    """A few clips, as the older trainer printed them."""
    for number, clip in enumerate(scored[:EXAMPLES], start=1):
        counts = edit_counts(clip.reference, clip.hypothesis)
        console.print(f"Example {number}: {clip.clip_id}", markup=False, highlight=False)
        console.print(f"  Ground truth: {clip.reference}", markup=False, highlight=False)
        console.print(f"  Predicted:    {clip.hypothesis}", markup=False, highlight=False)
        console.print(f"  CER: {counts.cer:.4f} ({counts.accuracy:.2%} accuracy)", highlight=False)


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"
