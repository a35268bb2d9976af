"""Shards in a bucket are read through a faulty network: completely, or with a clear error."""

import hashlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from shards.errors import ConfigError, MachineError, ShardError
from shards.open_store import open_store
from shards.remote_files import RemoteFiles, RetryPolicy
from shards.remote_store import RemoteStore
from shards.settings import MachineParams
from shards.store import FolderStore, ShardStore
from shards.tar import parse_index
from tests.support import forked
from tests.support.file_server import file_server
from tests.support.packed import Packed
from tests.support.remote_packs import (  # noqa: F401
    FAULTS,
    QUICK_RETRIES,
    RANGE_BYTES,
    ROOT,
    SHORT_TIMEOUTS,
    URL,
    open_remote_fixture,
    packed_fixture,
    proxy_fixture,
    server_fixture,
    sizes,
    tars,
)
from tests.support.s3_server import BUCKET, FaultyProxy, s3_client


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "each"])
def test_all_bytes_come_through(
    packed: Packed,
    proxy: FaultyProxy,
    open_remote: Callable[..., RemoteStore],
    caplog: pytest.LogCaptureFixture,
    fault: str,
) -> None:
    proxy.fault = FAULTS[fault]
    is_silent = fault in ("hang", "trickle", "each")
    store = open_remote(retries=SHORT_TIMEOUTS if is_silent else QUICK_RETRIES)
    for name in tars(packed):
        assert store.local(name).read_bytes() == (packed.shards / name).read_bytes()
    retried = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(retried) == len(proxy.faults) or (is_silent and len(retried) > len(proxy.faults))
    assert bool(proxy.faults) == (fault != "none")
    assert all("; try " in record.message and URL in record.message for record in retried)


def test_a_permanent_failure_ends_soon_and_leaves_no_partial_file(
    packed: Packed, proxy: FaultyProxy, open_remote: Callable[..., RemoteStore], tmp_path: Path
) -> None:
    store = open_remote()
    first, second = tars(packed)[:2]
    store.local(first)
    for fault in ("503", "cut"):
        proxy.requests.clear()
        proxy.fault = lambda number, request, fault=fault: fault
        began = time.monotonic()
        with pytest.raises(
            MachineError, match=rf"{URL}/{second}: cannot read it, tried 6 times .*: .*network"
        ):
            store.local(second)
        assert time.monotonic() - began < 5
        # then it requests the size once, in case the shard itself is truncated
        assert [request.split()[0] for request in proxy.requests] == ["GET"] * 6 + ["HEAD"]
    assert [size for name, size in sizes(tmp_path / "cache").items() if "000001" in name] == []


@pytest.mark.parametrize("num_bytes", [0, RANGE_BYTES, 300_000])
def test_a_shard_that_is_shorter_than_its_index_says(
    packed: Packed, open_remote: Callable[..., RemoteStore], tmp_path: Path, num_bytes: int
) -> None:
    shutil.copytree(packed.shards, tmp_path / "there")
    os.truncate(tmp_path / "there" / tars(packed)[0], num_bytes)
    with pytest.raises(
        ShardError, match=rf"000000\.tar is truncated.* has {num_bytes} bytes, index\.json says more"
    ):
        open_remote((tmp_path / "there").as_uri()).local(tars(packed)[0])


@pytest.mark.parametrize("num_bytes", [0, RANGE_BYTES, 300_000])
def test_a_shard_that_is_shorter_in_its_bucket(
    packed: Packed,
    proxy: FaultyProxy,
    server: tuple[str, int],
    open_remote: Callable[..., RemoteStore],
    num_bytes: int,
) -> None:
    name, client = tars(packed)[0], s3_client(server)
    for key, content in {
        "train/index.json": (packed.shards / "train/index.json").read_bytes(),
        name: (packed.shards / name).read_bytes()[:num_bytes],
    }.items():
        client.put_object(Bucket=BUCKET, Key=f"short/{key}", Body=content)
    client.close()
    with pytest.raises(ShardError, match=rf"000000\.tar is truncated.* has {num_bytes} bytes"):
        open_remote(f"s3://{BUCKET}/short").local(name)


def test_a_silent_server_causes_a_timeout(
    packed: Packed, proxy: FaultyProxy, open_remote: Callable[..., RemoteStore]
) -> None:
    store = open_remote(retries=replace(SHORT_TIMEOUTS, tries=2, read_s=0.3, request_s=0.6))
    store.local("train/index.json")
    for fault in ("hang", "trickle"):
        proxy.fault = lambda number, request, fault=fault: fault
        began = time.monotonic()
        with pytest.raises(MachineError, match="tried 2 times"):
            store.local(tars(packed)[0])
        assert time.monotonic() - began < 4


