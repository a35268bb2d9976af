"""Keeps what native libraries say about themselves off the terminal, where it would bury what matters."""

import logging
import os
import sys
from pathlib import Path

from shards.disk import disk_errors_reported
from shards.pipes import refuse_pipe
from shards.safe_text import LogFormatter

NATIVE_LOG = "native.log"
_is_redirected = False


def native_stderr_to(file: Path) -> None:
    """From now on, what native code of this process writes to stderr is appended to `file`.

    mediapipe and TensorFlow Lite write some four lines a video, and no setting of theirs stops it. Python's own
    messages, tracebacks included, still go to the terminal, through the new `sys.stderr` that this puts in
    place; whoever kept the old one writes to `file` too. MachineError where it cannot be written.
    """
    global _is_redirected
    refuse_pipe(file)
    with disk_errors_reported(f"machine.cache_dir: {file}"):
        file.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    # the only handler that a worker has
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(LogFormatter())
    sys.stderr.flush()
    if not _is_redirected:
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        _is_redirected = True
    os.dup2(log, 2)
    os.close(log)
