"""Videos with missing or wrong bytes must never give a short or damaged clip with a full label."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.inference.text_of_video import read_video
from pipeline.params import load_params
from shards.errors import ClipRejected
from shards.schema import Reason
from stages.settings import CropParams
from stages.videos.media import Media, Source
from stages.videos.video import decode
from tests.support.readers import CountingReader
from tests.support.videos import face_pictures, photograph, placed, write_video

ROOT = Path(__file__).parents[3]
PARAMS = CropParams()
MPEG = {"b": "800k", "g": "12", "bf": "2"}
STREAMS = {"a.mpg": "mpeg1video", "b.mpg": "mpeg2video", "a.ts": "mpeg2video", "a.h264": "libx264"}
"""Containers that announce no length, with FFmpeg's codec for them: only damage shows that bytes are missing."""


def num_frames_of(media: Media) -> int:
    return sum(1 for _ in decode(media, PARAMS))


def rejection(path: Path) -> ClipRejected:
    with pytest.raises(ClipRejected) as caught:
        num_frames_of(path)
    assert path.name in caught.value.detail
    return caught.value


def write(path: Path, payload: bytes) -> Path:
    path.write_bytes(payload)
    return path


def stream_of(folder: Path, name: str, num_frames: int = 60) -> bytes:
    small = cv2.resize(photograph(), (256, 144))
    pictures = [np.roll(small, 5 * i, axis=1) for i in range(num_frames)]
    codec = STREAMS[name]
    return write_video(
        folder / name, pictures, codec=codec, options=MPEG if codec.startswith("mpeg") else None
    ).read_bytes()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_cut_inside_a_picture_is_truncated(tmp_path: Path, name: str, share: float) -> None:
    whole = stream_of(tmp_path, name)
    error = rejection(write(tmp_path / f"cut_{name}", whole[: int(len(whole) * share)]))
    assert error.reason is Reason.TRUNCATED and "is damaged at frame" in error.detail


@pytest.mark.parametrize("name", ["a.mpg", "a.ts", "a.h264"])
def test_a_stream_with_missing_bytes_is_truncated_there(tmp_path: Path, name: str) -> None:
    whole = stream_of(tmp_path, name)
    middle = len(whole) // 2
    for filling in (bytes(3_000), b""):
        holed = whole[:middle] + filling + whole[middle + 3_000 :]
        error = rejection(write(tmp_path / f"holed_{name}", holed))
        assert error.reason is Reason.TRUNCATED
        assert 15 < int(error.detail.partition("at frame ")[2].partition(",")[0]) < 45


@pytest.mark.parametrize("name", STREAMS)
def test_joined_streams_and_streams_without_their_begin_are_not_damaged(tmp_path: Path, name: str) -> None:
    whole = stream_of(tmp_path, name)
    assert num_frames_of(tmp_path / name) == 60
    assert num_frames_of(write(tmp_path / f"joined_{name}", whole + whole)) == 120
    if name.endswith(".ts"):
        # like a recording of a broadcast, which begins at some packet
        late = write(tmp_path / f"late_{name}", whole[len(whole) // 188 // 3 * 188 :])
        assert 0 < num_frames_of(late) < 60


def test_damage_outside_a_part_does_not_reject_it(tmp_path: Path) -> None:
    """Damage lasts until the next key frame, every twelfth picture; the missing bytes may include one."""
    whole = stream_of(tmp_path, "a.mpg")
    middle = len(whole) // 2
    path = write(tmp_path / "holed.mpg", whole[:middle] + bytes(3_000) + whole[middle + 3_000 :])
    damaged_s = float(rejection(path).detail.partition(" s:")[0].rpartition(" ")[2])
    assert num_frames_of(Source(path, end_s=damaged_s - 0.4)) > 5
    with pytest.raises(ClipRejected, match="damaged at frame 0"):
        num_frames_of(Source(path, start_s=damaged_s))
    assert num_frames_of(Source(path, start_s=damaged_s + 1)) > 0


@pytest.mark.realdata
def test_truncated_grid_videos_are_rejected_and_intact_ones_are_not(realdata: Path, tmp_path: Path) -> None:
    for original in sorted((realdata / "grid" / "video" / "s26").glob("*.mpg")):
        num_frames, whole = num_frames_of(original), original.read_bytes()
        assert num_frames in (74, 75)
        for share in (0.6, 0.8, 0.95):
            error = rejection(write(tmp_path / original.name, whole[: int(len(whole) * share)]))
            assert error.reason is Reason.TRUNCATED


def test_inference_reads_up_to_the_damage_and_reports_it(tmp_path: Path) -> None:
    pictures = face_pictures([placed()] * 100, speaking=True)
    video = write_video(tmp_path / "a.mpg", pictures, codec="mpeg1video", options=MPEG)
    num_frames = read_video(video, CountingReader(), load_params(ROOT / "params.yaml")).num_frames
    assert num_frames == 100
    whole = video.read_bytes()
    write(video, whole[: int(len(whole) * 0.7)])
    reading = read_video(video, CountingReader(), load_params(ROOT / "params.yaml"))
    assert reading.num_frames is not None
    read, gap = reading.segments
    assert read.reason is None and read.text == f"frames{reading.num_frames}"
    assert 60 < reading.num_frames < 80
    assert gap.reason is not None and f"a.mpg is damaged at frame {reading.num_frames}," in gap.reason
    assert gap.start_s == pytest.approx(reading.num_frames / 25)
