"""Shards: plain tars that any reader takes, the same bytes each time, and never a partial file or a stranger's file."""

import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from model.settings import TextParams
from model.text import copied_normaliser_metadata, normaliser_metadata
from shards import schema
from shards.errors import ShardError, TableError
from shards.files import read_table, table_from_rows, write_table
from shards.store import FolderStore
from shards.stream import read_sample
from stages.clips.cache import ClipCache
from stages.clips.ledger import ledger_mark
from tests.support import forked
from tests.support.crop_runs import write_clips
from tests.support.packing import PARAMS, Packing, make
from tests.support.videos import write_face


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("small"), 2).folder


@pytest.fixture
def own(small: Path, tmp_path: Path) -> Packing:
    """A small one to harm."""
    return Packing(Path(shutil.copytree(small, tmp_path / "own")))


def test_the_catalogue_says_what_normalised_its_labels(own: Packing) -> None:
    assert copied_normaliser_metadata(pq.read_schema(own.tables[0]).metadata) == {}, (
        "as an older program wrote it"
    )
    own.pack("older")
    assert copied_normaliser_metadata(pq.read_schema(own.folder / "older.parquet").metadata) == {}
    mark = normaliser_metadata(TextParams(digits="chinese"))
    clips = read_table(own.tables[0], schema.CLIPS, "pipeline ingest")
    write_table(own.tables[0], clips, schema.CLIPS.with_metadata(schema.CLIPS.metadata | mark))
    own.pack("new")
    assert copied_normaliser_metadata(pq.read_schema(own.folder / "new.parquet").metadata) == mark
    assert own.rows("new") == own.rows("older")


@pytest.fixture(scope="module")
def packing(tmp_path_factory: pytest.TempPathFactory) -> Packing:
    packing = make(tmp_path_factory.mktemp("pack"), 8)
    packing.summary = packing.pack("shards")  # type: ignore[attr-defined]
    packing.first_progress = packing.progress  # type: ignore[attr-defined]
    return packing


def test_every_ok_clip_is_one_sample(packing: Packing) -> None:
    crops = pq.read_table(packing.tables[1]).to_pylist()
    ok = {row["clip_id"]: row for row in crops if row["status"] == "ok"}
    rows = packing.rows("shards")
    assert sorted(row["clip_id"] for row in rows) == sorted(ok)
    assert packing.summary.samples_by_split == {"train": 7, "test": 1, "empty_split": 0, "unseen-2": 2}  # type: ignore[attr-defined]
    clips = {row["clip_id"]: row for row in pq.read_table(packing.tables[0]).to_pylist()}
    for row in rows:
        for name in ("split", "label", "num_chars", "speaker", "topic"):
            assert row[name] == clips[row["clip_id"]][name]
        assert row["num_frames"] == ok[row["clip_id"]]["num_frames"]
        assert row["clip_size"] == ok[row["clip_id"]]["bytes"]
        assert row["shard"].startswith(f"{row['split']}/{row['split']}-0000")
    assert packing.first_progress == [(i + 1, 10) for i in range(10)]  # type: ignore[attr-defined]


def test_offsets_are_those_of_the_tar(packing: Packing) -> None:
    for row in packing.rows("shards"):
        shard = (packing.folder / "shards" / row["shard"]).read_bytes()
        payload = shard[row["clip_offset"] : row["clip_offset"] + row["clip_size"]]
        assert hashlib.sha256(payload).hexdigest() == row["sha256"]
        assert np.load(io.BytesIO(payload), allow_pickle=False).shape == (row["num_frames"], 96, 96)
        sample = shard[row["sample_offset"] : row["sample_offset"] + row["sample_size"]]
        with tarfile.open(fileobj=io.BytesIO(sample)) as tar:
            assert [m.name for m in tar] == [f"{row['clip_id']}.npy", f"{row['clip_id']}.json"]
        clip_THW, described = read_sample(FolderStore(packing.folder / "shards"), row)
        assert described["label"] == row["label"]
        assert described["fps"] == 25
        kept = ClipCache(packing.folder / "cache").read_clip(
            next(
                r["clip_key"]
                for r in pq.read_table(packing.tables[1]).to_pylist()
                if r["clip_id"] == row["clip_id"]
            ),
            (row["num_frames"], 96, 96),
        )
        assert kept is not None
        assert np.array_equal(clip_THW, kept)


