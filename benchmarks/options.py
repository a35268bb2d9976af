"""Shared by the commands of all benchmarks: options, and lines of progress."""

import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from shards.errors import ConfigError, PipelineError

Rounds = Annotated[int, typer.Option(min=1, help="number of rounds of every variant; the median is reported")]


def folder_argument(metavar: str, help: str) -> Any:
    return typer.Argument(help=help, exists=True, file_okay=False, metavar=metavar)


def print_progress(line: str) -> None:
    """Prints a line of progress on stderr."""
    typer.echo(line, err=True)


def run(command: Callable[..., None]) -> None:
    """Runs a benchmark as a program; an error of ours is one message and its exit code."""
    try:
        typer.run(command)
    except PipelineError as error:
        print_progress(f"benchmark: {error}")
        sys.exit(2 if isinstance(error, ConfigError) else 1)
