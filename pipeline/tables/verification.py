"""Prints the result of `pipeline verify`."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shards.safe_text import one_line
from shards.verify import Problem, Verification

MAX_ROWS = 50
EXAMPLES = 3


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
