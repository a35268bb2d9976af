"""Decoding: compares gray values with OpenCV, timestamps and resampling with closed forms; hostile files."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ClipRejected
from shards.schema import Reason
from stages.settings import CropParams
from stages.videos.media import Source
from stages.videos.streams import resample
from stages.videos.video import decode, read_header
from tests.support.odd_videos import PARAMS, resampled_numbers, times_of, with_last_picture_for
from tests.support.videos import (
    number_of,
    numbered,
    photograph,
    set_rotation,
    write_audio,
    write_face,
    write_mouth,
    write_video,
)


def opencv_gray(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    pictures = []
    while True:
        found, picture = capture.read()
        if not found:
            return pictures
        pictures.append(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY))


# -- gray ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv444p", "yuv420p10le"])
def test_gray_equals_opencvs(tmp_path: Path, pix_fmt: str) -> None:
    """Public lip readers convert through BGR; ours reads the luma plane, of either range."""
    picture = cv2.cvtColor(cv2.cvtColor(photograph(), cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
    # 360 px wide: rows are padded; the ramp reaches black and white
    picture = np.ascontiguousarray(picture[:, 100:460])
    picture[:40] = np.linspace(0, 255, 360).astype(np.uint8)[None, :, None]
    path = write_video(tmp_path / "a.mp4", [picture] * 3, pix_fmt=pix_fmt)
    for ours, theirs in zip((f.gray() for f in decode(path, PARAMS)), opencv_gray(path), strict=True):
        difference = np.abs(ours.astype(int) - theirs)
        assert difference.max() <= 2
        assert ours.min() <= 2
        assert ours.max() >= 253
        assert ours.flags.c_contiguous


def test_colour_pictures_stay_close_to_opencv(tmp_path: Path) -> None:
    path = write_face(tmp_path / "a.mp4", 2)
    ours = next(iter(decode(path, PARAMS))).gray()
    assert np.abs(ours.astype(int) - opencv_gray(path)[0]).mean() < 2


@pytest.mark.parametrize("width", [361, 362])
def test_odd_widths(tmp_path: Path, width: int) -> None:
    """Neither width is a multiple of the decoders' padding."""
    picture = cv2.resize(photograph(), (width, 181), interpolation=cv2.INTER_AREA)
    path = write_video(tmp_path / "a.mp4", [picture] * 2, pix_fmt="yuv444p")
    frame = next(iter(decode(path, PARAMS)))
    assert frame.gray().shape == (181, width)
    assert np.abs(frame.gray().astype(int) - cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)).mean() < 3
    assert np.abs(frame.rgb_HW3()[..., ::-1].astype(int) - picture).mean() < 4


def test_lossless_rgb_is_exact(tmp_path: Path) -> None:
    picture = photograph()
    path = write_video(tmp_path / "a.mkv", [picture] * 2, codec="ffv1", pix_fmt="bgr0", options={})
    frame = next(iter(decode(path, PARAMS)))
    assert np.array_equal(frame.gray(), cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY))
    assert np.array_equal(frame.rgb_HW3(), picture[..., ::-1])


@pytest.mark.parametrize("quarter_turns", [0, 1, 2, 3])
def test_rotated_videos_are_turned_upright(tmp_path: Path, quarter_turns: int) -> None:
    path = write_video(tmp_path / "a.mp4", [photograph()] * 2)
    set_rotation(path, quarter_turns)
    frame = next(iter(decode(path, PARAMS)))
    expected = np.rot90(photograph(), -quarter_turns)
    assert frame.rgb_HW3().shape == expected.shape
    assert np.abs(frame.rgb_HW3()[..., ::-1].astype(int) - expected).mean() < 4
    assert np.abs(frame.gray().astype(int) - opencv_gray(path)[0]).mean() < 2


# -- time ---------------------------------------------------------------------------------------------

RATES = [
    Fraction(25),
    Fraction(30),
    Fraction(30_000, 1001),
    Fraction(50),
    Fraction(60_000, 1001),
    Fraction(24_000, 1001),
    Fraction(15),
]


