"""Runs programs in real processes that are forked after all imports: each costs milliseconds instead of seconds.

Exit codes, signals, kills, memory and files are those of any process. Only what happens before and during the imports
needs a process of its own: `sitecustomize`, limits of the address space, variables that libraries read at import.
"""

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import NoReturn, Self
from unittest.mock import patch

from pipeline import cli

ROOT = Path(__file__).parents[2]
PROCESSES = multiprocessing.get_context("forkserver")
# imported once for all processes; pytest is imported in each process, too
PROCESSES.set_forkserver_preload(
    [
        "pytest",
        "hypothesis",
        __name__,
        "torch._dynamo",
        "torch.utils.tensorboard",
        "pypinyin",
        "pipeline.demo.corpus",
        "stages.corpora.table",
        "stages.stats",
        "stages.train",
        "stages.report",
        "pipeline.inference.inference_run",
        "pipeline.serve.run",
        "tests.support.serving",
        "dvc.cli.parser",
        "dvc.repo.experiments",
        "dvc.repo.plots",
        # pyarrow imports it, if it is installed, with the first table
        "pandas",
        "pyarrow.pandas_compat",
        # imported by the first epoch of a training
        "array_api_compat.torch",
        "PIL.PngImagePlugin",
    ]
)


def context() -> ForkServerContext:
    """Returns the context of these processes, for product code that starts some. Starts the fork server."""
    # Python 3.11's fork server does not keep sys.path, and would import torch again in every process
    with patch.dict(os.environ, {"PYTHONPATH": str(ROOT)}):
        forkserver.ensure_running()
    return PROCESSES


def started(target: Callable[..., object], *arguments: object) -> ForkServerProcess:
    """Starts a process that calls `target(*arguments)`."""
    process = context().Process(target=target, args=arguments)
    process.start()
    return process


class Forked:
    """A process that runs `pipeline ARGUMENTS`, or with `source` a program with these arguments in sys.argv[1:]."""

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[str | Path] = (),
        *,
        source: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.arguments = list(map(str, arguments))
        self._outputs = [os.memfd_create(name) for name in ("stdout", "stderr")]
        paths = tuple(f"/proc/{os.getpid()}/fd/{output}" for output in self._outputs)
        variables = dict(os.environ) | dict(environment or {})
        self._process = started(_run, self.arguments, source, str(folder), variables, paths)
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()

    def output(self) -> tuple[str, str]:
        """Returns what was written so far to stdout and stderr."""
        stdout, stderr = (os.pread(output, os.fstat(output).st_size, 0).decode() for output in self._outputs)
        return stdout, stderr

    def wait(self, timeout_s: float = 120) -> "subprocess.CompletedProcess[str]":
        """Returns when the process has ended; kills it and fails after `timeout_s`."""
        self._process.join(timeout_s)
        code = self._process.exitcode
        if code is None:
            self.kill()
            self._process.join()
        stdout, stderr = self.output()
        assert code is not None, f"it hangs; {stdout}{stderr}"
        self._close()
        return subprocess.CompletedProcess(self.arguments, code, stdout, stderr)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._outputs:
            self.kill()
            self._process.join()
            self._close()

    def _close(self) -> None:
        while self._outputs:
            os.close(self._outputs.pop())
        self._process.close()


def pipeline(
    folder: Path, arguments: Sequence[str | Path], environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Runs `pipeline ARGUMENTS` in `folder`."""
    return Forked(folder, arguments, environment=environment).wait()


def python(
    source: str, *arguments: str | Path, folder: Path = ROOT, environment: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Runs a program, as `python -c SOURCE ARGUMENTS` does."""
    return Forked(folder, arguments, source=source, environment=environment).wait()


def _run(
    arguments: Sequence[str],
    source: str | None,
    folder: str,
    variables: Mapping[str, str],
    outputs: Sequence[str],
) -> NoReturn:
    for number, output in enumerate(outputs, start=1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(variables)
    tempfile.tempdir = None  # read TMPDIR again
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # colorama, which DVC imports, has wrapped them
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["pipeline" if source is None else "-c", *arguments]
    code = 0
    try:
        if source is None:
            cli.main()
        else:
            exec(compile(source, "<program>", "exec"), {"__name__": "__main__"})  # noqa: S102 (the test wrote it)
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
        if isinstance(done.code, str):
            print(done.code, file=sys.stderr)
    except BaseException:  # noqa: BLE001 (Python would print it, too)
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
