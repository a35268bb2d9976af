"""Files below a URL of any file system that fsspec opens: each request bounded in time, and tried again."""

import errno
import logging
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from shards.errors import ConfigError, MachineError, PipelineError, ShardError
from shards.index import INDEX

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci"})
"""Here a file appears whole or not at all, and a rename would copy it; elsewhere it is renamed when it is whole."""

_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_NO_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"})
"""What botocore and google.auth raise where the environment has no keys; named, since neither need be installed."""

_SMALL_FILE_BYTES = 256 << 20
"""An index.json of a million shards has 200 MB."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long a remote file system is waited for, and how it is asked."""

    tries: int = 6
    first_wait_s: float = 0.5
    """Before the second try; doubled before each further one, and varied by half, lest all ranks ask at once."""
    total_s: float = 300.0
    """No new try after this time."""
    connect_s: float = 10.0
    read_s: float = 30.0
    """Silence on a connection (s3)."""
    request_s: float = 120.0
    """One request of `range_bytes`, however slowly it trickles; for file systems with asyncio, as s3, gs and az."""
    range_bytes: int = 16 << 20


def open_file_system(url: str, key: str, **options: Any) -> tuple[Any, str]:
    """fsspec's file system and the path in it; ConfigError, naming `key`, where there is none for `url`."""
    try:
        files, root = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        mend = (
            "pip install 'lip-pipeline[s3]'" if url.startswith(("s3:", "s3a:")) else "install what it names"
        )
        raise ConfigError(f"{key}: {url} cannot be opened ({error}); {mend}") from error
    except ValueError as error:
        raise ConfigError(f"{key}: {url} cannot be opened ({error})") from error
    return files, root


def upload_whole(files: Any, here: Path, there: str, **options: Any) -> None:
    """Stores the file `here`; another reader sees all of it or nothing. `options` go to the transfer."""
    if _is_object_store(files):
        files.put_file(str(here), there, **options)
        return
    folder, _, name = there.rpartition("/")
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
    files.makedirs(folder, exist_ok=True)
    try:
        files.put_file(str(here), temporary, **options)
        files.mv(temporary, there)
    except BaseException:
        if files.exists(temporary):
            files.rm_file(temporary)
        raise