@pytest.mark.parametrize("rate", RATES, ids=lambda rate: f"{float(rate):.2f}")
@pytest.mark.parametrize("num_frames", [1, 2, 37, 74, 75, 300])
def test_resampling_in_closed_form(rate: Fraction, num_frames: int) -> None:
    """Each output frame is within half a source frame of its time, and the duration within 1/25 s."""
    times = np.arange(num_frames) / float(rate)
    index = resample(times, 25.0)
    assert np.abs(times[index] - np.arange(len(index)) / 25).max() <= 0.5 / float(rate) + 1e-6
    duration = num_frames / float(rate) if num_frames > 1 else 1 / 25  # one picture has no rate
    assert abs(len(index) / 25 - duration) <= 1 / 25 + 1e-9
    assert (np.diff(index) >= 0).all()


@settings(deadline=None)  # a busy machine must not fail the test
@given(
    st.lists(st.floats(1 / 240, 1 / 12.5), min_size=2, max_size=200),
    st.floats(0, 1e5),
    st.sampled_from([25.0, 24.0, 30.0]),
)
def test_any_timestamps_are_resampled_to_the_nearest_pictures(
    steps: list[float], start: float, target_fps: float
) -> None:
    """The reference is a full search. The duration is within 1/25 s; the last picture counts with the median step."""
    times = start + np.cumsum(steps)
    index = resample(times, target_fps)
    wanted = np.arange(len(index)) / target_fps
    distances_TF = np.abs((times - times[0])[None] - wanted[:, None])
    assert np.abs(distances_TF[np.arange(len(index)), index] - distances_TF.min(axis=1)).max() <= 2e-6
    assert (np.diff(index) >= 0).all()
    assert index[0] == 0
    duration = times[-1] - times[0] + np.median(np.diff(times))
    # half a source step (1/12.5 s) or a whole output step, whichever is more
    assert abs(len(index) / target_fps - duration) <= max(1 / target_fps, 1 / 25) + 1e-5


@pytest.mark.parametrize("num_frames", [1, 74, 75, 150, 1_000, 15_000])
@pytest.mark.parametrize("fps", [25.0, 23.976, 29.97, 50.0])
def test_resampling_to_the_same_rate_is_the_identity(num_frames: int, fps: float) -> None:
    """Another resampler returns 141 frames of 150."""
    for times in (np.arange(num_frames) / fps, 8.333 + np.cumsum(np.full(num_frames, 1 / fps))):
        assert np.array_equal(resample(times, fps), np.arange(num_frames))


def test_half_the_rate_has_every_other_frame() -> None:
    assert resample(np.arange(100) / 50, 25.0).tolist() == list(range(0, 100, 2))
    # each time lies midway between two pictures: the earlier is taken
    assert resample(np.arange(50) / 12.5, 25.0).tolist()[:8] == [0, 0, 1, 1, 2, 2, 3, 3]


@pytest.mark.parametrize("rate", RATES[:-1], ids=lambda rate: f"{float(rate):.2f}")
def test_files_with_constant_frame_rates(tmp_path: Path, rate: Fraction) -> None:
    num_frames = 61
    path = write_video(tmp_path / "a.mp4", map(numbered, range(num_frames)), rate)
    assert np.allclose(times_of(path), np.arange(num_frames) / float(rate), atol=1e-4)
    numbers = resampled_numbers(path)
    assert (
        np.abs(np.array(numbers) / float(rate) - np.arange(len(numbers)) / 25).max()
        <= 0.5 / float(rate) + 1e-4
    )
    assert abs(len(numbers) / 25 - num_frames / float(rate)) <= 1 / 25
    if rate == 25:
        assert numbers == list(range(num_frames))


def test_a_file_with_a_variable_frame_rate(tmp_path: Path) -> None:
    steps = np.random.default_rng(3).uniform(1 / 60, 1 / 15, 80)
    times = np.cumsum(steps) - steps[0]
    path = write_video(tmp_path / "a.mp4", map(numbered, range(80)), times_s=times.tolist())
    assert np.allclose(times_of(path), times, atol=1e-4)
    numbers = resampled_numbers(path)
    wanted = np.arange(len(numbers)) / 25
    nearest = np.abs(times[None] - wanted[:, None]).min(axis=1)
    assert np.allclose(np.abs(times[numbers] - wanted), nearest, atol=1e-4)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_the_first_timestamp_may_differ_from_zero(tmp_path: Path, name: str) -> None:
    times = 8.333 + np.arange(30) / 25
    path = write_video(tmp_path / name, map(numbered, range(30)), times_s=times.tolist())
    assert resampled_numbers(path) == list(range(30))


