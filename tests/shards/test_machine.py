"""How processes end, in words."""

import signal
import subprocess
import sys

import pytest

from shards.machine import describe_exit


@pytest.mark.parametrize(
    ("program", "described"),
    [
        ("sys.exit(3)", "exit code 3"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGRTMIN + 3)", f"signal {signal.SIGRTMIN + 3}"),
    ],
)
def test_an_ended_process_is_described(program: str, described: str) -> None:
    """A real-time signal between the first and the last has no name in Python."""
    done = subprocess.run([sys.executable, "-c", f"import os, signal, sys; {program}"], check=False)
    assert describe_exit(done.returncode) == described
