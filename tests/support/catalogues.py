"""Catalogues (samples.parquet) of any number of samples, without shards, whole or with the columns of the plan."""

import numpy as np
import pyarrow as pa

from shards.schema import SAMPLES

CHINESE_LIPS_CLIPS = 30_341
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
            "confidence": pa.nulls(n),
            "audio_sha256": pa.nulls(n),
        }
    ).cast(SAMPLES)


def table(num_frames: list[int] | np.ndarray, clips_a_shard: int = 7) -> pa.Table:
    """Returns the columns that a plan of split train needs."""
    n = len(num_frames)
    return pa.table(
        {
            "clip_id": [f"c{i}" for i in range(n)],
            "num_frames": num_frames,
            "shard": [f"train/train-{i // clips_a_shard:06d}.tar" for i in range(n)],
        }
    )


def like_chinese_lips(num_clips: int = CHINESE_LIPS_CLIPS, seed: int = 0) -> np.ndarray:
    """Returns log-normal lengths of 253 frames on average."""
    drawn = np.random.default_rng(seed).lognormal(np.log(253) - 0.5**2 / 2, 0.5, num_clips)
    return drawn.round().clip(10, 1_000).astype(np.int32)
