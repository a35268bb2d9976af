"""`shards.webdataset` yields every clip of a pack, or raises an error that names the shard."""

import os
import tarfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from torch.utils.data import DataLoader

import shards
from shards import tar_stream
from shards.errors import ConfigError, MachineError, ShardError
from shards.files import read_table
from shards.remote_files import RetryPolicy
from shards.sample_reader import read_sample
from shards.schema import SAMPLES
from shards.store import FolderStore
from tests.support.changed_packs import Pack, pack_fixture  # noqa: F401
from tests.support.file_server import FileServer, file_server
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.remote_packs import write_indexes

FIRST = "train/train-000000.tar"


def ids(samples: Iterable[dict[str, Any]]) -> list[str]:
    return [sample["clip_id"] for sample in samples]


def truth(pack: Pack, split: str = "train") -> dict[str, tuple[np.ndarray, str]]:
    """Returns clip and label by clip_id, read at the offsets of the catalogue."""
    rows = [row for row in read_table(pack.samples, SAMPLES, "").to_pylist() if row["split"] == split]
    store = FolderStore(pack.path(""))
    return {row["clip_id"]: (read_sample(store, row)[0], row["label"]) for row in rows}


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """30 clips of train in six shards."""
    packed = pack_clips(tmp_path_factory.mktemp("many"), toy_clips(num_train=30, num_valid=5))
    write_indexes(packed.shards)
    return packed


@pytest.mark.parametrize("codec", ["raw", "jpeg", "h264", "ffv1"])
def test_every_clip_of_every_codec(tmp_path: Path, codec: str) -> None:
    pack = Pack(tmp_path, codec)
    for split in ("train", "valid"):
        pipeline = shards.webdataset(pack.path(""), split)
        assert isinstance(pipeline, wds.WebDataset)
        expected, found = truth(pack, split), list(pipeline)
        assert ids(found) == list(expected)
        for sample in found:
            clip_THW, label = expected[sample["clip_id"]]
            assert np.array_equal(sample["video_THW"], clip_THW) and sample["video_THW"].dtype == np.uint8
            assert (sample["label"], sample["metadata"]["fps"]) == (label, 25.0)
    assert ids(shards.webdataset(pack.path("")).slice(2).map(dict)) == list(truth(pack))[:2]


def test_batches_are_padded_with_zeros(many: Packed) -> None:
    clips = {clip_id: (clip, label) for clip_id, split, clip, label in toy_clips(30, 5) if split == "train"}
    batches = list(shards.webdataset(many.shards, batch_size=4))
    assert [len(batch["clip_ids"]) for batch in batches] == [4] * 7 + [2]
    for batch in batches:
        assert batch["video_BTHW"].dtype == torch.uint8
        assert batch["video_BTHW"].shape[1] == int(batch["num_frames_B"].max())
        for video_THW, n, label, clip_id in zip(*batch.values(), strict=True):
            assert np.array_equal(video_THW[:n], clips[clip_id][0]) and not video_THW[n:].any()
            assert label == clips[clip_id][1]


@pytest.mark.parametrize("loader", [DataLoader, wds.WebLoader])
def test_workers_share_the_shards_and_see_the_epoch(many: Packed, loader: Callable[..., Any]) -> None:
    pipeline = shards.webdataset(many.shards, shuffle=4, seed=1)
    expected = sorted(ids(shards.webdataset(many.shards)))
    batches = loader(pipeline, batch_size=None, num_workers=2, persistent_workers=True)
    orders = []
    for epoch in (0, 1, 0):
        pipeline.set_epoch(epoch)
        orders.append(ids(batches))
        assert sorted(orders[-1]) == expected
    assert orders[0] == orders[2] != orders[1]


def test_more_workers_than_shards(many: Packed) -> None:
    batches = DataLoader(shards.webdataset(many.shards, "valid"), batch_size=None, num_workers=2)
    assert len(ids(batches)) == 5


def test_ranks_read_different_shards(many: Packed, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "3")
        found.append(ids(shards.webdataset(many.shards, shuffle=3)))
    assert [len(clips) for clips in found] == [10, 10, 10]
    assert len({clip_id for clips in found for clip_id in clips}) == 30
    with pytest.raises(ConfigError, match="1 shards of split 'valid', too few for 3 ranks"):
        shards.webdataset(many.shards, "valid")
    with pytest.raises(ConfigError, match="got 7 of 7"):
        shards.webdataset(many.shards, rank=7, world_size=7)


