"""samples.parquet is read by split and hashed in pieces; differences of plan identities are listed."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import samples as samples_module
from shards.errors import ConfigError, TableError
from shards.files import read_table, write_table
from shards.packs import Packs
from shards.plan import PLAN_VERSION, plan_epoch, plan_identity
from shards.plan_identity import PlanIdentity
from shards.samples import (
    HASHED_COLUMNS,
    PLAN_COLUMNS,
    read_samples,
    sample_pieces,
    samples_hash,
    splits_of,
)
from shards.schema import SAMPLES
from shards.settings import LoaderParams
from shards.store import FolderStore
from tests.support.catalogues import catalogue


def read_plan_columns(path: Path, split: str) -> pa.Table:
    return Packs.single(path, FolderStore(path.parent)).read_plan_columns(split)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """55 rows in pieces of 8 at most."""
    monkeypatch.setattr(samples_module, "_PIECE_ROWS", 8)
    splits = ["train"] * 20 + ["valid", "train", "test", "train"] * 5 + ["valid"] * 15
    write_table(tmp_path / "samples.parquet", catalogue(splits), SAMPLES)
    return tmp_path / "samples.parquet"


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_split_is_read_in_the_order_of_the_table(path: Path, split: str) -> None:
    whole = pq.read_table(path)
    expected = whole.filter(pc.equal(whole["split"], split))
    for name in ("confidence", "audio_sha256"):
        expected = expected.append_column(
            SAMPLES.field(name), pa.nulls(len(expected), SAMPLES.field(name).type)
        )
    found = read_samples(path, split)
    assert found.schema.equals(SAMPLES, check_metadata=True)
    assert found.to_pylist() == expected.to_pylist()
    assert read_plan_columns(path, split).to_pylist() == expected.select(PLAN_COLUMNS).to_pylist()


def test_a_split_without_samples_is_refused_with_those_there_are(path: Path) -> None:
    assert splits_of(path) == {"train", "valid", "test"}
    for read in (read_samples, read_plan_columns):
        with pytest.raises(ConfigError, match=r"no samples of split 'dev'; it has test, train, valid$"):
            read(path, "dev")


def test_other_tables_are_refused(tmp_path: Path, path: Path) -> None:
    with pytest.raises(TableError, match=r"is missing; run `pipeline pack`"):
        read_samples(tmp_path / "none.parquet", "train")
    pq.write_table(pa.table({"clip_id": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(TableError, match=r"schema version none .* run `pipeline pack` again"):
        splits_of(tmp_path / "other.parquet")
    (tmp_path / "cut.parquet").write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TableError, match="not a readable Parquet file"):
        read_plan_columns(tmp_path / "cut.parquet", "train")


def test_wrong_bytes_end_in_a_table_error_or_are_read(tmp_path: Path, path: Path) -> None:
    rng, good = np.random.default_rng(0), path.read_bytes()
    num_refused = 0
    for _ in range(200):
        bad = np.frombuffer(good, np.uint8).copy()
        bad[rng.integers(len(bad), size=3)] = rng.integers(256, size=3)
        (tmp_path / "bad.parquet").write_bytes(bad.tobytes())
        try:
            read_samples(tmp_path / "bad.parquet", "train")
        except (TableError, ConfigError):
            num_refused += 1
    assert num_refused > 100


def test_the_plan_columns_give_the_same_plan_and_hash(path: Path) -> None:
    whole, light = read_samples(path, "train"), read_plan_columns(path, "train")
    params = LoaderParams(window_shards=2)
    for rank in range(2):
        expected = plan_epoch(whole, params, 4, 0, 2, rank)
        found = plan_epoch(light, params, 4, 0, 2, rank)
        assert [b.tolist() for b in found.batches] == [b.tolist() for b in expected.batches]
    assert plan_identity(samples_hash(sample_pieces(path, "train")), params, 4) == plan_identity(
        samples_hash(whole), params, 4
    )


# -- the hash ------------------------------------------------------------------------------------------------

texts = st.text(st.sampled_from("aé字"), max_size=3)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(texts, texts, st.integers(0, 3)), max_size=12), st.data())
def test_equal_rows_have_equal_hashes_for_any_arrow_layout(
    rows: list[tuple[str, str, int]], data: st.DataObject
) -> None:
    columns = {
        "clip_id": pa.array([row[0] for row in rows], pa.string()),
        "label": pa.array([row[1] for row in rows], pa.string()),
        "num_frames": pa.array([row[2] for row in rows], pa.int32()),
        "sha256": pa.array(["0"] * len(rows), pa.string()),
        "shard": pa.array([row[0] for row in rows], pa.string()),
        "sample_offset": pa.array(range(len(rows)), pa.int64()),
    }
    table = pa.table(columns)
    base = samples_hash(table)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    edges = list(zip([0, *cuts], [*cuts, len(rows)], strict=True))
    chunked = pa.concat_tables([table.slice(a, b - a) for a, b in edges])
    framed = pa.concat_tables([table, table, table]).combine_chunks().slice(len(rows), len(rows))
    encoded = table.set_column(0, "clip_id", table["clip_id"].dictionary_encode())
    wide = table.set_column(2, "num_frames", table["num_frames"].cast(pa.int64()))
    others = [chunked, framed, encoded, wide, table.select(sorted(table.column_names))]
    assert {samples_hash(other) for other in others} == {base}
    assert samples_hash(iter(chunked.to_batches())) == base


@settings(max_examples=60, deadline=None)
@given(*[st.lists(st.integers(0, 6), min_size=2, max_size=3).map(sorted)] * 2)
def test_the_hash_sees_where_a_string_ends(cuts: list[int], others: list[int]) -> None:
    def hashed(cuts: list[int]) -> str:
        ids = ["字aé字ab"[a:b] for a, b in zip([0, *cuts], [*cuts, 6], strict=True)]
        same = {name: pa.array([0] * len(ids)) for name in HASHED_COLUMNS}
        return samples_hash(pa.table(same | {"clip_id": pa.array(ids, pa.string())}))

    assert (hashed(cuts) == hashed(others)) == (cuts == others)


@pytest.mark.parametrize("column", HASHED_COLUMNS)
def test_the_hash_sees_one_changed_value(column: str) -> None:
    table = catalogue(["train"] * 9)
    values, unknown = table[column].to_pylist(), {"confidence": 0.5, "audio_sha256": "x"}.get(column)
    values[4] = {int: lambda v: v + 1, str: lambda v: v + "x"}.get(type(values[4]), lambda _: unknown)(
        values[4]
    )
    place = table.column_names.index(column)
    changed = table.set_column(
        place, table.schema.field(column), pa.array(values, table.schema.field(column).type)
    )
    assert samples_hash(changed) != samples_hash(table)


def test_an_optional_column_without_values_is_not_stored_and_changes_no_hash(tmp_path: Path) -> None:
    whole = catalogue(["train"] * 9)
    older = whole.drop_columns(["confidence"])
    for table, name in ((whole, "whole"), (older, "older")):
        write_table(tmp_path / name, table, SAMPLES)
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "older").read_bytes()
    read = read_samples(tmp_path / "older", "train")
    assert read["confidence"].null_count == 9 and samples_hash(read) == samples_hash(older)
    known = whole.set_column(
        whole.column_names.index("confidence"), "confidence", pa.array([0.5, *[None] * 8], pa.float32())
    )
    write_table(tmp_path / "known", known, SAMPLES)
    assert read_table(tmp_path / "known", SAMPLES, "")["confidence"].to_pylist() == [0.5, *[None] * 8]
    pieces = list(sample_pieces(tmp_path / "known", "train", ["confidence", "clip_id"]))
    assert [piece.schema.names for piece in pieces] == [["confidence", "clip_id"]]


def test_the_hash_sees_the_order_of_the_rows() -> None:
    table = catalogue(["train"] * 9)
    assert samples_hash(table.take([1, 0, *range(2, 9)])) != samples_hash(table)


# -- the identity --------------------------------------------------------------------------------------------


def test_an_identity_is_restored_from_a_checkpoint_and_lists_differences() -> None:
    table, params = catalogue(["train"] * 9), LoaderParams()
    there = plan_identity(samples_hash(table), params, 12)
    assert PlanIdentity.from_dict(there.as_dict()) == there
    assert type(there.as_dict()) is dict and type(there.as_dict()["loader"]) is dict
    assert there.plan_version == PLAN_VERSION and there.differences(there) == []
    here = plan_identity(samples_hash(table.slice(1)), LoaderParams(seed=1, max_frames=300), 8, world_size=2)
    assert here.differences(there) == [
        "the clips differ: samples.parquet was packed again",
        "loader.max_frames is 300, the checkpoint has 0",
        "loader.seed is 1, the checkpoint has 0",
        "train.batch_size is 8, the checkpoint has 12",
        "this run has 2 ranks, the checkpoint 1",
    ]
    older = PlanIdentity(1, there.samples, {"seed": 0}, 12, 1)
    messages = there.differences(older)
    assert messages[0].startswith(f"plan version is {PLAN_VERSION}, the checkpoint has 1")
    assert "loader.window_shards is 16, the checkpoint has none" in messages


def test_the_hash_of_an_identity_covers_all_fields_but_not_max_bad_fraction() -> None:
    table, params = catalogue(["train"] * 9), LoaderParams()
    identities = [
        plan_identity(samples_hash(table), params, 8),
        plan_identity(samples_hash(table.slice(1)), params, 8),
        plan_identity(samples_hash(table), LoaderParams(seed=1), 8),
        plan_identity(samples_hash(table), LoaderParams(window_shards=2), 8),
        plan_identity(samples_hash(table), LoaderParams(curriculum_epochs=2), 8),
        plan_identity(samples_hash(table), params, 9),
        plan_identity(samples_hash(table), params, 8, world_size=2),
    ]
    assert len({identity.hash for identity in identities}) == len(identities)
    tolerant = plan_identity(samples_hash(table), LoaderParams(max_bad_fraction=0.1), 8)
    assert tolerant.hash == identities[0].hash and not tolerant.differences(identities[0])
