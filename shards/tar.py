"""The files of a split: tar shards with deterministic bytes, and `index.json`, which lists them.

Plain WebDataset tars, written with the standard library, because `import webdataset` imports torch, which preprocessing
does not need. `<split>/index.json` is written last: a split without it is not complete.
"""

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from shards.errors import ShardError

if TYPE_CHECKING:
    from typing_extensions import Buffer

INDEX = "index.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TAR = re.compile(r"[A-Za-z0-9_-]+/[A-Za-z0-9_-]+-\d{6}\.tar")
"""Names that `pack` gives to shards."""


@dataclass(frozen=True, slots=True)
class SamplePlace:
    """Offsets and sizes of a sample in its tar, in bytes; `clip_` is the payload of its first member."""

    sample_offset: int
    sample_size: int
    clip_offset: int
    clip_size: int


class ShardWriter:
    """Adds samples to one open tar. Counts and hashes the bytes, so that a remote shard need not be read again."""

    def __init__(self, tar: tarfile.TarFile, hashed: "_Hashed") -> None:
        self._tar, self._hashed = tar, hashed
        self.num_samples = 0

    @property
    def num_bytes(self) -> int:
        """Size of the tar so far; includes the end of the tar after it is closed."""
        return self._hashed.num_bytes

    @property
    def sha256(self) -> str:
        """Hash of the tar so far; includes the end of the tar after it is closed."""
        return self._hashed.digest.hexdigest()

    def add(
        self, clip_id: str, clip: tuple[str, bytes], metadata: tuple[str, bytes], *others: tuple[str, bytes]
    ) -> SamplePlace:
        """Appends `<clip_id>.<extension>` for the clip, then one for its metadata, then those of `others`."""
        start = self._tar.offset
        self._add_member(f"{clip_id}.{clip[0]}", clip[1])
        clip_offset = self._tar.offset - _padded(len(clip[1]))
        for extension, payload in (metadata, *others):
            self._add_member(f"{clip_id}.{extension}", payload)
        self.num_samples += 1
        return SamplePlace(start, self._tar.offset - start, clip_offset, len(clip[1]))

    def _add_member(self, name: str, payload: bytes) -> None:
        # a new TarInfo has time, owner and group 0 and mode 0644, so the bytes do not depend on machine or date
        member = tarfile.TarInfo(name)
        member.size = len(payload)
        self._tar.addfile(member, io.BytesIO(payload))


class _Hashed(io.RawIOBase):
    """Writes to `file`, and counts and hashes the bytes."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file
        self.digest = hashlib.sha256()
        self.num_bytes = 0

    def tell(self) -> int:
        return self.num_bytes

    def write(self, payload: "Buffer") -> int:
        self.digest.update(payload)
        self.num_bytes += memoryview(payload).nbytes
        return self._file.write(payload)


@contextmanager
def shard_writer(file: BinaryIO) -> Iterator[ShardWriter]:
    """Opens a writer of one tar in the empty `file`, which stays open."""
    hashed = _Hashed(file)
    # GNU format, because clip ids of more than 95 characters do not fit a USTAR name
    with tarfile.open(fileobj=hashed, mode="w", format=tarfile.GNU_FORMAT) as tar:
        yield ShardWriter(tar, hashed)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


@dataclass(frozen=True, slots=True)
class IndexedShard:
    """Size and hash of one tar when it was packed; `name` as in samples.parquet."""

    name: str
    num_samples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SplitIndex:
    """The shards of one split by name; `num_samples` is the total that the index gives."""

    split: str
    num_samples: int
    shards: dict[str, IndexedShard]


def parse_index(content: bytes, folder: str, place: str) -> SplitIndex:
    """Returns the index of the split in `folder`; raises ShardError that names `place` if the content is damaged."""
    try:
        value = json.loads(content)
        shards = [
            IndexedShard(f"{folder}/{shard['name']}", shard["num_samples"], shard["bytes"], shard["sha256"])
            for shard in value["shards"]
        ]
        index = SplitIndex(value["split"], value["num_samples"], {shard.name: shard for shard in shards})
        counts = [index.num_samples, *(n for shard in shards for n in (shard.num_samples, shard.num_bytes))]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("a count is not a whole number")
        if len(index.shards) < len(shards):
            raise ValueError("a shard is listed twice")
        for shard in shards:
            if not _TAR.fullmatch(shard.name) or not _SHA256.fullmatch(shard.sha256):
                raise ValueError(f"{shard.name} is not the name of a shard, or its sha256 is invalid")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ShardError(f"{place} is damaged ({what}); run `pipeline pack` again") from error
    return index
