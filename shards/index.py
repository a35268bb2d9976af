"""`<split>/index.json`: what a pack says of its shards. It is written last, so a split without it is no whole pack."""

import json
import re
from dataclasses import dataclass

from shards.errors import ShardError

INDEX = "index.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TAR = re.compile(r"[A-Za-z0-9_-]+/[A-Za-z0-9_-]+-\d{6}\.tar")
"""As pack names them."""


@dataclass(frozen=True, slots=True)
class IndexedShard:
    """One tar as it was when it was packed; `name` as in samples.parquet."""

    name: str
    num_samples: int
    num_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class SplitIndex:
    """The shards of one split by name; `num_samples` is what the index claims of all of them."""

    split: str
    num_samples: int
    shards: dict[str, IndexedShard]


def parse_index(content: bytes, folder: str, place: str) -> SplitIndex:
    """The index of the split in `folder`; ShardError, naming `place`, where it is not such a one."""
    try:
        value = json.loads(content)
        shards = [
            IndexedShard(f"{folder}/{shard['name']}", shard["num_samples"], shard["bytes"], shard["sha256"])
            for shard in value["shards"]
        ]
        index = SplitIndex(value["split"], value["num_samples"], {shard.name: shard for shard in shards})
        counts = [index.num_samples, *(n for shard in shards for n in (shard.num_samples, shard.num_bytes))]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("a count is no whole number")
        if len(index.shards) < len(shards):
            raise ValueError("a shard is named twice")
        for shard in shards:
            if not _TAR.fullmatch(shard.name) or not _SHA256.fullmatch(shard.sha256):
                raise ValueError(f"what it says of {shard.name} is no name and sha256 of a shard")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ShardError(f"{place} is damaged ({what}); run `pipeline pack` again") from error
    return index
