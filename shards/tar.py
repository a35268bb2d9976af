"""Writes plain WebDataset tar shards: deterministic bytes, whole or not at all.

With the standard library, since `import webdataset` imports torch, which preprocessing does without.
"""

import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True, slots=True)
class SamplePlace:
    """Where a sample stands in its tar, in bytes; `clip_` is the payload of its first member."""

    sample_offset: int
    sample_size: int
    clip_offset: int
    clip_size: int


class ShardWriter:
    """Adds samples to one open tar."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    @property
    def num_bytes(self) -> int:
        """Size of the tar so far, without its end."""
        return self._tar.offset

    def add(self, clip_id: str, clip: tuple[str, bytes], metadata: tuple[str, bytes]) -> SamplePlace:
        """Appends `<clip_id>.<extension>` for the clip, then for its metadata."""
        start = self._tar.offset
        self._add_member(f"{clip_id}.{clip[0]}", clip[1])
        clip_offset = self._tar.offset - _padded(len(clip[1]))
        self._add_member(f"{clip_id}.{metadata[0]}", metadata[1])
        return SamplePlace(start, self._tar.offset - start, clip_offset, len(clip[1]))

    def _add_member(self, name: str, payload: bytes) -> None:
        # a fresh TarInfo has time, owner and group 0 and mode 0644: nothing of this machine or day
        member = tarfile.TarInfo(name)
        member.size = len(payload)
        self._tar.addfile(member, io.BytesIO(payload))


@contextmanager
def shard_writer(file: BinaryIO) -> Iterator[ShardWriter]:
    """A writer of one tar into `file`, which stays open."""
    # GNU format, since clip ids of more than 95 characters do not fit a USTAR name
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        yield ShardWriter(tar)


def _padded(num_bytes: int) -> int:
    return -(-num_bytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
