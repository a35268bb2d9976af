"""Shards and the catalogue are untrusted: damage and attacks are reported with shard and clip, without large memory."""

import io
import shutil
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ShardError
from shards.samples import read_samples
from shards.schema import SAMPLES
from shards.settings import MachineParams
from shards.stream import ShardStream, read_sample
from tests.support.packed import Codec, Packed, pack_clips, toy_clips

CLIPS = toy_clips(num_train=6, num_valid=0)
CODECS: tuple[Codec, ...] = ("raw", "jpeg", "h264", "ffv1")


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Packed]:
    folder = tmp_path_factory.mktemp("packs")
    return {codec: pack_clips(folder / codec, CLIPS, codec=codec) for codec in CODECS}


@pytest.fixture
def copy(packs: dict[str, Packed], tmp_path: Path) -> Callable[[str], Packed]:
    def copied(codec: str) -> Packed:
        return Packed.at(shutil.copytree(packs[codec].samples.parent, tmp_path / codec))

    return copied


def row_of(packed: Packed, number: int = 3) -> dict:
    return read_samples(packed.samples, "train").to_pylist()[number]


def both_ways(packed: Packed, row: dict) -> list[np.ndarray | ShardError]:
    """Returns results of `read_sample` and of the stream with and without known frame size; errors as values."""
    table = pa.Table.from_pylist([row], SAMPLES)
    got: list[np.ndarray | ShardError] = []
    try:
        got.append(read_sample(packed.store, row)[0])
    except ShardError as error:
        got.append(error)
    for frame_HW in (None, (96, 96)):
        stream = ShardStream(packed.store, table, MachineParams(num_workers=0), frame_HW=frame_HW)
        try:
            got.append(next(stream.batches([np.array([0])])).video_BTHW[0].numpy())
        except ShardError as error:
            got.append(error)
    return got


def assert_refused(packed: Packed, row: dict) -> None:
    for got in both_ways(packed, row):
        assert isinstance(got, ShardError), got
        assert Path(row["shard"]).name in str(got)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("moved", [{"clip_offset": -1}, {"clip_offset": 512}, {"clip_size": -1}])
def test_a_clip_at_another_place_than_the_catalogue_says_is_refused(
    packs: dict[str, Packed], codec: str, moved: dict[str, int]
) -> None:
    row = row_of(packs[codec])
    assert_refused(packs[codec], row | {name: row[name] + by for name, by in moved.items()})


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("damage", ["missing", "cut", "garbage", "foreign", "shorter", "empty", "folder"])
def test_damage_is_named_with_its_shard(copy: Callable[[str], Packed], codec: str, damage: str) -> None:
    packed = copy(codec)
    row = row_of(packed)
    path = packed.shards / row["shard"]
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(content[: row["clip_offset"] + row["clip_size"] - 1])
    elif damage == "garbage":
        content[row["sample_offset"] : row["sample_offset"] + 512] = b"\xff" * 512
        path.write_bytes(content)
    elif damage == "foreign":
        row |= {"clip_id": "another"}
    elif damage == "shorter":
        row |= {"num_frames": row["num_frames"] + 1}
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
        path.mkdir()
    assert_refused(packed, row)


