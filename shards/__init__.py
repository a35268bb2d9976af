"""Error types, tables, tar shards, the epoch plan and the batch stream. Imports no other package of this project.

For other training loops: `shards.webdataset` reads a pack as a stream, `shards.dataset` in the order of the epoch
plan (docs/shards.md).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shards.clip_pipeline import webdataset
    from shards.planned_batches import dataset

__all__ = ["dataset", "webdataset"]

_MODULES = {"dataset": "planned_batches", "webdataset": "clip_pipeline"}


def __getattr__(name: str) -> Any:
    """Imports torch only when one of the two is used."""
    if name not in _MODULES:
        raise AttributeError(f"module 'shards' has no attribute '{name}'")
    return getattr(import_module(f"shards.{_MODULES[name]}"), name)
