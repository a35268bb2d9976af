"""Re-encoded copies of videos, as they circulate: other codecs, bit rates, sizes, frame rates, light, cuts, borders."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.material import pictures_of
from shards.files import atomic_file
from stages.videos.streams import select_video_stream


@dataclass(frozen=True)
class Reencoding:
    """How a copy differs from its video."""

    codec: str = "libx264"
    options: dict[str, str] = field(default_factory=lambda: {"crf": "30"})
    scale: float = 1.0
    rate: int | None = None
    """Frames a second; None: as the video."""
    gain: float = 1.0
    offset: float = 0.0
    """In gray levels."""
    cut_start_s: float = 0.0
    cut_end_s: float = 0.0
    border: float = 0.0
    """Share of the width and height that is cut off at each edge."""


REENCODINGS = {
    "H.264, crf 38": Reencoding(options={"crf": "38"}),
    "H.264, crf 33": Reencoding(options={"crf": "33"}),
    "H.264, twice the size": Reencoding(scale=2.0),
    "MPEG-4 part 2, 100 kbit/s, half the size": Reencoding("mpeg4", {"b": "100000"}, scale=0.5),
    "Motion JPEG, low quality": Reencoding("mjpeg", {"qmin": "24", "qmax": "24"}),
    "VP9, 60 kbit/s": Reencoding("libvpx-vp9", {"b": "60000", "deadline": "realtime", "cpu-used": "8"}),
    "H.265, crf 36, 30 frames/s": Reencoding(
        "libx265", {"crf": "36", "preset": "ultrafast", "x265-params": "log-level=error"}, rate=30
    ),
    "H.264, 50 frames/s": Reencoding(rate=50),
    "H.264, 24 frames/s": Reencoding(rate=24),
    "H.264, 15 frames/s": Reencoding(rate=15),
    "brighter, less contrast": Reencoding(gain=0.75, offset=40.0),
    "0.4 s cut off at the start, 0.5 s at the end": Reencoding(cut_start_s=0.4, cut_end_s=0.5),
    "8 % cut off at each edge": Reencoding(border=0.08),
    "all of these": Reencoding(
        "mpeg4",
        {"b": "150000"},
        0.6,
        rate=30,
        gain=0.85,
        offset=20.0,
        cut_start_s=0.2,
        cut_end_s=0.2,
        border=0.05,
    ),
}


def reencode(source: Path, path: Path, how: Reencoding) -> Path:
    """Writes the copy, unless it exists."""
    if path.exists():
        return path
    with av.open(str(source)) as container:
        source_rate = select_video_stream(container, source.name).average_rate
    pictures = [picture.to_ndarray(format="rgb24") for picture in pictures_of(source)]
    first, last = round(how.cut_start_s * source_rate), len(pictures) - round(how.cut_end_s * source_rate)
    pictures = [_changed(picture, how) for picture in pictures[first:last]]
    rate = Fraction(how.rate or source_rate)
    with atomic_file(path) as file, av.open(file, "w", format="matroska") as container:
        stream = container.add_stream(how.codec, rate=rate)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if how.codec == "mjpeg" else "yuv420p"
        stream.options = how.options
        for picture in _at_rate(pictures, rate / source_rate):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def _changed(rgb_HW3: NDArray[np.uint8], how: Reencoding) -> NDArray[np.uint8]:
    height, width = rgb_HW3.shape[:2]
    top, left = round(height * how.border), round(width * how.border)
    inner = rgb_HW3[top : height - top, left : width - left]
    size = tuple(2 * round(side * how.scale / 2) for side in inner.shape[1::-1])
    resized = cv2.resize(inner, size, interpolation=cv2.INTER_AREA if how.scale < 1 else cv2.INTER_CUBIC)
    return np.clip(resized * np.float32(how.gain) + how.offset, 0, 255).astype(np.uint8)


def _at_rate(pictures: list[NDArray[np.uint8]], ratio: Fraction) -> Iterator[NDArray[np.uint8]]:
    """Yields the picture that is shown at each time, at `ratio` times the rate."""
    for number in range(int(len(pictures) * ratio)):
        yield pictures[int(number / ratio)]
