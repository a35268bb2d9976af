"""A catalogue (samples.parquet) of any number of samples, without shards."""

import pyarrow as pa

from shards.schema import SAMPLES

LABELS = ["我们", "", "a", "字" * 90, "旨在 搭建"]


def catalogue(splits: list[str]) -> pa.Table:
    """Returns rows with mixed splits, as `pack` would not write them."""
    n = len(splits)
    return pa.table(
        {
            "clip_id": [f"c{i}" for i in range(n)],
            "split": splits,
            "shard": [f"{split}/{split}-{i // 7:06d}.tar" for i, split in enumerate(splits)],
            "sample_offset": [1024 * i for i in range(n)],
            "sample_size": [1024] * n,
            "clip_offset": [1024 * i + 512 for i in range(n)],
            "clip_size": [512] * n,
            "sha256": [f"{i:064x}" for i in range(n)],
            "codec": ["raw"] * n,
            "num_frames": [20 + i for i in range(n)],
            "num_chars": [1] * n,
            "label": [LABELS[i % len(LABELS)] for i in range(n)],
            "speaker": [None if i % 3 else "s" for i in range(n)],
            "topic": [None] * n,
        }
    ).cast(SAMPLES)
