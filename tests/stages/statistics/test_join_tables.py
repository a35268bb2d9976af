"""The tables of stage stats are joined in parts; those of other clips are refused."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.synthetic_catalogue import write_catalogue
from shards.errors import TableError
from shards.files import table_from_rows, write_table
from shards.schema import CLIPS, CROPS, SAMPLES
from stages.stats import measure, stats
from tests.support.stats_tables import CLIP_ROWS, CROP_ROWS, Row, clip, crop, run, sample


@pytest.mark.parametrize("rows_a_pass", [2, 4_000_000])
def test_copies_of_a_video_in_several_splits_are_counted_under_whatever_names(
    tmp_path: Path, rows_a_pass: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.statistics.join_tables.ROWS_A_PASS", rows_a_pass)
    # a and d are one video, as are b, e and g, and c and f, of which only rejected clips show it
    keys = dict(zip("abcdefg", ("k1", "k2", "k3", "k1", "k2", "k3", "k2"), strict=True))
    crops = [row | {"clip_key": keys[row["clip_id"]]} for row in CROP_ROWS]
    copies = run(tmp_path, CLIP_ROWS, crops, None)["overlap"]["copies"]
    assert copies == {
        "num_videos": 2,
        "clips": {"train": 2, "valid": 1, "test": 2},
        "examples": [["a", "d"], ["b", "e", "g"]],
    }
    assert list(copies["clips"]) == ["train", "valid", "test"]
    table = pq.read_table(tmp_path / "stats" / "stats.parquet").to_pylist()
    of_test = [row for row in table if row["figure"] == "copied_clips" and row["split"] == "test"]
    assert [row["value"] for row in of_test] == [2]
    same_split = [row | {"clip_key": "k"} for row in CROP_ROWS[:2]]
    assert run(tmp_path, CLIP_ROWS[:2], same_split, None)["overlap"]["copies"]["num_videos"] == 0
    assert run(tmp_path, CLIP_ROWS, None, None)["overlap"]["copies"] is None


@pytest.mark.parametrize(
    ("crops", "message"),
    [
        (CROP_ROWS[1:], r"crops.parquet does not match the clips \(0 unknown, 0 duplicated, 1 missing\)"),
        ([*CROP_ROWS, crop("zz", 5)], r"1 unknown.*run `pipeline crop` again"),
        ([*CROP_ROWS, CROP_ROWS[0]], r"1 duplicated"),
    ],
)
def test_a_ledger_of_other_clips_is_refused(tmp_path: Path, crops: list[Row], message: str) -> None:
    with pytest.raises(TableError, match=message):
        run(tmp_path, CLIP_ROWS, crops, None)


def test_samples_of_other_clips_are_refused_and_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"samples.parquet .* run `pipeline pack` again"):
        run(tmp_path, CLIP_ROWS, CROP_ROWS, [sample(clip("zz", "train", "好"))])
    with pytest.raises(TableError, match=r"none.parquet is missing; run `pipeline ingest`"):
        stats(tmp_path / "none.parquet", None, None, tmp_path / "stats")


def test_tables_of_another_corpus_can_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As after `pipeline ingest` of another corpus: crops and samples are still of the one before."""
    alone = run(tmp_path / "alone", CLIP_ROWS, None, None)
    other = clip("zz", "train", "好")
    write_table(tmp_path / "clips.parquet", table_from_rows(CLIP_ROWS, CLIPS), CLIPS)
    write_table(tmp_path / "crops.parquet", table_from_rows([crop("zz", 5)], CROPS), CROPS)
    write_table(tmp_path / "samples.parquet", table_from_rows([sample(other)], SAMPLES), SAMPLES)
    paths = [tmp_path / f"{name}.parquet" for name in ("clips", "crops", "samples")]
    found = stats(paths[0], paths[1], paths[2], tmp_path / "stats", leave_out_others=True)
    assert found == alone
    assert [record.args[-1] for record in caplog.records] == ["pipeline crop", "pipeline pack"]  # type: ignore[index]
    doubled = table_from_rows([*CROP_ROWS, CROP_ROWS[0]], CROPS)
    write_table(paths[1], doubled, CROPS)
    with pytest.raises(TableError, match="1 duplicated"):
        stats(paths[0], paths[1], None, tmp_path / "stats", leave_out_others=True)


def test_figures_do_not_depend_on_the_parts_that_are_joined_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [sample(row) for row in CLIP_ROWS if row["clip_id"] in "abd"]
    whole = run(tmp_path / "whole", CLIP_ROWS, CROP_ROWS, samples)
    monkeypatch.setattr("stages.statistics.join_tables.ROWS_A_PASS", 2)
    assert run(tmp_path / "parts", CLIP_ROWS, CROP_ROWS[::-1], samples) == whole
    with pytest.raises(TableError, match=r"\(1 unknown, 1 duplicated, 1 missing\)"):
        run(tmp_path, CLIP_ROWS, [*CROP_ROWS[1:], CROP_ROWS[-1], crop("zz", 5)], None)
    doubled = [*samples, samples[0]]
    with pytest.raises(TableError, match=r"samples.parquet .*\(0 unknown, 1 duplicated\)"):
        run(tmp_path, CLIP_ROWS, CROP_ROWS, doubled)


@pytest.mark.parametrize("name", ["clips", "crops", "samples"])
def test_a_table_damaged_within_is_named(tmp_path: Path, name: str) -> None:
    write_catalogue(tmp_path, 3_000)
    path = tmp_path / f"{name}.parquet"
    payload = bytearray(path.read_bytes())
    payload[4:40_000] = bytes(39_996)
    path.write_bytes(payload)
    with pytest.raises(TableError, match=rf"(?s){name}.parquet is damaged .*again"):
        measure(*(tmp_path / f"{table}.parquet" for table in ("clips", "crops", "samples")))
