"""The video stream that a player shows is chosen among several. Each stream has its own number in its pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from av.stream import Disposition

from pipeline.inference.burn_in import _Sound
from shards.schema import Reason
from stages.settings import CropParams
from stages.videos.video import decode, read_header
from tests.support.sources import gray_HW, rejection
from tests.support.videos import number_of, numbered

NONE, DEFAULT, COVER = Disposition(0), Disposition.default, Disposition.attached_pic
SMALL, LARGE = (80, 48), (160, 96)


@dataclass(frozen=True)
class Stream:
    """A stream of gray pictures that show `number`."""

    number: int
    codec: str = "mpeg4"
    num_frames: int = 20
    disposition: Disposition = NONE
    size: tuple[int, int] = LARGE
    begin: int = 0


def write_streams(path: Path, streams: Sequence[Stream], sound: bool = False) -> Path:
    with av.open(str(path), "w") as container:
        packets = []
        for spec in streams:
            stream = container.add_stream(spec.codec, rate=25)
            stream.width, stream.height = spec.size
            stream.pix_fmt = "yuvj420p" if spec.codec == "mjpeg" else "yuv420p"
            stream.disposition = spec.disposition
            picture = np.ascontiguousarray(numbered(spec.number, *spec.size))
            for index in range(spec.num_frames):
                frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
                frame.pts, frame.time_base = spec.begin + index, Fraction(1, 25)
                packets += stream.encode(frame)
            packets += stream.encode(None)
        if sound:
            tone = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 32_000), np.int16), format="s16", layout="mono")
            frame.rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
            packets += [*tone.encode(frame), *tone.encode(None)]
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            container.mux(packet)
    return path


THUMBNAIL = Stream(1, "mjpeg", 1)
VIDEO = Stream(2, disposition=DEFAULT)
OTHER = Stream(3)
CASES = {
    "a thumbnail first": [THUMBNAIL, VIDEO],
    "a thumbnail that is the default": [Stream(1, "mjpeg", 1, DEFAULT), Stream(2)],
    "a larger thumbnail": [Stream(1, "mjpeg", 1, DEFAULT, (320, 192)), Stream(2)],
    "a thumbnail of one key frame": [Stream(1, "mpeg4", 1), VIDEO],
    "a cover": [Stream(1, "mjpeg", 1, COVER), VIDEO],
    "a cover after the video": [VIDEO, Stream(1, "mjpeg", 1, COVER)],
    "the second is the default": [Stream(3), VIDEO],
    "the second is the default, and smaller": [Stream(3), Stream(2, disposition=DEFAULT, size=SMALL)],
    "all are the default": [
        Stream(1, "mjpeg", 1, DEFAULT),
        VIDEO,
        Stream(3, num_frames=3, disposition=DEFAULT),
    ],
    "none is the default": [Stream(2), Stream(3)],
    "the only stream is MJPEG": [Stream(2, "mjpeg")],
}


@pytest.mark.parametrize("extension", ["mp4", "mov", "mkv"])
@pytest.mark.parametrize("case", CASES)
def test_the_stream_that_a_player_shows_is_read(case: str, extension: str, tmp_path: Path) -> None:
    streams = CASES[case]
    path = write_streams(tmp_path / f"a.{extension}", streams)
    frames = list(decode(path, CropParams()))
    assert [number_of(gray_HW(frame)) for frame in frames] == [2] * 20
    (shown,) = (stream for stream in streams if stream.number == 2)
    header = read_header(path)
    assert (header.width, header.height) == shown.size
    assert frames[0].picture.width == shown.size[0]


def test_the_first_video_of_a_transport_stream_is_read(tmp_path: Path) -> None:
    path = write_streams(tmp_path / "a.ts", [Stream(2, "mpeg2video"), Stream(3, "mpeg2video")])
    assert {number_of(gray_HW(frame)) for frame in decode(path, CropParams())} == {2}, "no flags"


def test_a_file_with_only_a_cover_has_no_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    cover = cv2.imencode(".jpg", numbered(1))[1].tobytes()
    with av.open(str(path), "w") as container:
        tone = container.add_stream("aac", rate=16_000, layout="mono")
        picture = container.add_stream("mjpeg", rate=25)
        picture.width, picture.height, picture.pix_fmt = *LARGE, "yuvj420p"
        picture.disposition = COVER
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate, frame.pts, frame.time_base = 16_000, 0, Fraction(1, 16_000)
        for packet in tone.encode(frame):
            container.mux(packet)
        packet = av.Packet(cover)
        packet.stream, packet.pts, packet.dts, packet.time_base = picture, 0, 0, Fraction(1, 25)
        container.mux(packet)
        container.mux(tone.encode(None))
    with av.open(str(path)) as container:
        assert [stream.disposition for stream in container.streams.video] == [COVER]
    error = rejection(lambda: read_header(path))
    assert error.reason is Reason.NO_VIDEO and "a.mp4 holds only a cover picture" in error.detail


def test_captions_are_timed_by_the_chosen_stream(tmp_path: Path) -> None:
    """Sound before the video's first picture is left out, not sound before a thumbnail."""
    late = Stream(2, disposition=DEFAULT, begin=10)
    path = write_streams(tmp_path / "a.mkv", [THUMBNAIL, late], sound=True)
    with av.open(str(path)) as source, av.open(str(tmp_path / "out.mp4"), "w") as out:
        out.add_stream("mpeg4", rate=25)
        sound = _Sound(source, out)
        sound.announce()
        assert "0.40 s of sound before the first picture" in sound.lost
