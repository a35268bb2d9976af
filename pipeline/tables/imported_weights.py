"""What `pipeline import-weights` made of a file, for people."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from model.pretrained.report import ImportReport
from shards.safe_text import one_line

SHOWN = 20


def print_import(report: ImportReport, out: Path, console: Console) -> None:
    """What became of each part, of the characters, and of what the format does not know."""
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
        "matched: tensors taken over; left: not asked for; new: fresh, they mean nothing before training"
    ]
    where = [f"under {report.nested_under}"] if report.nested_under else []
    where += [f"behind {report.prefix}"] if report.prefix else []
    if where:
        lines.append(f"the names stand {', '.join(where)}")
    sizes = ", ".join(f"{key} {value}" for key, value in report.sizes.items())
    lines.append(f"sizes: {report.preset} with {sizes}")
    if report.left:
        lines.append(f"not of the format and left, {len(report.left)}: {_some(report.left)}")
    lines.append(f"characters: {report.num_characters}, from {report.table}")
    if report.rows_kept:
        told = f", new: {', '.join(report.rows_new)} (probability 0)" if report.rows_new else ""
        lines.append(f"rows kept: {report.rows_kept}, of the characters, blank, start and end{told}")
    if report.rewritten:
        pairs = [f"{theirs} as {ours!r}" for theirs, ours in report.rewritten]
        lines.append(f"written as labels are, {len(pairs)}: {_some(pairs)}")
    if report.not_in_labels:
        lines.append(
            f"in no label of this normaliser, {len(report.not_in_labels)}: {_some(report.not_in_labels)}; "
            "what is read of them counts as an error"
        )
    if report.not_in_table is not None:
        unknown = f": {_some(report.not_in_table)}" if report.not_in_table else ""
        lines.append(
            f"characters of the packed train clips that it cannot read, {len(report.not_in_table)}{unknown}"
        )
    fresh = [part.part for part in report.parts if part.new]
    if fresh:
        lines.append(
            f"{', '.join(fresh)} fresh: this checkpoint is for train.init_from, it reads nothing yet"
        )
    lines.append(f"{out}: heads {', '.join(report.heads)}")
    return lines


def _some(items: Sequence[str]) -> str:
    more = f" and {len(items) - SHOWN} more (--json lists all)" if len(items) > SHOWN else ""
    return " ".join(items[:SHOWN]) + more
