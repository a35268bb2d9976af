"""Compares parts of videos with the same part of a whole decoding."""

import re
import zipfile
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from shards.schema import MediaKind, Reason
from stages.clips.cache import ClipCache
from stages.videos.media import Source, resolve_media
from stages.videos.streams import Clock
from stages.videos.video import decode, read_header
from tests.support.odd_videos import with_last_picture_for
from tests.support.sources import PARAMS, gray_HW, pictures, rejection, zipped
from tests.support.videos import number_of, numbered, photograph, write_mouth, write_video

X264 = {"preset": "veryfast", "crf": "20"}
STREAMS = {
    "b_frames": ("a.mp4", "libx264", X264 | {"bf": "3", "g": "40"}),
    "one_key_frame": ("a.mp4", "libx264", X264 | {"g": "1000"}),
    "open_gop": ("a.mp4", "libx264", X264 | {"bf": "3", "g": "30", "x264-params": "open-gop=1"}),
    "intra_refresh": ("a.mp4", "libx264", X264 | {"g": "30", "x264-params": "intra-refresh=1"}),
    "hevc": ("a.mp4", "libx265", {"preset": "ultrafast", "x265-params": "log-level=none:keyint=30:open-gop=1"}),
    "matroska": ("a.mkv", "libx264", X264 | {"bf": "2", "g": "25"}),
    "mpeg4": ("a.mp4", "mpeg4", {"bf": "2", "g": "25"}),
    "mpeg1_in_matroska": ("a.mkv", "mpeg1video", {"bf": "2", "g": "20"}),
    "mpeg_program": ("a.mpg", "mpeg1video", {"bf": "2", "g": "20"}),
    "transport": ("a.ts", "libx264", X264 | {"bf": "3", "g": "40"}),
    "vp9": ("a.webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "g": "40"}),
}  # fmt: skip
PARTS = [(None, 3.0), (0.0, 1.02), (2.5, 4.0), (3.41, 6.13), (5.999, None), (4.0, 4.04), (6.0, 99.0)]


def moving(num_frames: int) -> list[np.ndarray]:
    """Returns pictures with motion, so that the encoder uses B-frames and references."""
    small = cv2.resize(photograph(), (160, 96))
    return [np.roll(small, 3 * i, axis=1) // 2 + numbered(i) // 2 for i in range(num_frames)]


def cut(
    whole: list[tuple[int, float, bytes]], start_s: float, end_s: float
) -> list[tuple[int, float, bytes]]:
    """Returns the expected pictures: those of the whole video in the part, with new indices and times."""
    inside = [(time, gray) for _, time, gray in whole if start_s - 1e-6 <= time < end_s - 1e-6]
    return [(i, time - inside[0][0], gray) for i, (time, gray) in enumerate(inside)]


def test_each_part_has_its_own_cache_keys(tmp_path: Path) -> None:
    path = write_mouth(tmp_path / "a.mp4", 12)
    cache = ClipCache(tmp_path / "cache")
    parts = [(None, None), (0.0, 0.2), (0.0, 0.3), (0.2, None), (None, 0.2)]
    keys = [cache.keys(Source(path, None, *part), MediaKind.FACE, PARAMS) for part in parts]
    assert len({key.clip for key in keys}) == len({key.track for key in keys}) == len(parts)
    assert keys[0] == cache.keys(path, MediaKind.FACE, PARAMS)


@pytest.mark.parametrize(
    ("kind", "first_s"), [(k, s) for k in STREAMS for s in (0.0, 8.333) if not s or "lib" in STREAMS[k][1]]
)
def test_a_part_has_the_pictures_of_the_whole_video(tmp_path: Path, kind: str, first_s: float) -> None:
    name, codec, options = STREAMS[kind]
    rate = 25
    times = [first_s + Fraction(i, rate) for i in range(180)] if first_s else None
    path = write_video(tmp_path / name, moving(180), rate, times, codec=codec, options=options)
    whole = pictures(path)
    assert len(whole) == 180
    for start_s, end_s in PARTS[:-1]:
        part = pictures(Source(path, None, start_s, end_s))
        expected = cut(whole, start_s or 0.0, end_s or 1e9)
        assert [p[0] for p in part] == [p[0] for p in expected]
        assert np.allclose([p[1] for p in part], [p[1] for p in expected], atol=1e-5)
        assert [p[2] for p in part] == [p[2] for p in expected]
        duration_s = read_header(Source(path, None, start_s, end_s), PARAMS).duration_s
        if duration_s is not None:
            assert duration_s == pytest.approx((end_s or 7.2) - (start_s or 0.0), abs=0.09)


def test_adjacent_parts_have_every_picture_once(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", map(numbered, range(100)), Fraction(30_000, 1001))
    edges = [None, 0.7, 1.0, 1.4014, 2.9, None]
    numbers = [
        number_of(gray_HW(frame))
        for start_s, end_s in pairwise(edges)
        for frame in decode(Source(path, None, start_s, end_s), PARAMS)
    ]
    assert numbers == list(range(100))


def test_a_jump_decodes_few_pictures_before_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise all parts of a long video would take the square of its length."""
    path = write_video(tmp_path / "a.mp4", moving(300), options=X264 | {"g": "25"})
    read = []
    clock_read = Clock.read
    monkeypatch.setattr(Clock, "read", lambda self, p: read.append(1) or clock_read(self, p))
    assert len(pictures(Source(path, None, 9.0, 10.0))) == 25
    assert len(read) <= 25 + 3 * 25


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (
            (1.0, 99.0),
            r"ends at 4\.00 s, but the part should end at 99\.00 s; correct its start and end, in seconds$",
        ),
        (
            (50.0, None),
            r"ends at 4\.00 s, but the part begins at 50\.00 s; correct its start and end",
        ),
        ((1500.0, 2500.0), r"ends at 4\.00 s, but the part begins at 1500\.00 s; correct"),
        (
            (0.501, 0.502),
            r"shows no new picture between 0\.501 and 0\.502 s: the part is shorter than one picture; correct",
        ),
    ],
)
def test_a_part_outside_an_intact_video_is_an_error_of_the_table(
    tmp_path: Path, times: tuple[float | None, float | None], message: str
) -> None:
    path = write_video(tmp_path / "a.mp4", moving(100), options=X264)
    detail = rejection(lambda: pictures(Source(path, None, *times))).detail
    assert re.search(message, detail) and "again" not in detail


@pytest.mark.parametrize("times", [(None, None), (0.5, None), (0.5, 3.5), (3.5, None)])
def test_a_part_missing_from_a_truncated_file_is_an_error_of_the_file(
    tmp_path: Path, times: tuple[float | None, float | None]
) -> None:
    plain = write_video(tmp_path / "plain.mp4", moving(100), options=X264)
    whole = with_last_picture_for(tmp_path / "whole.mp4", plain, 0.04, faststart=True).read_bytes()
    (tmp_path / "a.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    assert (
        "get the file again" in rejection(lambda: pictures(Source(tmp_path / "a.mp4", None, *times))).detail
    )


def test_a_part_that_a_truncated_file_still_has_is_read(tmp_path: Path) -> None:
    plain = write_video(tmp_path / "plain.mp4", moving(100), codec="mpeg4")
    whole = with_last_picture_for(tmp_path / "whole.mp4", plain, 0.04, faststart=True)
    with av.open(str(whole)) as container:
        begins = [packet.pos for packet in container.demux(video=0) if packet.size]
    (tmp_path / "a.mp4").write_bytes(whole.read_bytes()[: begins[60]])
    detail = rejection(lambda: pictures(tmp_path / "a.mp4")).detail
    assert "announces 4.00 s but ends at 2.40 s, 60 frames; get the file again" in detail
    assert len(pictures(Source(tmp_path / "a.mp4", None, None, 2.4))) == 60


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_a_missing_part_is_truncated(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, moving(100), options=X264)
    for start_s, end_s in ((3.0, 99.0), (4.5, 5.0), (50.0, None), (2.001, 2.002)):
        assert rejection(lambda part=(start_s, end_s): pictures(Source(path, None, *part))).reason is (
            Reason.TRUNCATED
        )


def test_a_gap_rejects_only_the_parts_that_contain_it(tmp_path: Path) -> None:
    times = [i / 25 for i in range(60)] + [4 + i / 25 for i in range(60)]
    path = write_video(tmp_path / "a.mp4", map(numbered, range(120)), times_s=times)
    assert len(pictures(Source(path, None, 0.0, 2.0))) == 50
    assert len(pictures(Source(path, None, 4.0, None))) == 60
    assert len(pictures(Source(path, None, 2.0, 2.5))) == 10, "the gap after the part does not count"
    for part in ((1.0, 5.0), (2.0, 3.5), (2.9, 5.0)):
        assert rejection(lambda part=part: pictures(Source(path, None, *part))).reason is Reason.TRUNCATED


def test_a_part_of_a_zip_member(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving(150), options=X264)
    zipped(tmp_path / "b.zip", {"a.mp4": path.read_bytes()}, zipfile.ZIP_DEFLATED)
    source = resolve_media(tmp_path, "b.zip!a.mp4", 3.0, 5.0)
    assert pictures(source) == pictures(Source(path, None, 3.0, 5.0))
    assert len(pictures(source)) == 50


def test_the_crop_of_a_part_equals_the_part_of_the_crop(tmp_path: Path) -> None:
    """Cropping a part gives the same pixels as that part of the whole clip."""
    path = write_mouth(tmp_path / "a.mkv", 60)
    cache = ClipCache(tmp_path / "cache")
    whole = cache.crop(path, MediaKind.MOUTH, PARAMS)
    part = cache.crop(Source(path, None, 0.8, 1.6), MediaKind.MOUTH, PARAMS)
    assert part.figures.num_frames == 20
    whole_THW, part_THW = (
        cache.read_clip(kept.keys.clip, (kept.figures.num_frames or 0, 96, 96)) for kept in (whole, part)
    )
    assert whole_THW is not None
    assert np.array_equal(whole_THW[20:40], part_THW)


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name",
    [
        "face_noface.mov",
        "h265_video.mp4",
        "av1_video.mkv",
        "test_non_zero_start.mp4",
        "carphone_pristine.mp4",
    ],
)
def test_parts_of_real_videos(realdata: Path, name: str) -> None:
    """They have variable frame rates, key frames of other encoders, and a first timestamp other than zero."""
    path = realdata / "hard" / name
    whole = pictures(path)
    seconds = whole[-1][1]
    for start, end in ((0.0, 0.4), (0.35, 0.7), (0.62, None)):
        start_s, end_s = start * seconds, None if end is None else end * seconds
        part = pictures(Source(path, None, start_s, end_s))
        expected = cut(whole, start_s, end_s or 1e9)
        assert [p[2] for p in part] == [p[2] for p in expected]
        assert np.allclose([p[1] for p in part], [p[1] for p in expected], atol=1e-5)
