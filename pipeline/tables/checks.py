"""Prints the results of `pipeline verify` and `pipeline import-weights` as tables."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from model.pretrained.report import ImportReport
from shards.safe_text import one_line
from shards.verify import Problem, Verification

MAX_ROWS = 50
"""Largest number of problems that `pipeline verify` prints."""
EXAMPLES = 3
"""Largest number of clip ids that it prints for a problem."""
SHOWN = 20
"""Largest number of items that `pipeline import-weights` prints of a list."""


def print_verification(result: Verification, console: Console) -> None:
    """Prints the problems as a table, and a summary line."""
    if result.problems:
        table = Table(title="Problems", title_justify="left")
        table.add_column("file", overflow="fold")
        table.add_column("problem", overflow="fold")
        table.add_column("lost samples", overflow="fold")
        for problem in result.problems[:MAX_ROWS]:
            # Text, not markup: a name in a damaged tar may contain brackets
            table.add_row(
                *(Text(one_line(cell)) for cell in (problem.shard, problem.what, _samples(problem)))
            )
        console.print(table)
        if len(result.problems) > MAX_ROWS:
            console.print(f"and {len(result.problems) - MAX_ROWS} more; --json lists them all")
    megabytes = result.num_bytes / 1e6
    found = (
        f"{len(result.problems)} problems, {result.num_lost} samples lost"
        if result.problems
        else "no problems"
    )
    console.print(
        f"{result.num_shards} shards, {result.num_samples} samples, {megabytes:.0f} MB in {result.seconds:.1f} s "
        f"({megabytes / max(result.seconds, 1e-9):.0f} MB/s): {found}",
        highlight=False,
        markup=False,
    )


def _samples(problem: Problem) -> str:
    named = ", ".join(problem.clip_ids[:EXAMPLES])
    more = len(problem.clip_ids) - EXAMPLES
    return f"{named} and {more} more" if more > 0 else named or "-"


def print_import(report: ImportReport, out: Path, console: Console) -> None:
    """Prints the imported tensors of each part, the characters, and tensors that the format does not have."""
    table = Table(
        title=Text(one_line(f"{report.file} ({report.format}), {report.part}")), title_justify="left"
    )
    table.add_column("part")
    for name in ("matched", "left", "new", "numbers"):
        table.add_column(name, justify="right")
    for part in report.parts:
        counts = (part.matched, part.left, part.new, part.parameters)
        table.add_row(part.part, *(f"{count:,}" if count else "" for count in counts))
    console.print(table)
    for line in _lines(report, out):
        console.print(one_line(line), markup=False, highlight=False)


def _lines(report: ImportReport, out: Path) -> list[str]:
    lines = [
        "matched: imported tensors; left: tensors that were not requested; new: random tensors, to be trained"
    ]
    place = [f"under the key {report.nested_under}"] if report.nested_under else []
    place += [f"with the prefix {report.prefix}"] if report.prefix else []
    if place:
        lines.append(f"tensor names: {', '.join(place)}")
    sizes = ", ".join(f"{key} {value}" for key, value in report.sizes.items())
    lines.append(f"sizes: {report.preset} with {sizes}")
    if report.left:
        lines.append(
            f"tensors that the format does not have, left out ({len(report.left)}): {_some(report.left)}"
        )
    lines.append(f"characters: {report.num_characters}, from {report.table}")
    if report.rows_kept:
        new_rows = f", new: {', '.join(report.rows_new)} (probability 0)" if report.rows_new else ""
        lines.append(f"output rows kept: {report.rows_kept} (characters, blank, start and end){new_rows}")
    if report.rewritten:
        pairs = [f"{theirs} as {ours!r}" for theirs, ours in report.rewritten]
        lines.append(f"characters rewritten as in labels ({len(pairs)}): {_some(pairs)}")
    if report.not_in_labels:
        lines.append(
            f"characters that this normaliser removes from labels ({len(report.not_in_labels)}): "
            f"{_some(report.not_in_labels)}; each one that is read counts as an error"
        )
    if report.not_in_table is not None:
        unknown = f": {_some(report.not_in_table)}" if report.not_in_table else ""
        lines.append(
            f"characters of the packed train clips that the model cannot read ({len(report.not_in_table)}){unknown}"
        )
    fresh = [part.part for part in report.parts if part.new]
    if fresh:
        lines.append(
            f"{', '.join(fresh)}: not trained yet; use this checkpoint for train.init_from, not for reading"
        )
    lines.append(f"{out}: heads {', '.join(report.heads)}")
    return lines


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - SHOWN} more (--json lists all)" if len(items) > SHOWN else ""
    return " ".join(items[:SHOWN]) + more
