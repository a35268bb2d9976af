"""A pack of synthetic clips of one length, on which `python -m benchmarks.train` trains by default."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from shards.codec import clip_extension, encode_clip
from shards.enums import TRAIN_SPLIT
from shards.files import table_from_rows, write_table
from shards.schema import SAMPLES
from shards.settings import PackParams
from shards.sound import BANDS, EXTENSION, VECTORS_A_FRAME, encode_sound
from shards.store import FolderStore
from shards.tar import shard_writer

CLIPS_A_SHARD = 64
FRAMES_A_CHAR = 6
"""The value of Chinese-LiPS."""
FIRST_HAN, NUM_CHARACTERS = 0x4E00, 3_000
FPS = 25.0
SIZE_PX = 96


def write_pack(folder: Path, num_clips: int, num_frames: int, size_px: int = SIZE_PX) -> tuple[Path, Path]:
    """Writes clips of noise with Han labels and sound; returns the paths of shards and samples.parquet."""
    rng = np.random.default_rng(0)
    store, params = FolderStore(folder / "shards"), PackParams()
    rows: list[dict[str, Any]] = []
    for first in range(0, num_clips, CLIPS_A_SHARD):
        name = f"{TRAIN_SPLIT}/{TRAIN_SPLIT}-{first // CLIPS_A_SHARD:06d}.tar"
        with store.writing(name) as file, shard_writer(file) as shard:
            for number in range(first, min(first + CLIPS_A_SHARD, num_clips)):
                clip_THW = rng.integers(0, 256, (num_frames, size_px, size_px), dtype=np.uint8)
                num_chars = max(1, num_frames // FRAMES_A_CHAR)
                label = "".join(chr(FIRST_HAN + c) for c in rng.permutation(NUM_CHARACTERS)[:num_chars])
                payload = encode_clip(clip_THW, params)
                sound_TKM = rng.normal(-8, 4, (num_frames, VECTORS_A_FRAME, BANDS)).astype(np.float16)
                sound = encode_sound(sound_TKM)
                about = {"label": label, "fps": FPS, "audio": "present"}
                place = shard.add(
                    f"{number:06d}",
                    (clip_extension(params.codec), payload),
                    ("json", json.dumps(about).encode()),
                    (EXTENSION, sound),
                )
                rows.append(
                    {
                        "clip_id": f"{number:06d}",
                        "split": TRAIN_SPLIT,
                        "shard": name,
                        "sample_offset": place.sample_offset,
                        "sample_size": place.sample_size,
                        "clip_offset": place.clip_offset,
                        "clip_size": place.clip_size,
                        "sha256": hashlib.sha256(payload).hexdigest(),
                        "codec": params.codec,
                        "num_frames": num_frames,
                        "num_chars": len(label),
                        "label": label,
                        "speaker": None,
                        "topic": None,
                        "audio_sha256": hashlib.sha256(sound).hexdigest(),
                    }
                )
    write_table(folder / "samples.parquet", table_from_rows(rows, SAMPLES), SAMPLES)
    return folder / "shards", folder / "samples.parquet"
