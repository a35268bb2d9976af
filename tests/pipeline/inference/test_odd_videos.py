"""Videos as people record them: speakers who leave, pictures that come late or are missing, silence."""

import functools
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.decoding.result import Reading
from model.settings import DecodeParams
from pipeline.inference import live, text_of_video
from pipeline.inference.live import run_live
from pipeline.inference.text_of_video import read_video
from shards.schema import MediaKind
from stages.mouths.cropping import MouthClip, crop_video
from stages.mouths.face_search import Square
from stages.mouths.flow import ANCHORS
from stages.mouths.landmarks import KEPT
from stages.mouths.long_video import MouthStream
from stages.mouths.mouth_pictures import WholePictures
from stages.mouths.pieces import Piece
from stages.settings import CropParams, InferenceParams
from stages.videos.media import Source
from stages.videos.picture import SourceFrame
from stages.videos.video import read_header
from tests.support.faces import face_points
from tests.support.odd_videos import FPS, with_early_sound, with_gaps
from tests.support.readers import CountingReader, params_with
from tests.support.videos import EACH_ALONE, face_pictures, placed, write_mouth, write_video

pytestmark = pytest.mark.usefixtures("networks_once")

TICK_S = 0.2
TRUNCATED = "truncated: "


# -- cues ----------------------------------------------------------------------------------------------------


class TickReader(CountingReader):
    """Reads without errors: a different character for each tick whose middle the clip shows."""

    def on_mouth(self, piece: Piece, mouth: MouthClip) -> None:
        ticks = np.arange(round(piece.end_s / TICK_S) + 1)
        middles_s = (ticks + 0.5) * TICK_S
        self.said = "".join(
            chr(0x4E00 + tick) for tick in ticks[(middles_s > piece.start_s) & (middles_s < piece.end_s)]
        )

    def read_clip(self, clip_THW: np.ndarray, params: DecodeParams) -> Reading:
        return Reading(self.said, -0.1, ())


SPEAKER, LISTENER = (1.0, 0.0, 0.0), (0.6, 300.0, 60.0)
"""Scale, x and y."""


@functools.cache
def mesh_of(place: tuple[float, float, float], opening_px: float) -> np.ndarray:
    scale, x, y = place
    points_K3 = face_points(np.array([[[scale, 0, x], [0, scale, y]]]), opening_px=opening_px)[0]
    mesh = np.tile(points_K3.mean(axis=0), (478, 1)).astype(np.float32)
    mesh[list(KEPT)] = points_K3
    for number, index in enumerate(sorted(set(ANCHORS) - set(KEPT))):
        mesh[index, :2] += (number, 2 * number)
    return mesh


def pieces_of(num_frames: int, is_away: np.ndarray, params: InferenceParams) -> list[Piece]:
    """Returns pieces of a speaker next to a smaller listener, both always moving; in some frames only the listener."""
    picture = av.VideoFrame.from_ndarray(np.full((256, 512), 90, np.uint8), format="gray")

    def find(frame: SourceFrame, square: Square | None = None) -> list[np.ndarray]:
        sway = np.sin(frame.index * 1.3)
        shown = [mesh_of(LISTENER, 3 + 1.5 * sway)]
        return shown if is_away[frame.index] else [mesh_of(SPEAKER, 8 + 6 * sway), *shown]

    crop = CropParams(tolerance_px=0.0, min_mouth_width_px=1.0)
    stream = MouthStream(Source(Path("none.mp4")), find, crop, params, WholePictures(10**9))
    frames = (SourceFrame(index, index / FPS, picture) for index in range(num_frames))
    return [piece for frame in frames for piece in stream.add(frame)] + list(stream.end())


