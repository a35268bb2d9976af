"""`pipeline verify --foreign` compares each clip that webdataset reads with the catalogue and our own reader."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.params import read_mapping
from shards.open_store import open_store
from shards.settings import MachineParams
from shards.store import FolderStore, ShardStore
from shards.verify import Verification
from shards.verify_foreign import verify_foreign
from tests.support.changed_packs import Pack, pack_fixture  # noqa: F401
from tests.support.in_process import pipeline

ROOT = Path(__file__).parents[2]
FIRST = "train/train-000000.tar"


def found(pack: Pack, store: ShardStore | None = None, split: str | None = None) -> dict[str, set[str]]:
    """Returns the problems and their clips."""
    store = store or open_store(str(pack.path("")), MachineParams())
    result = verify_foreign(Verification(0, 0, 0, 0.0, ()), store, pack.samples, split)
    return {f"{problem.shard}: {problem.what}": set(problem.clip_ids) for problem in result.problems}


@pytest.mark.parametrize("codec", ["raw", "jpeg", "h264", "ffv1"])
def test_an_intact_pack_passes(tmp_path: Path, codec: str) -> None:
    pack = Pack(tmp_path, codec)
    machine = MachineParams(cache_dir=str(tmp_path / "cache"))
    assert found(pack) == {}
    assert found(pack, split="valid") == {}
    assert found(pack, open_store(pack.path("").as_uri(), machine)) == {}


def test_a_wrong_label_and_a_wrong_length(pack: Pack) -> None:
    def change(rows: list[dict[str, Any]]) -> None:
        rows[0]["label"] = "别的"
        rows[1]["num_frames"] = 4

    pack.change_rows(change)
    assert found(pack) == {
        f"{FIRST}: webdataset: label is '一二a', samples.parquet says '别的'": {"a"},
        f"{FIRST}: webdataset: num_frames is 3, samples.parquet says 4": {"b"},
    }


def test_other_pixels_than_those_of_our_own_reader(pack: Pack) -> None:
    class Older(FolderStore):
        """Has an older copy of the first shard, which our own reader opens."""

        def local(self, name: str) -> Path:
            return pack.folder / "older.tar" if name == FIRST else super().local(name)

    (pack.folder / "older.tar").write_bytes(pack.path().read_bytes())
    row = pack.row("a")
    pack.flip(row["clip_offset"] + row["clip_size"] - 1)
    assert found(pack) == {}  # both readers see the same pixels; the sha256 shows the damage
    assert found(pack, Older(pack.path(""))) == {
        f"{FIRST}: webdataset: the pixels differ from our own reader's": {"a"}
    }


def test_clips_that_are_missing_twice_or_elsewhere(pack: Pack) -> None:
    pack.shards[FIRST] += pack.shards[FIRST][:2] + pack.shards["valid/valid-000000.tar"][:1]
    pack.shards[FIRST] += [("e.json", pack.metadata("valid/x", "e"))]
    del pack.shards[FIRST][2:4]
    catalogue = pack.samples.read_bytes()
    pack.write()
    pack.samples.write_bytes(catalogue)
    problems = found(pack)
    (moved,) = (problem for problem in problems if "our own reader does not" in problem)
    assert problems.pop(moved) == {"c"}  # the offsets of the catalogue are wrong
    assert problems == {
        f"{FIRST}: webdataset: has this clip twice": {"a"},
        f"{FIRST}: webdataset: has a clip that samples.parquet does not have there": {"e"},
        f"{FIRST}: webdataset: 1 clips were not read": {"b"},
    }


def test_a_damaged_shard_loses_the_clips_after_the_damage(pack: Pack) -> None:
    pack.flip(pack.row("b")["sample_offset"])
    pack.path("valid/index.json").unlink()
    problems = found(pack)
    assert list(problems.values()) == [{"b", "c"}, {"e"}]
    assert all("webdataset: " in problem for problem in problems)


def test_the_command(pack: Pack) -> None:
    params = read_mapping(ROOT / "params.yaml")
    params["paths"] |= {"shards": "shards", "samples": "samples.parquet"}
    (pack.folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    whole = pipeline(pack.folder, ["verify", "--foreign"])
    assert (whole.returncode, "no problems" in whole.stdout) == (0, True), whole.stderr
    pack.change_rows(lambda rows: rows[0].update(label="别的"))
    wrong = pipeline(pack.folder, ["verify", "--foreign", "--json"])
    assert wrong.returncode == 1
    whats = [problem["what"] for problem in json.loads(wrong.stdout)["problems"]]
    assert "webdataset: label is '一二a', samples.parquet says '别的'" in whats