def write_sample(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], row: dict) -> dict:
    """Replaces the shard of the row by one with only these members; returns the matching row."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for member, content in members:
            tar.addfile(member, io.BytesIO(content))
        size = tar.offset
    with tarfile.open(path) as tar:
        first = tar.getmembers()[0]
    place = {"sample_offset": 0, "sample_size": size, "clip_offset": first.offset_data}
    return row | place | {"clip_size": len(members[0][1])}


def members_of(packed: Packed, row: dict) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(packed.shards / row["shard"]) as tar:
        chosen = [m for m in tar if m.name.startswith(f"{row['clip_id']}.")]
        return [(m, tar.extractfile(m).read()) for m in chosen]  # type: ignore[union-attr]


KINDS = {
    "symlink": tarfile.SYMTYPE,
    "hard link": tarfile.LNKTYPE,
    "character device": tarfile.CHRTYPE,
    "block device": tarfile.BLKTYPE,
    "pipe": tarfile.FIFOTYPE,
    "folder": tarfile.DIRTYPE,
    "sparse": tarfile.GNUTYPE_SPARSE,
    "contiguous": tarfile.CONTTYPE,
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("which", [0, 1])
def test_members_that_are_not_regular_files_are_refused(
    copy: Callable[[str], Packed], codec: str, kind: str, which: int
) -> None:
    packed = copy(codec)
    row = row_of(packed)
    path = packed.shards / row["shard"]
    start = row["sample_offset"] if which == 0 else row["clip_offset"] + -(-row["clip_size"] // 512) * 512
    content = bytearray(path.read_bytes())
    header = content[start : start + 512]
    header[156:157], header[157:169] = KINDS[kind], b"/etc/passwd\0"
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    content[start : start + 512] = header
    path.write_bytes(content)
    if which == 1 and codec == "raw":
        # the stream reads only the pixels; read_sample checks the metadata
        with pytest.raises(ShardError, match=path.name):
            read_sample(packed.store, row)
    else:
        assert_refused(packed, row)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "name", ["../{id}.{ext}", "/tmp/{id}.{ext}", "a/{id}.{ext}", "{id}.pkl", "{id}.{ext}.pkl"]
)
def test_members_of_other_names_are_refused(copy: Callable[[str], Packed], codec: str, name: str) -> None:
    packed = copy(codec)
    row = row_of(packed)
    (clip, payload), metadata = members_of(packed, row)
    clip.name = name.format(id=row["clip_id"], ext=clip.name.rpartition(".")[2])
    path = packed.shards / row["shard"]
    assert_refused(packed, write_sample(path, [(clip, payload), metadata], row))


@pytest.mark.parametrize("codec", CODECS)
def test_a_pickle_in_place_of_a_clip_is_refused(copy: Callable[[str], Packed], codec: str) -> None:
    packed = copy(codec)
    row = row_of(packed)
    (clip, _), metadata = members_of(packed, row)
    pickled = io.BytesIO()
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    for payload in (pickled.getvalue(), b"\x80\x04N."):
        clip.size = len(payload)
        assert_refused(packed, write_sample(packed.shards / row["shard"], [(clip, payload), metadata], row))


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"[" * 100_000, b'{"fps": 25', b"\xff"])
def test_invalid_metadata_is_refused(copy: Callable[[str], Packed], content: bytes) -> None:
    packed = copy("raw")
    row = row_of(packed)
    clip, (metadata, _) = members_of(packed, row)
    metadata.size = len(content)
    row = write_sample(packed.shards / row["shard"], [clip, (metadata, content)], row)
    with pytest.raises(ShardError, match=row["clip_id"]):
        read_sample(packed.store, row)


@pytest.mark.parametrize(
    "claim",
    [
        {"num_frames": 2**31 - 1},
        {"num_frames": 2**31 - 1, "clip_size": 2**62, "sample_size": 2**62 + 4096},
        {"sample_size": 2**62},
        {"clip_offset": 2**62},
        {"clip_offset": -512, "sample_offset": -1024},
        {"num_frames": 0},
        {"num_frames": -1},
        {"clip_size": 0},
        {"clip_size": -1},
        {"codec": "pickle"},
        {"shard": "../shards/train/train-000000.tar"},
        {"shard": "/etc/passwd"},
    ],
)
@pytest.mark.parametrize("codec", ["raw", "jpeg"])
def test_a_hostile_catalogue_costs_no_memory(packs: dict[str, Packed], codec: str, claim: dict) -> None:
    row = row_of(packs[codec]) | claim
    tracemalloc.start()
    try:
        assert_refused(packs[codec], row)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 4_000_000


def test_a_header_that_claims_too_much_costs_no_memory(copy: Callable[[str], Packed]) -> None:
    """Header, tar and catalogue agree on 300 TB; the file is short, or large and sparse."""
    packed = copy("raw")
    row = row_of(packed)
    shape = (2**31 - 1, 384, 384)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    size = len(header.getvalue()) + int(np.prod(shape, dtype=object))
    member = tarfile.TarInfo(f"{row['clip_id']}.npy")
    member.size = size
    path = packed.shards / row["shard"]
    path.write_bytes(member.tobuf(tarfile.GNU_FORMAT) + header.getvalue())
    claim = {"num_frames": shape[0], "clip_offset": 512, "clip_size": size}
    row |= claim | {"sample_offset": 0, "sample_size": 512 + -(-size // 512) * 512 + 1024}
    with path.open("r+b") as file:
        for num_bytes in (4096, 8 << 40):
            file.truncate(num_bytes)
            tracemalloc.start()
            try:
                assert_refused(packed, row)
                assert tracemalloc.get_traced_memory()[1] < 4_000_000
            finally:
                tracemalloc.stop()


@settings(max_examples=300, deadline=None)
@given(place=st.integers(0, 639), value=st.integers(0, 255), number=st.integers(0, 4))
def test_the_fast_reader_accepts_exactly_what_the_strict_reader_accepts(
    packs: dict[str, Packed], place: int, value: int, number: int
) -> None:
    """Changes any byte of the tar and .npy headers, with the old and with the corrected header checksum."""
    packed = packs["raw"]
    row = row_of(packed, number)
    whole = packed.shards / row["shard"]
    start = row["sample_offset"]
    content = bytearray(whole.read_bytes()[start : start + row["sample_size"]])
    content[place] = value
    summed = content.copy()
    summed[148:156] = b" " * 8
    summed[148:156] = b"%06o\0 " % sum(summed[:512])
    moved = row | {"shard": "train/changed.tar", "sample_offset": 0, "clip_offset": 512}
    for changed in (content, summed):
        (packed.shards / moved["shard"]).write_bytes(changed)
        strict, *fast = both_ways(packed, moved)
        for got in fast:
            if isinstance(strict, ShardError):
                assert isinstance(got, ShardError)
            else:
                np.testing.assert_array_equal(got, strict)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=2048), codec=st.sampled_from(CODECS))
def test_noise_is_a_shard_error_and_nothing_else(
    packs: dict[str, Packed], content: bytes, codec: str
) -> None:
    packed = packs[codec]
    place = {"sample_offset": 0, "sample_size": len(content), "clip_offset": 512, "clip_size": 600}
    row = row_of(packed) | place | {"shard": "train/noise.tar"}
    (packed.shards / row["shard"]).write_bytes(content)
    assert_refused(packed, row)


def test_clips_of_another_size_are_reported(tmp_path: Path) -> None:
    clips = [*CLIPS[:2], ("train_odd", "train", np.zeros((9, 80, 96), np.uint8), "一")]
    packed = pack_clips(tmp_path, clips)
    samples = read_samples(packed.samples, "train")
    stream = ShardStream(packed.store, samples, MachineParams(num_workers=0))
    with pytest.raises(ShardError, match=r"train_odd.*\(80, 96\).*\(96, 96\)"):
        next(stream.batches([np.arange(3)]))
    assert next(stream.batches([np.array([2])])).video_BTHW.shape == (1, 9, 80, 96)
    stream = ShardStream(packed.store, samples, MachineParams(num_workers=0), frame_HW=(96, 96))
    with pytest.raises(ShardError, match="train_odd"):
        next(stream.batches([np.array([2])]))
