"""Facts about the machine that every benchmark reports with its figures."""

import platform
from collections.abc import Sequence
from importlib.metadata import version

import psutil


def machine_facts(packages: Sequence[str]) -> dict[str, str]:
    """Returns processor, cores, memory, Python and the versions of `packages`."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": str(psutil.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "python": platform.python_version(),
    } | {package: version(package) for package in packages}
