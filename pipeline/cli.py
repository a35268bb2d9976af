"""The entry point of the `pipeline` command. The commands are in pipeline/commands."""

import atexit
import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from pipeline.command import app, is_other_rank, verbosity
from pipeline.memory_limit import USED_UP, is_about_memory, run_under_watch
from shards.safe_text import message_lines

if TYPE_CHECKING:
    from shards.disk import WatchedFile

# isort: off
# each import adds commands; `--help` lists them in this order
import pipeline.commands.data
import pipeline.commands.inspect
import pipeline.commands.train
import pipeline.commands.evaluate
import pipeline.commands.inference
import pipeline.commands.models
import pipeline.commands.hub  # noqa: F401
# isort: on

CRASHED = 1
INTERRUPTED = 130
"""The exit code that typer gives to Ctrl-C."""
UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""The error of a wrong command line: click's class, or that of typer's own copy of click, by typer's version."""


def main() -> None:
    """Runs the command of this process and ends the process with its exit code."""
    watched = run_under_watch()  # before anything else: libraries may fail while they are imported
    exit_code = [CRASHED]
    atexit.register(_leave, exit_code, watched)  # registered first, so it runs after all other exit functions
    stdout = _watched_stdout()
    for stream in (sys.stdout, sys.stderr):  # UTF-8 as in all files that we write, in every locale
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=stream.errors)
    if is_other_rank():
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (rank 0 prints the results)
    try:
        run(sys.argv[1:], stdout=stdout)
    except SystemExit as done:
        exit_code[0] = done.code if isinstance(done.code, int) else int(done.code is not None)
        raise


def run(arguments: Sequence[str], *, stdout: "WatchedFile | None" = None) -> NoReturn:
    """Runs a command and raises SystemExit with its exit code; an error becomes one message on stderr.

    Also accepts spellings such as `--data_root`. Raises errors that are not of the pipeline, for a traceback.
    """
    from shards.disk import FORBIDDEN, WRITE_ERRORS, unwritable
    from shards.errors import ConfigError, Interrupted, PipelineError

    try:
        # in standalone mode typer would end the process and format its errors itself
        try:
            code = app(_with_dashes(arguments) or ["--help"], prog_name="pipeline", standalone_mode=False)
        except SystemExit as done:
            code = done.code
        except (UsageError, typer.Abort):
            raise
        except Exception as error:
            if isinstance(error, MemoryError) or is_about_memory(error):
                _fail(f"{error}\n  {USED_UP}" if isinstance(error, PipelineError) else USED_UP, 1)
            raise
        sys.stdout.flush()
        if code == INTERRUPTED:
            _fail("stopped", 1)
        raise SystemExit(code or 0)
    except UsageError as error:
        _fail(_usage_message(error), 2)
    except (typer.Abort, KeyboardInterrupt):
        _fail("stopped", 1)
    except PermissionError as error:
        _fail(f"{error.filename or error} {FORBIDDEN}", 1)
    except ConfigError as error:
        _fail(error, 2)
    except Interrupted as error:
        if is_other_rank():
            raise SystemExit(1) from None  # all ranks were stopped together, and rank 0 reports it
        _fail(error, 1)
    except PipelineError as error:
        _fail(error, 1)
    except Exception as error:
        if stdout is not None and stdout.failure is not None:
            if isinstance(stdout.failure, BrokenPipeError):
                raise SystemExit(CRASHED) from None  # the reader of the pipe has ended
            _fail(unwritable("stdout", stdout.failure), 1)
        if isinstance(error, OSError) and error.errno in WRITE_ERRORS:
            _fail(unwritable(error.filename or "a file", error), 1)
        raise


def _watched_stdout() -> "WatchedFile | None":
    """Replaces stdout by a stream that records why a write failed; None if this process already replaced stdout.

    If stdout was closed before the start, writing to it fails, as it should; if stderr was, writes are discarded. Both
    descriptors stay in use, so that files opened later do not get their numbers.
    """
    from shards.disk import WatchedFile

    if sys.stdout is not sys.__stdout__:
        return None
    previous = sys.stdout
    raw = WatchedFile(
        os.open(os.devnull, os.O_RDONLY) if previous is None else previous.fileno(), "w", closefd=False
    )
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw),
        errors=None if previous is None else previous.errors,
        line_buffering=raw.isatty(),
    )
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
        # otherwise workers would start with a closed stderr
        os.set_inheritable(sys.stderr.fileno(), True)
    return raw


def _leave(exit_code: list[int], watched: int | None) -> None:
    """Ends the process without running destructors of native libraries.

    With torch, Arrow and OpenCV in one process, these sometimes abort it ("terminate called without an active
    exception") after all output is written; DVC would then discard the results of a finished stage.
    """
    code = exit_code[0]
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or CRASHED  # the error was reported, or there is nobody to report it to
    if watched is not None:
        os.write(watched, b".")
    os._exit(code)


def _with_dashes(arguments: Sequence[str]) -> list[str]:
    """Writes options with dashes, not underscores, --quiet and --verbose first; after `--` nothing is an option."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    ours = [*map(_dashed, arguments[:end])]
    # options of the program itself may also follow the command
    first = [argument for argument in ours if argument in ("--quiet", "--verbose")]
    return [*first, *(argument for argument in ours if argument not in first), *arguments[end:]]


def _dashed(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def _usage_message(error: Any) -> str:
    message = error.format_message().replace("Value error, ", "").rstrip(".")
    return f"{message}; run `{error.ctx.command_path if error.ctx else 'pipeline'} --help`"


def _fail(error: BaseException | str, code: int) -> NoReturn:
    if verbosity.shows_tracebacks and isinstance(error, BaseException):
        traceback.print_exception(error)
    prefix = f"pipeline, rank {os.environ['RANK']}" if is_other_rank() else "pipeline"
    with suppress(OSError):  # the exit code still reports the error
        typer.echo(f"{prefix}: {message_lines(error)}", err=True)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
