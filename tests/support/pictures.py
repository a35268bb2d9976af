"""Reads pictures of a video, and runs crops that must be rejected."""

from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest

from shards.errors import ClipRejected
from shards.schema import MediaKind
from stages.mouths.cropping import Figures, crop_video
from stages.settings import CropParams


def pictures_of(path: Path, num: int = 12) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="bgr24") for frame in islice(container.decode(video=0), num)]


PARAMS = CropParams()


def rejected(path: Path, params: CropParams = PARAMS, **options) -> tuple[ClipRejected, Figures]:  # type: ignore[no-untyped-def]
    figures = Figures()
    with pytest.raises(ClipRejected) as caught:
        crop_video(path, MediaKind.FACE, params, figures, **options)
    return caught.value, figures