def test_missing_and_forbidden_files_are_not_retried(
    packed: Packed, proxy: FaultyProxy, server: tuple[str, int], open_remote: Callable[..., RemoteStore]
) -> None:
    client, name = s3_client(server), tars(packed)[1]
    client.upload_file(str(packed.shards / "train/index.json"), BUCKET, "gone/train/index.json")
    client.close()
    store = open_remote(f"s3://{BUCKET}/gone")
    with pytest.raises(ShardError, match=f"gone/{name}: cannot read it .*FileNotFoundError"):
        store.local(name)
    proxy.fault = lambda number, request: "403"
    with pytest.raises(MachineError, match=r"000002\.tar: cannot read it .*PermissionError.*permissions"):
        store.local("train/train-000002.tar")
    assert len(proxy.requests) == 4  # with the index, and the size of the last
    proxy.fault = lambda number, request: ""
    with pytest.raises(ShardError, match=r"nobucket"):
        open_remote("s3://nobucket/pack").local("train/train-000000.tar")


def test_an_index_without_the_shard(proxy: FaultyProxy, open_remote: Callable[..., RemoteStore]) -> None:
    with pytest.raises(ShardError, match=r"train/index\.json does not list this shard"):
        open_remote().local("train/train-000099.tar")
    with pytest.raises(ShardError, match=r"extra/index\.json: cannot read it"):
        open_remote().local("extra/extra-000000.tar")


