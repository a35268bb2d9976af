"""How much memory this process holds, and has held."""

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")


def status_mb(name: str) -> float:
    """VmRSS or VmHWM of this process as Linux tells it, MB."""
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
