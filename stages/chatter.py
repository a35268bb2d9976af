"""Keeps what native libraries say about themselves off the terminal, where it would bury what matters."""

import os
import sys
from pathlib import Path

NATIVE_LOG = "native.log"


def native_stderr_to(file: Path) -> None:
    """From now on, what native code of this process writes to stderr is appended to `file`.

    mediapipe and TensorFlow Lite write some four lines a video, and no setting of theirs stops it. Python's own
    messages, tracebacks included, still go to the terminal.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    terminal = os.dup(2)
    log = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.dup2(log, 2)
    os.close(log)
    sys.stderr = os.fdopen(terminal, "w", buffering=1, encoding="utf-8", errors="backslashreplace")
