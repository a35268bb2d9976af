"""Usable CPU cores, memory used by this process, and memory left on the machine and in its control groups."""

import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

_STATUS = Path("/proc/self/status")

NEAR_LIMIT_SHARE = 0.9
"""Share of the limit above which an allocation may have failed: libraries allocate 64 MB at a time."""

_ROOT = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def describe_exit(code: int) -> str:
    """Returns how a process ended: "exit code 1", or "signal SIGKILL" if `code` is negative."""
    if code >= 0:
        return f"exit code {code}"
    # a real-time signal has no name
    names = {one.value: one.name for one in signal.Signals}
    return f"signal {names.get(-code, -code)}"


def usable_cores() -> int:
    """Returns the number of cores this process may use: a container or a scheduler may limit it."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def limit_bytes() -> int | None:
    """Returns the limit of the address space of this process (`ulimit -v`); None if there is no limit."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY or not _STATUS.exists() else limit


def is_address_space_short() -> bool:
    """Returns whether the address space came so close to its limit that an error may have this cause."""
    limit = limit_bytes()
    try:
        return limit is not None and status_mb("VmPeak") * 1e6 > NEAR_LIMIT_SHARE * limit
    except MemoryError:  # reading the figure needs memory too
        return True


def status_mb(name: str) -> float:
    """Returns VmRSS, VmHWM or VmPeak of this process from /proc, MB."""
    for line in _STATUS.read_text("utf-8").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError(f"/proc/self/status has {name}")


def peak_mb() -> float:
    """Returns the peak resident memory of this process, MB."""
    if _STATUS.exists():
        return status_mb("VmHWM")  # not getrusage, where a child starts with the peak of its parent
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def available_mb() -> float:
    """Returns the memory left by the machine and by the tightest control group (a container, a Slurm job), MB."""
    of_groups = group_available_mb()
    of_machine = psutil.virtual_memory().available / 1e6
    return of_machine if of_groups is None else min(of_machine, of_groups)


def group_available_mb(root: Path = _ROOT, own: Path = _OWN) -> float | None:
    """Returns the memory left by the control groups of this process and their parents, MB; None without a limit.

    Supports versions 1 and 2. Inactive file pages count as free: the kernel drops them before it kills a process.
    """
    try:
        lines = own.read_text("utf-8").splitlines()
    except OSError:
        return None  # not Linux
    left = [
        mb
        for folder, is_version_1 in _folders(root, lines)
        if (mb := _left_mb(folder, is_version_1)) is not None
    ]
    return min(left, default=None)


def _folders(root: Path, lines: list[str]) -> Iterator[tuple[Path, bool]]:
    """Yields the folders of the groups and whether they have version 1; `lines` are id:controllers:path."""
    for line in lines:
        _, controllers, path = line.split(":", 2)
        is_version_1 = "memory" in controllers.split(",")
        if controllers and not is_version_1:
            continue
        top = root / "memory" if is_version_1 else root
        group = top / path.lstrip("/")
        # in a container the path may be that of the host, and only `top` exists
        yield from (
            (folder, is_version_1) for folder in (group, *group.parents) if folder.is_relative_to(top)
        )


def _left_mb(folder: Path, is_version_1: bool) -> float | None:
    limit, usage = ("limit_in_bytes", "usage_in_bytes") if is_version_1 else ("max", "current")
    try:
        limit_text = (folder / f"memory.{limit}").read_text("utf-8").strip()
        used = int((folder / f"memory.{usage}").read_text("utf-8"))
        statistics = dict(
            line.split() for line in (folder / "memory.stat").read_text("utf-8").splitlines() if line
        )
    except OSError:
        return None
    if limit_text == "max" or int(limit_text) >= 1 << 60:
        return None
    of_files = int(statistics.get("total_inactive_file" if is_version_1 else "inactive_file", 0))
    return max(int(limit_text) - used + of_files, 0) / 1e6
