"""What every verb shares: the app, its common options, parameters and progress.

A folder for results, tried before hours of work go into them.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shards.safe_text import message_lines

if TYPE_CHECKING:
    from pipeline.params import Params
import tempfile

from shards.errors import ConfigError

STAGES = ("ingest", "crop", "pack", "lm", "stats", "train", "report")
"""Of dvc.yaml, in its order; each is a verb."""

app = typer.Typer(
    name="pipeline",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Talking-face videos with transcripts become a lip reader and an honest report of its CER.\n\n"
    f"The way of the data: {', '.join(STAGES)}. In a folder with dvc.yaml `dvc repro` runs them all.",
)

ParamsFile = Annotated[Path, typer.Option("--params", help="parameters", metavar="FILE")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", help="one value, e.g. train.batch_size=4; repeatable", metavar="SECTION.KEY=VALUE"),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="values on top: sections, or an older flat config.yaml", metavar="FILE"),
]
DataRoot = Annotated[str | None, typer.Option(help="folder of the corpus (corpus.root)", metavar="DIR")]
ModelFile = Annotated[Path | None, typer.Option(help="default: the best one", metavar="FILE")]
CheckpointDir = Annotated[
    str | None, typer.Option(help="where checkpoints are published (paths.checkpoints)", metavar="DIR")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
PARAMS = Path("params.yaml")
PREPROCESSING = ("corpus", "crop", "pack")
"""Sections that train does not own."""


def load(params: Path, assignments: list[str] | None, **flags: Any) -> "Params":
    """Effective parameters.

    `flags` are preset, config, names of the older trainer (pipeline/legacy_config.py), or others spelled section__key.
    """
    from pipeline.console import show_logs
    from pipeline.legacy_config import OLDER_NAMES, keys_of_flags
    from pipeline.params import load_params

    show_logs()
    preset, config = flags.pop("preset", None), flags.pop("config", None)
    dotted = {name.replace("__", "."): value for name, value in flags.items() if name not in OLDER_NAMES}
    dotted |= keys_of_flags(flags)
    return load_params(params, preset=preset, config=config, assignments=assignments or (), flags=dotted)


def say(text: object) -> None:
    """Prints a message on stdout, with control characters of a path or a name escaped."""
    typer.echo(message_lines(text))


def is_other_rank() -> bool:
    """Whether torchrun started this process beside a first one, which speaks for all (model/training/ranks.py)."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0"


@contextmanager
def shown(what: str, unit: str) -> Iterator[Any]:
    """Yields a function of (done, total) that shows the progress; on the first rank alone.

    Ctrl-C and SIGTERM (a batch system's time limit) become a message and exit code 1.
    """
    from pipeline.console import progress
    from shards.errors import Interrupted

    try:
        with terminable(), nullcontext(_unseen) if is_other_rank() else progress(what, unit) as on_progress:
            yield on_progress
    except KeyboardInterrupt as error:
        raise Interrupted(f"{what}: stopped. What is done is kept; the same command goes on") from error


def _unseen(*_: object) -> None:
    pass


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM as if it were Ctrl-C, so that nothing this process started is left behind."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    former = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def check_writable(folder: Path, key: str = "--out") -> None:
    """Raises ConfigError, naming `key`, where no file can be written to `folder`; leaves nothing there.

    Of a folder that is yet to be made, the first above it that is there is tried.
    """
    try:
        there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"tried")
            file.flush()
    except OSError as error:
        raise ConfigError(
            f"{key} {folder}: no file can be written there ({error.strerror}); make room, or give another folder"
        ) from error
