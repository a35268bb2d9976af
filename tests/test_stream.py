"""The stream hands over exactly the planned clips, and names what is damaged."""

from pathlib import Path

import numpy as np
import pytest
import torch

from shards.errors import ShardError
from shards.plan import plan_epoch, read_samples
from shards.settings import LoaderParams, MachineParams
from shards.stream import ShardStream, read_sample
from tests.packed import Packed, pack_clips, toy_clips

CLIPS = toy_clips(num_train=17, num_valid=2)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return pack_clips(tmp_path_factory.mktemp("packed"), CLIPS)


def all_batches(packed: Packed, num_workers: int, first_step: int = 0) -> list:
    samples = read_samples(packed.samples, "train")
    plan = plan_epoch(samples, LoaderParams(frame_budget=200, window_shards=2), 4, epoch=1)
    stream = ShardStream(packed.store, samples, MachineParams(num_workers=num_workers))
    return list(stream.batches(plan.batches, first_step))


def test_each_clip_arrives_whole_with_its_label(packed: Packed) -> None:
    truth = {clip_id: (clip, label) for clip_id, _, clip, label in CLIPS}
    seen = []
    for batch in all_batches(packed, 0):
        assert batch.video_BTHW.dtype == torch.uint8
        for video_THW, n, clip_id, label in zip(
            batch.video_BTHW, batch.num_frames_B, batch.clip_ids, batch.labels, strict=True
        ):
            np.testing.assert_array_equal(video_THW[:n].numpy(), truth[clip_id][0])
            assert not video_THW[n:].any()
            assert label == truth[clip_id][1]
            seen.append(clip_id)
    assert sorted(seen) == sorted(clip_id for clip_id, split, *_ in CLIPS if split == "train")


def test_workers_and_a_later_start_change_no_batch(packed: Packed) -> None:
    whole = all_batches(packed, 0)
    for others, first in ((all_batches(packed, 2), 0), (all_batches(packed, 0, 2), 2)):
        assert [b.clip_ids for b in others] == [b.clip_ids for b in whole[first:]]
        assert all(
            torch.equal(a.video_BTHW, b.video_BTHW) for a, b in zip(others, whole[first:], strict=True)
        )


def row_of(packed: Packed, number: int = 3) -> dict:
    return read_samples(packed.samples, "train").to_pylist()[number]


@pytest.mark.parametrize("damage", ["missing", "cut", "garbage", "foreign", "shorter"])
def test_damage_is_named_with_shard_and_clip(tmp_path: Path, damage: str) -> None:
    packed = pack_clips(tmp_path, CLIPS)
    row = row_of(packed)
    path = packed.shards / row["shard"]
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: row["sample_offset"] + row["sample_size"] - 600])
    elif damage == "garbage":
        content[row["sample_offset"] : row["sample_offset"] + 512] = b"\xff" * 512
        path.write_bytes(content)
    elif damage == "foreign":
        row |= {"clip_id": "another"}
    else:
        row |= {"num_frames": row["num_frames"] + 1}
    with pytest.raises(ShardError, match=path.name):
        read_sample(packed.store, row)


def test_a_pickle_in_place_of_a_clip_is_refused(tmp_path: Path) -> None:
    import io
    import tarfile

    payload = io.BytesIO()
    np.save(payload, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    packed = pack_clips(tmp_path, CLIPS)
    row = row_of(packed, 0)
    path = packed.shards / row["shard"]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for extension, content in (("npy", payload.getvalue()), ("json", b"{}")):
            member = tarfile.TarInfo(f"{row['clip_id']}.{extension}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    row |= {"sample_offset": 0, "sample_size": path.stat().st_size}
    with pytest.raises(ShardError, match=row["clip_id"]):
        read_sample(packed.store, row)