def test_a_pattern_a_list_and_a_pipe_name_the_shards(many: Packed) -> None:
    expected = ids(shards.webdataset(many.shards))
    pattern = f"{many.shards}/train/train-{{000000..000005}}.tar"
    assert ids(shards.webdataset(pattern)) == expected
    assert ids(shards.webdataset(f"pipe:cat {pattern}")) == expected
    assert ids(shards.webdataset(sorted(map(str, many.shards.glob("train/*.tar"))))) == expected
    odd = many.shards.parent / "a #1 {b}"
    if not odd.exists():
        odd.symlink_to(many.shards)
    assert ids(shards.webdataset(odd)) == expected
    assert ids(shards.webdataset(many.shards.as_uri())) == expected


DAMAGE: dict[str, tuple[Callable[[Pack], object], str]] = {
    "ends between two samples": (lambda pack: cut(pack, "sample_offset", 0), "no valid header at byte"),
    "ends in a header": (lambda pack: cut(pack, "sample_offset", 100), "no valid header at byte"),
    "ends in a payload": (lambda pack: cut(pack, "clip_offset", 100), "unexpected end of data"),
    "has a damaged header": (lambda pack: pack.flip(pack.row("b")["sample_offset"]), "no valid header"),
    "goes on after its end": (
        lambda pack: pack.path().write_bytes(
            pack.path().read_bytes() + bytes(20_000) + pack.path().read_bytes()
        ),
        "data after the end",
    ),
}


def cut(pack: Pack, column: str, more: int) -> None:
    pack.path().write_bytes(pack.path().read_bytes()[: pack.row("b")[column] + more])


