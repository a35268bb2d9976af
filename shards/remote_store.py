"""Shards at a URL of any file system of fsspec, read through a bounded cache on this machine."""

import hashlib
import logging
import os
import socket
import tempfile
import threading
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from shards.disk import FULL
from shards.errors import DiskError, MachineError, PipelineError, ShardError
from shards.files import fingerprint, sweep_temporaries, write_text
from shards.remote_files import RemoteFiles, RetryPolicy
from shards.settings import MachineParams
from shards.shard_cache import FetchAhead, ShardCache
from shards.store import OWNER, SHARDS_KEY, WritableStore, refuse_outside_name
from shards.tar import INDEX, IndexedShard, SplitIndex, parse_index

logger = logging.getLogger(__name__)

AHEAD_SHARE = 0.5
"""Share of the cache for shards fetched ahead by all ranks of the machine; the rest is for shards in use."""
GRACE_S = 5.0
"""Time from `local` until the cache may remove the file: enough to open it."""
_UPLOAD_LEFT_S = 24 * 3600.0


class RemoteStore(WritableStore):
    """The pack at `url`. Threads may share it; all processes of the machine share the cache below `cache_dir`.

    Downloads complete shards, in ranges, and compares them with the size and sha256 of `<split>/index.json`, which
    it reads once. Temporary failures are retried by `retries`, then raise MachineError; only a faulty pack raises
    ShardError.
    """

    is_remote = True

    def __init__(
        self,
        url: str,
        machine: MachineParams,
        retries: RetryPolicy | None = None,
        grace_s: float = GRACE_S,
        key: str = SHARDS_KEY,
    ) -> None:
        self._retries = retries or RetryPolicy()
        self._files = RemoteFiles(url, self._retries, key)
        cache_dir = Path(machine.cache_dir)
        self._cache = ShardCache(
            cache_dir / "shards", int(machine.shard_cache_gb * 1e9), grace_s, self._retries.total_s
        )
        self._folder = self._cache.folder / fingerprint(self._files.url)[:16]
        self._uploads = cache_dir / "uploads"
        self._indexes: dict[str, SplitIndex] = {}
        self._index_lock = threading.Lock()
        self._fetching: dict[str, Future[None]] = {}
        self._fetching_lock = threading.Lock()
        self._fetched: set[str] = set()
        """Shards downloaded in this epoch."""
        self._has_warned = False
        """Whether a second download in this epoch was reported."""
        self._renewed: set[str] = set()
        # torchrun sets the number of ranks that share the cache: else each would take half, and evict shards of others
        share = AHEAD_SHARE / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        self._ahead = FetchAhead(self._fetch_if_missing, self._path, share * self._cache.max_bytes)

    def place(self, name: str) -> str:
        return self._files.place(name)

    def names(self) -> list[str]:
        """See ShardStore; without the owner file."""
        return [name for name in self._files.names() if name != OWNER]

    def claim(self, catalogue: Path) -> None:
        """See WritableStore. The owner file stays, so a later pack of another catalogue is refused too.

        Its first line is an id that is also stored next to the catalogue. With the same id, `pack` may run again from
        any machine and after any failure, because the catalogue has a lock.
        """
        file = catalogue.with_name(f".{catalogue.name}.id")
        if not file.exists():
            write_text(file, f"{uuid.uuid4().hex}\n")
        began = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        ours = f"{catalogue}, process {os.getpid()} of {socket.gethostname()}, begun {began}"
        our_id = file.read_text("utf-8").strip()
        content = f"{our_id}\n{ours}\n".encode()
        found = self._files.put_if_absent(OWNER, content)
        if found == content:
            return
        their_id, _, theirs = found[:1000].decode(errors="replace").strip().partition("\n")
        if their_id != our_id:
            raise ShardError(
                f"{self._files.url} holds another pack, running or finished ({theirs or 'of an unknown owner'}); "
                f"this one ({ours}) would replace it: set another paths.shards; or, if the other one has "
                f"finished and nobody reads it any more, remove {self.place(OWNER)} and run the same command again"
            )
        with self.writing(OWNER) as mark:
            mark.write(content)

    def local(self, name: str) -> Path:
        """See ShardStore; raises MachineError if the cache cannot hold it. Other files than tars are read each time."""
        refuse_outside_name(name)
        if not name.endswith(".tar"):
            return self._download_small(name)
        shard = self._indexed(name)
        path = self._path(shard)
        self._cache.has(path, shard.num_bytes)  # counts as used now, so it is not evicted for another one
        self._ahead.note_requested(name)
        while not self._cache.has(path, shard.num_bytes):
            self._fetch_once(shard)
        return path

    def renew(self, name: str) -> bool:
        """See ShardStore. Keeps the old copy until the new one is complete: another process may be opening it."""
        if not name.endswith(".tar"):
            return False
        shard = self._indexed(name)
        with self._fetching_lock:
            if name in self._renewed:
                return False
            self._renewed.add(name)
        self._fetch(shard, is_renewal=True)
        return True

    def expect(self, names: Sequence[str]) -> None:
        """Fetches ahead in this order, up to half of the cache; replaces the expected shards."""
        expected = []
        for name in dict.fromkeys(names):
            try:
                expected.append(self._indexed(name))
            except ShardError:
                break  # `local` raises the error
        with self._fetching_lock:
            self._fetched, self._has_warned = set(), False
        self._ahead.expect(expected)

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """See WritableStore: a local file, uploaded when it is complete."""
        refuse_outside_name(name)
        with self._on_disk():
            self._uploads.mkdir(parents=True, exist_ok=True)
            sweep_temporaries(self._uploads, _UPLOAD_LEFT_S)
        try:
            with tempfile.NamedTemporaryFile(dir=self._uploads, prefix=".", suffix=".tmp") as file:
                yield file  # type: ignore[misc]
                file.flush()
                self._files.put(name, Path(file.name))
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise MachineError(
                f"{self.place(name)} cannot be written: no space below {self._uploads}; free some space, or set "
                "machine.cache_dir to another disk"
            ) from error
        self._forget_index(name)

    def remove(self, name: str) -> None:
        refuse_outside_name(name)
        self._files.remove(name)
        self._forget_index(name)

    def close(self) -> None:
        """Stops fetching ahead and closes the connections; the end of the process does it too."""
        self._ahead.stop(self._retries.request_s)
        self._files.close()

    def _path(self, shard: IndexedShard) -> Path:
        """Returns the path in the cache; the hash in the name separates packs with the same shard names."""
        return self._folder / f"{shard.name.removesuffix('.tar')}.{shard.sha256[:16]}.tar"

    def _indexed(self, name: str) -> IndexedShard:
        """Returns the entry of a shard in the index of its split; raises ShardError if there is none."""
        split = name.partition("/")[0]
        with self._index_lock:
            if split not in self._indexes:
                content = self._files.read_small(f"{split}/{INDEX}")
                self._indexes[split] = parse_index(content, split, self.place(f"{split}/{INDEX}"))
            shard = self._indexes[split].shards.get(name)
        if shard is None:
            raise ShardError(
                f"{self.place(name)}: {split}/{INDEX} does not list this shard; it and samples.parquet come from "
                "different packs: run `pipeline pack` again"
            )
        return shard

    def _forget_index(self, name: str) -> None:
        split, _, file = name.partition("/")
        if file == INDEX:
            with self._index_lock:
                self._indexes.pop(split, None)

    def _download_small(self, name: str) -> Path:
        content, path = self._files.read_small(name), self._folder / name
        with self._on_disk(), self._cache.exclusive(path), self._cache.new_file(path, len(content)) as file:
            file.write(content)
        return path

    def _fetch_if_missing(self, shard: IndexedShard) -> None:
        if not self._cache.has(self._path(shard), shard.num_bytes):
            self._fetch_once(shard)

    def _fetch_once(self, shard: IndexedShard) -> None:
        """Downloads a shard, or waits for the thread that downloads it; all waiting threads get its error."""
        with self._fetching_lock:
            future = self._fetching.get(shard.name)
            is_mine = future is None
            if future is None:
                future = self._fetching[shard.name] = Future()
        if is_mine:
            try:
                self._fetch(shard)
            except PipelineError as error:
                future.set_exception(error)
            finally:
                with self._fetching_lock:
                    del self._fetching[shard.name]
                if not future.done():
                    future.set_result(None)  # also after Ctrl-C: a waiting thread then downloads it
        future.result()

    def _fetch(self, shard: IndexedShard, is_renewal: bool = False) -> None:
        path = self._path(shard)
        with self._on_disk(), self._cache.exclusive(path):
            if not is_renewal and self._cache.has(path, shard.num_bytes):
                return  # another process was faster
            for is_last in (False, True):
                try:
                    self._download(shard, path)
                    if not is_renewal:
                        self._count(shard)
                    return
                except _WrongHash as error:
                    if is_last:
                        raise ShardError(
                            f"{self.place(shard.name)} does not match {INDEX}: sha256 {error} instead of "
                            f"{shard.sha256}, also when fetched again; `pipeline verify` lists the lost clips, "
                            "`pipeline pack` writes the shard again"
                        ) from None
                    logger.warning(
                        "%s was received with the wrong sha256 %s; fetching it again",
                        self.place(shard.name),
                        error,
                    )

    def _download(self, shard: IndexedShard, path: Path) -> None:
        digest, step = hashlib.sha256(), self._retries.range_bytes
        with self._cache.new_file(path, shard.num_bytes, self._ahead.expected_around(shard)) as file:
            for start in range(0, shard.num_bytes, step):
                block = self._files.read_range(shard.name, start, min(start + step, shard.num_bytes))
                digest.update(block)
                file.write(block)
            if digest.hexdigest() != shard.sha256:
                raise _WrongHash(digest.hexdigest())

    def _count(self, shard: IndexedShard) -> None:
        with self._fetching_lock:
            is_first_repeat = shard.name in self._fetched and not self._has_warned
            self._fetched.add(shard.name)
            self._has_warned |= is_first_repeat
        if is_first_repeat:
            logger.warning(
                "%s was fetched twice in one epoch: machine.shard_cache_gb %g is too small for the shards "
                "that are read at the same time; raise it, or lower loader.window_shards",
                self.place(shard.name),
                self._cache.max_bytes / 1e9,
            )

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except (OSError, DiskError) as error:
            raise MachineError(
                f"{self._cache.folder} cannot hold shards ({error.__cause__ or error}); free some space, lower "
                "machine.shard_cache_gb, or set machine.cache_dir to another disk"
            ) from error


class _WrongHash(Exception):
    """The downloaded shard has this sha256 instead of the expected one."""