def test_samples_stand_back_to_back(packing: Packing) -> None:
    by_shard: dict[str, list[dict[str, Any]]] = {}
    for row in packing.rows("shards"):
        by_shard.setdefault(row["shard"], []).append(row)
    for rows in by_shard.values():
        ends = [row["sample_offset"] + row["sample_size"] for row in rows]
        assert [row["sample_offset"] for row in rows] == [0, *ends[:-1]]


def test_nothing_of_the_day_or_the_machine_is_in_the_tars(packing: Packing) -> None:
    for path in (packing.folder / "shards").rglob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
                assert (member.mode, member.type) == (0o644, tarfile.REGTYPE)


def test_plain_webdataset_reads_what_we_packed(packing: Packing) -> None:
    program = """
import sys, json, webdataset
rows = [(s["__key__"], s["npy"].shape, s["json"]["label"])
        for s in webdataset.WebDataset(sorted(sys.argv[1:]), shardshuffle=False).decode()]
print(json.dumps(rows))
"""
    paths = [str(path) for path in (packing.folder / "shards").rglob("*.tar")]
    done = forked.python(program, *paths)
    assert done.returncode == 0, done.stderr
    rows = packing.rows("shards")
    expected = sorted([row["clip_id"], [row["num_frames"], 96, 96], row["label"]] for row in rows)
    assert sorted(json.loads(done.stdout)) == expected


def test_the_index_tells_what_is_there(packing: Packing) -> None:
    for split, count in packing.summary.samples_by_split.items():  # type: ignore[attr-defined]
        folder = packing.folder / "shards" / split
        index = json.loads((folder / "index.json").read_text())
        assert index["num_samples"] == count == sum(shard["num_samples"] for shard in index["shards"])
        assert {shard["name"] for shard in index["shards"]} == {path.name for path in folder.glob("*.tar")}
        for shard in index["shards"]:
            payload = (folder / shard["name"]).read_bytes()
            assert shard["sha256"] == hashlib.sha256(payload).hexdigest()
            assert shard["bytes"] == len(payload)


def test_a_shard_is_closed_when_it_passes_its_size(packing: Packing) -> None:
    sizes = sorted((p.name, p.stat().st_size) for p in (packing.folder / "shards" / "train").glob("*.tar"))
    assert len(sizes) > 1
    assert [name for name, _ in sizes] == [f"train-{i:06d}.tar" for i in range(len(sizes))]
    assert all(500_000 <= size < 500_000 + 250_000 for _, size in sizes[:-1])


def test_packing_again_gives_the_same_bytes(packing: Packing) -> None:
    packing.pack("again")
    expected = packing.files("shards")
    assert packing.files("again") == expected
    packing.pack("again")  # over a former pack
    assert packing.files("again") == expected


def test_the_order_is_the_seeds_not_the_tables(packing: Packing) -> None:
    before = {path: path.read_bytes() for path in packing.tables}
    try:
        for path, table_schema in zip(
            packing.tables, (schema.CLIPS, schema.CROPS, schema.TRACKS), strict=True
        ):
            table = pq.read_table(path)
            table = table.take(list(range(len(table)))[::-1])
            if table_schema is schema.CLIPS:
                mark = ledger_mark(table.to_pylist(), PARAMS)
            if table_schema is schema.CROPS:
                table_schema = schema.CROPS.with_metadata(schema.CROPS.metadata | mark)
            write_table(path, table, table_schema)
        packing.pack("reversed")
        assert packing.files("reversed") == packing.files("shards")
    finally:
        for path, payload in before.items():
            path.write_bytes(payload)
    packing.pack("seeded", seed=1)
    order = [[row["clip_id"] for row in packing.rows(name)] for name in ("shards", "seeded")]
    assert sorted(order[0]) == sorted(order[1])
    assert order[0] != order[1]
    assert order[0] != sorted(order[0])


