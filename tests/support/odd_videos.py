"""Writes unusual videos: early sound, gaps, a long last picture."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from stages.settings import CropParams
from stages.videos.streams import resample
from stages.videos.video import decode
from tests.support.videos import (
    EACH_ALONE,
    face_pictures,
    number_of,
    placed,
    write_video,
)

FPS = 25


def with_sound(video: Path, path: Path, codec: str, seconds: float, rate: int = 16_000) -> Path:
    """Copies the pictures and adds a tone of 440 Hz."""
    tone = (9_000 * np.sin(np.arange(int(rate * seconds)) * 2 * np.pi * 440 / rate)).astype(np.int16)
    with av.open(str(path), "w") as out, av.open(str(video)) as source:
        pictures = out.add_stream_from_template(source.streams.video[0])
        sound = out.add_stream(codec, rate=rate, layout="mono")
        for begin in range(0, len(tone), rate // 10):
            part_1S = tone[None, begin : begin + rate // 10]
            frame = av.AudioFrame.from_ndarray(part_1S, format="s16", layout="mono")
            frame.rate, frame.pts, frame.time_base = rate, begin, Fraction(1, rate)
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = pictures
                out.mux(packet)
    return path


def with_early_sound(path: Path, begin_s: float, num_frames: int = 50) -> Path:
    """Writes a face that speaks from `begin_s` on, and a tone of 4 s from 0."""
    times_s = [begin_s + Fraction(index, FPS) for index in range(num_frames)]
    silent = path.with_name("silent.mkv")
    pictures = face_pictures([placed()] * num_frames, speaking=True)
    write_video(silent, pictures, times_s=times_s, options=EACH_ALONE)
    return with_sound(silent, path, "pcm_s16le", 4)


def with_gaps(path: Path, pictures: list[np.ndarray], *gaps: tuple[int, float]) -> Path:
    """Writes 25 frames/s, with a gap of so many seconds before each of these frames."""
    waits_s = dict(gaps)
    times_s, time_s = [], Fraction(0)
    for index in range(len(pictures)):
        time_s += Fraction(waits_s.get(index, 0))
        times_s.append(time_s)
        time_s += Fraction(1, FPS)
    return write_video(path, pictures, times_s=times_s, options=EACH_ALONE)


PARAMS = CropParams()


def times_of(path: Path, params: CropParams = PARAMS) -> np.ndarray:
    return np.array([frame.time_s for frame in decode(path, params)])


def resampled_numbers(path: Path, target_fps: float = 25.0) -> list[int]:
    """Returns the numbers drawn in the frames after resampling."""
    numbers = [number_of(frame.gray()) for frame in decode(path, PARAMS)]
    return [numbers[i] for i in resample(times_of(path), target_fps)]


def with_last_picture_for(path: Path, whole: Path, seconds: float, faststart: bool = False) -> Path:
    """Copies a video of 25 frames/s and gives its last picture this duration. If mp4 stores another picture last, that
    picture gets it too."""
    options = {"movflags": "faststart"} if faststart else {}
    with av.open(str(whole)) as source, av.open(str(path), "w", options=options) as copy:
        video = copy.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        for packet in {max(packets, key=lambda packet: packet.pts), packets[-1]}:
            packet.duration = round(seconds / packet.time_base)
        for packet in packets:
            packet.stream = video
            copy.mux(packet)
    return path
