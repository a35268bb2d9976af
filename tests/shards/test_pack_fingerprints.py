"""Fingerprints of a pack are those of its clips; they are computed once, and a damaged cache is computed again."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from shards.errors import ShardError, TableError
from shards.fingerprint import fingerprint_of
from shards.pack_fingerprints import fingerprints_of, read_catalogue
from shards.settings import MachineParams
from tests.support.drawn_mouths import speaking
from tests.support.packed import Packed, pack_clips

CLIPS = [(f"c{seed}", "valid" if seed > 3 else "train", speaking(seed), "一") for seed in range(6)]
CLIPS[2] = ("c2", "train", CLIPS[2][2][:20], "一")


@pytest.fixture
def packed(tmp_path: Path) -> Packed:
    return pack_clips(tmp_path, CLIPS, clips_a_shard=2)


def of_pack(packed: Packed) -> list[np.ndarray]:
    machine = MachineParams(workers=2, cache_dir=str(packed.samples.parent / "cache"))
    fingerprints = fingerprints_of(read_catalogue(packed.samples), packed.store, machine)
    return [fingerprints[clip] for clip in range(len(fingerprints))]


def cached(packed: Packed) -> Path:
    (path,) = (packed.samples.parent / "cache" / "fingerprints").iterdir()
    return path


def same(found: list[np.ndarray]) -> bool:
    return all(
        np.array_equal(one, fingerprint_of(clip, 25.0))
        for one, (_, _, clip, _) in zip(found, CLIPS, strict=True)
    )


def test_they_are_those_of_the_clips_and_kept(packed: Packed) -> None:
    assert same(of_pack(packed))
    assert len(of_pack(packed)[2]) == 0
    shutil.rmtree(packed.shards)
    assert same(of_pack(packed))


def test_progress_counts_clips(packed: Packed) -> None:
    progress: list[tuple[int, int]] = []
    machine = MachineParams(workers=1, cache_dir=str(packed.samples.parent / "cache"))
    fingerprints_of(
        read_catalogue(packed.samples), packed.store, machine, lambda *done: progress.append(done)
    )
    assert progress[-1] == (6, 6)


@pytest.mark.parametrize("content", [b"", b"PAR1 of something else", None])
def test_a_damaged_cache_is_computed_again(
    packed: Packed, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    of_pack(packed)
    whole = cached(packed).read_bytes()
    cached(packed).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with caplog.at_level(logging.WARNING):
        assert same(of_pack(packed))
    assert f"{cached(packed)} is damaged" in caplog.text
    assert cached(packed).read_bytes() == whole


def test_the_cache_of_fewer_clips_is_not_used(packed: Packed, tmp_path: Path) -> None:
    """Two packs with the same hash do not exist, but a file may be copied."""
    other = pack_clips(tmp_path / "other", CLIPS[:2])
    of_pack(other)
    of_pack(packed)
    cached(packed).write_bytes(cached(other).read_bytes())
    assert same(of_pack(packed))


def test_another_pack_has_its_own_file(packed: Packed, tmp_path: Path) -> None:
    of_pack(packed)
    changed = [("c0", "train", speaking(50), "一"), *CLIPS[1:]]
    assert not same(of_pack(pack_clips(tmp_path, changed, clips_a_shard=2)))


def test_a_pack_of_another_frame_rate(tmp_path: Path) -> None:
    clip = speaking(1, fps=30)
    (found,) = of_pack(pack_clips(tmp_path, [("a", "train", clip, "一")], fps=30))
    assert np.array_equal(found, fingerprint_of(clip, 30.0))


@pytest.mark.parametrize("fps", [0, -25, 1e-9, float("nan"), float("inf"), "25", None])
def test_an_impossible_frame_rate_is_an_error(tmp_path: Path, fps: float) -> None:
    packed = pack_clips(tmp_path, CLIPS[:2], fps=fps)
    with pytest.raises(ShardError, match=r"train-000000\.tar: the sample of clip c0 has the frame rate"):
        of_pack(packed)


def test_a_truncated_shard_is_named(packed: Packed) -> None:
    shard = packed.shards / "train" / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    with pytest.raises(ShardError, match=r"train-000001\.tar is truncated .* clip c2"):
        of_pack(packed)
    assert not (packed.samples.parent / "cache" / "fingerprints").exists()


def test_a_clip_that_cannot_be_decoded_is_named(tmp_path: Path) -> None:
    packed = pack_clips(tmp_path, CLIPS[:2], codec="h264")
    row = read_catalogue(packed.samples).to_pylist()[1]
    shard = packed.shards / row["shard"]
    content = bytearray(shard.read_bytes())
    content[row["clip_offset"] : row["clip_offset"] + row["clip_size"]] = bytes(row["clip_size"])
    shard.write_bytes(content)
    with pytest.raises(ShardError, match=r"train-000000\.tar: the sample of clip c1 is damaged"):
        of_pack(packed)


def test_a_missing_catalogue_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="nowhere"):
        read_catalogue(tmp_path / "nowhere")
