"""The `pipeline` command: its entry point. The verbs stand in the modules *_verbs.py."""

import atexit
import io
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from pipeline.command import app, is_other_rank
from pipeline.memory_limit import USED_UP, is_about_memory, run_under_watch
from shards.safe_text import message_lines

if TYPE_CHECKING:
    from shards.disk import WatchedFile

# isort: off
# imported for the verbs they add, which `--help` lists in this order
import pipeline.commands.data
import pipeline.commands.look
import pipeline.commands.lm
import pipeline.commands.train
import pipeline.commands.score
import pipeline.commands.report
import pipeline.commands.compare
import pipeline.commands.inference
import pipeline.commands.serve
import pipeline.commands.weights
import pipeline.commands.export  # noqa: F401
# isort: on

CRASHED = 1
INTERRUPTED = 130
"""What typer makes of Ctrl-C."""
UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""What is wrong with a command line, in the words of click or, as the version has it, of typer's own copy of it."""


def main() -> None:
    """Entry point: older `--data_root` spellings are taken too; errors are one message and an exit code."""
    watched = run_under_watch()  # before anything else: libraries may fail while they are imported
    from shards.disk import FORBIDDEN, WRITE_ERRORS, unwritable
    from shards.errors import ConfigError, Interrupted, PipelineError

    exit_code = [CRASHED]
    atexit.register(
        _leave, exit_code, watched
    )  # registered first, so it runs after every other exit function
    stdout = _watched_stdout()
    for stream in (sys.stdout, sys.stderr):  # as every file that we write, whatever the locale says
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors=stream.errors)
    arguments = _with_dashes(sys.argv[1:])
    if is_other_rank():
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 (results are printed by the first)
    try:
        try:
            # else typer ends the process itself, and tells its errors in a block of its own
            try:
                code = app(arguments or ["--help"], standalone_mode=False)
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
            _fail(_usage_told(error), 2)
        except (typer.Abort, KeyboardInterrupt):
            _fail("stopped", 1)
        except PermissionError as error:
            _fail(f"{error.filename or error} {FORBIDDEN}", 1)
        except ConfigError as error:
            _fail(error, 2)
        except Interrupted as error:
            if is_other_rank():
                raise SystemExit(1) from None  # all were stopped together, and the first says so
            _fail(error, 1)
        except PipelineError as error:
            _fail(error, 1)
        except Exception as error:
            if stdout is not None and stdout.failure is not None:
                if isinstance(stdout.failure, BrokenPipeError):
                    raise SystemExit(CRASHED) from None  # whoever read it has gone
                _fail(unwritable("stdout", stdout.failure), 1)
            if isinstance(error, OSError) and error.errno in WRITE_ERRORS:
                _fail(unwritable(error.filename or "a file", error), 1)
            raise
    except SystemExit as done:
        exit_code[0] = done.code if isinstance(done.code, int) else int(done.code is not None)
        raise


def _watched_stdout() -> "WatchedFile | None":
    """Puts a stdout in place that tells why it could not be written; None where this process has another already.

    Of what was closed before the start, stdout fails when it is written, as it should, and stderr takes all: their
    numbers must not become those of files that are opened later.
    """
    from shards.disk import WatchedFile

    if sys.stdout is not sys.__stdout__:
        return None
    former = sys.stdout
    raw = WatchedFile(
        os.open(os.devnull, os.O_RDONLY) if former is None else former.fileno(), "w", closefd=False
    )
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(raw), errors=None if former is None else former.errors, line_buffering=raw.isatty()
    )
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115
        # else workers would be started with it closed
        os.set_inheritable(sys.stderr.fileno(), True)
    return raw


def _leave(exit_code: list[int], watched: int | None) -> None:
    """Ends the process without the native libraries' destructors.

    With torch, Arrow and OpenCV in one process these now and then abort it ("terminate called without an active
    exception") when all is done and written; DVC would then throw a finished stage's results away.
    """
    code = exit_code[0]
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or CRASHED  # told, or nobody is there to be told
    if watched is not None:
        os.write(watched, b".")
    os._exit(code)


def _with_dashes(arguments: list[str]) -> list[str]:
    """Options as they are spelled here; what stands behind `--` is no option."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [*map(_dashed, arguments[:end]), *arguments[end:]]


def _dashed(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def _usage_told(error: Any) -> str:
    told = error.format_message().replace("Value error, ", "").rstrip(".")
    return f"{told}; `{error.ctx.command_path if error.ctx else 'pipeline'} --help` lists what there is"


def _fail(error: BaseException | str, code: int) -> None:
    who = f"pipeline, rank {os.environ['RANK']}" if is_other_rank() else "pipeline"
    with suppress(OSError):  # nothing can be said, but the exit code
        typer.echo(f"{who}: {message_lines(error)}", err=True)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