def test_millisecond_timestamps_of_matroska(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", map(numbered, range(60)), Fraction(30_000, 1001))
    numbers = resampled_numbers(path)
    assert len(numbers) == 50
    assert np.abs(np.array(numbers) * 1001 / 30_000 - np.arange(50) / 25).max() <= 0.5 * 1001 / 30_000 + 1e-3


@pytest.mark.parametrize(("codec", "b_frames"), [("libx264", 3), ("libx264", 0), ("mpeg4", 2), ("mjpeg", 0)])
def test_avi_without_times_of_showing_has_its_real_length(tmp_path: Path, codec: str, b_frames: int) -> None:
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    options = {"bf": str(b_frames)} if b_frames else {}
    pictures = [numbered(i) for i in range(60)]
    path = write_video(tmp_path / "a.avi", pictures, codec=codec, pix_fmt=pix_fmt, options=options)
    assert times_of(path) == pytest.approx(np.arange(60) / 25)
    assert resampled_numbers(path) == list(range(60))


# -- files ----------------------------------------------------------------------------------------------


def test_the_header(tmp_path: Path) -> None:
    header = read_header(write_face(tmp_path / "a.mp4", 50), PARAMS)
    assert (header.width, header.height, header.fps) == (512, 288, 25.0)
    assert header.duration_s == pytest.approx(2.0)


def test_a_wrong_extension_does_not_matter(tmp_path: Path) -> None:
    path = write_face(tmp_path / "a.mp4", 3).rename(tmp_path / "a.txt")
    assert len(times_of(path)) == 3


def rejection(path: Path, params: CropParams = PARAMS) -> ClipRejected:
    with pytest.raises(ClipRejected) as caught:
        for _ in decode(path, params):
            pass
    assert path.name in caught.value.detail
    return caught.value


def write(path: Path, payload: bytes) -> Path:
    path.write_bytes(payload)
    return path


def test_files_that_are_not_videos_are_rejected(tmp_path: Path) -> None:
    playlist = (
        b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n" + bytes(write_face(tmp_path / "v.mp4", 3)) + b"\n"
    )
    still = cv2.imencode(".png", photograph())[1].tobytes()
    random = np.random.default_rng(0).bytes(100_000)
    for payload in (b"", b"x", b"hello " * 5_000, random, playlist, still, b"RIFF" + random, b"\0" * 10_000):
        assert rejection(write(tmp_path / "a.mp4", payload)).reason is Reason.UNREADABLE
    assert rejection(write_audio(tmp_path / "a.wav")).reason is Reason.NO_VIDEO
    assert rejection(
        write_audio(tmp_path / "b.mp4".replace("mp4", "wav")).rename(tmp_path / "b.mp4")
    ).reason is (Reason.NO_VIDEO)
    assert rejection(tmp_path / "nowhere.mp4").reason is Reason.MISSING_FILE
    assert rejection(tmp_path).reason is Reason.MISSING_FILE
    with pytest.raises(ClipRejected):
        read_header(tmp_path / "a.mp4")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
@pytest.mark.parametrize("layout", ["index_first", "index_last", "matroska"])
def test_a_truncated_file_is_rejected(tmp_path: Path, layout: str, share: float) -> None:
    """It must never give a short clip with a full label."""
    small = cv2.resize(photograph(), (256, 144))
    pictures = [np.roll(small, 5 * i, axis=1) for i in range(100)]
    faststart = {"movflags": "faststart"} if layout == "index_first" else {}
    name = "a.mkv" if layout == "matroska" else "a.mp4"
    whole = write_video(tmp_path / name, pictures, container_options=faststart).read_bytes()
    error = rejection(write(tmp_path / f"cut_{name}", whole[: int(len(whole) * share)]))
    assert error.reason in (Reason.TRUNCATED, Reason.UNREADABLE)
    if layout == "index_first" and share > 0.5:
        assert error.reason is Reason.TRUNCATED


@pytest.mark.parametrize("seconds", [0.5, 1.0, 30.0])
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("a.mp4", "mpeg4", {}),
        ("a.mp4", "libx264", {"bf": "3"}),
        ("a.mov", "libx264", {"bf": "0"}),
        ("a.mkv", "libx264", {"bf": "3"}),
    ],
)
def test_the_last_picture_may_have_a_long_duration(
    tmp_path: Path, name: str, codec: str, options: dict[str, str], seconds: float
) -> None:
    plain = write_video(tmp_path / f"plain_{name}", map(numbered, range(50)), codec=codec, options=options)
    path = with_last_picture_for(tmp_path / name, plain, seconds)
    header = read_header(path)
    assert header.duration_s == pytest.approx(1.96 + seconds, abs=0.1)
    assert [number_of(frame.gray()) for frame in decode(path, PARAMS)] == [*range(50)]
    # also a part that ends during the last picture, but not after it
    end_s = 1.96 + seconds - 0.1
    assert len(list(decode(Source(path, start_s=1.0, end_s=end_s), PARAMS))) == 25
    too_late = Source(path, start_s=1.0, end_s=1.96 + seconds + 1)
    with pytest.raises(ClipRejected, match="should end at"):
        list(decode(too_late, PARAMS))


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_truncated_file_is_rejected_for_any_length_of_its_last_picture(
    tmp_path: Path, name: str, share: float
) -> None:
    small = cv2.resize(photograph(), (256, 144))
    pictures = [np.roll(small, 5 * i, axis=1) for i in range(50)]
    plain = write_video(tmp_path / f"plain_{name}", pictures)
    whole = with_last_picture_for(tmp_path / f"whole_{name}", plain, 1.0, faststart=True).read_bytes()
    error = rejection(write(tmp_path / name, whole[: int(len(whole) * share)]))
    assert error.reason is Reason.TRUNCATED


