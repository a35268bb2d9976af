"""Prints the result of `pipeline audit`."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shards.safe_text import one_line
from stages.audit import AuditSummary


def print_audit(summary: AuditSummary, console: Console) -> None:
    """Prints the worst clips, and the counts of all."""
    table = Table(title="labels that the video contradicts, worst first", title_justify="left")
    table.add_column("clip", overflow="fold")
    for name in ("contradiction", "fit"):
        table.add_column(name, justify="right")
    table.add_column("doubtful")
    for name in ("label", "reading"):
        table.add_column(name, overflow="fold")
    for row in summary.worst:
        table.add_row(
            Text(one_line(row["clip_id"])),
            f"{row['contradiction']:.2f}",
            f"{row['fit']:.1f}",
            "yes" if row["is_doubtful"] else "",
            *(Text(one_line(row[name])) for name in ("label", "reading")),
        )
    console.print(table)
    console.print(
        f"{summary.num_doubtful:,} of {summary.num_clips:,} labels are doubtful; estimated share of exchanged labels: "
        f"{'unknown' if summary.exchanged_share is None else f'{summary.exchanged_share:.1%}'}; CER of the readings: "
        f"{summary.cer:.1%}"
    )
    for warning in summary.warnings:
        console.print(warning, style="yellow", markup=False, highlight=False)
