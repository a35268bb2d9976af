"""The loader's bench as tables on the terminal."""

from rich.console import Console
from rich.table import Table

from pipeline.bench.loader import LoaderBench
from pipeline.bench.tables import figures_table


def print_loader_bench(result: LoaderBench, console: Console) -> None:
    """The figures with their goals, then every speed, codec and memory that was measured."""
    console.print(", ".join(f"{name} {value}" for name, value in result.machine.items()), style="dim")
    console.print(_goals(result))
    console.print(_speeds(result))
    console.print(_codecs(result))
    console.print(_memory(result))
    console.print(
        f"a catalogue of a million rows takes {result.catalogue['table_mb']:.0f} MB, and a stream over it "
        f"{result.catalogue['stream_mb']:.0f} MB more"
    )
    waits = ", ".join(f"{share:.2%}" for share in result.training["data_wait"])
    console.print(
        f"training waited {waits} of its epochs for data, at {result.training['clips_per_s'][-1]:.1f} clips/s"
    )
    if result.profile:
        console.print(result.profile, highlight=False, markup=False)


def _goals(result: LoaderBench) -> Table:
    table = figures_table("goals", "", "here", "goal", "")
    for name, (figure, goal, sense) in result.goals().items():
        reached = figure >= goal if sense == "≥" else figure <= goal
        table.add_row(name, _short(figure), f"{sense} {_short(goal)}", "" if reached else "missed")
    for name, ratio in result.ratios().items():
        if name not in result.goals():
            table.add_row(name, _short(ratio), "", "")
    return table


def _speeds(result: LoaderBench) -> Table:
    title = (
        f"{result.num_clips} clips of {result.mean_frames:.1f} frames on one core, padded uint8 batches of 16 at the "
        "consumer"
    )
    table = figures_table(title, "", "clips/s", "clips a processor second")
    for name, speed in result.clips_per_s.items():
        table.add_row(name, f"{speed:,.0f}", f"{result.clips_per_cpu_s[name]:,.0f}")
    return table


def _codecs(result: LoaderBench) -> Table:
    table = figures_table(
        "codecs, one thread", "", "KB/clip", "encoded clips/s", "decoded clips/s", "mean error", "max error"
    )
    for codec, figures in result.codecs.items():
        speeds = (f"{figures[name]:,.0f}" for name in ("encoded_per_s", "decoded_per_s"))
        table.add_row(
            codec,
            f"{figures['kb_a_clip']:.1f}",
            *speeds,
            f"{figures['mean_error']:.2f}",
            f"{figures['max_error']:g}",
        )
    return table


def _memory(result: LoaderBench) -> Table:
    table = figures_table(
        "memory above that after imports, MB",
        "",
        "largest batch",
        "peak",
        "a loader worker",
        "half way",
        "last pass",
    )
    for name, figures in result.memory.items():
        values = (
            figures["batch_mb"],
            figures["peak_mb"],
            figures["peak_mb"] / figures["workers"],
            figures["pass_mb"][len(figures["pass_mb"]) // 2],
            figures["pass_mb"][-1],
        )
        table.add_row(name, *(f"{value:.0f}" for value in values))
    return table


def _short(figure: float) -> str:
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.2f}" if figure >= 1 else f"{figure:.2%}"
