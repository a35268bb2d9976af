"""`pipeline verify` lists the problems of a pack with the lost samples, and accepts an intact pack."""

import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.params import read_mapping
from shards.errors import ConfigError, TableError
from shards.files import read_table
from shards.open_store import open_store
from shards.schema import SAMPLES
from shards.settings import MachineParams
from shards.verify import verify
from tests.support.changed_packs import FIRST, Pack, only, pack_fixture  # noqa: F401
from tests.support.in_process import pipeline

ROOT = Path(__file__).parents[2]
PIPELINE = Path(sysconfig.get_path("scripts")) / "pipeline"
OTHER_HASH = FIRST + "its sha256 differs from index.json"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Pack(tmp_path_factory.mktemp("made")).folder


@pytest.mark.parametrize("codec", ["raw", "jpeg", "h264", "ffv1"])
def test_an_intact_pack_passes(tmp_path: Path, codec: str) -> None:
    pack = Pack(tmp_path, codec)
    for name in ("README.md", "metadata.json"):
        pack.path(name).write_text("a card", "utf-8")
    progress: list[tuple[int, int]] = []
    for options in ({}, {"decode": True}, {"split": "train"}):
        result = pack.verify(on_progress=lambda *done: progress.append(done), **options)
        assert result.problems == ()
        assert (result.num_shards, result.num_samples) == ((2, 5) if "split" in options else (3, 6))
        tars = [
            path for path in pack.path("").rglob("*.tar") if "split" not in options or "train" in path.name
        ]
        assert result.num_bytes == sum(path.stat().st_size for path in tars)


@pytest.mark.parametrize(
    ("speaker", "is_right"), [(None, True), ("", True), ("anna", False), (0, False), ([], False)]
)
def test_an_unknown_speaker_is_empty_or_in_older_packs_null(
    tmp_path: Path, speaker: object, is_right: bool
) -> None:
    pack = Pack(tmp_path)
    name = "train/train-000000.tar"
    pack.shards[name][1] = ("a.json", pack.metadata(name, "a", speaker=speaker))
    pack.write()
    problems = pack.verify().problems
    assert (problems == ()) is is_right
    assert is_right or f"its metadata says speaker {speaker!r}, samples.parquet None" in problems[0].what


