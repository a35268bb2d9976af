"""Videos to measure on, made from real ones: upscaled to 720p, or repeated until they last ten minutes."""

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
"""A little better than x264's own default, as the GRID clips are that the copies are made of."""


def videos_of(folder: Path, count: int) -> list[Path]:
    """`count` videos evenly spread over those below `folder`, by name. Raises ConfigError without one."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in EXTENSIONS)
    if not found:
        raise ConfigError(f"{folder} holds no video ({', '.join(sorted(EXTENSIONS))})")
    picks = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int))
    return [found[i] for i in picks]


def upscaled(
    sources: Sequence[Path], folder: Path, width: int, height: int, preset: str, share: float = 1.0
) -> list[Path]:
    """Each video at width x height and 25 fps in H.264, bicubic, its edge pixels repeated where the shape differs.

    It fills `share` of the height or width.
    """
    made = []
    for number, source in enumerate(sources):
        path = folder / f"{number:04d}_{source.stem}.mp4"
        if not path.exists():
            pictures = (_fitted(picture, width, height, share) for picture in _pictures(source))
            encode_h264(path, pictures, width, height, preset)
        made.append(path)
    return made


def lengthened(source: Path, path: Path, width: int, height: int, minutes: float) -> Path:
    """One video played forward and backward in turns until it lasts `minutes` at 25 fps, at width x height."""
    if not path.exists():
        once = [_fitted(picture, width, height) for picture in _pictures(source)]
        there_and_back = once + once[-2:0:-1]
        count = round(minutes * 60 * 25)
        encode_h264(
            path, (there_and_back[i % len(there_and_back)] for i in range(count)), width, height, "veryfast"
        )
    return path


def _pictures(path: Path) -> Iterator[av.VideoFrame]:
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
    """Writes RGB pictures, H×W×3, as an mp4 of 25 fps in yuv420p; it appears under its name when it is whole."""
    with atomic_file(path) as file, av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(25))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": CRF, "preset": preset}
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