@pytest.mark.parametrize("route", ["folder", "pipe", "URL"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_stream_is_an_error(pack: Pack, damage: str, route: str) -> None:
    """webdataset 1.0.2 yields one of three clips in four of these five cases."""
    change, what = DAMAGE[damage]
    change(pack)
    path = pack.path()
    place = {"folder": path, "pipe": f"pipe:cat {path}", "URL": path.as_uri()}[route]
    seen = []
    with pytest.raises(ShardError, match=what) as raised:
        for sample in shards.webdataset([str(place)]):
            seen.append(sample["clip_id"])
    assert str(path) in str(raised.value)
    assert seen == (["a", "b", "c"] if damage == "goes on after its end" else ["a"][: len(seen)])
    assert "after clip" in str(raised.value) or "before the first sample" in str(raised.value)


def test_a_shard_that_differs_from_the_index_is_an_error(pack: Pack) -> None:
    pack.shards[FIRST] = pack.shards[FIRST][:4]
    index = pack.index("train")
    pack.write(with_catalogue=False)
    pack.write_index("train", index)
    with pytest.raises(ShardError, match=r"has 2 samples, index\.json says 3"):
        list(shards.webdataset(pack.path("")))


@pytest.mark.parametrize(
    ("command", "error", "what"),
    [
        ("cat {}; exit 3", MachineError, r"failed \(exit code 3\)"),
        ("head -c 3000 {}; exit 22", MachineError, r"failed \(exit code 22\)"),
        ("exit 7", MachineError, r"failed \(exit code 7\)"),
        ("cat {} | head -c 3000", ShardError, "is damaged or truncated"),
        ("cat {0} {0}", ShardError, "no valid header|data after the end"),
    ],
)
def test_a_command_that_fails_is_an_error(pack: Pack, command: str, error: type, what: str) -> None:
    with pytest.raises(error, match=what):
        list(shards.webdataset([f"pipe:{command.format(pack.path())}"]))


def test_an_abandoned_command_ends(pack: Pack, tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    samples = iter(shards.webdataset([f"pipe:echo $$ > {marker}; cat {pack.path()}; sleep 60"]))
    assert next(samples)["clip_id"] == "a"
    process = int(marker.read_text())
    assert Path(f"/proc/{process}").exists()
    samples.close()
    del samples
    until = time.monotonic() + 5
    while Path(f"/proc/{process}").exists() and time.monotonic() < until:
        time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@pytest.fixture
def server(many: Packed, monkeypatch: pytest.MonkeyPatch) -> Iterable[FileServer]:
    monkeypatch.setattr(RetryPolicy.__init__, "__defaults__", (3, 0.01, 20.0, 5.0, 5.0, 5.0, 1 << 16))
    with file_server(many.shards) as server:
        yield server


def test_a_web_server_without_ranges(many: Packed, server: FileServer) -> None:
    expected = ids(shards.webdataset(many.shards))
    assert ids(shards.webdataset(server.url)) == expected
    assert len(server.gets) == 1 + 6
    assert ids(shards.webdataset(f"{server.url}/train/train-{{000000..000005}}.tar")) == expected
    with pytest.raises(ShardError, match="train-000009"):
        list(shards.webdataset([f"{server.url}/train/train-000009.tar"]))


def test_a_connection_that_breaks_is_opened_again(many: Packed, server: FileServer) -> None:
    server.num_cuts = 2
    assert ids(shards.webdataset(server.url)) == ids(shards.webdataset(many.shards))
    assert server.num_cuts == 0
    server.num_cuts = 1_000
    with pytest.raises(MachineError, match=r"train-000000.tar: cannot read it, tried 3 times"):
        list(shards.webdataset(server.url))


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ([("a.npy", b"x")], "clip a has one member instead of two"),
        ([("a.npy", b"x"), ("b.npy", b"x")], "'b.npy' is not the second"),
        ([("a.npy", b"x"), ("a.npy", b"x")], "'a.npy' is not the second"),
        ([("a.npy", b"x"), ("a.json", b"{}")], "clip a is damaged: 'clip_id' is missing"),
        ([("a.npy", b"x"), ("a.json", b"[" * 100_000)], "clip a is damaged"),
        ([("a.npy", b"x"), ("a.json", b"{"), ("a.txt", b"x")], "clip a is damaged: Expecting property"),
        ([("README", b"x")], "'README' is not a file of a sample"),
        ([tarfile.TarInfo("a.npy")], "'a.npy' is not a file of a sample"),
    ],
)
def test_a_sample_that_is_not_of_our_writer_is_an_error(pack: Pack, members: list[Any], what: str) -> None:
    for member in members:
        if isinstance(member, tarfile.TarInfo):
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    pack.shards[FIRST] = members
    pack.write(with_catalogue=False)
    with pytest.raises(ShardError, match=what):
        list(shards.webdataset(pack.path()))


@pytest.mark.parametrize(
    "changed", [{"id": "b"}, {"num_frames": 4}, {"num_frames": "3"}, {"label": 1}, {"codec": "jpeg"}]
)
def test_metadata_that_does_not_fit_is_an_error(pack: Pack, changed: dict[str, Any]) -> None:
    pack.shards[FIRST][1] = ("a.json", pack.metadata(FIRST, changed.pop("id", "a"), **changed))
    pack.write(with_catalogue=False)
    with pytest.raises(ShardError, match=f"{FIRST}: the sample of clip a is damaged"):
        list(shards.webdataset(pack.path("")))


def test_a_member_that_is_too_large_is_not_read(pack: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_stream, "MAX_SAMPLE_BYTES", 30_000)
    assert ids(shards.webdataset(pack.path(""))) == list(truth(pack))
    pack.shards[FIRST][2] = ("b.npy", bytes(30_001))
    pack.write(with_catalogue=False)
    with pytest.raises(ShardError, match=r"after clip a: member .b\.npy. claims 30001 bytes"):
        list(shards.webdataset(pack.path("")))
    pack.shards[FIRST] = [("x" * 60_000, b"")]
    pack.write(with_catalogue=False)
    with pytest.raises(ShardError, match="a header, or the padding at its end, is too large"):
        list(shards.webdataset(pack.path("")))


def test_clips_of_two_sizes_in_a_batch_are_an_error(many: Packed, pack: Pack) -> None:
    places = [str(many.shards / FIRST), str(pack.path())]
    with pytest.raises(
        ShardError, match=r"clip a in shard .* frames of \(16, 16\) px, clip train_000 .* \(96, 96\)"
    ):
        list(shards.webdataset(places, batch_size=8))


def test_a_split_without_an_index_is_an_error(pack: Pack) -> None:
    with pytest.raises(ShardError, match=r"nosuch/index\.json is missing"):
        shards.webdataset(pack.path(""), "nosuch")
