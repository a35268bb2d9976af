"""Small videos with a sound track, and sound files, written with PyAV."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from tests.support.videos import numbered


def chirps(seconds: float, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    """Returns tones and noise whose pitch and loudness change every 0.1 s, so that no two places sound the same."""
    rng = np.random.default_rng(seed)
    time_N = np.arange(round(seconds * rate)) / rate
    part_N = (time_N / 0.1).astype(int)
    num_parts = part_N.max() + 1
    hz_N, loud_N = (rng.uniform(*limits, 200)[:num_parts][part_N] for limits in ((200, 3_000), (0.1, 0.8)))
    tone_N = np.sin(2 * np.pi * np.cumsum(hz_N) / rate)
    return (loud_N * (tone_N + 0.2 * rng.normal(size=len(tone_N))) / 2).astype(np.float32)


def write_sound(
    path: Path,
    sound_N: np.ndarray,
    rate: int = 16_000,
    codec: str = "pcm_s16le",
    format: str = "s16",
    layout: str = "mono",
) -> Path:
    """Writes a file of sound; the container follows from the name."""
    with av.open(str(path), "w") as container:
        _mux_sound(container, container.add_stream(codec, rate=rate, layout=layout), sound_N, 0.0)
    return path


def write_talk(
    path: Path,
    pictures: int | Sequence[np.ndarray],
    sound_N: np.ndarray,
    rate: int = 16_000,
    sound_starts_s: float = 0.0,
    pictures_start_s: float = 0.0,
    codec: str = "pcm_s16le",
    layout: str = "mono",
    num_pictures_a_key: int = 250,
) -> Path:
    """Writes pictures (BGR; a number: that many numbered ones) at 25 frames/s, and sound; each starts at its time."""
    shown = [numbered(number) for number in range(pictures)] if isinstance(pictures, int) else pictures
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        (video.height, video.width), video.pix_fmt = shown[0].shape[:2], "yuv420p"
        video.options = {"preset": "ultrafast", "g": str(num_pictures_a_key)}
        video.codec_context.time_base = Fraction(1, 90_000)
        sound = container.add_stream(codec, rate=rate, layout=layout)
        for number, picture in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(picture, format="bgr24")
            frame.time_base, frame.pts = Fraction(1, 90_000), round((number / 25 + pictures_start_s) * 90_000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        _mux_sound(container, sound, sound_N, sound_starts_s)
    return path


def _mux_sound(
    container: av.container.OutputContainer, stream: av.AudioStream, sound_N: np.ndarray, start_s: float
) -> None:
    rate, block = stream.rate, 1_024
    form, layout = stream.codec_context.format.name, stream.layout.name
    num_channels = stream.layout.nb_channels
    values_CN = np.tile(sound_N, (num_channels, 1))
    values_CN = (
        (values_CN * 32_767).astype(np.int16) if form.startswith("s16") else values_CN.astype(np.float32)
    )
    for first in range(0, len(sound_N), block):
        part_CN = values_CN[:, first : first + block]
        if not form.endswith("p"):
            part_CN = part_CN.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(part_CN), format=form, layout=layout)
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = round(start_s * rate) + first
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
