"""How much more memory this process may take: of the machine, and of the control groups it runs in."""

from collections.abc import Iterator
from pathlib import Path

import psutil

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def available_mb() -> float:
    """What the machine and the tightest limit of a control group (a container, a Slurm job) leave, MB."""
    of_groups = group_available_mb()
    of_machine = psutil.virtual_memory().available / 1e6
    return of_machine if of_groups is None else min(of_machine, of_groups)


def group_available_mb(root: Path = _ROOT, own: Path = _OWN) -> float | None:
    """What the limits of this process's groups and of those above leave, MB; None where there is no limit.

    Version 1 and 2 of control groups. Pages of files count as left: the kernel gives them up before it kills.
    """
    try:
        lines = own.read_text("utf-8").splitlines()
    except OSError:
        return None  # no Linux
    left = [
        mb for folder, is_first in _folders(root, lines) if (mb := _left_mb(folder, is_first)) is not None
    ]
    return min(left, default=None)


def _folders(root: Path, lines: list[str]) -> Iterator[tuple[Path, bool]]:
    """The folders of the groups, and whether they are of version 1; `lines` are id:controllers:path."""
    for line in lines:
        _, controllers, path = line.split(":", 2)
        is_first = "memory" in controllers.split(",")
        if controllers and not is_first:
            continue
        top = root / "memory" if is_first else root
        group = top / path.lstrip("/")
        # from inside a container the path may be the one outside, and only the top is there
        yield from ((folder, is_first) for folder in (group, *group.parents) if folder.is_relative_to(top))


def _left_mb(folder: Path, is_first: bool) -> float | None:
    limit, usage = ("limit_in_bytes", "usage_in_bytes") if is_first else ("max", "current")
    try:
        told = (folder / f"memory.{limit}").read_text("utf-8").strip()
        used = int((folder / f"memory.{usage}").read_text("utf-8"))
        statistics = dict(
            line.split() for line in (folder / "memory.stat").read_text("utf-8").splitlines() if line
        )
    except OSError:
        return None
    if told == "max" or int(told) >= 1 << 60:
        return None
    of_files = int(statistics.get("total_inactive_file" if is_first else "inactive_file", 0))
    return max(int(told) - used + of_files, 0) / 1e6
