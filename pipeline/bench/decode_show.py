"""The decoding bench as tables on the terminal."""

from rich.console import Console

from pipeline.bench.decode import DecodeBench
from pipeline.bench.tables import figures_table


def print_decode_bench(result: DecodeBench, console: Console) -> None:
    """The goals, then every decoder."""
    console.print(", ".join(f"{name} {value}" for name, value in result.machine.items()), style="dim")
    goals = figures_table("goals", "", "here", "goal", "")
    for goal in result.goals():
        here = "not run" if goal["figure"] is None else f"{goal['figure']:.3f}"
        told = {True: "", False: "missed", None: "pipeline bench decode"}[goal["is_reached"]]
        goals.add_row(goal["name"], here, f"≤ {goal['goal']:g}", told)
    console.print(goals)
    title = f"a clip of {result.clip_s:g} s, {result.num_chars} characters; {result.preset}"
    if result.batch_size > 1:
        title += f"; {result.batch_size} clips at once, times of one"
    table = figures_table(title, "", "seconds", "of the time it plays")
    for name, seconds in {"encoding": result.encode_s, **result.seconds}.items():
        table.add_row(name, f"{seconds:.3f}", f"{seconds / result.clip_s:.4f}")
    console.print(table)
