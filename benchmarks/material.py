"""Test videos made from real videos: upscaled to 720p, or repeated to a length of ten minutes."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from shards.errors import ConfigError
from shards.files import atomic_file
from stages.videos.streams import select_video_stream

EXTENSIONS = frozenset({".avi", ".mkv", ".mov", ".mp4", ".mpg", ".webm"})
CRF = "21"
"""Slightly better than x264's default, like the GRID clips that are copied."""


def videos_of(folder: Path, count: int) -> list[Path]:
    """Returns `count` videos, evenly spread over those in `folder` by name. Raises ConfigError if there is none."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not found:
        raise ConfigError(
            f"{folder} contains no video ({', '.join(sorted(EXTENSIONS))}); choose another folder"
        )
    picks = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int))
    return [found[i] for i in picks]


def upscaled(
    sources: Sequence[Path], folder: Path, width: int, height: int, preset: str, share: float = 1.0
) -> list[Path]:
    """Writes each video at width x height and 25 fps in H.264, bicubic; repeats edge pixels if the shape differs.

    The video fills `share` of the height or width.
    """
    made = []
    for number, source in enumerate(sources):
        path = folder / f"{number:04d}_{source.stem}.mp4"
        if not path.exists():
            pictures = (_fitted(picture, width, height, share) for picture in pictures_of(source))
            encode_h264(path, pictures, width, height, preset)
        made.append(path)
    return made


def lengthened(source: Path, path: Path, width: int, height: int, minutes: float) -> Path:
    """Writes a video, alternately forward and backward, until it lasts `minutes` at 25 fps, at width x height."""
    if not path.exists():
        once = [_fitted(picture, width, height) for picture in pictures_of(source)]
        cycle = once + once[-2:0:-1]
        count = round(minutes * 60 * 25)
        encode_h264(path, (cycle[i % len(cycle)] for i in range(count)), width, height, "veryfast")
    return path


def pictures_of(path: Path) -> Iterator[av.VideoFrame]:
    with av.open(str(path)) as container:
        yield from container.decode(select_video_stream(container, path.name))


def _fitted(picture: av.VideoFrame, width: int, height: int, share: float = 1.0) -> NDArray[np.uint8]:
    scale = share * min(width / picture.width, height / picture.height)
    inner = (2 * round(picture.width * scale / 2), 2 * round(picture.height * scale / 2))
    rgb = picture.reformat(width=inner[0], height=inner[1], interpolation="BICUBIC").to_ndarray(
        format="rgb24"
    )
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    sides = ((top, height - inner[1] - top), (left, width - inner[0] - left), (0, 0))
    return np.pad(rgb, sides, mode="edge")


def encode_h264(
    path: Path,
    pictures: Iterator[NDArray[np.uint8]],
    width: int,
    height: int,
    preset: str,
) -> None:
    """Writes RGB pictures, H×W×3, as an mp4 of 25 fps in yuv420p; the file gets its name when it is complete."""
    with atomic_file(path) as file, av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": CRF, "preset": preset}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
