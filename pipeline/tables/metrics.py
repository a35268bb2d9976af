"""Prints the figures of a scored split."""

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
    """Prints the CER, its errors, the blind CER and the chance CER."""
    metrics = {name: one_line(value) if isinstance(value, str) else value for name, value in metrics.items()}
    table = Table(title=f"split {metrics['split']}: {metrics['num_clips']} clips", title_justify="left")
    table.add_column("figure")
    table.add_column("value", justify="right")
    table.add_column("meaning", style="dim")
    if decoder := read_by(metrics):
        language_model = metrics.get("language_model")
        table.caption = f"decoder {decoder}" + (
            f", language model {language_model}" if language_model else ""
        )
    counts = f"{metrics['substitutions']} + {metrics['deletions']} + {metrics['insertions']}"
    table.add_row("CER", _percent(metrics["cer"]), f"(S + D + I) / N = ({counts}) / {metrics['num_chars']}")
    if has_interval(low := metrics.get("cer_low"), high := metrics.get("cer_high")):
        about = f"bootstrap {interval_about(metrics['cer_interval_over'], metrics.get('num_speakers'))}"
        table.add_row("95 % interval", f"{_percent(low)} to {_percent(high)}", about)
    else:
        table.add_row("95 % interval", "–", why_no_interval(metrics["num_clips"]))
    table.add_row("mean CER of clips", _percent(metrics["cer_mean"]), "each clip counts the same")
    table.add_row("accuracy", _percent(metrics["accuracy"]), "1 - CER")
    if "wer" in metrics:
        table.add_row("WER", _percent(metrics["wer"]), "word error rate")
    if "mer" in metrics:
        table.add_row(
            "MER", _percent(metrics["mer"]), "mixed error rate: Han characters and words of other scripts"
        )
    if metrics.get("syllable_error_rate") is not None:
        table.add_row("syllable error rate", _percent(metrics["syllable_error_rate"]), "toneless pinyin")
        if metrics.get("look_error_rate") is not None:  # older reports have none
            about = "syllables that look alike on the lips count as equal"
            table.add_row("look-alike error rate", _percent(metrics["look_error_rate"]), about)
        table.add_row(
            "viseme error rate",
            _percent(metrics["viseme_error_rate"]),
            "mouth shapes, one to three for each syllable",
        )
    table.add_row(
        "blind CER", _percent(metrics["blind_cer"]), "the same model reads only each clip's mean frame"
    )
    pairings = metrics.get("chance_pairings")
    mean = f", mean of {pairings} pairings" if pairings else ""
    table.add_row(
        "chance CER",
        _percent(metrics["chance_cer"]),
        f"hypotheses compared with other clips' references{mean}",
    )
    console.print(table)
    if rejected := metrics.get("num_rejected"):
        clips = "1 clip of this split was" if rejected == 1 else f"{rejected} clips of this split were"
        console.print(
            f"{clips} rejected; these figures do not include rejected clips.", markup=False, highlight=False
        )
    if unwritable := metrics.get("num_unwritable"):
        console.print(
            f"{unwritable} characters of the references are not in the model's table; each counts as an error.",
            markup=False,
            highlight=False,
        )
    if note := unit_of(metrics.get("decoder")).note:
        console.print(note, markup=False, highlight=False)
    print_normalisers(metrics, console)
    # older reports do not have this figure
    print_overlap(metrics.get("speaker_overlap", 0), metrics["split"], console)


def print_normalisers(metrics: Mapping[str, Any], console: Console) -> None:
    """Prints the normalisers of the references and of the learnt labels, and a warning if they differ."""
    if (learnt := metrics.get("checkpoint_normaliser")) is None:  # older reports do not have it
        return
    if metrics["normaliser"] == learnt:
        lines = [f"Normaliser of the references and of the model's labels: {learnt}"]
    else:
        lines = [
            f"Normaliser of the references: {metrics['normaliser'] or NORMALISER_UNKNOWN}",
            f"Normaliser of the labels that the model learnt: {learnt}",
        ]
    if warning := normaliser_warning(metrics):
        lines.append(f"Warning: {warning}")
    for line in lines:
        console.print(line, markup=False, highlight=False)


def print_overlap(num_speakers: int | None, split: str, console: Console) -> None:
    """Prints a warning if speakers of the split were trained on, or if no speaker is named (None)."""
    if num_speakers is None:
        console.print(
            f"No speakers are named: the training clips may show people of split {split}.",
            markup=False,
            highlight=False,
        )
    elif num_speakers:
        console.print(
            f"{num_speakers} of the speakers of split {split} are in the training clips too. The CER on "
            "people the model has never seen will be higher.",
            markup=False,
            highlight=False,
        )


def print_examples(scored: Sequence[ScoredClip], console: Console) -> None:
    """Prints a few clips in the format of the older trainer."""
    for number, clip in enumerate(scored[:EXAMPLES], start=1):
        counts = edit_counts(clip.reference, clip.hypothesis)
        console.print(f"Example {number}: {one_line(clip.clip_id)}", markup=False, highlight=False)
        console.print(f"  Ground truth: {one_line(clip.reference)}", markup=False, highlight=False)
        console.print(f"  Predicted:    {one_line(clip.hypothesis)}", markup=False, highlight=False)
        console.print(f"  CER: {counts.cer:.4f} ({counts.accuracy:.2%} accuracy)", highlight=False)


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"
