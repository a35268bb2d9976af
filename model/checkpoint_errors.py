"""Checkpoints whose values are not what this program writes there: altered by hand, or another program's."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from shards.errors import CheckpointError, PipelineError

MODIFIED_ERRORS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)
"""What taking over a value raises that is of another kind, shape or name, pydantic's errors included."""


@contextlib.contextmanager
def reported_as_modified(path: Path) -> Iterator[None]:
    """CheckpointError naming `path` where a value of it cannot be taken over inside. For nothing but that."""
    try:
        yield
    except (PipelineError, torch.OutOfMemoryError):
        raise
    except MODIFIED_ERRORS as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"checkpoint {path} is altered or not of this program: {type(error).__name__}: {reason}"
        ) from error
