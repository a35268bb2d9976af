"""Prints a comparison of two reports as a table."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shards.safe_text import one_line
from stages.pages.compare_page import signed, verdict
from stages.pages.page import percent
from stages.reports.compare import Comparison, Difference
from stages.reports.figures import INTERVALS_NOTE

NAMES_SHOWN = 5
GROUPS_SHOWN = 12
"""Largest number of groups of a kind in the table; of more, it shows those with the largest changes."""


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
    table.add_row("all", *_cells(whole), end_section=True)
    for kind, groups in comparison.groups.items():
        for name, found in _shown(groups):
            table.add_row(Text(one_line(f"{kind} {name}")), *_cells(found))
        if len(groups) > GROUPS_SHOWN:
            table.add_row(f"… {len(groups) - GROUPS_SHOWN} more groups with smaller changes")
        table.add_section()
    for letter, name, read_by in (
        ("A", comparison.name_a, comparison.read_by_a),
        ("B", comparison.name_b, comparison.read_by_b),
    ):
        say(f"{letter}: {name}" + (f" ({read_by})" if read_by else ""))
    console.print(table)
    say(f"Changes are percentage points of {unit.rate}, B minus A. {INTERVALS_NOTE}")
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