PLACES: dict[str, tuple[Callable[[dict[str, Any]], int], str]] = {
    "payload": (
        lambda row: row["clip_offset"] + 500,
        "the sha256 of the clip differs from samples.parquet",
    ),
    "npy header": (lambda row: row["clip_offset"] + 20, "the sha256 of the clip"),
    "tar header": (lambda row: row["sample_offset"], "the tar header at byte"),
    "size in it": (lambda row: row["sample_offset"] + 130, "the tar header at byte"),
    "padding": (lambda row: row["clip_offset"] + row["clip_size"], "the padding after member 'b.npy'"),
    "label": (lambda row: row["sample_offset"] + row["sample_size"] - 512 + 53, "its metadata"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_flipped_byte_loses_its_sample(pack: Pack, place: str) -> None:
    at, text = PLACES[place]
    pack.flip(at(pack.row("b")))
    found = pack.found()
    assert only(found, text) == {"b"}
    assert found[OTHER_HASH] == set()
    assert len(found) == 2


def test_a_flipped_byte_that_loses_no_sample(pack: Pack) -> None:
    """The frame rate is only in the metadata."""
    row = pack.row("b")
    at = pack.path().read_bytes().index(b"25.0", row["sample_offset"])
    pack.flip(at + 1)
    assert pack.found() == {
        OTHER_HASH
        + "; all clips and labels match samples.parquet, so only bytes that it does not cover are damaged": set()
    }


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_byte_is_found(made: Path, tmp_path: Path, data: st.DataObject) -> None:
    """In every shard; only the sample that contains the byte is listed."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    pack = Pack.__new__(Pack)
    pack.folder, pack.codec = tmp_path, "raw"
    name = data.draw(
        st.sampled_from(["train/train-000000.tar", "train/train-000001.tar", "valid/valid-000000.tar"])
    )
    at = data.draw(st.integers(0, pack.path(name).stat().st_size - 1))
    pack.flip(at, name, data.draw(st.integers(1, 255)))
    result = pack.verify()
    assert f"{name}: its sha256 differs from index.json" in " ".join(
        f"{p.shard}: {p.what}" for p in result.problems
    )
    rows = [row for row in read_table(pack.samples, SAMPLES, "").to_pylist() if row["shard"] == name]
    hit = {r["clip_id"] for r in rows if r["sample_offset"] <= at < r["sample_offset"] + r["sample_size"]}
    in_clip = {r["clip_id"] for r in rows if r["clip_offset"] <= at < r["clip_offset"] + r["clip_size"]}
    lost = {clip_id for problem in result.problems for clip_id in problem.clip_ids}
    assert in_clip <= lost <= hit


def test_a_truncated_shard(pack: Pack) -> None:
    row = pack.row("b")
    content = pack.path().read_bytes()
    pack.path().write_bytes(content[: row["clip_offset"] + 100])
    found = pack.found()
    assert only(found, "is truncated: it ends at byte") == {"b", "c"}
    assert only(found, "index.json says") == set()
    assert len(found) == 3
    pack.path().write_bytes(content[: pack.row("c")["sample_offset"] + pack.row("c")["sample_size"] + 512])
    assert only(pack.found(), "the end of the tar is missing") == set()
    pack.path().write_bytes(b"")
    assert only(pack.found(), "is truncated") == {"a", "b", "c"}


@pytest.mark.parametrize("num_left", [0, 1, 100, 511, 512, 600])
def test_truncation_after_the_last_sample_loses_none(pack: Pack, num_left: int) -> None:
    row = pack.row("c")
    os.truncate(pack.path(), row["sample_offset"] + row["sample_size"] + num_left)
    result = pack.verify()
    assert result.problems and result.num_lost == 0


def test_a_missing_shard(pack: Pack) -> None:
    pack.path().unlink()
    assert pack.found() == {FIRST + "is missing": {"a", "b", "c"}}
    assert pack.found(split="valid") == {}


def test_foreign_files(pack: Pack) -> None:
    shutil.copy(pack.path(), pack.path("train/train-000007.tar"))
    pack.path("notes.txt").write_text("mine", "utf-8")
    pack.path("train/.train-000000.tar.abc.tmp").write_bytes(b"")
    assert pack.found() == {
        **{f"{name}: is not a file of this pack": set() for name in ("notes.txt", "train/train-000007.tar")},
        "train/.train-000000.tar.abc.tmp: is a partial file of a killed (or running) "
        "`pipeline pack`; the next run removes it": set(),
    }


def test_swapped_samples(pack: Pack) -> None:
    members = pack.shards["train/train-000000.tar"]
    members[:4] = members[2:4] + members[:2]
    pack.write(with_catalogue=False)
    found = pack.found()
    assert set.union(*found.values()) == {"a", "b"}
    assert only(found, "are ['b.npy', 'b.json'] instead of ['a.npy', 'a.json']") == {"a"}


def test_a_shard_that_is_not_a_tar(pack: Pack) -> None:
    pack.path().write_bytes(np.random.default_rng(0).bytes(pack.path().stat().st_size))
    assert set.union(*pack.found().values()) == {"a", "b", "c"}


def test_a_remote_pack(pack: Pack) -> None:
    """A shard that differs from its index is not downloaded to the cache, so all its samples are lost."""
    machine = MachineParams(workers=2, cache_dir=str(pack.folder / "cache"))
    url = (pack.folder / "shards").as_uri()
    assert verify(open_store(url, machine), pack.samples, machine).problems == ()
    # damage only in the local copy is not a problem of the pack, and is repaired
    (cached,) = (pack.folder / "cache/shards").rglob("train-000000.*.tar")
    whole = cached.read_bytes()
    cached.write_bytes(whole[:600] + b"x" + whole[601:])
    assert verify(open_store(url, machine), pack.samples, machine).problems == ()
    assert cached.read_bytes() == whole
    # an intact local copy does not hide damage of the pack
    pack.flip(pack.row("b")["clip_offset"])
    (problem,) = verify(open_store(url, machine), pack.samples, machine).problems
    assert problem.clip_ids == ("a", "b", "c")
    assert f"{url}/train/train-000000.tar does not match index.json" in problem.what


def test_a_damaged_catalogue_is_an_error(pack: Pack) -> None:
    with pytest.raises(ConfigError, match="nosuch"):
        pack.verify(split="nosuch")
    pack.samples.write_bytes(pack.samples.read_bytes()[:-100])
    with pytest.raises(TableError, match="samples"):
        pack.verify()


def test_the_command(pack: Pack) -> None:
    params = read_mapping(ROOT / "params.yaml")
    params["paths"] |= {"shards": "shards", "samples": "samples.parquet"}
    (pack.folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return pipeline(pack.folder, ["verify", *arguments])

    whole = run()
    assert whole.returncode == 0, whole.stderr
    assert "3 shards, 6 samples" in whole.stdout and "no problems" in whole.stdout
    pack.flip(pack.row("b")["clip_offset"] + 500)
    damaged = run("--split", "train")
    assert damaged.returncode == 1
    assert "2 problems, 1 samples lost" in damaged.stdout
    report = json.loads(run("--json", "--decode").stdout)
    assert report["problems"][0] == {
        "shard": "train/train-000000.tar",
        "what": "the sha256 of the clip differs from samples.parquet",
        "clip_ids": ["b"],
    }
    assert (report["num_problems"], report["num_lost"], report["num_samples"]) == (2, 1, 6)
