"""`<split>/index.json`: the list of shards of a split. It is written last: a split without it is not complete."""

import json
import re
from dataclasses import dataclass

from shards.errors import ShardError

INDEX = "index.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TAR = re.compile(r"[A-Za-z0-9_-]+/[A-Za-z0-9_-]+-\d{6}\.tar")
"""Names that `pack` gives to shards."""


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