@pytest.mark.parametrize("changed", ["media", "label", "start_s"])
def test_a_ledger_of_other_videos_labels_or_times_is_refused(own: Packing, changed: str) -> None:
    """Ids alone stay the same where two lines of a corpus exchange their videos."""
    rows = pq.read_table(own.tables[0]).to_pylist()
    one, other = [row for row in rows if row["split"] == "train"][:2]
    if changed == "media":
        one["media"], other["media"] = other["media"], one["media"]
    elif changed == "label":
        one["label"] += "啊"
    else:
        one["start_s"], one["end_s"] = 0.1, 0.9
    write_table(own.tables[0], table_from_rows(rows, schema.CLIPS), schema.CLIPS)
    with pytest.raises(
        TableError, match="videos, times or labels of clips differ; run `pipeline crop` again"
    ):
        own.pack("shards")
    assert not (own.folder / "shards").exists()


def test_fewer_shards_leave_no_old_ones(own: Packing) -> None:
    own.pack("shards", shard_mb=0.1)
    partial = own.folder / "shards" / "train" / ".train-000000.tar.abc123.tmp"
    partial.write_bytes(b"what a killed pack leaves")
    (own.folder / "shards" / ".README.md.abc123.tmp").touch()
    stale = own.folder / "shards" / "old_split"
    stale.mkdir()
    (stale / "old_split-000003.tar").touch()
    own.pack("shards", shard_mb=100)
    assert sorted(own.files("shards")) == sorted(
        ["table", "README.md", "metadata.json"]
        + [f"{split}/{split}-000000.tar" for split in ("test", "train", "unseen-2")]
        + [f"{split}/index.json" for split in ("empty_split", "test", "train", "unseen-2")]
    )
    assert not stale.exists()


@pytest.mark.parametrize(
    "name",
    [
        "train/notes.txt",
        "README.md",
        "metadata.json",
        "train/README.md",
        "train/deep/train-000000.tar",
        "x-000000.tar",
    ],
)
def test_a_strangers_file_is_not_touched(own: Packing, name: str) -> None:
    own.pack("shards")
    foreign = own.folder / "shards" / name
    foreign.parent.mkdir(parents=True, exist_ok=True)
    foreign.write_text("mine")
    before = own.files("shards")
    with pytest.raises(ShardError, match="move it out"):
        own.pack("shards")
    assert own.files("shards") == before


def test_a_clip_that_the_cache_lost_is_cut_again_alike(own: Packing) -> None:
    own.pack("shards")
    for path in (own.folder / "cache").rglob("*.npz"):
        path.unlink()
    assert own.pack("again").num_rendered == 4
    assert own.files("again") == own.files("shards")


def test_a_video_that_changed_is_not_cut_by_its_old_track(own: Packing) -> None:
    for path in (own.folder / "cache").rglob("*.npz"):
        path.unlink()
    write_face(own.folder / "corpus" / "face.mp4", 12, scale=1.2)
    with pytest.raises(ShardError, match=r"clip face .*pipeline crop"):
        own.pack("shards")
    (own.folder / "corpus" / "face.mp4").unlink()
    with pytest.raises(ShardError, match=r"clip face .*missing_file"):
        own.pack("shards")
    assert not list((own.folder / "shards").rglob("*.tar"))
    assert not (own.folder / "shards.parquet").exists()


def test_tables_of_different_runs(own: Packing) -> None:
    # pixels do not tell the rate, and training would take it for true
    for other, message in (
        ({"size_px": 64}, "25 frames/s, 64 px"),
        ({"target_fps": 50.0}, "50 frames/s, 96 px"),
    ):
        with pytest.raises(
            TableError, match=rf"cut at 25 frames/s, 96 px, .* say {message}; .*pipeline crop"
        ):
            own.pack("shards", params=PARAMS.model_copy(update=other))
    marked = pq.read_table(own.tables[1])
    write_table(own.tables[1], marked, schema.CROPS)
    with pytest.raises(TableError, match=r"by an earlier version, .*pipeline crop"):
        own.pack("shards")
    write_table(own.tables[1], marked, marked.schema)
    assert not (own.folder / "shards").exists()
    rows = pq.read_table(own.tables[0]).to_pylist()
    write_clips(own.tables[0], rows[1:])
    with pytest.raises(TableError, match="pipeline crop"):
        own.pack("shards")
    own.tables[1].unlink()
    with pytest.raises(TableError, match="missing"):
        own.pack("shards")
