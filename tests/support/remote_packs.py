"""A pack in a bucket behind a faulty proxy. Import its fixtures by the names that end in _fixture."""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from shards.remote_files import RetryPolicy
from shards.remote_store import RemoteStore
from shards.settings import MachineParams
from tests.support.packed import Packed, pack_clips, toy_clips
from tests.support.s3_server import BUCKET, FaultyProxy, faulty_proxy, s3_server, upload

URL = f"s3://{BUCKET}/pack"
ROOT = Path(__file__).parents[2]
RANGE_BYTES = 1 << 18
QUICK_RETRIES = RetryPolicy(
    6, first_wait_s=0.005, total_s=20, connect_s=5, read_s=5, request_s=5, range_bytes=RANGE_BYTES
)
SHORT_TIMEOUTS = replace(QUICK_RETRIES, tries=9, read_s=0.3, request_s=0.6)
"""For requests that hang; on a busy machine it also retries requests that are only slow."""
GRACE_S = 0.25


@pytest.fixture(name="packed", scope="module")
def packed_fixture(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    """Shards of about 1 MB: five of train, one of valid, one of test."""
    packed = pack_clips(tmp_path_factory.mktemp("packed"), toy_clips(num_train=24, num_valid=2))
    write_indexes(packed.shards)
    return packed


def write_indexes(shards_folder: Path) -> None:
    for folder in (path for path in shards_folder.iterdir() if path.is_dir()):
        shards = []
        for path in sorted(folder.glob("*.tar")):
            content = path.read_bytes()
            described = {"name": path.name, "num_samples": 5, "bytes": len(content)}
            shards.append(described | {"sha256": hashlib.sha256(content).hexdigest()})
        index = {"split": folder.name, "num_samples": 5 * len(shards), "shards": shards}
        (folder / "index.json").write_text(json.dumps(index), "utf-8")


@pytest.fixture(name="server", scope="module")
def server_fixture(packed: Packed) -> Iterator[tuple[str, int]]:
    """Starts a server with the pack in its bucket, under `pack`."""
    with s3_server() as server:
        upload(server, packed.shards, "pack")
        yield server


@pytest.fixture(name="proxy")
def proxy_fixture(server: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    with faulty_proxy(server, monkeypatch) as proxy:
        yield proxy


@pytest.fixture(name="open_remote")
def open_remote_fixture(tmp_path: Path) -> Iterator[Callable[..., RemoteStore]]:
    """Returns a function that opens stores; closes them after the test."""
    stores: list[RemoteStore] = []

    def open_(
        url: str = URL, cache_gb: float = 1.0, retries: RetryPolicy = QUICK_RETRIES, cache: str = "cache"
    ) -> RemoteStore:
        machine = MachineParams(cache_dir=str(tmp_path / cache), shard_cache_gb=cache_gb)
        stores.append(RemoteStore(url, machine, retries, GRACE_S))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()


def tars(packed: Packed, split: str = "train") -> list[str]:
    return [name for name in packed.store.names() if name.startswith(split) and name.endswith(".tar")]


def sizes(folder: Path) -> dict[str, int]:
    """Returns the sizes of all non-empty files below; by inode, so that a file during its rename counts once."""
    found: dict[int, tuple[str, int]] = {}
    for path in folder.rglob("*"):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if path.is_file() and status.st_size:
            found[status.st_ino] = (str(path.relative_to(folder)), status.st_size)
    return dict(found.values())


@contextmanager
def watched(folder: Path) -> Iterator[list[int]]:
    """Measures the total size of `folder` repeatedly; keeps a total if two measurements in a row are equal."""
    totals: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            if (measured := sizes(folder)) == sizes(folder):
                totals.append(sum(measured.values()))
            time.sleep(0.001)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield totals
    finally:
        ended.set()
        thread.join()


def every(nth: int, fault: str) -> Callable[[int, str], str]:
    return lambda number, request: "" if number % nth else fault


FAULTS = {
    "none": lambda number, request: "",
    "503": every(4, "503"),
    "cut": every(4, "cut"),
    "hang": every(11, "hang"),
    "trickle": every(13, "trickle"),
    "each": lambda number, request: {3: "503", 5: "cut", 0: "hang"}.get(number % 11, ""),
}


def cache_of(packed: Packed, num_shards: float) -> float:
    """Returns the size of this many of the largest shards, GB."""
    return num_shards * max((packed.shards / name).stat().st_size for name in tars(packed)) / 1e9
