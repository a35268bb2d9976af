"""Synthetic tables of any number of clips, to measure the catalogue and the epoch plan.

They are similar to Chinese-LiPS in lengths, labels, sizes of the splits and clips per speaker. They have no videos.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from shards.enums import TRAIN_SPLIT, Reason, Status
from shards.files import ROW_GROUP_ROWS, atomic_file
from shards.schema import CLIPS, CROPS, SAMPLES, is_optional

SPLIT_SHARES = {TRAIN_SPLIT: 0.84, "valid": 0.05, "test": 0.11}
MEAN_FRAMES, SIGMA_LOG_FRAMES = 253, 0.5
FEWEST_FRAMES, MOST_FRAMES = 10, 1_000
FRAMES_A_CHAR = 6
CLIPS_A_SPEAKER = 175
TOPICS = ("DZJJ", "JKYS", "KJ", "LY", "QC", "RWLS", "TY", "YS", "ZX")
REJECTED_SHARE = 0.02
SHARD_BYTES = 256_000_000

NUM_CHARACTERS = 4_000
NUM_UNSEEN_CHARACTERS = 200
"""The rarest characters, which the train split does not have."""
_FIRST_HAN = 0x4E00
_HAN_BYTES = 3
_FRAME_BYTES, _NPY_HEADER_BYTES, _TAR_BLOCK_BYTES = 96 * 96, 128, 512
_JSON_BYTES = 230
"""Size of a sample's metadata without its label."""
_REJECTIONS = {
    Reason.NO_FACE: (0.25, "no face in any frame"),
    Reason.LOW_DETECTION: (0.2, "face in 61 % of the frames; crop.min_detection_rate is 0.8"),
    Reason.TURNED_AWAY: (0.2, "yaw of 68 degrees; crop.max_yaw_deg is 65"),
    Reason.UNSTABLE_TRACK: (0.15, "jitter of 3.9 px; crop.max_jitter_px is 3"),
    Reason.MISSING_FILE: (0.1, "no such file"),
    Reason.TRUNCATED: (0.06, "the file ends within a frame"),
    Reason.LABEL_TOO_LONG: (0.04, "13.1 characters a second; crop.max_chars_per_s is 12"),
}
_WITHOUT_FRAMES = (Reason.MISSING_FILE, Reason.TRUNCATED)

Ints = NDArray[np.int64]


def write_catalogue(folder: Path, num_clips: int, seed: int = 0) -> None:
    """Writes clips.parquet, crops.parquet and samples.parquet of `num_clips` synthetic clips into `folder`.

    The same arguments give the same rows. Clips are sorted by split and speaker, like in a corpus; samples are
    shuffled within one row group. Memory does not grow with `num_clips`.
    """
    schemas = {
        name: pa.schema([field for field in schema if not is_optional(field)], schema.metadata)
        for name, schema in (("clips", CLIPS), ("crops", CROPS), ("samples", SAMPLES))
    }
    with ExitStack() as stack:
        writers = {}
        for name, schema in schemas.items():
            file = stack.enter_context(atomic_file(folder / f"{name}.parquet"))
            writers[name] = stack.enter_context(pq.ParquetWriter(file, schema, compression="zstd"))
        shards = _Shards()
        for block in _blocks(num_clips):
            rng = np.random.default_rng([seed, block.first])
            num_frames_N = _num_frames(block.num_clips, rng)
            clips = _clips(block, num_frames_N, rng)
            crops = _crops(clips["clip_id"], num_frames_N, rng)
            samples = _samples(block.split, clips, crops, shards, rng)
            for name, columns in (("clips", clips), ("crops", crops), ("samples", samples)):
                table = pa.table(columns).select(schemas[name].names).cast(schemas[name])
                writers[name].write_table(table, row_group_size=ROW_GROUP_ROWS)


class _Block(NamedTuple):
    """Consecutive clips of one split; `first` is the number of the first clip in the catalogue."""

    split: str
    first: int
    num_clips: int
    first_speaker: int
    speaker_shift: int
    """Number of the block's first clip within its split."""


