"""A pack that tests can damage or change. Import the fixture `pack` by its name that ends in _fixture."""

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.codec import encode_clip
from shards.files import read_table, table_from_rows, write_table
from shards.schema import SAMPLES
from shards.settings import MachineParams, PackParams
from shards.store import FolderStore
from shards.verify import Verification, verify

LONG_ID = "x" * 110
Member = tarfile.TarInfo | tuple[str, bytes]


class Pack:
    """Two shards of train and one of valid, written with tarfile; its members can be changed and written again."""

    def __init__(self, folder: Path, codec: Any = "raw") -> None:
        self.folder, self.codec = folder, codec
        rng = np.random.default_rng(0)
        self.shards: dict[str, list[Member]] = {}
        for name, ids in {
            "train/train-000000.tar": ["a", "b", "c"],
            "train/train-000001.tar": ["d", LONG_ID],
            "valid/valid-000000.tar": ["e"],
        }.items():
            self.shards[name] = []
            for clip_id in ids:
                clip_THW = rng.integers(0, 255, (3, 16, 16), dtype=np.uint8)
                extension = {"raw": "npy", "jpeg": "jpg", "h264": "mp4", "ffv1": "mkv"}[codec]
                payload = encode_clip(clip_THW, PackParams(codec=codec))
                self.shards[name].append((f"{clip_id}.{extension}", payload))
                self.shards[name].append((f"{clip_id}.json", self.metadata(name, clip_id)))
        self.write()

    def metadata(self, name: str, clip_id: str, **changed: Any) -> bytes:
        metadata = {
            "clip_id": clip_id,
            "split": name.partition("/")[0],
            "label": "一二" + clip_id,
            "num_frames": 3,
        }
        metadata |= {"codec": self.codec, "speaker": None, "topic": "KJ", "fps": 25.0}
        return json.dumps(metadata | changed, ensure_ascii=False).encode()

    def path(self, name: str = "train/train-000000.tar") -> Path:
        return self.folder / "shards" / name

    @property
    def samples(self) -> Path:
        return self.folder / "samples.parquet"

    def write(self, with_catalogue: bool = True) -> None:
        """Writes tars, their indexes, and a matching catalogue."""
        for name, members in self.shards.items():
            self.path(name).parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(self.path(name), "w", format=tarfile.GNU_FORMAT) as tar:
                for member in members:
                    if isinstance(member, tarfile.TarInfo):
                        tar.addfile(member)
                    else:
                        info = tarfile.TarInfo(member[0])
                        info.size = len(member[1])
                        tar.addfile(info, io.BytesIO(member[1]))
        self.write_indexes()
        if with_catalogue:
            rows = [row for name in self.shards for row in self.rows(name)]
            write_table(self.samples, table_from_rows(rows, SAMPLES), SAMPLES)

    def write_indexes(self) -> None:
        """Writes indexes that match the current tars."""
        for split in ("train", "valid"):
            described = [
                {
                    "name": Path(name).name,
                    "num_samples": sum(isinstance(m, tuple) and m[0].endswith(".json") for m in members),
                    "bytes": self.path(name).stat().st_size,
                    "sha256": hashlib.sha256(self.path(name).read_bytes()).hexdigest(),
                }
                for name, members in self.shards.items()
                if name.startswith(split)
            ]
            total = sum(shard["num_samples"] for shard in described)
            self.write_index(split, {"split": split, "num_samples": total, "shards": described})

    def index(self, split: str) -> dict[str, Any]:
        return json.loads(self.path(f"{split}/index.json").read_text("utf-8"))

    def write_index(self, split: str, index: dict[str, Any]) -> None:
        self.path(f"{split}/index.json").write_text(json.dumps(index), "utf-8")

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Returns the catalogue rows of samples whose two members tarfile finds next to each other."""
        rows = []
        with tarfile.open(self.path(name)) as tar:
            members = tar.getmembers()
            for clip, described in pairwise(members):
                clip_id = clip.name.partition(".")[0]
                if described.name != f"{clip_id}.json" or clip.name == described.name:
                    continue
                payload = tar.extractfile(clip).read()  # type: ignore[union-attr]
                end = described.offset_data + -(-described.size // 512) * 512
                rows.append(
                    {"clip_id": clip_id, "split": name.partition("/")[0], "shard": name, "codec": self.codec}
                    | {"sample_offset": clip.offset, "sample_size": end - clip.offset}
                    | {"clip_offset": clip.offset_data, "clip_size": clip.size, "num_frames": 3}
                    | {"sha256": hashlib.sha256(payload).hexdigest(), "label": "一二" + clip_id}
                    | {"num_chars": 2 + len(clip_id), "speaker": None, "topic": "KJ"}
                )
        return rows

    def change_rows(self, change: Callable[[list[dict[str, Any]]], object]) -> None:
        rows = read_table(self.samples, SAMPLES, "").to_pylist()
        change(rows)
        write_table(self.samples, table_from_rows(rows, SAMPLES), SAMPLES)

    def row(self, clip_id: str) -> dict[str, Any]:
        (row,) = (r for r in read_table(self.samples, SAMPLES, "").to_pylist() if r["clip_id"] == clip_id)
        return row

    def flip(self, at: int, name: str = "train/train-000000.tar", mask: int = 1) -> None:
        content = bytearray(self.path(name).read_bytes())
        content[at] ^= mask
        self.path(name).write_bytes(content)

    def verify(self, **options: Any) -> Verification:
        return verify(FolderStore(self.folder / "shards"), self.samples, MachineParams(workers=2), **options)

    def found(self, **options: Any) -> dict[str, set[str]]:
        """Verifies the pack; returns each problem with its file, and its lost samples."""
        result = self.verify(**options)
        return {f"{problem.shard}: {problem.what}": set(problem.clip_ids) for problem in result.problems}


@pytest.fixture(name="pack")
def pack_fixture(tmp_path: Path) -> Pack:
    return Pack(tmp_path)


def only(found: dict[str, set[str]], text: str) -> set[str]:
    """Returns the lost samples of the only problem with `text`."""
    (match,) = [problem for problem in found if text in problem]
    return found[match]


FIRST = "train/train-000000.tar: "
