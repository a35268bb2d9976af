"""Keeps the messages of native libraries off the terminal, where they would bury important messages."""

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
    """Appends to `file`, from now on, all that native code of this process writes to stderr.

    mediapipe and TensorFlow Lite write about four lines per video, and none of their settings stops it. Python's own
    messages, tracebacks included, still go to the terminal, through the new `sys.stderr` that this function installs.
    Code that kept the old `sys.stderr` writes to `file` too. Raises MachineError if `file` cannot be written.
    """
    global _is_redirected
    refuse_pipe(file)
    with disk_errors_reported(f"machine.cache_dir: {file}"):
        file.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    # a worker has no other handler
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(LogFormatter())
    sys.stderr.flush()
    if not _is_redirected:
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
        _is_redirected = True
    os.dup2(log, 2)
    os.close(log)
