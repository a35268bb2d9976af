"""Videos of any length that show only the mouth: cut while decoded, and read up to their end."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.inference import inference_run
from pipeline.inference.captions import as_srt
from pipeline.inference.text_of_video import VideoReading, read_video
from pipeline.params import Params
from shards.schema import MediaKind
from stages.mouths import mouth_pictures as mouth_pictures_module
from stages.mouths.cropping import crop_video
from stages.mouths.long_video import mouth_pieces
from stages.mouths.pieces import Piece, ReadyMouthStream
from stages.settings import CropParams, InferenceParams
from stages.videos.media import Source
from stages.videos.picture import SourceFrame
from stages.videos.video import read_header
from tests.support import readers
from tests.support.odd_videos import with_sound
from tests.support.readers import CountingReader
from tests.support.videos import face_pictures, mouth_pictures, placed, write_mouth, write_video

ROOT = Path(__file__).parents[3]
FPS = 25
CROP = CropParams()


def params_with(**inference: float) -> Params:
    """Treats pictures of noise as mouths, which only this setting does."""
    params = readers.params_with(**inference)
    return params.model_copy(update={"corpus": params.corpus.model_copy(update={"media_kind": "mouth"})})


WINDOWS = params_with(longest_s=2, overlap_s=0.4)


def numbered_mouths(num_frames: int) -> list[np.ndarray]:
    """Returns different pictures of noise, which no codec compresses far below a kilobyte."""
    noise = np.random.default_rng(0).integers(0, 256, (96, 96), dtype=np.uint8)
    return [np.repeat(np.roll(noise, 3 * i, axis=0)[..., None], 3, axis=2) for i in range(num_frames)]


def lossless(path: Path, num_frames: int = 150) -> Path:
    """Writes pictures that do not depend on each other."""
    return write_video(path, numbered_mouths(num_frames), codec="ffv1", pix_fmt="gray", options={"g": "1"})


def pieces_of(video: Path, params: InferenceParams) -> list[Piece]:
    return list(mouth_pieces(Source(video), read_header(video), CROP, params, "mouth"))


def clips_of(pieces: list[Piece]) -> list[np.ndarray]:
    return [piece.mouth.clip_THW for piece in pieces if piece.mouth is not None]


def check_is_read_up_to(reading: VideoReading, break_s: float, end_s: float) -> None:
    """Checks that everything before the break is read, and that the gap has its time and reason."""
    *read, gap = reading.segments
    assert reading.reason is None and reading.gaps == (gap,)
    assert gap.reason is not None and gap.reason.startswith("truncated: ")
    assert (gap.start_s, gap.end_s) == pytest.approx((break_s, end_s), abs=1e-3)
    assert read[0].start_s == 0 and all(one.end_s == other.start_s for one, other in pairwise(read))
    assert read[-1].end_s == gap.start_s
    assert reading.num_frames == round(break_s * FPS)


# -- truncated files -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    """A video and its clip."""
    video = lossless(tmp_path_factory.mktemp("whole") / "whole.mkv")
    return video, crop_video(video, MediaKind.MOUTH, CROP).clip_THW


@pytest.mark.parametrize("share", [0.1, 0.34, 0.5, 0.75, 0.93])
@pytest.mark.parametrize("longest_s", [2, 10])
def test_the_part_before_the_break_is_read_pixel_by_pixel(
    tmp_path: Path, whole: tuple[Path, np.ndarray], share: float, longest_s: float
) -> None:
    (video, expected), torn = whole, tmp_path / "torn.mkv"
    num_bytes = int(share * video.stat().st_size)
    torn.write_bytes(video.read_bytes()[:num_bytes])
    with av.open(str(video)) as container:
        ends = [packet.pos + packet.size for packet in container.demux(video=0) if packet.size]
    params = params_with(longest_s=longest_s, overlap_s=0.4)
    *read, broken = pieces_of(torn, params.inference)
    # Matroska writes a header of some bytes before each picture
    num_whole = sum(end + 16 <= num_bytes for end in ends)
    num_read = read[-1].first_frame + len(clips_of(read)[-1])
    assert num_whole <= num_read <= num_whole + 1 and broken.mouth is None
    for piece in read:
        assert piece.mouth is not None
        clip = piece.mouth.clip_THW
        assert np.array_equal(clip, expected[piece.first_frame :][: len(clip)])
    check_is_read_up_to(read_video(torn, CountingReader(), params), num_read / FPS, 6.0)


@pytest.mark.parametrize("movflags", ["faststart", "frag_keyframe+empty_moov"])
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_recordings_that_were_cut_off(tmp_path: Path, movflags: str, share: float) -> None:
    whole = write_video(
        tmp_path / "whole.mp4",
        numbered_mouths(150),
        options={"g": "10", "crf": "12"},
        container_options={"movflags": movflags},
    )
    torn = tmp_path / "torn.mp4"
    torn.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
    reading = read_video(torn, CountingReader(), WINDOWS)
    assert reading.num_frames is not None and share * 150 - 25 < reading.num_frames < share * 150 + 1
    # the header of a fragment does not know the later fragments
    end_s = 6.0 if movflags == "faststart" else reading.segments[-1].end_s
    check_is_read_up_to(reading, reading.num_frames / FPS, end_s)
    assert reading.segments[-1].end_s > reading.segments[-1].start_s


def test_bytes_that_cannot_be_decoded_end_the_reading(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", numbered_mouths(150), options={"g": "10", "crf": "12", "bf": "0"})
    with av.open(str(video)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        begin, end = packets[80].pos, packets[100].pos
    payload = bytearray(video.read_bytes())
    payload[begin:end] = bytes(0xFF for _ in range(end - begin))
    video.write_bytes(payload)
    reading = read_video(video, CountingReader(), WINDOWS)
    check_is_read_up_to(reading, 80 / FPS, 6.0)


@pytest.mark.parametrize("kind", ["face", "mouth"])
def test_a_break_is_reported_and_the_command_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(inference_run, "open_reader", lambda *_: CountingReader())
    monkeypatch.setattr(inference_run, "native_stderr_to", lambda _: None)
    speaking = face_pictures([placed()] * 50, speaking=True)
    pictures = mouth_pictures(50) if kind == "mouth" else list(speaking)
    whole = write_video(tmp_path / "a.mkv", pictures, options={"g": "5", "crf": "12"})
    torn = tmp_path / "torn.mkv"
    torn.write_bytes(whole.read_bytes()[: int(0.6 * whole.stat().st_size)])
    done = CliRunner().invoke(app, ["inference", str(torn), "--params", str(ROOT / "params.yaml")])
    assert done.exit_code == 0 and done.stdout.startswith("frames")
    (line,) = done.stderr.splitlines()
    num_read = int(done.stdout.removeprefix("frames"))
    assert f"{num_read / FPS:.2f} to 2.00 s not read: truncated: torn.mkv " in line


def test_a_file_without_a_whole_picture_is_refused(tmp_path: Path) -> None:
    whole, torn = lossless(tmp_path / "whole.mkv", 20), tmp_path / "torn.mkv"
    with av.open(str(whole)) as container:
        first = next(packet.pos for packet in container.demux(video=0))
    torn.write_bytes(whole.read_bytes()[: first + 100])
    reading = read_video(torn, CountingReader(), WINDOWS)
    assert reading.reason is not None and reading.reason.startswith(("unreadable: ", "truncated: "))
    assert (reading.text, reading.segments) == ("", ())


def test_a_video_of_unknown_length_is_read_up_to_the_limit(tmp_path: Path) -> None:
    """A raw H.264 stream does not contain its length."""
    video = write_video(tmp_path / "a.h264", numbered_mouths(100))
    assert read_header(video).duration_s is None
    reading = read_video(video, CountingReader(), params_with(longest_s=2, overlap_s=0.4, max_video_s=3))
    (gap,) = reading.gaps
    assert gap.reason is not None and gap.reason.startswith("oversized: ")
    assert reading.segments[-2].end_s == gap.start_s == pytest.approx(3.0, abs=0.05)


# -- windows -------------------------------------------------------------------------------------------------


def test_a_short_video_is_read_from_the_same_clip_as_in_preprocessing(tmp_path: Path) -> None:
    video = write_mouth(tmp_path / "a.mp4", 60)
    (piece,) = pieces_of(video, InferenceParams())
    made = crop_video(video, MediaKind.MOUTH, CROP)
    assert piece.mouth is not None and np.array_equal(piece.mouth.clip_THW, made.clip_THW)
    assert np.array_equal(piece.mouth.frame_index_T, made.frame_index_T)
    assert piece.mouth.figures == made.figures


@given(
    steps_s=st.lists(st.floats(0.011, 0.6), min_size=1, max_size=250),
    longest_s=st.sampled_from([1.0, 2.0, 7.3]),
    overlap=st.sampled_from([0.0, 0.2, 0.5]),
)
@settings(max_examples=60, deadline=None)
def test_windows_have_every_picture_and_overlap_no_more_than_asked(
    steps_s: list[float], longest_s: float, overlap: float
) -> None:
    times_s = np.concatenate([[0.0], np.cumsum(steps_s)])
    picture = av.VideoFrame.from_ndarray(np.zeros((16, 16), np.uint8), format="gray")
    params = InferenceParams(longest_s=longest_s, overlap_s=overlap * longest_s)
    crop = CropParams(min_frames=1)
    stream = ReadyMouthStream(Source(Path("none.mp4")), crop, params, FPS)
    frames = (SourceFrame(index, float(time_s), picture) for index, time_s in enumerate(times_s))
    pieces = [piece for frame in frames for piece in stream.add(frame)] + list(stream.end())
    shown: set[int] = set()
    first = 0
    for piece in pieces:
        if piece.mouth is None:
            assert piece.rejected is not None and piece.rejected.reason == "truncated"
            assert times_s[piece.first_frame] - times_s[piece.first_frame - 1] > CROP.max_gap_s
            continue
        num_frames = piece.mouth.figures.source_frames
        assert num_frames is not None
        last = piece.first_frame + num_frames - 1
        assert piece.start_s == times_s[piece.first_frame]
        assert times_s[last] - piece.start_s < longest_s
        if piece.first_frame in shown:
            complete_s = times_s[max(shown) + 1]
            half_s = np.median(np.diff(times_s[first : max(shown) + 1])) / 2
            assert times_s[piece.first_frame - 1] + half_s < complete_s - params.overlap_s + 1e-9
            assert times_s[piece.first_frame] + half_s >= complete_s - params.overlap_s - 1e-9
        first = piece.first_frame
        shown |= set(range(piece.first_frame, last + 1))
    assert shown == set(range(len(times_s)))
    ends_s = [piece.end_s for piece in pieces]
    assert ends_s == sorted(ends_s)
    for one, other in pairwise(pieces):
        assert one.start_s <= other.start_s <= one.end_s + 1e-9


@pytest.mark.parametrize("clock_s", [1e-6, 1e-3])
def test_rounded_times_shift_no_window(clock_s: float) -> None:
    """Matroska counts milliseconds."""
    picture = av.VideoFrame.from_ndarray(np.zeros((96, 96), np.uint8), format="gray")
    params = InferenceParams(longest_s=50 / 30, overlap_s=6 / 30)
    stream = ReadyMouthStream(Source(Path("none.mkv")), CROP, params, 30)
    times_s = np.round(np.arange(300) / 30 / clock_s) * clock_s
    frames = (SourceFrame(index, float(time_s), picture) for index, time_s in enumerate(times_s))
    pieces = [piece for frame in frames for piece in stream.add(frame)]
    assert [piece.first_frame for piece in pieces] == [0, 44, 88, 132, 176, 220]
    assert all(piece.mouth and piece.mouth.figures.source_frames == 50 for piece in pieces)


def test_the_number_of_stored_pictures_does_not_grow() -> None:
    picture = av.VideoFrame.from_ndarray(np.zeros((96, 96), np.uint8), format="gray")
    stream = ReadyMouthStream(Source(Path("none.mp4")), CROP, WINDOWS.inference, FPS)
    for index in range(3_000):
        assert all(piece.mouth for piece in stream.add(SourceFrame(index, index / FPS, picture)))
        assert len(stream._times_s) == len(stream._patches._patches) <= 2 * FPS
    assert list(stream.end())[-1].end_s == pytest.approx(120.0)


def test_with_too_little_memory_pictures_are_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = lossless(tmp_path / "a.mkv", 110)
    expected = clips_of(pieces_of(video, WINDOWS.inference))
    monkeypatch.setattr(mouth_pictures_module, "KEPT_BYTES", 20 * 96 * 96)
    made = clips_of(pieces_of(video, WINDOWS.inference))
    assert len(made) == len(expected) == 3
    assert all(np.array_equal(one, other) for one, other in zip(made, expected, strict=True))


# -- cues end within the file --------------------------------------------------------------------------------


def uneven(num_frames: int) -> list[float]:
    """Returns times as a telephone records them: 17 to 50 pictures a second."""
    steps_s = np.random.default_rng(4).uniform(0.02, 0.06, num_frames - 1)
    return [0.0, *np.cumsum(steps_s).tolist()]


@pytest.mark.parametrize("rate", [15, 30, 60])
@pytest.mark.parametrize(
    ("name", "b_frames"),
    [("a.mp4", "0"), ("a.mp4", "3"), ("a.ts", "3"), ("a.mkv", "3"), ("a.avi", "3"), ("sound.mkv", "0")],
)
def test_no_cue_ends_after_the_file(tmp_path: Path, name: str, b_frames: str, rate: int) -> None:
    """The container knows how long the last picture is shown: here one frame of `rate`."""
    times_s = uneven(60)
    video = write_video(
        tmp_path / Path(name).with_stem("a"), numbered_mouths(60), rate, times_s, options={"bf": b_frames}
    )
    if name == "sound.mkv":
        # half as long as the pictures
        video = with_sound(video, tmp_path / name, "pcm_s16le", 1)
    with av.open(str(video)) as container:
        assert container.duration is not None
        length_s = container.duration / av.time_base
    reading = read_video(video, CountingReader(), params_with())
    (segment,) = reading.segments
    assert times_s[-1] - 0.06 < segment.end_s <= length_s + 1e-6
    hours, minutes, seconds = as_srt(reading).splitlines()[1].partition(" --> ")[2].split(":")
    assert (hours, minutes) == ("00", "00") and float(seconds.replace(",", ".")) <= length_s + 5e-4


@pytest.mark.parametrize(
    ("announced_s", "end_s"), [(0.5, 2.0), (1.96, 1.96), (2.02, 2.0), (9.0, 2.0), (None, 2.0)]
)
def test_an_implausible_length_cuts_no_cue(tmp_path: Path, announced_s: float | None, end_s: float) -> None:
    """1.96: MPEG-TS ends with the start of its last picture."""
    video = write_mouth(tmp_path / "a.mp4", 50)
    header = replace(read_header(video), max_duration_s=announced_s)
    (piece,) = mouth_pieces(Source(video), header, CROP, InferenceParams())
    assert piece.end_s == pytest.approx(end_s)
