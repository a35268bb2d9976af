"""Files below a URL of any file system of fsspec: each request has a timeout and retries."""

import errno
import io
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
from shards.tar import INDEX

logger = logging.getLogger(__name__)

_Result = TypeVar("_Result")

_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss", "oci"})
"""Here an upload is atomic, and a rename would copy the file; elsewhere a complete file is renamed."""

_ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_NO_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"})
"""Errors of botocore and google.auth without keys in the environment; by name, as they may not be installed."""

_SMALL_FILE_BYTES = 256 << 20
"""The index.json of a million shards has 200 MB."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Retries, timeouts and request size for a remote file system."""

    tries: int = 6
    first_wait_s: float = 0.5
    """Wait before the second try; doubled for each further try, and varied by half to separate the ranks."""
    total_s: float = 300.0
    """No new try starts after this time."""
    connect_s: float = 10.0
    read_s: float = 30.0
    """Silence on a connection (s3)."""
    request_s: float = 120.0
    """Limit for one request of `range_bytes` in all; only for asynchronous file systems, such as s3, gs and az."""
    range_bytes: int = 16 << 20


def open_file_system(url: str, key: str, **options: Any) -> tuple[Any, str]:
    """Returns the file system of fsspec and the path in it; raises ConfigError that names `key` if `url` has none."""
    try:
        files, root = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        fix = (
            "pip install 'lip-pipeline[s3]'"
            if url.startswith(("s3:", "s3a:"))
            else "install the package that it names"
        )
        raise ConfigError(f"{key}: {url} cannot be opened ({error}); {fix}") from error
    except ValueError as error:
        raise ConfigError(
            f"{key}: {url} cannot be opened ({error}); give a folder or a URL that fsspec knows"
        ) from error
    return files, root


def upload_whole(files: Any, local_path: Path, remote_path: str, **options: Any) -> None:
    """Uploads the file `local_path` atomically: readers see the complete file or none. `options` go to the transfer."""
    if _is_object_store(files):
        files.put_file(str(local_path), remote_path, **options)
        return
    folder, _, name = remote_path.rpartition("/")
    temporary = f"{folder}/.{name}.{uuid.uuid4().hex}.tmp"
    files.makedirs(folder, exist_ok=True)
    try:
        files.put_file(str(local_path), temporary, **options)
        files.mv(temporary, remote_path)
    except BaseException:
        if files.exists(temporary):
            files.rm_file(temporary)
        raise


