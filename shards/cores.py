"""How many processes or threads are worth starting."""

import os


def usable_cores() -> int:
    """Cores this process may run on: fewer than the machine has where a container or a scheduler says so."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
