"""Prints the figures of a scored split, and the comparison of two reports, as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from model.decoding.result import ScoredClip
from model.metrics import edit_counts
from shards.safe_text import one_line
from stages.pages.compare_page import signed, verdict
from stages.pages.page import percent
from stages.reports.compare import Comparison, Difference
from stages.reports.figures import (
    INTERVALS_NOTE,
    NORMALISER_UNKNOWN,
    has_interval,
    interval_about,
    normaliser_warning,
    oracle_about,
    read_by,
    unit_of,
    why_no_interval,
)

EXAMPLES = 3

NAMES_SHOWN = 5
GROUPS_SHOWN = 12
"""Largest number of groups of a kind in the table; of more, it shows those with the largest changes."""


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
    about = oracle_about(metrics.get("decoder"), metrics.get("oracle_candidates"))
    table.add_row("oracle CER", percent(metrics.get("oracle_cer")), about)
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
    if corpora := metrics.get("corpora"):
        _print_corpora(corpora, console)
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


def _print_corpora(corpora: Mapping[str, Mapping[str, Any]], console: Console) -> None:
    table = Table(title="by corpus", title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("corpus")
    for name in ("clips", "rejected", "CER", "95 % interval", "blind CER", "chance CER"):
        table.add_column(name, justify="right")
    for name, found in corpora.items():
        low, high = found["cer_low"], found["cer_high"]
        rejected = found["num_rejected"]
        table.add_row(
            name,
            str(found["num_clips"]),
            "unknown" if rejected is None else str(rejected),
            _percent(found["cer"]),
            f"{_percent(low)} to {_percent(high)}" if has_interval(low, high) else "–",
            _percent(found["blind_cer"]),
            _percent(found["chance_cer"]),
        )
    console.print(table)


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


def print_comparison(comparison: Comparison, num_clips: int, console: Console) -> None:
    """Prints the verdict, groups, and the `num_clips` clips that improved, and worsened, by most errors."""
    whole, unit = comparison.whole, comparison.unit

    def say(text: str) -> None:
        console.print(one_line(text), markup=False, highlight=False)

    table = Table(
        title=Text(
            f"split {one_line(comparison.split)}: {whole.num_clips} clips in both, {whole.counts_a.num_chars} "
            f"{unit.names}: {unit.short}"
        ),
        title_justify="left",
    )
    for name in ("", "clips", "A", "B", "change", "95 % interval"):
        table.add_column(name, justify="left" if not name else "right")
    table.add_row("all", *_cells(whole))
    oracles = comparison.oracle_a, comparison.oracle_b
    change = "–" if oracles[0] is None or oracles[1] is None else signed(oracles[1] - oracles[0])
    table.add_row("oracle", str(whole.num_clips), *map(percent, oracles), change, "–", end_section=True)
    for kind, groups in comparison.groups.items():
        for name, found in _shown(groups):
            table.add_row(Text(one_line(f"{kind} {name}")), *_cells(found))
        if len(groups) > GROUPS_SHOWN:
            table.add_row(f"… {len(groups) - GROUPS_SHOWN} more groups with smaller changes")
        table.add_section()
    for letter, name, decoder in (
        ("A", comparison.name_a, comparison.read_by_a),
        ("B", comparison.name_b, comparison.read_by_b),
    ):
        say(f"{letter}: {name}" + (f" ({decoder})" if decoder else ""))
    console.print(table)
    say(f"Changes are percentage points of {unit.rate}, B minus A. {INTERVALS_NOTE}")
    for line in comparison.oracle_notes:
        say(line)
    if unit.note:
        say(unit.note)
    say(verdict(whole)[1])
    say(
        f"Fewer errors in B: {len(comparison.better)} clips; more: {len(comparison.worse)}; "
        f"equally many: {comparison.num_same}."
    )
    for letter, clip_ids in (("A", comparison.only_a), ("B", comparison.only_b)):
        if clip_ids:
            more = ", …" if len(clip_ids) > NAMES_SHOWN else ""
            say(
                f"Only in {letter}, not counted: {len(clip_ids)} clips ({', '.join(clip_ids[:NAMES_SHOWN])}{more})"
            )
    for title, clips in (("Better in B", comparison.better), ("Worse in B", comparison.worse)):
        for clip in clips[:num_clips]:
            say(f"{title}: {clip.clip_id}, {clip.counts_a.errors} -> {clip.counts_b.errors} errors")
            say(f"  reference: {clip.reference}")
            say(f"  A:         {clip.hypothesis_a}")
            say(f"  B:         {clip.hypothesis_b}")


def _shown(groups: Sequence[tuple[str, Difference]]) -> Sequence[tuple[str, Difference]]:
    if len(groups) <= GROUPS_SHOWN:
        return groups
    half = GROUPS_SHOWN // 2
    return [*groups[:half], *groups[-half:]]


def _cells(found: Difference) -> tuple[str, ...]:
    interval, mark = found.interval, "†" if found.is_narrow else ""
    return (
        str(found.num_clips),
        percent(found.counts_a.cer),
        percent(found.counts_b.cer),
        signed(found.change),
        f"{signed(interval.low)} to {signed(interval.high)}{mark}" if interval else "–",
    )
