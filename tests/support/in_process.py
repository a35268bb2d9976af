"""Runs `pipeline` commands in this process: the same output and exit code, without a second or more of imports."""

import logging
import subprocess
from collections.abc import Sequence
from contextlib import chdir, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import torch

from pipeline.cli import run


def pipeline(folder: Path, arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """Runs the command in `folder`. Restores log handlers, log levels and the number of threads."""
    root, threads = logging.getLogger(), torch.get_num_threads()
    handlers = root.handlers[:]
    loggers = [root, *map(logging.getLogger, ("pipeline", "stages", "model", "shards"))]
    levels = [logger.level for logger in loggers]
    output, errors = StringIO(), StringIO()
    try:
        with chdir(folder), redirect_stdout(output), redirect_stderr(errors):
            run(arguments)
    except SystemExit as done:
        code = int(done.code or 0)
    finally:
        # the command replaces the handlers of pytest, which capture log lines
        root.handlers[:] = handlers
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        torch.set_num_threads(threads)
    return subprocess.CompletedProcess(list(arguments), code, output.getvalue(), errors.getvalue())
