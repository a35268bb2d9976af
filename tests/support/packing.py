"""A small cropped corpus that the pack stage packs, also slowly, so that a test can kill it."""

from pathlib import Path
from typing import Any

from shards import schema
from shards.files import read_table
from shards.settings import MachineParams, PackParams
from shards.store import FolderStore
from stages.crop import crop
from stages.pack import PackSummary, pack
from stages.settings import CorpusParams, CropParams
from tests.support.crop_runs import clip_row, forked_workers, write_clips
from tests.support.videos import write_face, write_mouth

PARAMS = CropParams()

LONG_ID = "x" * 120


class Packing:
    """A cropped corpus, and packs of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corpus = CorpusParams(root=str(folder / "corpus"))
        self.machine = MachineParams(workers=1, cache_dir=str(folder / "cache"))
        self.tables = [folder / f"{name}.parquet" for name in ("clips", "crops", "tracks")]

    def crop(self) -> None:
        crop(self.corpus, PARAMS, self.machine, *self.tables)

    @staticmethod
    def params(**options: Any) -> PackParams:
        return PackParams(**({"shard_mb": 0.5} | options))

    def pack(self, name: str, params: CropParams = PARAMS, **options: Any) -> PackSummary:
        self.progress: list[tuple[int, int]] = []
        return pack(
            self.corpus,
            params,
            self.params(**options),
            self.machine,
            *self.tables,
            FolderStore(self.folder / name),
            self.folder / f"{name}.parquet",
            lambda done, total: self.progress.append((done, total)),
        )

    def rows(self, name: str) -> list[dict[str, Any]]:
        return read_table(self.folder / f"{name}.parquet", schema.SAMPLES, "pipeline pack").to_pylist()

    def files(self, name: str) -> dict[str, bytes]:
        folder = self.folder / name
        found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        return found | {"table": (self.folder / f"{name}.parquet").read_bytes()}


def make(folder: Path, num_mouths: int) -> Packing:
    packing = Packing(folder)
    root = folder / "corpus"
    root.mkdir()
    write_face(root / "face.mp4", 12)
    rows = [clip_row("face", "face.mp4", speaker="anna", topic="KJ"), clip_row("rejected", "nowhere.mp4")]
    for i in range(num_mouths):
        write_mouth(root / f"{i}.mp4", 12 + i, seed=i)
        split = "train" if i < num_mouths - 2 else "unseen-2"
        rows.append(clip_row(f"m{i}", f"{i}.mp4", split=split, media_kind="mouth", label="字" * (i + 1)))
    rows.append(clip_row(LONG_ID, "0.mp4", split="test", media_kind="mouth"))
    rows.append(clip_row("lost", "nowhere.mp4", split="empty_split"))
    write_clips(packing.tables[0], rows)
    with forked_workers():
        packing.crop()
    return packing


SLOW_PACK = """
import sys, time
from pathlib import Path
from tests.support.packing import Packing
def linger(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".npz"):
        time.sleep(0.1)
sys.addaudithook(linger)
Packing(Path(sys.argv[1])).pack("shards", codec="jpeg", shard_mb=0.02)
"""
