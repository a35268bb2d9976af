"""The `pipeline` command: its entry point. The verbs stand in data_verbs.py and model_verbs.py."""

import sys

import typer

import pipeline.data_verbs
import pipeline.model_verbs  # noqa: F401  (both are imported for the verbs they add)
from pipeline.command import app


def main() -> None:
    """Entry point: older `--data_root` spellings are taken too; errors are one message and an exit code."""
    from shards.errors import ConfigError, PipelineError

    arguments = [_dashed(argument) for argument in sys.argv[1:]]
    try:
        app(arguments)
    except ConfigError as error:
        _fail(error, 2)
    except PipelineError as error:
        _fail(error, 1)


def _dashed(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def _fail(error: BaseException | str, code: int) -> None:
    typer.echo(f"pipeline: {error}", err=True)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
