"""Live reading: pictures arrive at their own times, however slow the reader is."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from model.decoding.result import Reading
from model.settings import DecodeParams
from pipeline.cli import app
from pipeline.inference import live
from pipeline.inference.capture import Capture, Captured, camera_pictures, file_pictures
from pipeline.inference.live import LiveSummary, run_live
from pipeline.params import Params, load_params
from shards.errors import ClipRejected, MachineError
from shards.schema import MediaKind
from stages.mouths.cropping import MouthClip, crop_video
from stages.mouths.landmarker import face_finder
from stages.mouths.long_video import MouthStream
from stages.mouths.mouth_pictures import WholePictures
from stages.mouths.pieces import Piece
from stages.videos.media import Source
from stages.videos.picture import SourceFrame
from stages.videos.video import decode
from tests.support.readers import CountingReader
from tests.support.videos import EACH_ALONE, face_pictures, placed, write_face, write_mirrored, write_video

ROOT = Path(__file__).parents[3]
FPS = 25


pytestmark = pytest.mark.usefixtures("networks_once")


@pytest.fixture
def params() -> Params:
    values = load_params(ROOT / "params.yaml")
    # windows only, no pauses
    inference = values.inference.model_copy(update={"longest_s": 1.0, "overlap_s": 0.2, "min_pause_s": 5.0})
    return values.model_copy(update={"inference": inference})


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> CountingReader:
    made = CountingReader()
    monkeypatch.setattr(live, "open_reader", lambda *_: made)
    monkeypatch.setattr(live, "native_stderr_to", lambda _: None)
    return made


def test_a_file_is_read_at_its_own_speed(
    tmp_path: Path, params: Params, reader: CountingReader, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_face(tmp_path / "a.mp4", 60, speaking=True)
    begin_s = time.monotonic()
    summary = run_live(video, [Path("model.pt")], params, 0, as_json=True)
    assert time.monotonic() - begin_s >= 59 / FPS
    assert summary.num_captured == 60
    printed = capsys.readouterr()
    lines = [json.loads(line) for line in printed.out.splitlines()]
    assert [line["text"] for line in lines] and [line["start_s"] for line in lines] == sorted(
        line["start_s"] for line in lines
    )
    assert len(lines) == len(summary.settled) == len(summary.settled_latency_s)
    # no text can come before its pictures, nor much later
    assert all(0 <= line["latency_s"] < 30 for line in lines)
    assert lines[-1]["end_s"] == pytest.approx(60 / FPS, abs=1.2)
    assert f"60 pictures, {summary.num_dropped} dropped" in printed.err and "median" in printed.err


def test_ctrl_c_reads_the_captured_pictures_and_prints_the_summary(
    tmp_path: Path, params: Params, reader: CountingReader, capsys: pytest.CaptureFixture[str]
) -> None:
    video = write_face(tmp_path / "a.mp4", 500, speaking=True)
    former = signal.getsignal(signal.SIGINT)
    timer = threading.Timer(2.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    begin_s = time.monotonic()
    summary = run_live(video, [Path("model.pt")], params, 0, as_json=False)
    timer.join()
    assert time.monotonic() - begin_s < 30
    assert summary.num_captured < 330 and summary.settled
    assert signal.getsignal(signal.SIGINT) is former
    assert not [thread for thread in threading.enumerate() if "capture" in str(thread).lower()]
    assert "segments read" in capsys.readouterr().err


def test_a_slow_reader_drops_pictures_and_counts_them(
    tmp_path: Path, params: Params, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Slow(CountingReader):
        def read_clip(self, clip_THW: np.ndarray, params: DecodeParams) -> Reading:
            time.sleep(2.0)
            return super().read_clip(clip_THW, params)

    monkeypatch.setattr(live, "open_reader", lambda *_: Slow())
    monkeypatch.setattr(live, "native_stderr_to", lambda _: None)
    summary = run_live(
        write_face(tmp_path / "a.mp4", 100, speaking=True), [Path("model.pt")], params, 0, as_json=True
    )
    assert summary.num_captured == 100 and 0 < summary.num_dropped < 100
    # latency is that of the clock, not of the stream
    assert max(summary.shown_latency_s + summary.settled_latency_s) >= 2.0


def test_stops_after_the_given_seconds(tmp_path: Path, params: Params, reader: CountingReader) -> None:
    summary = run_live(write_face(tmp_path / "a.mp4", 100), [Path("model.pt")], params, 1.0, as_json=True)
    assert 20 <= summary.num_captured <= 27


def test_stops_after_the_given_seconds_within_a_gap(
    tmp_path: Path, params: Params, reader: CountingReader
) -> None:
    times_s = [index / FPS + 60 * (index >= 20) for index in range(40)]
    video = write_video(tmp_path / "a.mp4", list(face_pictures([placed()])) * 40, times_s=times_s)
    begin_s = time.monotonic()
    assert run_live(video, [Path("model.pt")], params, 1.2, as_json=True).num_captured == 20
    assert 1.2 <= time.monotonic() - begin_s < 30


def test_a_file_that_is_not_a_video_is_reported_without_a_summary(
    tmp_path: Path, params: Params, reader: CountingReader, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.mp4").write_text("no video")
    with pytest.raises(ClipRejected, match="unreadable"):
        run_live(tmp_path / "a.mp4", [Path("model.pt")], params, 0, as_json=True)
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""


def test_a_missing_camera_is_reported() -> None:
    with pytest.raises(MachineError, match="camera 63 gives no pictures"):
        next(camera_pictures(63))


def test_large_pictures_are_shrunk_and_keep_their_times(tmp_path: Path, params: Params) -> None:
    big = write_video(tmp_path / "a.mp4", list(face_pictures([placed(2.0)], 1920, 1080)) * 3, rate=50)
    begin_s = time.monotonic()
    taken = list(file_pictures(big, params))
    assert {(one.picture.width, one.picture.height) for one in taken} == {(1280, 720)}
    assert [one.time_s for one in taken] == pytest.approx([0, 0.02, 0.04])
    assert all(one.captured_s - begin_s >= one.time_s for one in taken)


def test_a_mirrored_file_is_shown_as_players_do(tmp_path: Path, params: Params) -> None:
    shown = next(iter(face_pictures([placed(2.0)], 1920, 1080)))
    taken = list(file_pictures(write_mirrored(tmp_path / "a.mp4", [shown] * 2), params))
    frame = SourceFrame(0, 0.0, taken[0].picture, taken[0].orientation)
    assert frame.size == (1280, 720)
    expected = cv2.resize(shown, (1280, 720), interpolation=cv2.INTER_AREA)
    assert np.abs(frame.rgb_HW3()[..., ::-1].astype(int) - expected).mean() < 3


def test_live_reading_of_a_mirrored_file_shows_the_plain_mouth(
    tmp_path: Path, params: Params, reader: CountingReader
) -> None:
    shown = list(face_pictures([placed()] * 30, speaking=True))
    settled = []
    for video in (write_video(tmp_path / "a.mp4", shown), write_mirrored(tmp_path / "b.mp4", shown)):
        reader.clips.clear()
        run_live(video, [Path("model.pt")], params, 0, as_json=True)
        settled.append(next(clip for clip in reader.clips if len(clip) == 25).astype(int))
    plain, mirrored = settled
    assert np.abs(plain - mirrored).mean() < 4


def test_the_queue_never_holds_back_the_camera() -> None:
    picture = av.VideoFrame.from_ndarray(np.zeros((16, 16), np.uint8), format="gray")

    def pictures() -> Iterator[Captured]:
        for number in range(50):
            yield Captured(picture, number / FPS, time.monotonic())

    capture = Capture(pictures, room=5)
    capture.start()
    capture.stop()
    assert [one.time_s for one in capture.pictures()] == [0, 0.04, 0.08, 0.12, 0.16]
    assert capture.num_dropped == 45 or capture.num_captured < 50


def test_an_empty_summary() -> None:
    assert str(LiveSummary(num_captured=3)).splitlines() == [
        "3 pictures, 0 dropped; 0 segments read, 0 could not be read"
    ]


@pytest.mark.parametrize(("is_seen", "code"), [(True, None), (False, 1)])
def test_the_exit_code_shows_whether_anything_was_read(
    tmp_path: Path, reader: CountingReader, monkeypatch: pytest.MonkeyPatch, is_seen: bool, code: int | None
) -> None:
    pictures = list(face_pictures([placed()] * 40, speaking=True))
    video = write_video(
        tmp_path / "a.mp4",
        [one if is_seen else np.full_like(one, 90) for one in pictures],
        options=EACH_ALONE,
    )
    monkeypatch.chdir(ROOT)
    # a window ends within the file
    command = [
        "live",
        "--file",
        str(video),
        "--set",
        "inference.longest_s=1",
        "--set",
        "inference.overlap_s=0.2",
    ]
    if code is None:
        app(command, standalone_mode=False)
    else:
        with pytest.raises(SystemExit) as ended:
            app(command, standalone_mode=False)
        assert ended.value.code == code


def live_pieces(video: Path, params: Params, max_bytes: int) -> list[Piece]:
    """Returns the pieces as `read_live` has them, at the speed of the machine."""
    with face_finder(params.crop.landmarker, params.crop.max_faces) as find:
        patches = WholePictures(max_bytes)
        nowhere = Source(Path("live picture"))
        stream = MouthStream(nowhere, find, params.crop, params.inference, patches)
        pieces = [piece for frame in decode(video, params.crop) for piece in stream.add(frame)]
        return [*pieces, *stream.end()]


@pytest.fixture(scope="module")
def hidden_face(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MouthClip]:
    """A moving face that is hidden for 0.32 s, less than crop.max_gap_s, and its clip."""
    pictures = face_pictures([placed(shift=(i / 2, i / 5)) for i in range(60)], speaking=True)
    pictures = [np.zeros_like(one) if 24 <= i < 32 else one for i, one in enumerate(pictures)]
    video = write_video(tmp_path_factory.mktemp("hidden") / "a.mp4", pictures, options=EACH_ALONE)
    return video, crop_video(video, MediaKind.FACE, load_params(ROOT / "params.yaml").crop)


@pytest.fixture
def whole_params(params: Params) -> Params:
    inference = params.inference.model_copy(update={"longest_s": 10.0})
    return params.model_copy(update={"inference": inference})


def test_a_short_absence_of_the_face_is_bridged_as_in_a_file(
    hidden_face: tuple[Path, MouthClip], whole_params: Params
) -> None:
    video, made = hidden_face
    (piece,) = live_pieces(video, whole_params, 600_000_000)
    assert piece.mouth is not None, piece.rejected
    assert (made.figures.bridged_frames or 0) >= 8
    assert np.array_equal(piece.mouth.clip_THW, made.clip_THW)


def test_with_too_little_memory_neighbouring_pictures_are_used(
    hidden_face: tuple[Path, MouthClip], whole_params: Params
) -> None:
    video, made = hidden_face[0], hidden_face[1].clip_THW
    with av.open(str(video)) as container:
        size = container.streams.video[0].width * container.streams.video[0].height
    (piece,) = live_pieces(video, whole_params, 40 * size)
    assert piece.mouth is not None, piece.rejected
    clip = piece.mouth.clip_THW
    assert clip.shape == made.shape
    # the oldest pictures are thinned out, the replacements are similar, and the latest are unchanged
    assert np.array_equal(clip[-20:], made[-20:]) and not np.array_equal(clip, made)
    assert np.abs(clip[:20].astype(int) - made[:20]).mean() < 8


@pytest.mark.parametrize("as_json", [True, False])
def test_a_gap_says_why(
    tmp_path: Path,
    params: Params,
    reader: CountingReader,
    capsys: pytest.CaptureFixture[str],
    as_json: bool,
) -> None:
    (face,) = face_pictures([placed()])
    video = write_video(tmp_path / "a.mp4", [np.full_like(face, 90)] * 65, options=EACH_ALONE)
    summary = run_live(video, [Path("model.pt")], params, 0, as_json)
    assert (len(summary.settled), summary.num_gaps) == (0, 1)
    printed = capsys.readouterr()
    assert "0 segments read, 1 could not be read" in printed.err
    if as_json:
        lines = [json.loads(line) for line in printed.out.splitlines()]
        assert len(lines) > 1 and all(line["reason"].startswith("no_face") for line in lines)
        # each window ends where the next begins, apart from their overlap
        for one, other in pairwise(lines):
            assert one["start_s"] < other["start_s"] <= one["end_s"] < other["end_s"]
    else:
        assert printed.out == "" and printed.err.count("not read: no_face") == 1


def test_the_stored_times_do_not_grow_while_no_face_is_visible(
    tmp_path: Path, params: Params, reader: CountingReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A face at the end makes the reader look up the stored times, whose number the test records."""
    faces = list(face_pictures([placed()] * 40, speaking=True))
    video = write_video(tmp_path / "a.mp4", [np.full_like(faces[0], 90)] * 75 + faces, options=EACH_ALONE)
    held: list[int] = []
    before = live._captured_before

    def watched(captured_s: dict[float, float], time_s: float) -> float:
        held.append(len(captured_s))
        return before(captured_s, time_s)

    monkeypatch.setattr(live, "_captured_before", watched)
    run_live(video, [Path("model.pt")], params, 0, as_json=True)
    # a window, the frames that the tracker holds back and those that wait in the queue
    assert held and max(held) <= 70


@pytest.mark.realdata
def test_a_real_speaker_as_if_live(realdata: Path, reader: CountingReader) -> None:
    """A sentence of 3 s with silence before and after gives one segment without the rests."""
    params = load_params(ROOT / "params.yaml")
    summary = run_live(
        realdata / "grid" / "video" / "s1" / "bbaf2n.mp4", [Path("m.pt")], params, 0, as_json=True
    )
    assert summary.num_captured == 75
    if summary.num_dropped == 0:
        (segment,) = summary.settled
        # he speaks from 0.95 to 2.12 s
        assert segment.start_s < 0.95 and segment.end_s > 2.12
