"""The cache of clips and landmarks: found by content, never trusted."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.errors import ClipRejected
from shards.schema import MediaKind, Reason
from stages.clips import cache as cache_module
from stages.clips.cache import ClipCache
from stages.settings import CropParams
from tests.support.videos import write_face, write_mouth

PARAMS = CropParams()


@pytest.fixture
def mouth(tmp_path: Path) -> Path:
    return write_mouth(tmp_path / "mouth.mp4", 12)


@pytest.fixture
def cache(tmp_path: Path) -> ClipCache:
    return ClipCache(tmp_path / "cache")


def entries(cache: ClipCache, kind: str = "clips") -> Iterator[Path]:
    return (cache.folder / kind).glob("*/*.npz")


def test_a_clip_comes_back_as_it_was_made(cache: ClipCache, mouth: Path) -> None:
    made = cache.crop(mouth, MediaKind.MOUTH, PARAMS)
    kept = cache.crop(mouth, MediaKind.MOUTH, PARAMS)
    assert (made.from_cache, kept.from_cache) == (False, True)
    assert (made.figures, made.num_bytes, made.keys) == (kept.figures, kept.num_bytes, kept.keys)
    clip_THW = cache.read_clip(made.keys.clip, (12, 96, 96))
    assert clip_THW is not None
    assert np.array_equal(clip_THW, cache_module.crop_video(mouth, MediaKind.MOUTH, PARAMS).clip_THW)
    assert cache.read_clip("0" * 64, (12, 96, 96)) is None


def test_every_parameter_that_shapes_a_clip_is_in_the_key(cache: ClipCache, mouth: Path) -> None:
    keys = {cache.keys(mouth, kind, PARAMS).clip for kind in MediaKind}
    values = PARAMS.model_dump()
    for name, value in values.items():
        other = f"not {value}" if isinstance(value, str) else value + 1
        keys.add(cache.keys(mouth, MediaKind.MOUTH, PARAMS.model_copy(update={name: other})).clip)
    # whether long clips are cut into several, and how long one may take, leave a clip as it is
    assert len(keys) == 2 + len(values) - len({"split_long", "timeout_s"})


def test_what_steers_the_following_of_faces_is_in_the_tracks_key(cache: ClipCache, mouth: Path) -> None:
    """All else cuts again without new landmarks: the size of the crop, its rate, the limits of quality."""
    first = cache.keys(mouth, MediaKind.FACE, PARAMS).track
    changing = set()
    for name, value in PARAMS.model_dump().items():
        other = f"not {value}" if isinstance(value, str) else value + 1
        if cache.keys(mouth, MediaKind.FACE, PARAMS.model_copy(update={name: other})).track != first:
            changing.add(name)
    steering = {"landmarker", "tolerance_px", "max_faces", "min_mouth_width_px", "smoothing_s", "max_lag_px"}
    decoding = {"max_gap_s", "max_source_pixels", "max_source_s"}
    assert changing == steering | decoding


def test_a_file_system_that_fails_is_no_fault_of_the_clip(
    cache: ClipCache, mouth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cache_module.crop_video

    def fails(*_: object) -> None:
        try:
            raise OSError(5, "Input/output error")
        except OSError as error:
            raise ClipRejected(Reason.TRUNCATED, "cannot be decoded after 3 frames") from error

    monkeypatch.setattr(cache_module, "crop_video", fails)
    assert cache.crop(mouth, MediaKind.MOUTH, PARAMS).rejection is not None
    monkeypatch.setattr(cache_module, "crop_video", real)
    healed = cache.crop(mouth, MediaKind.MOUTH, PARAMS)
    assert (healed.rejection, healed.from_cache) == (None, False)


def test_code_versions_are_in_the_keys(
    cache: ClipCache, mouth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache.keys(mouth, MediaKind.FACE, PARAMS)
    monkeypatch.setattr(cache_module, "CODE_VERSION", 99)
    cropped_otherwise = cache.keys(mouth, MediaKind.FACE, PARAMS)
    assert cropped_otherwise.clip != before.clip
    assert cropped_otherwise.track == before.track
    monkeypatch.setattr(cache_module, "TRACK_VERSION", 99)
    assert cache.keys(mouth, MediaKind.FACE, PARAMS).track != before.track


def test_another_scale_needs_no_new_landmarks(
    cache: ClipCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = write_face(tmp_path / "face.mp4", 12)
    cache.crop(face, MediaKind.FACE, PARAMS)

    def never(*_: object) -> None:
        raise AssertionError("landmarked again")

    monkeypatch.setattr(cache_module, "track_faces", never)
    larger = cache.crop(face, MediaKind.FACE, PARAMS.model_copy(update={"size_px": 128}))
    assert not larger.from_cache
    clip_THW = cache.read_clip(larger.keys.clip, (12, 128, 128))
    assert clip_THW is not None
    assert clip_THW.shape == (12, 128, 128)


def test_content_counts_not_name_or_time(cache: ClipCache, mouth: Path) -> None:
    first = cache.keys(mouth, MediaKind.MOUTH, PARAMS)
    copy = Path(shutil.copy(mouth, mouth.with_name("copy.mp4")))
    os.utime(mouth, (1, 1))
    assert cache.keys(copy, MediaKind.MOUTH, PARAMS) == first == cache.keys(mouth, MediaKind.MOUTH, PARAMS)
    write_mouth(mouth, 12, seed=5)
    assert cache.keys(mouth, MediaKind.MOUTH, PARAMS) != first


def test_a_source_is_read_once(cache: ClipCache, mouth: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache.keys(mouth, MediaKind.MOUTH, PARAMS)
    monkeypatch.setattr(cache_module, "sha256_of", None)
    assert cache.keys(mouth, MediaKind.MOUTH, PARAMS) == first


@pytest.mark.parametrize("harm", ["empty", "cut", "garbage", "foreign", "flipped"])
def test_a_damaged_entry_is_named_and_made_anew(
    cache: ClipCache, mouth: Path, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = cache.crop(mouth, MediaKind.MOUTH, PARAMS)
    (entry,) = entries(cache)
    payload = bytearray(entry.read_bytes())
    at = payload.index(b"\x93NUMPY") + 200
    payload[at] ^= 0xFF
    harmed = {
        "empty": b"",
        "cut": payload[:-100],
        "garbage": b"garbage" * 99,
        "foreign": mouth.read_bytes(),
        "flipped": payload,
    }
    entry.write_bytes(harmed[harm])
    with caplog.at_level(logging.WARNING):
        again = cache.crop(mouth, MediaKind.MOUTH, PARAMS)
    assert not again.from_cache
    assert str(entry) in caplog.text
    assert again.figures == made.figures
    assert cache.crop(mouth, MediaKind.MOUTH, PARAMS).from_cache


def test_a_flipped_picture_is_not_handed_out(
    cache: ClipCache, mouth: Path, caplog: pytest.LogCaptureFixture
) -> None:
    key = cache.crop(mouth, MediaKind.MOUTH, PARAMS).keys.clip
    (entry,) = entries(cache)
    payload = bytearray(entry.read_bytes())
    payload[len(payload) // 2] ^= 1
    entry.write_bytes(payload)
    assert cache.read_clip(key, (12, 96, 96)) is None
    assert str(entry) in caplog.text


class Bomb:
    """Makes a folder where it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def test_pickles_are_refused(cache: ClipCache, mouth: Path, tmp_path: Path) -> None:
    cache.crop(mouth, MediaKind.MOUTH, PARAMS)
    (entry,) = entries(cache)
    np.savez(entry, outcome=np.array([Bomb(tmp_path / "gone_off")], dtype=object))
    assert not cache.crop(mouth, MediaKind.MOUTH, PARAMS).from_cache
    assert not (tmp_path / "gone_off").exists()


