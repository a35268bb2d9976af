"""What `pipeline verify` found, for people."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shards.safe_text import one_line
from shards.verify import Problem, Verification

MAX_ROWS = 50
EXAMPLES = 3


def print_verification(result: Verification, console: Console) -> None:
    """The problems as a table, and one line that sums up."""
    if result.problems:
        table = Table(title="Problems", title_justify="left")
        table.add_column("file", overflow="fold")
        table.add_column("what is wrong", overflow="fold")
        table.add_column("samples it costs", overflow="fold")
        for problem in result.problems[:MAX_ROWS]:
            # as text: a name out of a damaged tar may look like rich's markup
            table.add_row(
                *(Text(one_line(told)) for told in (problem.shard, problem.what, _samples(problem)))
            )
        console.print(table)
        if len(result.problems) > MAX_ROWS:
            console.print(f"and {len(result.problems) - MAX_ROWS} more; --json lists them all")
    megabytes = result.num_bytes / 1e6
    found = (
        f"{len(result.problems)} problems cost {result.num_lost} samples"
        if result.problems
        else "all is well"
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
