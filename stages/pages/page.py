"""What our HTML pages share: each is one file with its pictures and charts in it, loads nothing and runs no script."""

import base64
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from shards.safe_text import one_line

JPEG_QUALITY = 88


def rendered(template: str, **values: Any) -> str:
    """The page as HTML text; every text that came from outside is escaped, its control characters too."""
    environment = Environment(
        loader=PackageLoader("stages.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        # what macros give has passed here already
        finalize=lambda value: one_line(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, thousands=lambda number: f"{number:,}")
    # the template's macros leave blank lines behind
    return environment.get_template(template).render(**values).lstrip()


def percent(share: float | None) -> str:
    """A share as per cent with one decimal; a dash where it is not known."""
    return "–" if share is None else f"{100 * share:.1f}\u202f%"


def film_strip(clip_THW: NDArray[np.uint8], num_frames: int, frames_per_picture: int) -> list[str]:
    """Frames spread evenly over the clip, first and last among them, as JPEG data: URIs of so many frames each."""
    count = min(num_frames, len(clip_THW))
    frames = clip_THW[np.linspace(0, len(clip_THW) - 1, count).round().astype(int)]
    return [
        jpeg_uri(np.hstack(list(frames[start : start + frames_per_picture])))
        for start in range(0, count, frames_per_picture)
    ]


def jpeg_uri(picture: NDArray[np.uint8], quality: int = JPEG_QUALITY) -> str:
    """A picture, gray or BGR, as a data: URI."""
    done, payload = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "a uint8 picture can always be written as JPEG"
    return "data:image/jpeg;base64," + base64.b64encode(payload.tobytes()).decode("ascii")
