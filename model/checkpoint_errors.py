"""Errors for checkpoints whose values were modified, or were not written by this program."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from shards.errors import CheckpointError, PipelineError

MODIFIED_ERRORS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)
"""Raised when a value of a wrong type, shape or name is loaded; ValueError includes pydantic's errors."""


@contextlib.contextmanager
def reported_as_modified(path: Path) -> Iterator[None]:
    """Raises CheckpointError with `path` where the block cannot load a value of it. Use only around such loading."""
    try:
        yield
    except (PipelineError, torch.OutOfMemoryError):
        raise
    except MODIFIED_ERRORS as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"checkpoint {path} was modified, or was not written by this program: {type(error).__name__}: {reason}"
        ) from error
