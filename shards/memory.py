"""How much memory this process holds, and has held."""

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


SHORT = 0.9
"""Share of the limit from which on an allocation may have been refused: libraries ask for 64 MB at a time."""


def limit_bytes() -> int | None:
    """The limit of this process's address space (`ulimit -v`); None where none binds."""
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY or not _STATUS.exists() else limit


def is_short() -> bool:
    """Whether the address space has come so near to its limit that what failed may have failed for want of it."""
    limit = limit_bytes()
    return limit is not None and status_mb("VmPeak") * 1e6 > SHORT * limit


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
