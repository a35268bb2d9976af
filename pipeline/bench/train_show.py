"""The training bench as tables on the terminal."""

from rich.console import Console
from rich.table import Table

from pipeline.bench.tables import figures_table
from pipeline.bench.train import TrainBench


def print_train_bench(result: TrainBench, console: Console) -> None:
    """The figures with their goals, then everything that was measured."""
    console.print(", ".join(f"{name} {value}" for name, value in result.machine.items()), style="dim")
    console.print(_goals(result))
    console.print(_figures(result))


def _goals(result: TrainBench) -> Table:
    table = figures_table("goals", "", "here", "goal", "")
    for goal in result.goals():
        reached = {True: "", False: "missed", None: goal.command}[goal.is_reached]
        here = "not run" if goal.figure is None else _short(goal.figure)
        table.add_row(goal.name, here, f"{goal.sense} {_short(goal.goal)}", reached)
    named = {goal.name for goal in result.goals()}
    for name, ratio in result.ratios().items():
        if name not in named:
            table.add_row(name, _short(ratio), "", "")
    return table


def _figures(result: TrainBench) -> Table:
    clips = f"clips of {result.frames} frames" if result.frames else "clips of the given pack"
    title = f"{clips}, batches of {result.batch}; conformer: {result.preset}"
    table = figures_table(
        title, "", "clips/s", "clips a processor second", "peak MB", "parameters", "FLOP utilisation"
    )
    for name, figures in result.figures.items():
        utilisation, parameters = figures.get("flop_utilisation"), figures.get("parameters")
        table.add_row(
            name,
            _short(figures["clips_per_s"]),
            _short(figures["clips_per_cpu_s"]),
            f"{figures['peak_mb']:,.0f}",
            "" if parameters is None else f"{parameters:,.0f}",
            "" if utilisation is None else f"{utilisation:.1%}",
        )
    return table


def _short(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.2f}"