class RemoteFiles:
    """The files below `url`, named relative to it.

    Every method raises MachineError naming the URL and the last error where the file cannot be reached: when
    `retries` is at its end, and at once where the keys are missing or give no right. ShardError is for what is
    certain of the file itself: it is not there, or too short. Threads may share one. Secrets come from where the
    file system itself looks for them (for s3 the environment: AWS_…).
    """

    def __init__(self, url: str, retries: RetryPolicy) -> None:
        self.url, self.retries = url.rstrip("/"), retries
        is_s3 = url.startswith(("s3://", "s3a://"))
        options: dict[str, Any] = {"skip_instance_cache": True}
        if is_s3:
            # tried once by botocore and s3fs: the tries are ours alone
            timeouts = {"connect_timeout": retries.connect_s, "read_timeout": retries.read_s}
            options["config_kwargs"] = {**timeouts, "retries": {"total_max_attempts": 1}}
        self._files, root = open_file_system(url, "paths.shards", **options)
        self._root = root.rstrip("/")
        if is_s3:
            self._files.retries = 1

    def place(self, name: str) -> str:
        return f"{self.url}/{name}"

    def names(self) -> list[str]:
        """Every file, sorted; none where there is no such folder."""

        def find() -> list[str]:
            self._files.invalidate_cache()
            try:
                return self._files.find(self._root, **self._timeout(self.retries.total_s))
            except FileNotFoundError:
                return []

        found = (path.removeprefix(f"{self._root}/") for path in self._with_retries("list", "", find))
        return sorted(name for name in found if name and name != self._root)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Bytes `start` to `stop` of a file, exactly so many."""

        def read() -> bytes:
            block: bytes = self._files.cat_file(self._path(name), start=start, end=stop, **self._timeout())
            if len(block) != stop - start:
                raise EOFError(f"{len(block)} bytes came of {stop - start} from byte {start} on")
            return block

        try:
            return self._with_retries("read", name, read)
        except MachineError:
            num_bytes = self._num_bytes(name)
            if num_bytes is None or num_bytes >= stop:
                raise
            raise ShardError(
                f"{self.place(name)} is cut, or of another pack: it has {num_bytes} bytes, {INDEX} says more; "
                "`pipeline pack` makes it anew"
            ) from None

    def read_small(self, name: str) -> bytes:
        """The whole of an index.json or the like."""

        def read() -> bytes:
            return self._files.cat_file(self._path(name), start=0, end=_SMALL_FILE_BYTES, **self._timeout())

        return self._with_retries("read", name, read)

    def put(self, name: str, file: Path) -> None:
        """Stores a file of this machine under `name`, whole."""
        num_bytes = file.stat().st_size
        retries = self.retries
        limit = self._timeout(retries.request_s * max(1.0, num_bytes / retries.range_bytes))

        def store() -> None:
            upload_whole(self._files, file, self._path(name), **limit)
            self._files.invalidate_cache()
            stored = self._files.info(self._path(name), **self._timeout())["size"]
            if stored != num_bytes:
                raise EOFError(f"{stored} bytes are there of {num_bytes}")

        self._with_retries("write", name, store)

    def put_if_absent(self, name: str, content: bytes) -> bytes:
        """Stores `content` under `name` unless something lies there; gives what lies there then.

        Of two at once one is first where the store knows the condition (S3's If-None-Match, GCS, Azure); elsewhere
        it is asked before, and what came last is given.
        """
        path = self._path(name)

        def store() -> None:
            if not _is_object_store(self._files):
                self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            try:
                self._files.pipe_file(path, content, mode="create", **self._timeout())
            except FileExistsError:
                pass
            except OSError as error:
                if error.errno != errno.ENOSYS:
                    raise
                self._files.invalidate_cache()
                if not self._files.exists(path):
                    self._files.pipe_file(path, content, **self._timeout())

        self._with_retries("write", name, store)
        return self.read_small(name)

    def remove(self, name: str) -> None:
        self._with_retries("remove", name, lambda: self._files.rm_file(self._path(name), **self._timeout()))

    def close(self) -> None:
        """Ends the connections; the end of the process does it too."""
        if hasattr(self._files, "s3"):
            fsspec.asyn.sync(self._files.loop, self._files.s3.close, timeout=self.retries.connect_s)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _timeout(self, seconds: float | None = None) -> dict[str, float]:
        """A limit in time for one call, where the file system knows of such; others have limits of their own."""
        return {"timeout": seconds or self.retries.request_s} if self._files.async_impl else {}

    def _num_bytes(self, name: str) -> int | None:
        """The size that the file system tells; None where it tells none, asked once."""

        def ask() -> int | None:
            self._files.invalidate_cache()
            size: int | None = self._files.info(self._path(name), **self._timeout())["size"]
            return size

        try:
            return self._with_retries("look at", name, ask, tries=1)
        except PipelineError:
            return None  # the caller has an error to tell

    def _with_retries(
        self, what: str, name: str, request: Callable[[], _Result], tries: int | None = None
    ) -> _Result:
        """What `request` gives, tried as `retries` allows; MachineError, or ShardError where nothing is there."""
        place, retries, began = self.place(name), self.retries, time.monotonic()
        tries = tries or retries.tries
        for number in range(1, tries + 1):
            try:
                return request()
            except _ABSENT as error:
                raise ShardError(
                    f"{place}: cannot {what} it ({type(error).__name__}: {error}); check paths.shards"
                ) from error
            except PermissionError as error:
                raise MachineError(
                    f"{place}: cannot {what} it ({type(error).__name__}: {error}); "
                    "check paths.shards and the rights of the keys in use"
                ) from error
            # every file system has errors of its own libraries, and no list of them is whole; nothing is passed
            # over: the last one is told
            except Exception as error:
                told = f"{type(error).__name__}: {error}"
                wait_s = retries.first_wait_s * 2 ** (number - 1) * random.uniform(0.5, 1.5)
                gone_s = time.monotonic() - began
                if type(error).__name__ in _NO_CREDENTIALS:
                    raise MachineError(
                        f"{place}: cannot {what} it ({told}); set the keys in the environment (s3: "
                        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
                    ) from error
                if number == tries or gone_s + wait_s > retries.total_s:
                    raise MachineError(
                        f"{place}: cannot {what} it, tried {number} times in {gone_s:.0f} s ({told}); see whether "
                        "the service and the network are up, then the same command goes on"
                    ) from error
                logger.warning(
                    "%s: cannot %s it (%s); try %d of %d in %.1f s",
                    place,
                    what,
                    told,
                    number + 1,
                    tries,
                    wait_s,
                )
                time.sleep(wait_s)
        raise AssertionError("the last try returns or raises")


def _is_object_store(files: Any) -> bool:
    protocols = {files.protocol} if isinstance(files.protocol, str) else set(files.protocol)
    return not _OBJECT_STORES.isdisjoint(protocols)
