"""The crop stage on a small corpus in a folder, also with videos that kill the process that opens them."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow.parquet as pq

from shards import schema
from shards.files import Progress, table_from_rows, write_table
from shards.settings import MachineParams
from stages.clips import local_pool
from stages.clips.ledger import Part
from stages.crop import CropSummary, crop
from stages.settings import CorpusParams, CropParams
from tests.support import forked
from tests.support.videos import write_mouth


def clip_row(clip_id: str, media: str, **changes: Any) -> dict[str, Any]:
    row = dict.fromkeys(schema.CLIPS.names) | {
        "clip_id": clip_id,
        "split": "train",
        "media": media,
        "media_kind": "face",
        "text": "你好",
        "label": "你好",
    }
    return row | {"num_chars": len(changes.get("label", "你好"))} | changes


def write_clips(path: Path, rows: list[dict[str, Any]]) -> None:
    write_table(path, table_from_rows(rows, schema.CLIPS), schema.CLIPS)


class Run:
    """A corpus, its tables and a cache in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "corpus"
        self.root.mkdir(exist_ok=True)
        self.progress: list[tuple[int, int]] = []

    def __call__(
        self,
        workers: int = 2,
        timeout_s: float = 600.0,
        machine: MachineParams | None = None,
        part: Part | None = None,
        on_progress: Progress | None = None,
    ) -> CropSummary:
        self.progress.clear()
        return crop(
            CorpusParams(root=str(self.root)),
            CropParams(timeout_s=timeout_s),
            machine or MachineParams(workers=workers, cache_dir=str(self.folder / "cache")),
            self.folder / "clips.parquet",
            self.folder / "crops.parquet",
            self.folder / "tracks.parquet",
            on_progress or (lambda done, total: self.progress.append((done, total))),
            part,
        )

    def forget(self) -> None:
        """Removes all that runs have made."""
        shutil.rmtree(self.folder / "cache", ignore_errors=True)
        for name in ("crops", "tracks"):
            (self.folder / f"{name}.parquet").unlink(missing_ok=True)

    def rows(self, table: str = "crops") -> dict[str, dict[str, Any]]:
        rows = pq.read_table(self.folder / f"{table}.parquet").to_pylist()
        return {row["clip_id"]: row for row in rows}

    def tables(self) -> list[bytes]:
        return [(self.folder / f"{name}.parquet").read_bytes() for name in ("crops", "tracks")]


@contextmanager
def forked_workers() -> Iterator[None]:
    """Forks the workers of crop after their imports: milliseconds each instead of a second.

    For tests of what crop makes. Tests of the workers themselves start them as the product does.
    """
    with patch.object(local_pool, "PROCESSES", forked.context()):
        yield


TRAPS = """
import os, sys, time
if "spawn_main" in " ".join(sys.orig_argv):
    def trap(event, args):
        if event != "open" or not isinstance(args[0], str):
            return
        name = os.path.basename(args[0])
        if name == "poison.mp4":
            os.kill(os.getpid(), 9)
        if name == "once.mp4" and not os.path.exists(args[0] + ".seen"):
            open(args[0] + ".seen", "x").close()
            os.kill(os.getpid(), 9)
        if name == "stuck.mp4":
            time.sleep(600)
    sys.addaudithook(trap)
"""
"""Python runs a sitecustomize.py on PYTHONPATH at its start: workers die, or hang, as they open certain videos."""


def trapped_run(folder: Path, names: list[str]) -> Run:
    (folder / "traps").mkdir()
    (folder / "traps" / "sitecustomize.py").write_text(TRAPS)
    run = Run(folder)
    for seed, name in enumerate(names):
        write_mouth(run.root / f"{name}.mp4", 12, seed)
    write_clips(folder / "clips.parquet", [clip_row(n, f"{n}.mp4", media_kind="mouth") for n in names])
    return run
