"""Reads a tar shard from start to end: from a file, a URL of fsspec, or the output of a command (`pipe:`).

webdataset's own reader loses clips without an error where a tar ends early or has a damaged header, because Python's
tarfile takes both for the end of the tar. Here a shard is read to its end or raises an error that names the shard and
the last clip. Streams are untrusted: at most MAX_SAMPLE_BYTES are in memory for one member.
"""

import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from shards.errors import MachineError, PipelineError, ShardError
from shards.machine import describe_exit
from shards.open_shards import ADVICE, unreadable
from shards.open_store import URL
from shards.sample_reader import MAX_SAMPLE_BYTES
from shards.sound import says_sound

PIPE = "pipe:"
_SAMPLE_KEYS = 4
"""`__key__`, `__url__`, and one for each of two members; a sample with sound has one more."""
_MAX_PADDING_BYTES = 1 << 20
"""Zeros after the end of a tar; tar programs pad to 10 KB, by default."""
_PIPE_END_S = 1.0
"""Wait for the exit code of a command whose output is damaged."""


@dataclass(frozen=True, slots=True)
class StreamedShard:
    """Path, URL or command of a shard; its size and number of samples if an index gives them."""

    url: str
    num_samples: int | None = None
    num_bytes: int | None = None


def read_shard(shard: StreamedShard) -> Iterator[dict[str, Any]]:
    """Yields each sample as webdataset does: `__key__`, `__url__` and the payload by extension of each member.

    Raises ShardError if the shard is damaged or truncated, MachineError if it cannot be reached or a command fails.
    """
    num_samples = 0
    with _opened(shard.url) as file:
        stream = _Capped(file)
        last = "before the first sample"
        try:
            for sample in _samples(stream, shard.url):
                num_samples += 1
                last = f"after clip {sample['__key__']}"
                yield sample
            stream.read_padding()
        except PipelineError:
            raise  # of a URL; it is a ValueError too
        except (tarfile.TarError, ValueError) as error:
            raise ShardError(
                f"shard {shard.url} is damaged or truncated {last}: {error}; {ADVICE}"
            ) from error
        except OSError as error:
            raise unreadable(shard.url, error) from error
    for what, found, indexed in (
        ("samples", num_samples, shard.num_samples),
        ("bytes", stream.num_bytes, shard.num_bytes),
    ):
        if indexed not in (None, found):
            raise ShardError(f"shard {shard.url} has {found} {what}, index.json says {indexed}; {ADVICE}")


def _samples(stream: "_Capped", url: str) -> Iterator[dict[str, Any]]:
    sample: dict[str, Any] = {}
    last = ""
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictHeader) as tar:  # type: ignore[call-overload]
        for member in tar:
            tar.members = []  # else the headers of the whole shard stay in memory
            key, dot, extension = member.name.partition(".")
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or not dot or not key:
                raise ValueError(f"member {member.name!r} is not a file of a sample")
            if member.size > MAX_SAMPLE_BYTES:
                raise ValueError(f"member {member.name!r} claims {member.size} bytes")
            if not sample:
                sample = {"__key__": key, "__url__": url}
            if key == last or key != sample["__key__"] or extension in sample:
                place = "third of three" if len(sample) == _SAMPLE_KEYS else "second of two"
                raise ValueError(f"member {member.name!r} is not the {place} members of a sample")
            stream.allow(MAX_SAMPLE_BYTES)
            sample[extension] = tar.extractfile(member).read()
            stream.allow(MAX_SAMPLE_BYTES)
            if len(sample) == _SAMPLE_KEYS + says_sound(sample.get("json", b"")):
                yield sample
                sample, last = {}, key
    if sample:
        has = "one member instead of two" if len(sample) < _SAMPLE_KEYS else "no sound"
        raise ValueError(f"clip {sample['__key__']} has {has}")


class _StrictHeader(tarfile.TarInfo):
    """Raises ReadError where tarfile takes a damaged or missing header for the end of the tar."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_StrictHeader":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no valid header at byte {tar.offset} ({error})") from error


class _Capped:
    """Counts the bytes of a stream; raises ValueError after as many as allowed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.num_bytes = 0
        self.allow(MAX_SAMPLE_BYTES)

    def allow(self, num_bytes: int) -> None:
        """Sets the limit of the bytes until the next call; tarfile reads whole records ahead."""
        self._num_free = num_bytes + 2 * tarfile.RECORDSIZE

    def read(self, num_bytes: int) -> bytes:
        block = self._file.read(num_bytes)
        self.num_bytes += len(block)
        self._num_free -= len(block)
        if self._num_free < 0:
            raise ValueError("a header, or the padding at its end, is too large")
        return block

    def read_padding(self) -> None:
        """Reads to the end of the stream, which may only have zeros."""
        self.allow(_MAX_PADDING_BYTES)
        while block := self.read(tarfile.RECORDSIZE):
            if any(block):
                raise ValueError("there is data after the end of the tar (several tars in one stream?)")


def _opened(url: str) -> AbstractContextManager[IO[bytes]]:
    if url.startswith(PIPE):
        return _output_of(url.removeprefix(PIPE))
    if URL.match(url):
        from shards.remote_files import RemoteFiles, RetryPolicy  # imports fsspec

        folder, _, name = url.rpartition("/")
        return RemoteFiles(folder, RetryPolicy(), "the URL of the shard").stream(name)
    try:
        return Path(url).open("rb")
    except OSError as error:
        raise unreadable(url, error) from error


@contextmanager
def _output_of(command: str) -> Iterator[IO[bytes]]:
    """Runs a command of the shell. Raises MachineError if it fails, also if the caller found its output damaged."""
    # a group of its own, so that an abandoned command ends with all processes that it started
    process = subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    try:
        with process.stdout:
            try:
                yield process.stdout
            except ShardError as error:
                with suppress(subprocess.TimeoutExpired):
                    if code := process.wait(_PIPE_END_S):
                        raise _failed(command, code) from error
                raise
            if code := process.wait():
                raise _failed(command, code)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _failed(command: str, code: int) -> MachineError:
    return MachineError(f"`{command}` failed ({describe_exit(code)}); run it in a shell to see why")