def _blocks(num_clips: int) -> Iterator[_Block]:
    first = first_speaker = 0
    left = 1.0
    for split, share in SPLIT_SHARES.items():
        # the last split gets the rest of the rounding
        in_split = round((num_clips - first) * min(1.0, share / left))
        left -= share
        for shift in range(0, in_split, ROW_GROUP_ROWS):
            yield _Block(split, first + shift, min(ROW_GROUP_ROWS, in_split - shift), first_speaker, shift)
        first += in_split
        first_speaker += -(-in_split // CLIPS_A_SPEAKER)


def _num_frames(count: int, rng: np.random.Generator) -> Ints:
    """Returns log-normal lengths with mean MEAN_FRAMES."""
    mu = np.log(MEAN_FRAMES) - SIGMA_LOG_FRAMES**2 / 2
    drawn = rng.lognormal(mu, SIGMA_LOG_FRAMES, count).round().astype(np.int64)
    return drawn.clip(FEWEST_FRAMES, MOST_FRAMES)


def _clips(block: _Block, num_frames_N: Ints, rng: np.random.Generator) -> dict[str, pa.Array]:
    number_N = np.arange(block.first, block.first + block.num_clips)
    speaker_N = block.first_speaker + (number_N - block.first + block.speaker_shift) // CLIPS_A_SPEAKER
    speaker = _padded_text(speaker_N, 6)
    # age and gender follow from the speaker's number, so they stay the same
    age_N = 18 + speaker_N * 7 % 43
    gender = pa.array(["F", "M"]).take(pa.array(speaker_N * 5 // 3 % 2))
    topic = pa.array(TOPICS).take(pa.array(rng.integers(len(TOPICS), size=block.num_clips)))
    clip_id = pc.binary_join_element_wise(
        speaker, pa.array(age_N).cast(pa.string()), gender, topic, _padded_text(number_N, 8), "_"
    )
    num_chars_N = (num_frames_N / FRAMES_A_CHAR * rng.normal(1, 0.1, block.num_clips)).round().clip(1)
    num_chars_N = num_chars_N.astype(np.int64)
    label = _labels(num_chars_N, block.split, rng)
    of_split = f"processed_{block.split}"
    return {
        "clip_id": clip_id,
        "split": _all(block.split, block.num_clips),
        "speaker": speaker,
        "gender": gender,
        "age": pa.array(age_N),
        "topic": topic,
        "media": pc.binary_join_element_wise(f"{of_split}.zip!{of_split}/", clip_id, ".mp4", ""),
        "media_kind": _all("face", block.num_clips),
        "start_s": pa.nulls(block.num_clips),
        "end_s": pa.nulls(block.num_clips),
        "text": pc.binary_join_element_wise(label, "。", ""),
        "label": label,
        "num_chars": pa.array(num_chars_N),
    }


def _labels(num_chars_N: Ints, split: str, rng: np.random.Generator) -> pa.Array:
    """Returns strings of Han characters, distributed by rank after Zipf and Mandelbrot."""
    known = NUM_CHARACTERS - (NUM_UNSEEN_CHARACTERS if split == TRAIN_SPLIT else 0)
    weights = 1 / (np.arange(known) + 6)
    # 2^16 entries, each character in proportion to its weight: one lookup for a random number
    drawn_from = np.searchsorted(np.cumsum(weights) / weights.sum(), (np.arange(1 << 16) + 0.5) / (1 << 16))
    utf8 = np.frombuffer(
        "".join(map(chr, range(_FIRST_HAN, _FIRST_HAN + NUM_CHARACTERS))).encode(), np.uint8
    ).reshape(NUM_CHARACTERS, _HAN_BYTES)
    end_N = np.concatenate([[0], np.cumsum(num_chars_N)])
    draws = rng.integers(1 << 16, size=end_N[-1], dtype=np.uint16)
    return _strings((end_N * _HAN_BYTES).astype(np.int32), utf8[drawn_from][draws])


def _crops(clip_id: pa.Array, num_frames_N: Ints, rng: np.random.Generator) -> dict[str, pa.Array]:
    count = len(clip_id)
    is_ok_N = rng.random(count) >= REJECTED_SHARE
    shares = np.array([share for share, _ in _REJECTIONS.values()])
    reason_N = np.searchsorted(np.cumsum(shares), rng.random(count) * shares.sum()).clip(max=len(shares) - 1)
    has_frames_N = is_ok_N | ~np.isin(reason_N, [list(_REJECTIONS).index(r) for r in _WITHOUT_FRAMES])

    def of_frames(values: NDArray[np.generic]) -> pa.Array:
        return pa.array(values, mask=~has_frames_N)

    def of_ok(values: NDArray[np.generic]) -> pa.Array:
        return pa.array(values, mask=~is_ok_N)

    def one_of(words: list[str]) -> pa.Array:
        return pa.array(words).take(pa.array(reason_N, mask=is_ok_N))

    landmarked_N = (num_frames_N * rng.uniform(0.2, 0.5, count)).astype(np.int64).clip(1)
    return {
        "clip_id": clip_id,
        "status": pa.array([Status.REJECTED.value, Status.OK.value]).take(pa.array(is_ok_N.astype(np.int8))),
        "reason": one_of([reason.value for reason in _REJECTIONS]),
        "detail": one_of([detail for _, detail in _REJECTIONS.values()]),
        "source_fps": of_frames(np.full(count, 30.0)),
        "source_width": of_frames(np.full(count, 1280)),
        "source_height": of_frames(np.full(count, 720)),
        "source_transfer": of_frames(np.full(count, "sdr")),
        "source_frames": of_frames(num_frames_N * 6 // 5),
        "num_frames": of_frames(num_frames_N),
        "duration_s": of_frames(num_frames_N / 25),
        "num_faces": of_frames(np.ones(count, np.int64)),
        "detection_rate": of_ok(1 - rng.exponential(0.01, count).clip(0, 0.2)),
        "landmarked_frames": of_frames(landmarked_N),
        "bridged_frames": of_ok(np.zeros(count, np.int64)),
        "implausible_frames": of_ok(np.zeros(count, np.int64)),
        "mouth_width_px": of_ok(rng.normal(62, 8, count).clip(16)),
        "jitter_px": of_ok(rng.gamma(4, 0.1, count).clip(0, 3)),
        "yaw_deg": of_ok(rng.gamma(2, 4, count).clip(0, 45)),
        "sharpness": of_ok(rng.lognormal(5, 0.4, count)),
        "mean_luma": of_ok(rng.normal(120, 20, count).clip(10, 245)),
        "mouth_motion": of_ok(rng.lognormal(-1, 0.4, count)),
        "track_key": _masked(_hex_keys(count, rng), is_ok_N),
        "clip_key": _masked(_hex_keys(count, rng), is_ok_N),
        "bytes": of_ok((num_frames_N * _FRAME_BYTES * 0.45).astype(np.int64)),
    }


class _Shards:
    """Assigns places in shards, sample after sample, like `pack`."""

    def __init__(self) -> None:
        self._split = ""
        self._number = self._filled = 0

    def place(self, split: str, sample_size_N: Ints) -> tuple[Ints, Ints]:
        """Returns the number of the shard, and the offset in it, for the next samples of `split`."""
        if split != self._split:
            self._split, self._number, self._filled = split, 0, 0
        shard_N, offset_N = np.empty_like(sample_size_N), np.empty_like(sample_size_N)
        end_N = np.cumsum(sample_size_N)
        start_N = end_N - sample_size_N
        first = 0
        while first < len(sample_size_N):
            if self._filled >= SHARD_BYTES:
                self._number, self._filled = self._number + 1, 0
            before = start_N[first] - self._filled
            last = int(np.searchsorted(start_N, before + SHARD_BYTES))
            shard_N[first:last] = self._number
            offset_N[first:last] = start_N[first:last] - before
            self._filled = int(end_N[last - 1] - before)
            first = last
        return shard_N, offset_N


def _samples(
    split: str,
    clips: dict[str, pa.Array],
    crops: dict[str, pa.Array],
    shards: _Shards,
    rng: np.random.Generator,
) -> dict[str, pa.Array]:
    ok_N = np.flatnonzero(pc.equal(crops["status"], Status.OK.value).to_numpy(zero_copy_only=False))
    chosen = pa.array(rng.permutation(ok_N))
    taken = {name: clips[name].take(chosen) for name in ("clip_id", "num_chars", "label", "speaker", "topic")}
    num_frames = crops["num_frames"].take(chosen)
    clip_size_N = (
        num_frames.to_numpy(zero_copy_only=False).astype(np.int64) * _FRAME_BYTES + _NPY_HEADER_BYTES
    )
    json_size_N = taken["num_chars"].to_numpy() * _HAN_BYTES + _JSON_BYTES
    sample_size_N = 2 * _TAR_BLOCK_BYTES + _whole_blocks(clip_size_N) + _whole_blocks(json_size_N)
    shard_N, offset_N = shards.place(split, sample_size_N)
    shard = pc.binary_join_element_wise(f"{split}/{split}-", _padded_text(shard_N, 6), ".tar", "")
    return taken | {
        "split": _all(split, len(chosen)),
        "shard": shard,
        "sample_offset": pa.array(offset_N),
        "sample_size": pa.array(sample_size_N),
        "clip_offset": pa.array(offset_N + _TAR_BLOCK_BYTES),
        "clip_size": pa.array(clip_size_N),
        "sha256": _hex_keys(len(chosen), rng),
        "codec": _all("raw", len(chosen)),
        "num_frames": num_frames,
    }


def _whole_blocks(num_bytes_N: Ints) -> Ints:
    return -(-num_bytes_N // _TAR_BLOCK_BYTES) * _TAR_BLOCK_BYTES


def _all(word: str, count: int) -> pa.Array:
    return pa.array([word]).take(pa.array(np.zeros(count, np.int8)))


def _padded_text(number_N: Ints, width: int) -> pa.Array:
    return pc.ascii_lpad(pa.array(number_N).cast(pa.string()), width, "0")


def _masked(array: pa.Array, is_valid_N: NDArray[np.bool_]) -> pa.Array:
    return pc.if_else(pa.array(is_valid_N), array, None)


def _hex_keys(count: int, rng: np.random.Generator) -> pa.Array:
    """Returns `count` strings of 64 hexadecimal digits, like sha256."""
    pairs = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), np.uint16)
    return _strings(np.arange(count + 1, dtype=np.int32) * 64, pairs[rng.integers(256, size=count * 32)])


def _strings(end_N: NDArray[np.int32], utf8: NDArray[np.generic]) -> pa.Array:
    """Returns an array whose string i is the bytes `end_N[i]` to `end_N[i + 1]` of `utf8`."""
    return pa.StringArray.from_buffers(len(end_N) - 1, pa.py_buffer(end_N), pa.py_buffer(utf8))
