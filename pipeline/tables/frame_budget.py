"""What `pipeline train --find-budget` prints."""

from rich.console import Console
from rich.table import Table

from model.training.find_budget import MARGIN, FoundBudget


def print_budget(found: FoundBudget, console: Console) -> None:
    """A row for each budget tried, and the line to set."""
    title = f"training steps in {found.memory_mb:,.0f} MB, of which {MARGIN:.0%} stay free"
    table = Table(title=title, title_justify="left")
    for name in ("loader.frame_budget", "clips × frames", "peak, MB", "frames/s", "fits"):
        table.add_column(name, justify="right")
    for trial in found.trials:
        table.add_row(
            str(trial.frame_budget),
            ", ".join(f"{shape.num_clips} × {shape.num_frames}" for shape in trial.shapes),
            "out of memory" if trial.peak_mb is None else f"{trial.peak_mb:,.0f}",
            "" if trial.frames_per_s is None else f"{trial.frames_per_s:,.0f}",
            "yes" if trial.fits else "no",
        )
    console.print(table)
    for line in _told(found):
        console.print(line, markup=False, highlight=False)


def _told(found: FoundBudget) -> list[str]:
    told = []
    if found.speed_change:
        told.append(
            f"train.augment.speed_change {found.speed_change} makes clips longer than they count in the budget; "
            "they were tried so."
        )
    if found.fits_all:
        told.append(
            "Every batch of train.batch_size clips fits: a larger budget would change nothing, a larger "
            "train.batch_size would."
        )
    told.append(f"the present {found.current} {'fits' if found.current_fits else 'is too much'}")
    if not found.current_fits or found.current < found.frame_budget:
        told.append(f"--set loader.frame_budget={found.frame_budget}")
    return told
