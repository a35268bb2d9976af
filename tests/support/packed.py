"""Packs synthetic mouth clips with plain tarfile and numpy, without our writer."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa

from shards.codec import clip_extension, encode_clip
from shards.files import read_table, table_from_rows, write_table
from shards.schema import SAMPLES
from shards.settings import PackParams
from shards.store import FolderStore

Codec = Literal["raw", "jpeg", "h264", "ffv1"]
SYLLABLES = "一二三四"


@dataclass(frozen=True)
class Packed:
    store: FolderStore
    samples: Path

    @classmethod
    def at(cls, folder: Path) -> "Packed":
        """Returns the pack that `pack_clips` wrote to `folder`."""
        return cls(FolderStore(folder / "shards"), folder / "samples.parquet")

    @property
    def shards(self) -> Path:
        return self.store.folder


def toy_clip(label: str, seed: int, frames_a_char: int = 6) -> np.ndarray:
    """Returns a clip (uint8, T×96×96) of a bar at a height that encodes the character; a small network learns it."""
    rng = np.random.default_rng(seed)
    frames = []
    for character in label:
        for step in range(frames_a_char):
            # in blocks of 4x4: TensorBoard's PNG of noise of single pixels takes a fifth of a short training
            frame = rng.integers(90, 110, (24, 24), dtype=np.uint8).repeat(4, axis=0).repeat(4, axis=1)
            if 1 <= step < frames_a_char - 1:
                top = 8 + 22 * SYLLABLES.index(character)
                frame[top : top + 14, 20:76] = 230
            frames.append(frame)
    return np.stack(frames)


def toy_sound(label: str, seed: int, frames_a_char: int = 6) -> np.ndarray:
    """Returns log-mel vectors (float16, T×4×40) whose loud bands encode the character that `toy_clip` shows."""
    rng = np.random.default_rng(seed)
    sound_TKM = rng.normal(-10, 0.5, (len(label) * frames_a_char, 4, 40))
    for number, character in enumerate(label):
        bands = slice(10 * SYLLABLES.index(character), 10 * SYLLABLES.index(character) + 10)
        sound_TKM[number * frames_a_char + 1 : (number + 1) * frames_a_char - 1, :, bands] += 8
    return sound_TKM.astype(np.float16)


def toy_clips(
    num_train: int = 24, num_valid: int = 6, seed: int = 0, frames_a_char: int = 6
) -> list[tuple[str, str, np.ndarray, str]]:
    rng = np.random.default_rng(seed)
    clips = []
    for split, count in (("train", num_train), ("valid", num_valid), ("test", num_valid)):
        for number in range(count):
            label = "".join(rng.choice(list(SYLLABLES), rng.integers(2, 5)))
            clips.append((f"{split}_{number:03d}", split, toy_clip(label, number, frames_a_char), label))
    return clips


def drawn(split: str, count: int, seed: int) -> list[tuple[str, str, np.ndarray, str]]:
    """Returns clips of one split with labels of 7 to 10 characters."""
    rng = np.random.default_rng(seed)
    clips = []
    for number in range(count):
        label = "".join(rng.choice(list(SYLLABLES), rng.integers(7, 11)))
        clips.append((f"{split}_{number:03d}", split, toy_clip(label, seed + number), label))
    return clips


def pack_clips(
    folder: Path,
    clips: list[tuple[str, str, np.ndarray, str]],
    clips_a_shard: int = 5,
    codec: Codec = "raw",
    fps: float = 25.0,
    sounds: Mapping[str, np.ndarray] | None = None,
) -> Packed:
    """Writes shards and samples.parquet for (clip_id, split, clip, label).

    `sounds` has the log-mel vectors of the clips with sound (clip_id → float16, T×4×40); None: a pack without sound.
    """
    rows = []
    for split in dict.fromkeys(clip[1] for clip in clips):
        of_split = [clip for clip in clips if clip[1] == split]
        for shard in range(0, len(of_split), clips_a_shard):
            name = f"{split}/{split}-{shard // clips_a_shard:06d}.tar"
            path = folder / "shards" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            rows += _write_shard(path, name, of_split[shard : shard + clips_a_shard], codec, fps, sounds)
    write_table(folder / "samples.parquet", table_from_rows(rows, SAMPLES), SAMPLES)
    return Packed.at(folder)


def _payload(clip: np.ndarray, codec: Codec) -> bytes:
    """Encodes raw clips with numpy, and other codecs with our encoder."""
    if codec != "raw":
        return encode_clip(clip, PackParams(codec=codec))
    file = io.BytesIO()
    np.save(file, clip)
    return file.getvalue()


def _write_shard(
    path: Path,
    name: str,
    clips: list[tuple[str, str, np.ndarray, str]],
    codec: Codec,
    fps: float,
    sounds: Mapping[str, np.ndarray] | None,
) -> list[dict]:
    payloads, heard = {}, {}
    # GNU format if names are too long for USTAR
    is_long = any(len(clip_id) > 95 for clip_id, *_ in clips)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT if is_long else tarfile.USTAR_FORMAT) as tar:
        for clip_id, _, clip, label in clips:
            payloads[clip_id] = _payload(clip, codec)
            metadata = {
                "clip_id": clip_id,
                "label": label,
                "fps": fps,
                "codec": codec,
                "num_frames": len(clip),
            }
            members = [(clip_extension(codec), payloads[clip_id])]
            if sounds is not None:
                metadata["audio"] = "present" if clip_id in sounds else "silent"
            members.append(("json", json.dumps(metadata).encode()))
            if sounds is not None:
                silence = np.full((len(clip), 4, 40), -23, np.float16)
                heard[clip_id] = _payload(sounds.get(clip_id, silence), "raw")
                members.append(("audio.npy", heard[clip_id]))
            for extension, payload in members:
                member = tarfile.TarInfo(f"{clip_id}.{extension}")
                member.size = len(payload)
                tar.addfile(member, io.BytesIO(payload))
    rows = []
    with tarfile.open(path) as tar:
        members = tar.getmembers()
        for number, (clip_id, split, clip, label) in enumerate(clips):
            own = members[number * len(members) // len(clips) : (number + 1) * len(members) // len(clips)]
            first, last = own[0], own[-1]
            end = last.offset_data + -(-last.size // 512) * 512
            rows.append(
                {
                    "clip_id": clip_id,
                    "split": split,
                    "shard": name,
                    "sample_offset": first.offset,
                    "sample_size": end - first.offset,
                    "clip_offset": first.offset_data,
                    "clip_size": first.size,
                    "sha256": hashlib.sha256(payloads[clip_id]).hexdigest(),
                    "codec": codec,
                    "num_frames": len(clip),
                    "num_chars": len(label),
                    "label": label,
                    "speaker": None,
                    "topic": None,
                    "audio_sha256": hashlib.sha256(heard[clip_id]).hexdigest()
                    if sounds and clip_id in sounds
                    else None,
                }
            )
    return rows


def with_column(packed: Packed, folder: Path, name: str, value_of: dict[str, object]) -> Packed:
    """Returns the same shards with a catalogue in `folder` in which a column has these values by clip_id."""
    table = read_table(packed.samples, SAMPLES, "pipeline pack")
    place, field = table.schema.get_field_index(name), table.schema.field(name)
    old = zip(table["clip_id"].to_pylist(), table[name].to_pylist(), strict=True)
    values = pa.array([value_of.get(clip_id, value) for clip_id, value in old], field.type)
    folder.mkdir(exist_ok=True)
    write_table(folder / "samples.parquet", table.set_column(place, field, values), SAMPLES)
    return Packed(packed.store, folder / "samples.parquet")