def test_a_damaged_memo_only_costs_time(
    cache: ClipCache, mouth: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keys = cache.keys(mouth, MediaKind.MOUTH, PARAMS)
    (memo,) = cache.folder.glob("content-*.sqlite")
    memo.write_bytes(b"no database" * 500)
    assert cache.keys(mouth, MediaKind.MOUTH, PARAMS) == keys
    assert memo.name in caplog.text


def test_rejections_are_kept(cache: ClipCache, tmp_path: Path) -> None:
    short = write_mouth(tmp_path / "short.mp4", 3)
    made, kept = (cache.crop(short, MediaKind.MOUTH, PARAMS) for _ in range(2))
    assert kept.from_cache
    assert made.rejection is not None
    assert kept.rejection is not None
    assert (kept.rejection.reason, kept.rejection.detail) == (made.rejection.reason, made.rejection.detail)
    assert kept.rejection.reason is Reason.TOO_SHORT
    assert kept.figures == made.figures


def replacing(path: Path, others: list[Path], real: Callable[..., Any]) -> Callable[..., Any]:
    """`real`, but each of `others` in turn takes the video's place just before, as where an rsync ends."""
    left = iter(others)

    def replace_first(*arguments: Any) -> Any:
        if (other := next(left, None)) is not None:
            shutil.copy(other, path.with_suffix(".part"))
            path.with_suffix(".part").replace(path)
        return real(*arguments)

    return replace_first


def test_a_video_that_is_replaced_after_it_was_hashed_is_kept_under_its_own_content(
    cache: ClipCache, mouth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Path(shutil.copy(mouth, tmp_path / "1")), write_mouth(tmp_path / "2.mp4", 14, seed=1)
    with monkeypatch.context() as patched:
        patched.setattr(cache_module, "crop_video", replacing(mouth, [second], cache_module.crop_video))
        outcome = cache.crop(mouth, MediaKind.MOUTH, PARAMS)
    assert (outcome.figures.num_frames, outcome.from_cache) == (14, False)
    assert outcome.keys == cache.keys(second, MediaKind.MOUTH, PARAMS)
    assert cache.crop(second, MediaKind.MOUTH, PARAMS).from_cache
    assert cache.crop(first, MediaKind.MOUTH, PARAMS).figures.num_frames == 12


def test_landmarks_and_rejections_of_another_content_are_not_kept_either(
    cache: ClipCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    face, short = write_face(tmp_path / "face.mp4", 12), write_mouth(tmp_path / "short.mp4", 3)
    copy = Path(shutil.copy(face, tmp_path / "copy.mp4"))
    first = cache.keys(face, MediaKind.FACE, PARAMS)
    with monkeypatch.context() as patched:
        patched.setattr(cache_module, "track_faces", replacing(face, [short], cache_module.track_faces))
        outcome = cache.crop(face, MediaKind.FACE, PARAMS)
    assert outcome.rejection is not None and outcome.keys != first
    assert first.track not in {entry.stem for entry in entries(cache, "tracks")}
    shutil.copy(copy, face)
    with monkeypatch.context() as patched:
        patched.setattr(cache_module, "crop_video", replacing(face, [short], cache_module.crop_video))
        cache.crop(face, MediaKind.FACE, PARAMS)
    assert cache.crop(copy, MediaKind.FACE, PARAMS).rejection is None


def test_a_video_that_never_stands_still_is_turned_down_and_not_kept(
    cache: ClipCache, mouth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [write_mouth(tmp_path / f"{seed}.mp4", 12, seed=seed) for seed in (1, 2, 3)]
    monkeypatch.setattr(cache_module, "crop_video", replacing(mouth, others, cache_module.crop_video))
    with pytest.raises(ClipRejected, match="is being written") as caught:
        cache.crop(mouth, MediaKind.MOUTH, PARAMS)
    assert caught.value.reason is Reason.UNREADABLE
    assert not list(entries(cache))
