"""What all commands share: the app, common options, loading of parameters, progress, a check for writable folders."""

import json
import logging
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from shards.errors import ConfigError, Interrupted
from shards.safe_text import message_lines

if TYPE_CHECKING:
    from pipeline.params import Params

STAGES = ("ingest", "crop", "pack", "lm", "stats", "train", "report")
"""The stages of dvc.yaml, in its order; each is a command."""

DATA, TRAINING, EVALUATION, READING, TOOLS = (
    "Data", "Training", "Evaluation", "Reading lips", "Models and tools"
)  # fmt: skip
"""Panels of `--help`, in its order; each command names its panel."""


class CommandGroup(TyperGroup):
    """Lists the commands by task, each with its whole summary."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for panel in (DATA, TRAINING, EVALUATION, READING, TOOLS):
            commands = [one for one in self.commands.values() if one.rich_help_panel == panel]  # type: ignore[attr-defined]
            with formatter.section(panel):
                formatter.write_dl([(one.name, one.get_short_help_str(1000)) for one in commands])


@dataclass
class Verbosity:
    """What stderr shows: our log lines from `log_level` on, progress, tracebacks of known errors."""

    log_level: int = logging.INFO

    @property
    def shows_progress(self) -> bool:
        return self.log_level <= logging.INFO

    @property
    def shows_tracebacks(self) -> bool:
        return self.log_level <= logging.DEBUG

    def as_environment(self) -> dict[str, str]:
        """Returns the variables that give other `pipeline` processes the same options."""
        if not self.shows_progress:
            return {"PIPELINE_QUIET": "1"}
        return {"PIPELINE_VERBOSE": "1"} if self.shows_tracebacks else {}


verbosity = Verbosity()

app = typer.Typer(
    name="pipeline",
    cls=CommandGroup,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Train a lip reader from videos of speaking faces with transcripts, and report its character error rate "
    f"(CER).\n\nThe stages, in order: {', '.join(STAGES)}. `pipeline run` runs those whose inputs changed.",
)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"lip-pipeline {version('lip-pipeline')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit"),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet",
            envvar="PIPELINE_QUIET",
            show_envvar=False,
            help="no progress and no notices, only warnings; also after the command",
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            envvar="PIPELINE_VERBOSE",
            show_envvar=False,
            help="debug messages, and tracebacks of all errors; also after the command",
        ),
    ] = False,
) -> None:
    if quiet and verbose:
        raise typer.BadParameter("use --quiet or --verbose, not both")
    verbosity.log_level = logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO


ParamsFile = Annotated[Path, typer.Option("--params", help="file of parameters", metavar="FILE")]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="set one parameter, e.g. train.batch_size=4; repeatable", metavar="SECTION.KEY=VALUE"
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="file of parameters that override --params: sections, or a flat config.yaml of the older trainer",
        metavar="FILE",
    ),
]
DataRoot = Annotated[
    str | None, typer.Option(help="folder of the corpus; default: corpus.root", metavar="DIR")
]
ModelFile = Annotated[
    Path | None, typer.Option(help="checkpoint; default: best_model.pt in paths.checkpoints", metavar="FILE")
]
ModelFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--checkpoint",
        help="checkpoint; default: best_model.pt in paths.checkpoints; repeat it to read with several together",
        metavar="FILE",
    ),
]
AdapterFile = Annotated[
    Path | None, typer.Option(help="adapter of one person for the model (pipeline adapt)", metavar="FILE")
]
CheckpointDir = Annotated[
    str | None, typer.Option(help="folder of checkpoints; default: paths.checkpoints", metavar="DIR")
]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
PARAMS = Path("params.yaml")
PREPROCESSING = ("corpus", "crop", "pack")
"""Sections that train does not use."""


def load(params: Path, assignments: list[str] | None, **flags: Any) -> "Params":
    """Returns the effective parameters.

    `flags`: preset, config, names of the older trainer (pipeline/legacy_config.py), or others written section__key.
    """
    from pipeline.console import show_logs
    from pipeline.legacy_config import OLDER_NAMES, keys_of_flags
    from pipeline.params import load_params

    show_logs(verbosity.log_level)
    preset, config = flags.pop("preset", None), flags.pop("config", None)
    dotted = {name.replace("__", "."): value for name, value in flags.items() if name not in OLDER_NAMES}
    dotted |= keys_of_flags(flags)
    return load_params(params, preset=preset, config=config, assignments=assignments or (), flags=dotted)


def say(text: object) -> None:
    """Prints a message on stdout and escapes control characters, for example of a path."""
    typer.echo(message_lines(text))


def print_json(result: Any) -> None:
    """Prints a result as indented JSON; paths become texts. The keys are documented in docs/scripting.md."""
    typer.echo(json.dumps(result, ensure_ascii=False, indent=2, default=str))


def figures_of(summary: Any, **files: object) -> dict[str, Any]:
    """Returns the fields of a stage's summary and the files that it wrote, for `print_json`."""
    return asdict(summary) | files


def is_other_rank() -> bool:
    """Returns whether this is a torchrun process other than rank 0; only rank 0 prints (model/training/ranks.py)."""
    return os.environ.get("WORLD_SIZE", "1") != "1" and os.environ.get("RANK", "0") != "0"


@contextmanager
def shown(what: str, unit: str) -> Iterator[Any]:
    """Yields a function of (done, total) that shows the progress; only rank 0 shows it. Also does `resumable`."""
    from pipeline.console import progress

    shows_progress = verbosity.shows_progress and not is_other_rank()
    with (
        resumable(what),
        progress(what, unit) if shows_progress else nullcontext(_no_progress) as on_progress,
    ):
        yield on_progress


@contextmanager
def resumable(what: str) -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM (a batch system's time limit) a message and exit code 1."""
    try:
        with terminable():
            yield
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"{what}: stopped. Finished work is kept; run the same command again to continue"
        ) from error


def _no_progress(*_: object) -> None:
    pass


@contextmanager
def terminable() -> Iterator[None]:
    """Treats SIGTERM like Ctrl-C, so that the processes that this one started end too."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def check_writable(folder: Path, key: str = "--out") -> None:
    """Raises ConfigError, naming `key`, if no file can be written to `folder`; leaves nothing there.

    If `folder` does not exist yet, this tries its nearest existing parent.
    """
    try:
        existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"tried")
            file.flush()
    except OSError as error:
        raise ConfigError(
            f"{key} {folder}: cannot write to this folder ({error.strerror}); free disk space or choose another folder"
        ) from error