@given(st.lists(st.tuples(st.integers(15, 90), st.integers(1, 40)), min_size=1, max_size=4))
@example(
    [(65, 18), (60, 1)]
)  # absent at the end of a window, which bridges it, but too long for the next window
@example([(15, 8), (15, 1)])  # never long enough to be read
@example([(38, 17), (90, 1)])  # absent where the next window begins
@settings(max_examples=12, deadline=None)
def test_cues_are_in_order_and_no_word_comes_twice_whenever_the_speaker_is_absent(
    absences: list[tuple[int, int]],
) -> None:
    is_away = np.concatenate([np.arange(there + away) >= there for there, away in absences])
    params = params_with(longest_s=3, overlap_s=1, min_pause_s=5)
    pieces = pieces_of(len(is_away), is_away, params.inference)
    reader = TickReader()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_of_video, "_check_there", lambda path: None)
        patch.setattr(text_of_video, "read_header", lambda path: Header)
        patch.setattr(text_of_video, "mouth_pieces", lambda *_: pieces)
        reading = read_video(Path("none.mp4"), reader, params, on_mouth=reader.on_mouth)
    for one in reading.segments:
        assert one.start_s < one.end_s
    for one, other in pairwise(reading.segments):
        assert one.end_s <= other.start_s + 1e-6
    assert list(reading.text) == sorted(set(reading.text))
    # the text has every character that a piece shows
    shown = set()
    for piece in pieces:
        if piece.mouth is not None:
            reader.on_mouth(piece, piece.mouth)
            shown |= set(reader.said)
    assert set(reading.text) == shown
    assert reading.text == "".join(one.text for one in reading.segments)


class Header:
    start_s = 0.0
    duration_s = None


# -- pictures that come late ---------------------------------------------------------------------------------


def test_times_count_from_the_start_of_the_sound_as_in_players(tmp_path: Path) -> None:
    video = with_early_sound(tmp_path / "a.mkv", 1.5, num_frames=30)
    assert read_header(video).start_s == pytest.approx(1.5, abs=2e-3)
    (segment,) = read_video(video, CountingReader(), params_with()).segments
    assert (segment.start_s, segment.end_s) == pytest.approx((1.5, 2.7), abs=5e-3)
    # no picture is lost, and preprocessing counts from the first picture
    assert crop_video(video, MediaKind.FACE, CropParams()).figures.duration_s == pytest.approx(1.2, abs=5e-3)


# -- missing pictures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["face", "mouth"])
def test_the_part_after_a_gap_in_time_is_read(tmp_path: Path, kind: str) -> None:
    if kind == "face":
        pictures = list(face_pictures([placed()] * 75, speaking=True))
    else:
        with av.open(str(write_mouth(tmp_path / "mouth.mp4", 75))) as container:
            pictures = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    video = with_gaps(tmp_path / "a.mp4", pictures, (30, 0.75), (50, 2))
    reading = read_video(video, CountingReader(), params_with())
    first, gap, second, later_gap, third = reading.segments
    times_s = [time_s for one in reading.segments for time_s in (one.start_s, one.end_s)]
    expected_s = [0, 1.2, 1.2, 1.95, 1.95, 2.75, 2.75, 4.75, 4.75, 5.75]
    assert times_s == pytest.approx(expected_s, abs=0.01)
    assert [one.text for one in (first, second, third)] == ["frames30", "frames20", "frames25"]
    assert reading.gaps == (gap, later_gap)
    assert gap.reason is not None and gap.reason.startswith(TRUNCATED) and "0.7" in gap.reason
    assert reading.num_frames == 75


def test_a_gap_at_the_edge_of_a_window_is_reported_once(tmp_path: Path) -> None:
    pictures = list(face_pictures([placed()] * 50, speaking=True))
    video = with_gaps(tmp_path / "a.mp4", pictures, (25, 1.0))
    read, gap, later = read_video(video, CountingReader(), params_with(longest_s=1, overlap_s=0.2)).segments
    assert (read.reason, later.reason) == (None, None)
    assert (gap.start_s, gap.end_s) == pytest.approx((1.0, 2.0), abs=0.01)


@pytest.fixture
def as_if_live(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[Path], list[dict[str, Any]]]:
    monkeypatch.setattr(live, "open_reader", lambda *_: CountingReader())
    monkeypatch.setattr(live, "native_stderr_to", lambda _: None)

    def live_lines(video: Path) -> list[dict[str, Any]]:
        run_live(video, [Path("model.pt")], params_with(), 0, as_json=True)
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return live_lines


def test_live_continues_after_a_gap_in_time(
    tmp_path: Path, as_if_live: Callable[[Path], list[dict[str, Any]]]
) -> None:
    pictures = list(face_pictures([placed()] * 60, speaking=True))
    first, gap, second = as_if_live(with_gaps(tmp_path / "a.mp4", pictures, (30, 1.0)))
    assert first["reason"] is second["reason"] is None and gap["reason"].startswith(TRUNCATED)
    times_s = [one[key] for one in (first, gap, second) for key in ("start_s", "end_s")]
    assert times_s == pytest.approx([0, 1.2, 1.2, 2.2, 2.2, 3.4], abs=0.01)


