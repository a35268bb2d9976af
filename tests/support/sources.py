"""Zips of videos, and what the decoder shows of a source."""

import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shards.errors import ClipRejected
from stages.settings import CropParams
from stages.videos.media import Media
from stages.videos.picture import SourceFrame
from stages.videos.video import decode

PARAMS = CropParams()


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, payload in members.items():
            # the local header gets a field that the directory has not, as other zip programs do
            with archive.open(zip_info(name, method), "w", force_zip64=True) as member:
                member.write(payload)
    return path


def zip_info(
    name: str, method: int = zipfile.ZIP_STORED, mode: int = stat.S_IFREG | 0o644
) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.compress_type, info.external_attr, info.create_system = method, mode << 16, 3
    return info


def gray_HW(frame: SourceFrame) -> np.ndarray:
    return np.asarray(frame.picture.to_ndarray(format="gray"))


def pictures(media: Media, params: CropParams = PARAMS) -> list[tuple[int, float, bytes]]:
    """Returns index, time and pixels of each picture: all planes, or gray for odd sizes, which PyAV gives only so."""
    found = []
    for frame in decode(media, params):
        is_even = frame.picture.width % 2 == frame.picture.height % 2 == 0
        pixels = frame.picture.to_ndarray() if is_even else gray_HW(frame)
        found.append((frame.index, frame.time_s, pixels.tobytes()))
    return found


def rejection(act: Callable[[], object]) -> ClipRejected:
    with pytest.raises(ClipRejected) as caught:
        act()
    return caught.value
