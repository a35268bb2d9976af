"""Damages samples in the shards of a pack."""

from collections.abc import Sequence

from shards.samples import read_samples
from tests.support.packed import Packed


def damage(packed: Packed, rows: Sequence[int]) -> list[str]:
    """Damages the tar headers of these samples of train; returns their clip ids."""
    samples = read_samples(packed.samples, "train").to_pylist()
    for row in rows:
        with (packed.shards / samples[row]["shard"]).open("r+b") as file:
            file.seek(samples[row]["sample_offset"] + 130)
            file.write(b"9")
    return [samples[row]["clip_id"] for row in rows]
