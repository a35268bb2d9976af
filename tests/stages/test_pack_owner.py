"""A remote store has no locks: the mark of its owner keeps packs of two catalogues apart, however they ended."""

import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.errors import ShardError
from shards.open_store import open_store
from shards.remote_store import RemoteStore
from shards.settings import MachineParams
from shards.store import OWNER, FolderStore
from shards.verify import verify
from stages.pack import pack
from tests.support import forked
from tests.support.packing import PARAMS, Packing, make
from tests.support.remote_packs import QUICK_RETRIES, SHORT_TIMEOUTS
from tests.support.s3_server import BUCKET, FaultyProxy, faulty_proxy, s3_client, s3_server


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("owner"), 3).folder


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Packing:
    return Packing(Path(shutil.copytree(made, tmp_path / "own")))


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    with s3_server() as address:
        yield address


@pytest.fixture
def proxy(server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with faulty_proxy(server, monkeypatch) as proxy:
        yield proxy


@pytest.fixture(params=["s3", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        request.getfixturevalue("proxy")
        return f"s3://{BUCKET}/{tmp_path.name}"
    return (tmp_path / "there").as_uri()


def pack_to(own: Packing, url: str, samples: Path, codec: str = "raw") -> RemoteStore:
    store = RemoteStore(url, own.machine, QUICK_RETRIES)
    tables = (*own.tables, store, samples)
    pack(own.corpus, PARAMS, own.params(codec=codec), own.machine, *tables, has_rights=True)
    return store


def content(store: RemoteStore) -> dict[str, bytes]:
    return {name: store.local(name).read_bytes() for name in store.names()}


def test_another_catalogue_is_refused_at_any_later_time_and_its_own_is_not(own: Packing, url: str) -> None:
    ours, theirs = own.folder / "ours.parquet", own.folder / "theirs.parquet"
    store = pack_to(own, url, ours)
    before = content(store)
    with pytest.raises(ShardError) as refused:
        pack_to(own, url, theirs, codec="jpeg")
    text = rf"{url} holds another pack, .*\({ours}, process {os.getpid()} of .*, begun 2.*\); this one \({theirs}, proc"
    assert re.match(text, str(refused.value)) and "paths.shards" in str(refused.value)
    assert f"remove {url}/{OWNER}" in str(refused.value)
    assert content(store) == before and not theirs.exists()
    pack_to(own, f"{url}-2", theirs, codec="jpeg")
    # from another place to which the catalogue was moved, too
    (own.folder / "moved").mkdir()
    for file in own.folder.glob("*ours.parquet*"):
        file.rename(own.folder / "moved" / file.name)
    assert content(pack_to(own, url, own.folder / "moved" / "ours.parquet")) == before
    store.remove(OWNER)
    assert content(pack_to(own, url, theirs, codec="jpeg")).keys() == before.keys()


def test_of_many_that_begin_at_once_one_goes_on(
    tmp_path: Path, proxy: FaultyProxy, server: tuple[str, int]
) -> None:
    url, begin, ends = f"s3://{BUCKET}/race", threading.Barrier(6), []

    def claim(number: int) -> None:
        store = RemoteStore(url, MachineParams(cache_dir=str(tmp_path / "cache")), QUICK_RETRIES)
        begin.wait()
        try:
            store.claim(tmp_path / f"{number}.parquet")
            ends.append(f"{number}.parquet")
        except ShardError as error:
            ends.append(str(error))
        store.close()

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (first,) = [end for end in ends if end.endswith(".parquet")]
    assert len(ends) == 6 and all(f"/{first}, process" in end for end in ends if end != first)
    client = s3_client(server)
    assert (
        f"/{first}, process" in client.get_object(Bucket=BUCKET, Key=f"race/{OWNER}")["Body"].read().decode()
    )
    client.close()


def test_a_store_that_knows_no_conditions_is_asked_before(
    tmp_path: Path, proxy: FaultyProxy, server: tuple[str, int]
) -> None:
    machine = MachineParams(cache_dir=str(tmp_path / "cache"))
    store = RemoteStore(f"s3://{BUCKET}/plain", machine, QUICK_RETRIES)
    refused: list[str] = []

    def once(number: int, request: str) -> str:
        if request.startswith("PUT") and not refused:
            refused.append(request)
            return "501"
        return ""

    proxy.fault = once
    store.claim(tmp_path / "a.parquet")
    refused.clear()
    assert store.names() == []
    with pytest.raises(ShardError, match=r"\(\S+/a\.parquet, process"):
        store.claim(tmp_path / "b.parquet")
    assert proxy.faults == ["501", "501"]
    store.close()


def test_a_mark_that_was_stored_though_its_answer_was_lost(tmp_path: Path, proxy: FaultyProxy) -> None:
    lost: list[str] = []

    def once(number: int, request: str) -> str:
        if request.startswith("GET") and not lost:
            lost.append(request)
            return "hang"
        return ""

    store = RemoteStore(
        f"s3://{BUCKET}/lost", MachineParams(cache_dir=str(tmp_path / "cache")), SHORT_TIMEOUTS
    )
    proxy.fault = once
    store.claim(tmp_path / "a.parquet")
    store.claim(tmp_path / "a.parquet")
    assert proxy.faults == ["hang"]
    store.close()


@pytest.mark.parametrize("mark", [b"", b"\xff\xfe\n", b"x" * 5000, b"one\n\x1b[31mtwo\n"])
def test_a_mark_that_nobody_knows_is_refused_with_the_way_out(tmp_path: Path, mark: bytes) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / OWNER).write_bytes(mark)
    store = open_store((tmp_path / "there").as_uri(), MachineParams(cache_dir=str(tmp_path / "cache")))
    with pytest.raises(ShardError, match=rf"remove \S+/there/{OWNER} and run the same command again"):
        store.claim(tmp_path / "a.parquet")
    assert (tmp_path / "there" / OWNER).read_bytes() == mark


BEGIN = """
import os, signal, sys
from pathlib import Path
from fsspec.implementations.local import LocalFileSystem
from s3fs import S3FileSystem
from tests.support.s3_server import BUCKET
from tests.stages.test_pack_owner import Packing, pack_to

own = Packing(Path(sys.argv[1]))
"""
KILLED_BEFORE_A_RENAME = """
def killed(self, path1, path2, **_):
    if path2.endswith(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    os.replace(path1, path2)

LocalFileSystem.mv = killed
pack_to(own, (own.folder / "there").as_uri(), own.folder / "samples.parquet")
"""
KILLED_BEFORE_THE_PARTS_ARE_JOINED = """
call, put = S3FileSystem._call_s3, S3FileSystem._put_file

async def killed(self, method, *args, **kwargs):
    if method == "complete_multipart_upload":
        os.kill(os.getpid(), signal.SIGKILL)
    return await call(self, method, *args, **kwargs)

async def in_parts(self, lpath, rpath, **kwargs):
    if rpath.endswith(sys.argv[2]):
        os.truncate(lpath, 12 << 20)
    return await put(self, lpath, rpath, **(kwargs | {"chunksize": 5 << 20}))

S3FileSystem._call_s3, S3FileSystem._put_file = killed, in_parts
pack_to(own, f"s3://{BUCKET}/killed", own.folder / "samples.parquet")
"""


def kill_pack(own: Packing, code: str, at: str) -> None:
    done = forked.python(BEGIN + code, own.folder, at)
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize("at", ["train-000000.tar", "index.json"])
def test_what_a_killed_pack_leaves_is_named_by_verify_and_removed_by_the_next(own: Packing, at: str) -> None:
    samples, there = own.folder / "samples.parquet", FolderStore(own.folder / "there")
    url = there.folder.as_uri()
    whole = content(pack_to(own, url, samples))
    table = samples.read_bytes()
    kill_pack(own, KILLED_BEFORE_A_RENAME, at)
    (left,) = [name for name in there.names() if name.endswith(".tmp")]
    samples.write_bytes(table)
    reported = {problem.shard: problem.what for problem in verify(there, samples, own.machine).problems}
    assert re.match(
        r"is a partial file of a killed .*`pipeline pack`; the next run removes it", reported[left]
    )
    assert "is not a file of this pack" not in reported.values()
    assert content(pack_to(own, url, samples)) == whole
    assert not [name for name in there.names() if name.endswith(".tmp")]
    assert not verify(there, samples, own.machine).problems


def test_a_pack_killed_in_an_upload_leaves_nothing_to_be_seen_in_a_bucket(
    own: Packing, proxy: FaultyProxy, server: tuple[str, int]
) -> None:
    kill_pack(own, KILLED_BEFORE_THE_PARTS_ARE_JOINED, "train-000000.tar")
    client = s3_client(server)
    names = [entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET, Prefix="killed/")["Contents"]]
    client.close()
    assert names == [f"killed/{OWNER}"]
    pack_to(own, f"s3://{BUCKET}/killed", own.folder / "samples.parquet")