def test_wrong_bytes_are_fetched_again_once(
    packed: Packed, proxy: FaultyProxy, open_remote: Callable[..., RemoteStore], tmp_path: Path
) -> None:
    store, (first, second), numbers = open_remote(), tars(packed)[:2], count()
    store.local(first)
    proxy.requests.clear()
    proxy.fault = lambda number, request: "garbled" if next(numbers) == 2 else ""
    assert store.local(second).read_bytes() == (packed.shards / second).read_bytes()
    num_ranges = -(-(packed.shards / second).stat().st_size // RANGE_BYTES)
    assert len(proxy.gets(second)) == 2 * num_ranges
    proxy.requests.clear()
    proxy.fault = lambda number, request: "garbled"
    with pytest.raises(ShardError, match=r"000002\.tar does not match index\.json"):
        store.local("train/train-000002.tar")
    assert len(set(proxy.requests)) * 2 == len(proxy.requests)
    assert not [name for name in sizes(tmp_path / "cache") if "000002" in name]


@pytest.fixture(params=["s3", "memory", "file", "folder"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        request.getfixturevalue("proxy")
        return f"s3://{BUCKET}/written"
    return {
        "memory": f"memory://{tmp_path.name}/written",
        "file": (tmp_path / "written").as_uri(),
        "folder": str(tmp_path / "written"),
    }[request.param]


def test_written_files_can_be_read_and_removed(
    place: str, open_remote: Callable[..., RemoteStore], tmp_path: Path
) -> None:
    store: ShardStore = open_remote(place) if "://" in place else FolderStore(Path(place))
    assert store.is_remote == ("://" in place)
    assert store.names() == []
    content = os.urandom(700_000)
    with store.writing("train/train-000000.tar") as file:
        file.write(content)
    described = {"name": "train-000000.tar", "num_samples": 1, "bytes": len(content)}
    described["sha256"] = hashlib.sha256(content).hexdigest()
    index = json.dumps({"split": "train", "num_samples": 1, "shards": [described]}).encode()
    with store.writing("train/index.json") as file:
        file.write(index)
    with pytest.raises(KeyError), store.writing("train/train-000001.tar") as file:
        file.write(content)
        raise KeyError
    assert store.names() == ["train/index.json", "train/train-000000.tar"]
    assert store.local("train/index.json").read_bytes() == index
    assert store.local("train/train-000000.tar").read_bytes() == content
    with store.writing("train/index.json") as file:
        file.write(b"[]\n")
    assert store.local("train/index.json").read_bytes() == b"[]\n"
    assert store.place("train/index.json") == f"{place}/train/index.json"
    for name in store.names():
        store.remove(name)
    assert store.names() == []
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_faulty_network_is_written_through(
    proxy: FaultyProxy, server: tuple[str, int], open_remote: Callable[..., RemoteStore]
) -> None:
    content = os.urandom(700_000)
    faults = {"PUT": ["503", "hang"], "HEAD": ["503"]}
    proxy.fault = lambda number, request: faults[method].pop() if faults[method := request.split()[0]] else ""
    with open_remote(f"s3://{BUCKET}/new", retries=SHORT_TIMEOUTS).writing("train/train-000009.tar") as file:
        file.write(content)
    assert sorted(proxy.faults) == ["503", "503", "hang"]
    client = s3_client(server)
    assert client.get_object(Bucket=BUCKET, Key="new/train/train-000009.tar")["Body"].read() == content
    proxy.fault = lambda number, request: "503"
    with (
        pytest.raises(MachineError, match="cannot write it, tried 6 times"),
        open_remote().writing("train/x.tar") as file,
    ):
        file.write(content)
    client.close()


def test_open_store_takes_urls_and_folders(tmp_path: Path) -> None:
    machine = MachineParams(cache_dir=str(tmp_path))
    for folder in ("data/shards", "/data/shards", "C:shards"):
        assert isinstance(open_store(folder, machine), FolderStore)
    for url in ("memory://x", tmp_path.as_uri(), "simplecache::memory://x"):
        assert open_store(url, machine).is_remote
    with pytest.raises(ConfigError, match=r"paths\.shards: nosuch://x"):
        open_store("nosuch://x", machine)
    for place in ("s3:/bucket/pack", "S3:/bucket", "gs:/", "file:/data/shards"):
        with pytest.raises(
            ConfigError, match=rf"paths\.shards: {place} is not a URL; write {place}".replace(":/", ":/+")
        ):
            open_store(place, machine)
    for folder in ("./s3:/bucket", "C:/shards", "a:b/c"):
        assert isinstance(open_store(folder, machine), FolderStore)


def test_a_missing_package_is_named() -> None:
    source = (
        "import sys; sys.modules['s3fs'] = None\n"
        "from shards.open_store import open_store; from shards.settings import MachineParams\n"
        "open_store('s3://bucket/folder', MachineParams())"
    )
    done = forked.python(source)
    assert "ConfigError: paths.shards: s3://bucket/folder" in done.stderr
    assert "pip install 'lip-pipeline[s3]'" in done.stderr


def test_missing_keys_are_reported_immediately(
    proxy: FaultyProxy,
    open_remote: Callable[..., RemoteStore],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(MachineError, match="AWS_ACCESS_KEY_ID"):
        open_remote().local("train/train-000000.tar")
    assert proxy.requests == []


@pytest.mark.parametrize("name", ["../x.tar", "train/../../x.tar", "/etc/x.tar"])
def test_names_outside_the_store_are_refused(
    open_remote: Callable[..., RemoteStore], tmp_path: Path, name: str
) -> None:
    for store in (open_remote("memory://x"), FolderStore(tmp_path)):
        with pytest.raises(ShardError, match="not a valid name of a shard"):
            store.local(name)


SHARD = {"name": "train-000000.tar", "num_samples": 1, "bytes": 10, "sha256": "0" * 64}
BROKEN = [
    b"",
    b"[" * 100_000,
    b"[]",
    b"{}",
    b'{"split": "train", "num_samples": 1, "shards": 3}',
    *(
        json.dumps({"split": "train", "num_samples": 1, "shards": shards}).encode()
        for shards in (
            [SHARD, SHARD],
            [SHARD | {"bytes": -1}],
            [SHARD | {"bytes": True}],
            [SHARD | {"bytes": "10"}],
            [SHARD | {"sha256": "0"}],
            [SHARD | {"sha256": None}],
            [SHARD | {"name": "../x.tar"}],
            [{"name": "x.tar"}],
            [None],
        )
    ),
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_index_is_reported(content: bytes) -> None:
    with pytest.raises(ShardError, match=r"here/index\.json is damaged"):
        parse_index(content, "train", "here/index.json")


def test_an_index_is_read() -> None:
    content = json.dumps({"split": "train", "num_samples": 1, "shards": [SHARD], "more": 1}).encode()
    (shard,) = parse_index(content, "train", "x").shards.values()
    assert (shard.name, shard.num_bytes) == ("train/train-000000.tar", 10)


def test_an_http_server_that_is_down_is_an_outage_not_a_missing_file() -> None:
    """fsspec's HTTP raises FileNotFoundError for both."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    files = RemoteFiles(f"http://127.0.0.1:{port}/pack", RetryPolicy(tries=2, first_wait_s=0.01), "my key")
    for read in (
        files.names,
        lambda: files.stream("train/a.tar").read(),
        lambda: files.read_small("index.json"),
    ):
        with pytest.raises(MachineError, match="tried 2 times"):
            read()


def test_a_file_that_an_http_server_lacks_is_missing(tmp_path: Path) -> None:
    with file_server(tmp_path) as server:
        files = RemoteFiles(f"{server.url}/pack", RetryPolicy(tries=2), "my key")
        assert files.names() == []
        with pytest.raises(ShardError, match=r"index\.json: cannot read it"):
            files.read_small("index.json")
        with pytest.raises(ShardError, match=r"a\.tar: cannot read it"):
            files.stream("train/a.tar").read()
