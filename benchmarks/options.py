"""Shared by the commands of all benchmarks: options, and lines of progress."""

from typing import Annotated, Any

import typer

Rounds = Annotated[int, typer.Option(min=1, help="number of rounds of every variant; the median is reported")]


def folder_argument(metavar: str, help: str) -> Any:
    return typer.Argument(help=help, exists=True, file_okay=False, metavar=metavar)


def print_progress(line: str) -> None:
    """Prints a line of progress on stderr."""
    typer.echo(line, err=True)