def test_a_cue_ends_with_the_file(tmp_path: Path) -> None:
    """The times of uneven pictures do not say how long the last one is shown."""
    times_s = [0.0, *np.cumsum(np.tile([0.02, 0.06, 0.05], 12)).tolist()]
    pictures = face_pictures([placed()] * len(times_s), speaking=True)
    video = write_video(tmp_path / "a.mp4", pictures, rate=60, times_s=times_s, options=EACH_ALONE)
    (segment,) = read_video(video, CountingReader(), params_with()).segments
    with av.open(str(video)) as container:
        assert container.duration is not None
        length_s = container.duration / av.time_base
    assert times_s[-1] - 0.06 < segment.end_s <= length_s + 1e-6 < times_s[-1] + 0.05


def test_live_counts_times_as_inference_does(
    tmp_path: Path, as_if_live: Callable[[Path], list[dict[str, Any]]]
) -> None:
    video = with_early_sound(tmp_path / "a.mkv", 1.5, num_frames=30)
    begin_s = time.monotonic()
    (live_segment,) = as_if_live(video)
    # played at its own speed, including the sound before the pictures
    assert time.monotonic() - begin_s >= 1.5 + 29 / FPS
    (segment,) = read_video(video, CountingReader(), params_with()).segments
    times_s = live_segment["start_s"], live_segment["end_s"]
    assert times_s == pytest.approx((segment.start_s, segment.end_s), abs=2e-3)
    assert times_s == pytest.approx((1.5, 2.7), abs=5e-3)
    assert 0 <= live_segment["latency_s"] < 30


# -- silence -------------------------------------------------------------------------------------------------


def faces(*stretches: tuple[str, int]) -> list[np.ndarray]:
    """Returns pictures of a face that `speaks`, `rests` or is `away`, for the given numbers of frames."""
    kinds = [kind for kind, num_frames in stretches for _ in range(num_frames)]
    places = [placed()] * len(kinds)
    shown = {
        "speaks": list(face_pictures(places, speaking=True)),
        "rests": list(face_pictures(places[:1])) * len(kinds),
    }
    return [
        shown[kind][i] if kind in shown else np.full_like(shown["rests"][0], 90)
        for i, kind in enumerate(kinds)
    ]


def test_a_rest_gives_no_caption(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", faces(("rests", 60), ("speaks", 30)), options=EACH_ALONE)
    reading = read_video(video, CountingReader(), params_with(longest_s=3))
    (segment,) = reading.segments
    # cut in the middle of the rest before the sentence
    assert 0.7 < segment.start_s < 2.4 and segment.end_s == pytest.approx(3.6)
    assert reading.text == segment.text


def test_a_rest_before_the_face_leaves_gives_no_caption(
    tmp_path: Path, as_if_live: Callable[[Path], list[dict[str, Any]]]
) -> None:
    video = write_video(
        tmp_path / "a.mp4", faces(("rests", 20), ("away", 40), ("speaks", 30)), options=EACH_ALONE
    )
    gap, read = read_video(video, CountingReader(), params_with()).segments
    assert gap.reason is not None and gap.reason.startswith("no_face") and read.reason is None
    # in live reading a pause ends the sentence, and the remainder of the pause is a separate piece
    video = write_video(
        tmp_path / "b.mp4", faces(("speaks", 40), ("rests", 30), ("away", 40)), options=EACH_ALONE
    )
    read_live, *gaps = as_if_live(video)
    assert read_live["reason"] is None and read_live["end_s"] < 2.4
    assert gaps and all(gap["reason"].startswith("no_face") for gap in gaps)


def test_a_video_in_which_nobody_speaks_says_so(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.mp4", faces(("rests", 60)), options=EACH_ALONE)
    reading = read_video(video, CountingReader(), params_with())
    assert (reading.text, reading.segments, reading.confidence) == ("", (), None)
    assert reading.reason == "at_rest: the mouth does not move"


@pytest.mark.realdata
def test_a_held_smile_is_not_speech_and_the_laugh_before_it_is_read(realdata: Path) -> None:
    video = realdata / "hard" / "WolfgangLanger_Pexels.mp4"
    reading = read_video(video, CountingReader(), params_with())
    assert reading.reason is None and reading.segments[-1].end_s == pytest.approx(14.35, abs=0.5)
