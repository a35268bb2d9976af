"""The synthetic catalogue equals a real one in everything that the epoch plan and the queries read."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks.synthetic_catalogue import SHARD_BYTES, write_catalogue
from shards.files import ROW_GROUP_ROWS, read_table
from shards.schema import CLIP_ID_PATTERN, CLIPS, CROPS, SAMPLES

TABLES = {"clips": CLIPS, "crops": CROPS, "samples": SAMPLES}
NUM_CLIPS = 20_011


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    write_catalogue(folder, NUM_CLIPS, seed=3)
    return folder


@pytest.fixture(scope="module")
def rows(folder: Path) -> dict[str, list[dict[str, object]]]:
    return {
        name: read_table(folder / f"{name}.parquet", schema, "x").to_pylist()
        for name, schema in TABLES.items()
    }


def test_tables_have_the_schemas_and_belong_together(folder: Path, rows: dict) -> None:
    for name, schema in TABLES.items():
        table = read_table(folder / f"{name}.parquet", schema, "x")
        table.validate(full=True)
        assert table.schema.equals(schema, check_metadata=True)
    ids = [row["clip_id"] for row in rows["clips"]]
    assert len(set(ids)) == len(ids) == NUM_CLIPS
    assert all(CLIP_ID_PATTERN.fullmatch(clip_id) for clip_id in ids)
    assert [row["clip_id"] for row in rows["crops"]] == ids
    ok = {row["clip_id"] for row in rows["crops"] if row["status"] == "ok"}
    assert len(rows["samples"]) == len(ok) and {row["clip_id"] for row in rows["samples"]} == ok
    clips, crops = ({row["clip_id"]: row for row in rows[name]} for name in ("clips", "crops"))
    for row in rows["samples"]:
        clip = clips[row["clip_id"]]
        assert all(row[name] == clip[name] for name in ("split", "label", "num_chars", "speaker", "topic"))
        assert row["num_frames"] == crops[row["clip_id"]]["num_frames"]
    assert all(len(row["label"]) == row["num_chars"] > 0 for row in rows["clips"])
    assert all((row["reason"] is None) == (row["status"] == "ok") for row in rows["crops"])


def test_figures_match_chinese_lips(rows: dict) -> None:
    splits = Counter(row["split"] for row in rows["clips"])
    assert [round(splits[name] / NUM_CLIPS, 3) for name in ("train", "valid", "test")] == [0.84, 0.05, 0.11]
    speakers: dict[str, set] = {name: set() for name in splits}
    for row in rows["clips"]:
        speakers[row["split"]].add(row["speaker"])
    assert sum(map(len, speakers.values())) == len(set.union(*speakers.values())) > 100
    num_frames_N = np.array([row["num_frames"] for row in rows["samples"]])
    assert num_frames_N.mean() == pytest.approx(253, rel=0.02)
    assert num_frames_N.min() >= 10 and num_frames_N.max() <= 1_000
    assert np.log(num_frames_N).std() == pytest.approx(0.5, rel=0.05)
    num_chars_N = np.array([row["num_chars"] for row in rows["samples"]])
    assert (num_frames_N / num_chars_N).mean() == pytest.approx(6, rel=0.05)
    rejected = sum(row["status"] == "rejected" for row in rows["crops"])
    assert rejected / NUM_CLIPS == pytest.approx(0.02, rel=0.2)
    characters = Counter("".join(row["label"] for row in rows["clips"] if row["split"] == "train"))
    counts = sorted(characters.values(), reverse=True)
    assert 3_000 < len(counts) <= 4_000
    # Zipf: ten times the rank, about a tenth as often
    assert counts[100] / counts[1_000] == pytest.approx(10, rel=0.2)


def test_samples_are_in_shards_as_pack_fills_them(rows: dict) -> None:
    """Compared with a loop that closes a shard when it is larger than its size."""
    filled, number, split = 0, 0, "train"
    for row in rows["samples"]:
        if row["split"] != split:
            filled, number, split = 0, 0, row["split"]
        elif filled >= SHARD_BYTES:
            filled, number = 0, number + 1
        assert (row["shard"], row["sample_offset"]) == (f"{split}/{split}-{number:06d}.tar", filled)
        assert row["clip_size"] == row["num_frames"] * 96 * 96 + 128
        assert row["clip_offset"] == filled + 512
        assert row["sample_size"] % 512 == 0 and row["sample_size"] > row["clip_size"] + 1_024
        filled += row["sample_size"]
    assert len({row["sha256"] for row in rows["samples"]}) == len(rows["samples"])


def test_the_same_arguments_give_the_same_bytes(folder: Path, rows: dict, tmp_path: Path) -> None:
    write_catalogue(tmp_path, NUM_CLIPS, seed=3)
    for name in TABLES:
        assert (tmp_path / f"{name}.parquet").read_bytes() == (folder / f"{name}.parquet").read_bytes()
    write_catalogue(tmp_path, 500, seed=4)
    other = read_table(tmp_path / "clips.parquet", CLIPS, "x").to_pylist()
    assert len(other) == 500
    assert [row["label"] for row in other] != [row["label"] for row in rows["clips"][:500]]


def test_shards_continue_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.synthetic_catalogue.ROW_GROUP_ROWS", 1_000)
    assert ROW_GROUP_ROWS > 1_000
    write_catalogue(tmp_path, 5_000)
    samples = read_table(tmp_path / "samples.parquet", SAMPLES, "x").to_pylist()
    test_samples_are_in_shards_as_pack_fills_them({"samples": samples})


@pytest.mark.parametrize("num_clips", [1, 2, 7])
def test_small_catalogues_have_all_clips(tmp_path: Path, num_clips: int) -> None:
    write_catalogue(tmp_path, num_clips)
    assert read_table(tmp_path / "clips.parquet", CLIPS, "x").num_rows == num_clips
