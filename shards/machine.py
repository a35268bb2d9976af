"""How many processes or threads are worth starting.

How much memory this process holds, and has held.

How much more memory this process may take: of the machine, and of the control groups it runs in.
"""

import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil


def usable_cores() -> int:
    """Cores this process may run on: fewer than the machine has where a container or a scheduler says so."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


_STATUS = Path("/proc/self/status")


NEAR_LIMIT_SHARE = 0.9
"""Share of the limit from which on an allocation may have been refused: libraries ask for 64 MB at a time."""


def limit_bytes() -> int | None:
    """The limit of this process's address space (`ulimit -v`); None where none binds."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY or not _STATUS.exists() else limit


def is_address_space_short() -> bool:
    """Whether the address space has come so near to its limit that what failed may have failed for want of it."""
    limit = limit_bytes()
    return limit is not None and status_mb("VmPeak") * 1e6 > NEAR_LIMIT_SHARE * limit


def status_mb(name: str) -> float:
    """VmRSS, VmHWM or VmPeak of this process as Linux tells it, MB."""
    for line in _STATUS.read_text("utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError(f"Linux tells {name}")


def peak_mb() -> float:
    """The most that was resident since the process began, MB."""
    if _STATUS.exists():
        return status_mb("VmHWM")  # not getrusage: there a child starts with its parent's peak
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


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