def test_a_gap_in_the_middle_is_truncated(tmp_path: Path) -> None:
    times: Sequence[float] = [i / 25 for i in range(20)] + [2 + i / 25 for i in range(20)]
    error = rejection(write_video(tmp_path / "a.mp4", map(numbered, range(40)), times_s=times))
    assert error.reason is Reason.TRUNCATED
    assert "0.76 and 2.00 s" in error.detail


@pytest.mark.parametrize(
    ("limit", "value"),
    [("max_source_pixels", 512 * 288 - 1), ("max_source_s", 1.9), ("max_source_mb", 0.001)],
)
def test_limits_are_checked_before_decoding(tmp_path: Path, limit: str, value: float) -> None:
    path = write_face(tmp_path / "a.mp4", 50)
    error = rejection(path, PARAMS.model_copy(update={limit: value}))
    assert error.reason is Reason.OVERSIZED
    assert f"crop.{limit}" in error.detail
    with pytest.raises(ClipRejected):
        read_header(path, PARAMS.model_copy(update={limit: value}))


def test_a_file_without_a_duration_is_limited_while_decoding(tmp_path: Path) -> None:
    path = tmp_path / "a.h264"
    write_video(path, map(numbered, range(80)))
    assert rejection(path, PARAMS.model_copy(update={"max_source_s": 2.0})).reason is Reason.OVERSIZED


def test_pyav_still_pads_rows(tmp_path: Path) -> None:
    """The reason for `ascontiguousarray`; if this test fails, remove it."""
    path = write_video(tmp_path / "a.mp4", [np.zeros((64, 360, 3), np.uint8)] * 2)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).planes[0].line_size > 360
    assert next(iter(decode(path, PARAMS))).rgb_HW3().flags.c_contiguous


def test_tags_that_are_not_utf8_are_accepted(tmp_path: Path) -> None:
    """A Chinese Windows writes such tags; PyAV 18 rejects the file without our option."""
    path = write_mouth(tmp_path / "a.mkv", 12)
    content = path.read_bytes()
    assert b"Lavf" in content, "the name of the program that wrote it is a tag"
    path.write_bytes(content.replace(b"Lavf", "我爱".encode("gbk")))
    assert len(list(decode(path, PARAMS))) == 12
