"""Figures of a scored split, for people."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from model.decoding.result import ScoredClip
from model.metrics import edit_counts
from shards.safe_text import one_line
from stages.reports.figures import (
    NORMALISER_UNKNOWN,
    has_interval,
    interval_about,
    normaliser_warning,
    read_by,
    unit_of,
    why_no_interval,
)

EXAMPLES = 3


def print_metrics(metrics: Mapping[str, Any], console: Console) -> None:
    """CER, what it is made of, and what a reader that sees no lips would score."""
    metrics = {name: one_line(value) if isinstance(value, str) else value for name, value in metrics.items()}
    table = Table(title=f"split {metrics['split']}: {metrics['num_clips']} clips", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("meaning", style="dim")
    if decoder := read_by(metrics):
        asked = metrics.get("language_model")
        table.caption = f"decoder {decoder}" + (f", language model {asked}" if asked else "")
    counts = f"{metrics['substitutions']} + {metrics['deletions']} + {metrics['insertions']}"
    table.add_row("CER", _percent(metrics["cer"]), f"(S + D + I) / N = ({counts}) / {metrics['num_chars']}")
    if has_interval(low := metrics.get("cer_low"), high := metrics.get("cer_high")):
        about = f"bootstrap {interval_about(metrics['cer_interval_over'], metrics.get('num_speakers'))}"
        table.add_row("95 % interval", f"{_percent(low)} to {_percent(high)}", about)
    else:
        table.add_row("95 % interval", "–", why_no_interval(metrics["num_clips"]))
    table.add_row("CER, mean a clip", _percent(metrics["cer_mean"]), "each clip counts the same")
    table.add_row("accuracy", _percent(metrics["accuracy"]), "1 - CER")
    if "wer" in metrics:
        table.add_row("WER", _percent(metrics["wer"]), "by words")
    if "mer" in metrics:
        table.add_row("MER", _percent(metrics["mer"]), "by Han characters and words of other scripts")
    if metrics.get("syllable_error_rate") is not None:
        table.add_row("syllable error rate", _percent(metrics["syllable_error_rate"]), "toneless pinyin")
        if metrics.get("look_error_rate") is not None:  # an older report has none
            about = "syllables that look alike on the lips count as one"
            table.add_row("look error rate", _percent(metrics["look_error_rate"]), about)
        table.add_row(
            "viseme error rate",
            _percent(metrics["viseme_error_rate"]),
            "by mouth shapes, one to three a syllable",
        )
    table.add_row("blind CER", _percent(metrics["blind_cer"]), "the same model on each clip's mean frame")
    pairings = metrics.get("chance_pairings")
    mean = f", mean of {pairings} pairings" if pairings else ""
    table.add_row("chance CER", _percent(metrics["chance_cer"]), f"the same texts against other clips{mean}")
    console.print(table)
    if rejected := metrics.get("num_rejected"):
        clips = "1 clip of this split was" if rejected == 1 else f"{rejected} clips of this split were"
        console.print(
            f"{clips} rejected and not read: no part of these figures.", markup=False, highlight=False
        )
    if unwritable := metrics.get("num_unwritable"):
        console.print(
            f"{unwritable} characters of the references are none that the model can write: each is an error.",
            markup=False,
            highlight=False,
        )
    if note := unit_of(metrics.get("decoder")).note:
        console.print(note, markup=False, highlight=False)
    print_normalisers(metrics, console)
    # a report of before this figure was counted has none
    print_overlap(metrics.get("speaker_overlap", 0), metrics["split"], console)


def print_normalisers(metrics: Mapping[str, Any], console: Console) -> None:
    """What made the references and the labels that were learnt, and a warning where the two differ."""
    if (learnt := metrics.get("checkpoint_normaliser")) is None:  # a report of before it was kept
        return
    if metrics["normaliser"] == learnt:
        told = [f"Normaliser of the references and of the model's labels: {learnt}"]
    else:
        told = [
            f"Normaliser of the references: {metrics['normaliser'] or NORMALISER_UNKNOWN}",
            f"Normaliser of the labels that the model learnt: {learnt}",
        ]
    if warning := normaliser_warning(metrics):
        told.append(f"Warning: {warning}")
    for line in told:
        console.print(line, markup=False, highlight=False)


def print_overlap(num_speakers: int | None, split: str, console: Console) -> None:
    """That a score flatters, where speakers of the split were trained on, or nobody is named (None)."""
    if num_speakers is None:
        console.print(
            f"No speakers are named: whether split {split} and the training clips share people cannot be told.",
            markup=False,
            highlight=False,
        )
    elif num_speakers:
        console.print(
            f"Trained on too: {num_speakers} of the speakers of split {split}. These scores flatter, the CER on "
            "people the model has never seen will be higher.",
            markup=False,
            highlight=False,
        )


def print_examples(scored: Sequence[ScoredClip], console: Console) -> None:
    """A few clips, as the older trainer printed them."""
    for number, clip in enumerate(scored[:EXAMPLES], start=1):
        counts = edit_counts(clip.reference, clip.hypothesis)
        console.print(f"Example {number}: {one_line(clip.clip_id)}", markup=False, highlight=False)
        console.print(f"  Ground truth: {one_line(clip.reference)}", markup=False, highlight=False)
        console.print(f"  Predicted:    {one_line(clip.hypothesis)}", markup=False, highlight=False)
        console.print(f"  CER: {counts.cer:.4f} ({counts.accuracy:.2%} accuracy)", highlight=False)


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"