class RemoteFiles:
    """The files below `url`, with names relative to it. `key` is the setting that names the URL.

    Every method raises MachineError with the URL and the last error if the file cannot be reached: after the last
    try of `retries`, and immediately if keys are missing or have no permission. Raises ShardError if the file is
    certainly missing or too short. Threads may share an instance. Keys come from the sources that the file system
    uses (for s3 the environment variables AWS_…).
    """

    def __init__(self, url: str, retries: RetryPolicy, key: str) -> None:
        self.url, self.retries, self._key = url.rstrip("/"), retries, key
        is_s3 = url.startswith(("s3://", "s3a://"))
        options: dict[str, Any] = {"skip_instance_cache": True}
        if is_s3:
            # botocore and s3fs try once, because all retries are ours
            timeouts = {"connect_timeout": retries.connect_s, "read_timeout": retries.read_s}
            options["config_kwargs"] = {**timeouts, "retries": {"total_max_attempts": 1}}
        self._is_http = url.startswith(("http://", "https://"))
        if self._is_http:
            import aiohttp  # fsspec needs it for such URLs only

            # by default it ends every transfer after five minutes
            timeout = aiohttp.ClientTimeout(sock_connect=retries.connect_s, sock_read=retries.read_s)
            options["client_kwargs"] = {"timeout": timeout}
        self._files, root = open_file_system(url, key, **options)
        self._root = root.rstrip("/")
        if is_s3:
            self._files.retries = 1

    def place(self, name: str) -> str:
        return f"{self.url}/{name}"

    def names(self) -> list[str]:
        """Returns the names of all files, sorted; empty if the folder does not exist."""

        def find() -> list[str]:
            self._files.invalidate_cache()
            # by default a failure of HTTP is an empty folder
            options = {"on_error": "raise"} if self._is_http else self._timeout(self.retries.total_s)
            try:
                return self._files.find(self._root, **options)
            except FileNotFoundError as error:
                if _is_absent(error):
                    return []
                raise

        found = (path.removeprefix(f"{self._root}/") for path in self._with_retries("list", "", find))
        return sorted(name for name in found if name and name != self._root)

    def read_range(self, name: str, start: int, stop: int) -> bytes:
        """Returns exactly the bytes from `start` to `stop` of a file."""

        def read() -> bytes:
            block: bytes = self._files.cat_file(self._path(name), start=start, end=stop, **self._timeout())
            if len(block) != stop - start:
                raise EOFError(f"received {len(block)} of {stop - start} bytes from byte {start}")
            return block

        try:
            return self._with_retries("read", name, read)
        except MachineError:
            num_bytes = self._num_bytes(name)
            if num_bytes is None or num_bytes >= stop:
                raise
            raise ShardError(
                f"{self.place(name)} is truncated or from another pack: it has {num_bytes} bytes, {INDEX} says more; "
                "run `pipeline pack` again"
            ) from None

    def read_small(self, name: str) -> bytes:
        """Returns all bytes of a small file, such as an index.json."""

        def read() -> bytes:
            return self._files.cat_file(self._path(name), start=0, end=_SMALL_FILE_BYTES, **self._timeout())

        return self._with_retries("read", name, read)

    def stream(self, name: str) -> io.BufferedReader:
        """Opens a file to read it from start to end; it needs no random access."""
        return io.BufferedReader(_RemoteStream(self, name), self.retries.range_bytes)

    def put(self, name: str, file: Path) -> None:
        """Uploads a local file as `name`, atomically."""
        num_bytes = file.stat().st_size
        retries = self.retries
        limit = self._timeout(retries.request_s * max(1.0, num_bytes / retries.range_bytes))

        def store() -> None:
            upload_whole(self._files, file, self._path(name), **limit)
            self._files.invalidate_cache()
            stored = self._files.info(self._path(name), **self._timeout())["size"]
            if stored != num_bytes:
                raise EOFError(f"{stored} of {num_bytes} bytes were stored")

        self._with_retries("write", name, store)

    def put_if_absent(self, name: str, content: bytes) -> bytes:
        """Stores `content` as `name` unless the file exists; returns the stored content.

        Atomic if the store supports the condition (If-None-Match of S3, GCS, Azure). Elsewhere it checks first, and
        of two writers at the same time the last one wins.
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
        """Closes the connections; the end of the process closes them too."""
        if hasattr(self._files, "s3"):
            fsspec.asyn.sync(self._files.loop, self._files.s3.close, timeout=self.retries.connect_s)

    def _open(self, name: str) -> Any:
        # a block size of 0 makes one request for the whole file, without ranges
        options = {"block_size": 0} if self._is_http or self.url.startswith("hf://") else {}
        return self._files.open(self._path(name), "rb", **options)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _timeout(self, seconds: float | None = None) -> dict[str, float]:
        """Returns the timeout option of a call if the file system supports it; others have their own timeouts."""
        return {"timeout": seconds or self.retries.request_s} if self._files.async_impl else {}

    def _num_bytes(self, name: str) -> int | None:
        """Returns the size of a file, with one try; None if it is unknown."""

        def ask() -> int | None:
            self._files.invalidate_cache()
            size: int | None = self._files.info(self._path(name), **self._timeout())["size"]
            return size

        try:
            return self._with_retries("get the size of", name, ask, tries=1)
        except PipelineError:
            return None  # the caller reports its own error

    def _with_retries(
        self, verb: str, name: str, request: Callable[[], _Result], tries: int | None = None
    ) -> _Result:
        """Returns `request()`, with retries. Raises ShardError if the file is missing, else MachineError."""
        place, retries, began = self.place(name), self.retries, time.monotonic()
        tries = tries or retries.tries
        for number in range(1, tries + 1):
            try:
                return request()
            except PermissionError as error:
                raise MachineError(
                    f"{place}: cannot {verb} it ({type(error).__name__}: {error}); "
                    f"check {self._key} and the permissions of the keys"
                ) from error
            # each file system raises errors of its own libraries, so no list can be complete; every error is
            # logged or raised
            except Exception as error:
                message = f"{type(error).__name__}: {error}"
                if isinstance(error, _ABSENT) and _is_absent(error):
                    raise ShardError(f"{place}: cannot {verb} it ({message}); check {self._key}") from error
                wait_s = retries.first_wait_s * 2 ** (number - 1) * random.uniform(0.5, 1.5)
                elapsed_s = time.monotonic() - began
                if type(error).__name__ in _NO_CREDENTIALS:
                    raise MachineError(
                        f"{place}: cannot {verb} it ({message}); set the keys in the environment (s3: "
                        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
                    ) from error
                if number == tries or elapsed_s + wait_s > retries.total_s:
                    raise MachineError(
                        f"{place}: cannot {verb} it, tried {number} times in {elapsed_s:.0f} s ({message}); check the "
                        "service and the network, then run the same command again"
                    ) from error
                logger.warning(
                    "%s: cannot %s it (%s); try %d of %d in %.1f s",
                    place,
                    verb,
                    message,
                    number + 1,
                    tries,
                    wait_s,
                )
                time.sleep(wait_s)
        raise AssertionError("the last try returns or raises")


class _RemoteStream(io.RawIOBase):
    """Reads a file once from start to end; after an error it opens the file again and skips what was read."""

    def __init__(self, files: RemoteFiles, name: str) -> None:
        super().__init__()
        self._files, self._name = files, name
        self._file: Any = None
        self._position = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._files._with_retries("read", self._name, lambda: self._read(len(buffer)))
        buffer[: len(block)] = block
        self._position += len(block)
        return len(block)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()

    def _read(self, num_bytes: int) -> bytes:
        try:
            if self._file is None:
                self._file = self._files._open(self._name)
                left = self._position
                while left and (skipped := len(self._file.read(min(left, num_bytes)))):
                    left -= skipped
                if left:
                    raise EOFError(f"the file ended {left} bytes before byte {self._position}, read earlier")
            block: bytes = self._file.read(num_bytes)
        except BaseException:
            if self._file is not None:
                self._file.close()
                self._file = None
            raise
        return block


def _is_absent(error: Exception) -> bool:
    """Returns whether the file is certainly absent: fsspec's HTTP hides every failure behind a FileNotFoundError."""
    cause = error.__cause__
    is_of_http = type(cause).__module__.startswith("aiohttp") or isinstance(
        cause, TimeoutError | ConnectionError
    )
    return not is_of_http or getattr(cause, "status", None) in (404, 410)


def _is_object_store(files: Any) -> bool:
    protocols = {files.protocol} if isinstance(files.protocol, str) else set(files.protocol)
    return not _OBJECT_STORES.isdisjoint(protocols)
