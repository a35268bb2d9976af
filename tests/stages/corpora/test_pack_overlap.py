"""Videos and speakers that packs share are found, and marked where training would leak into scores."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from shards import schema
from shards.codec import decode_clip, encode_clip
from shards.errors import ConfigError
from shards.files import read_table, write_table
from shards.settings import MachineParams, PackParams
from shards.store import FolderStore
from stages.corpora.pack_overlap import ComparedPack, PackOverlap, find_overlap
from tests.support.drawn_mouths import speaking
from tests.support.packed import pack_clips

Row = tuple[str, str, np.ndarray, str | None]
"""clip id, split, clip, speaker."""


def pack(folder: Path, rows: list[Row], **options: object) -> ComparedPack:
    """Packs the clips under the name of the folder."""
    packed = pack_clips(folder, [(clip_id, split, clip, "一") for clip_id, split, clip, _ in rows])
    table = read_table(packed.samples, schema.SAMPLES, "")
    speaker_of = {clip_id: speaker for clip_id, _, _, speaker in rows}
    speakers = pa.array([speaker_of[clip_id] for clip_id in table["clip_id"].to_pylist()], pa.string())
    place = schema.SAMPLES.names.index("speaker")
    table = table.set_column(place, schema.SAMPLES.field(place), speakers)
    write_table(packed.samples, table, schema.SAMPLES)
    return ComparedPack(folder.name, packed.samples, FolderStore(packed.shards), **options)


def overlap(tmp_path: Path, *packs: ComparedPack) -> PackOverlap:
    return find_overlap(packs, MachineParams(workers=1, cache_dir=str(tmp_path / "cache")))


def reencoded(seed: int) -> np.ndarray:
    params = PackParams(codec="h264", h264_crf=32)
    return decode_clip(encode_clip(speaking(seed), params), "h264", 75)


def clips_of(found: PackOverlap) -> list[tuple[list[str], bool]]:
    return [
        ([f"{clip.pack} {clip.split} {clip.clip_id}" for clip in one.clips], one.is_leak)
        for one in found.copies
    ]


def test_copies_between_and_within_packs(tmp_path: Path) -> None:
    first: list[Row] = [(f"a{seed}", "train", speaking(seed), None) for seed in range(8)]
    first += [("valid", "valid", speaking(20), None), ("again", "train", reencoded(3), None)]
    second: list[Row] = [(f"b{seed}", "train", speaking(seed), None) for seed in range(30, 36)]
    second += [("one", "test", reencoded(1), None), ("valid", "valid", reencoded(20), None)]
    found = overlap(tmp_path, pack(tmp_path / "lips", first), pack(tmp_path / "cmlr", second))
    assert clips_of(found) == [
        (["lips train a1", "cmlr test one"], True),
        (["lips train a3", "lips train again"], False),
        (["lips valid valid", "cmlr valid valid"], False),
    ]
    assert all(0.9 < one.similarity < 1 for one in found.copies)
    assert found.num_leaks == 1
    assert found.num_clips == {"lips": 10, "cmlr": 8} and found.num_not_compared == {"lips": 0, "cmlr": 0}


def test_many_copies_of_one_video_are_one_finding(tmp_path: Path) -> None:
    """Equal files and re-encoded ones together. No pair of a training clip and the test clip is needed for a leak."""
    same = speaking(1)
    rows: list[Row] = [(f"same{number}", "valid", same, None) for number in range(30)]
    rows += [("coded", "test", reencoded(1), None), ("late", "train", speaking(1, start_s=0.02), None)]
    rows += [(f"other{seed}", "train", speaking(seed), None) for seed in range(2, 6)]
    (one,) = overlap(tmp_path, pack(tmp_path / "lips", rows)).copies
    assert len(one.clips) == 32 and one.is_leak


def test_parts_of_one_video_are_one_finding(tmp_path: Path) -> None:
    """Start and end have nothing in common but the whole video."""
    rows: list[Row] = [("start", "train", speaking(1), None), ("end", "test", speaking(1, start_s=4), None)]
    (one,) = overlap(
        tmp_path,
        pack(tmp_path / "parts", rows),
        pack(tmp_path / "whole", [("all", "test", speaking(1, seconds=7), None)]),
    ).copies
    assert [clip.clip_id for clip in one.clips] == ["start", "end", "all"] and one.is_leak


def test_still_clips_match_only_equal_files(tmp_path: Path) -> None:
    stills: list[Row] = []
    for seed in range(5):
        still = np.repeat(speaking(seed, seconds=0.04), 60, axis=0)
        noise = np.random.default_rng(seed).normal(0, 3, still.shape)
        stills.append((f"s{seed}", "train", np.clip(still + noise, 0, 255).astype(np.uint8), None))
    stills += [
        ("short", "train", speaking(9)[:20], None),
        ("black", "train", np.zeros((60, 96, 96), np.uint8), None),
    ]
    other: list[Row] = [("black", "test", np.zeros((60, 96, 96), np.uint8), None)]
    found = overlap(tmp_path, pack(tmp_path / "lips", stills), pack(tmp_path / "cmlr", other))
    assert clips_of(found) == [(["lips train black", "cmlr test black"], True)]
    assert found.copies[0].similarity == 1
    assert found.num_not_compared == {"lips": 7, "cmlr": 1}


def test_speakers_of_the_same_name(tmp_path: Path) -> None:
    """Names are compared as ingest does: case and width do not count, punctuation does."""

    def rows(*speakers: tuple[str, str | None]) -> list[Row]:
        return [(f"c{n}", split, speaking(n, seconds=0.5), name) for n, (split, name) in enumerate(speakers)]

    first = rows(
        ("train", "S1"),
        ("train", "S1"),
        ("train", "1-2"),
        ("valid", "anna"),
        ("test", "both"),
        ("train", None),
    )
    second = rows(
        ("test", "Ｓ1"),
        ("train", "12"),
        ("valid", "anna"),
        ("test", ""),
        ("train", "only"),
        ("train", "only"),
    )
    third = rows(("train", "Anna"), ("train", "S2"))
    packs = [pack(tmp_path / name, of) for name, of in (("a", first), ("b", second), ("c", third))]
    found = overlap(tmp_path, *packs)
    assert [
        (
            one.name,
            [(place.pack, place.split, place.speaker, place.num_clips) for place in one.places],
            one.is_leak,
        )
        for one in found.speakers
    ] == [
        ("anna", [("a", "valid", "anna", 1), ("b", "valid", "anna", 1), ("c", "train", "Anna", 1)], True),
        ("s1", [("a", "train", "S1", 2), ("b", "test", "Ｓ1", 1)], True),
    ]


def test_a_speaker_only_in_training_is_no_leak(tmp_path: Path) -> None:
    clip = speaking(1, seconds=0.5)
    one = pack(tmp_path / "a", [("x", "train", clip, "s1")])
    other = pack(tmp_path / "b", [("y", "train", clip + 1, "s1")])
    (speaker,) = overlap(tmp_path, one, other).speakers
    assert not speaker.is_leak


def test_other_names_of_the_training_split(tmp_path: Path) -> None:
    rows: list[Row] = [("x", "learn", speaking(1), "s1")]
    one = pack(tmp_path / "a", rows, train_splits=("learn", "more"))
    other = pack(tmp_path / "b", [("y", "train", reencoded(1), "s1")])
    found = overlap(tmp_path, one, other)
    assert not found.copies[0].is_leak and not found.speakers[0].is_leak
    found = overlap(tmp_path, one, pack(tmp_path / "c", [("y", "learn", reencoded(1), "s1")]))
    assert found.copies[0].is_leak and found.speakers[0].is_leak


def test_packs_of_the_same_name_are_refused(tmp_path: Path) -> None:
    one = pack(tmp_path / "a", [("x", "train", speaking(1), None)])
    with pytest.raises(ConfigError, match="two packs are named a"):
        overlap(tmp_path, one, one)
