"""Prints the result of `pipeline sync`."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shards.safe_text import one_line
from stages.sync import OUT_OF_STEP_FRAMES, SyncSummary


def print_sync(summary: SyncSummary, console: Console) -> None:
    """Prints the worst clips, and the counts of all."""
    table = Table(title="sound and picture out of step, worst first", title_justify="left")
    table.add_column("clip", overflow="fold")
    for name in ("offset, frames", "offset, s", "agreement"):
        table.add_column(name, justify="right")
    for row in summary.worst:
        if row["has_audio"]:
            table.add_row(
                Text(one_line(row["clip_id"])),
                f"{row['offset_frames']:+d}",
                f"{row['offset_s']:+.2f}",
                f"{row['agreement']:.2f}",
            )
    console.print(table)
    console.print(
        f"{summary.num_out_of_step:,} of {summary.num_clips:,} clips are off by more than {OUT_OF_STEP_FRAMES} frames; "
        f"{summary.num_silent:,} have no sound"
        + (
            ""
            if summary.median_agreement is None
            else f"; median agreement {summary.median_agreement:.2f} nats"
        )
    )
