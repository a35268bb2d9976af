"""`pipeline overlap` prints copies and speakers of packs, and its exit code shows whether training leaks."""

import json
from pathlib import Path

import pytest

from pipeline.params import read_mapping
from shards.files import write_text
from tests.support.drawn_mouths import speaking
from tests.support.in_process import pipeline
from tests.support.packed import pack_clips

ROOT = Path(__file__).parents[2]
KEYS = {"num_clips", "num_not_compared", "copies", "speakers", "num_leaks"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three packs: `leaky` has a video of `data` in its test split, `fine` shares nothing."""
    folder = tmp_path_factory.mktemp("packs")
    write_text(folder / "params.yaml", (ROOT / "params.yaml").read_text("utf-8"))
    clips = [(f"c{seed}", "train", speaking(seed), "一") for seed in range(3)]
    pack_clips(folder / "data", clips)
    pack_clips(folder / "leaky", [("copy", "test", speaking(1, start_s=0.2), "一")])
    pack_clips(folder / "fine", [("[red]x", "test", speaking(7), "一")])
    return folder


def test_a_leak_is_printed_and_is_exit_code_1(folder: Path) -> None:
    done = pipeline(folder, ["overlap", "lips=data", "cmlr=leaky/samples.parquet,leaky/shards", "fine=fine"])
    assert done.returncode == 1, done.stderr
    assert "lips train c1" in done.stdout and "cmlr test copy" in done.stdout and "leak" in done.stdout
    assert (
        "Compared 5 clips (lips 3, cmlr 1, fine 1). Videos with copies: 1, of which 1 in training"
        in " ".join(done.stdout.split())
    )


def test_without_a_leak_it_is_0_and_the_pack_of_params_is_the_default(folder: Path) -> None:
    assert read_mapping(folder / "params.yaml")["paths"]["shards"] == "data/shards"
    done = pipeline(folder, ["overlap"])
    assert done.returncode == 0, done.stderr
    assert "Compared 3 clips (pack 3). Videos with copies: 0, of which 0 in" in " ".join(done.stdout.split())
    assert pipeline(folder, ["overlap", "a=data", "b=fine"]).returncode == 0


def test_json_has_the_documented_keys(folder: Path) -> None:
    done = pipeline(folder, ["overlap", "--json", "lips=data", "cmlr=leaky"])
    found = json.loads(done.stdout)
    assert done.returncode == 1 and set(found) == KEYS
    assert found["copies"][0]["clips"] == [
        {"pack": "lips", "split": "train", "clip_id": "c1"},
        {"pack": "cmlr", "split": "test", "clip_id": "copy"},
    ]
    (row,) = [
        line
        for line in (ROOT / "docs" / "scripting.md").read_text("utf-8").splitlines()
        if "| `overlap` |" in line
    ]
    assert all(f"`{key}`" in row for key in KEYS)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["data"], 2, "'data' is not a pack; write NAME=FOLDER"),
        (["a b=data"], 2, "is not a pack"),
        (["a="], 2, "is not a pack"),
        (["a=data", "a=fine"], 2, "two packs are named a"),
        (["a=nowhere"], 1, "nowhere/samples.parquet is missing"),
        (["a=data/samples.parquet,nowhere"], 1, "shard nowhere/train/train-000000.tar is missing"),
    ],
)
def test_a_wrong_pack_is_one_message(
    folder: Path, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    done = pipeline(folder, ["overlap", *arguments, "--set", f"machine.cache_dir={tmp_path}"])
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr and "Traceback" not in done.stderr
