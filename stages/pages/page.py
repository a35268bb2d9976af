"""Shared code of the HTML pages: each page is one file with its pictures, loads nothing and runs no script."""

import base64
from functools import cache
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from shards.safe_text import one_line

JPEG_QUALITY = 88


def rendered(template: str, **values: Any) -> str:
    """Returns the page as HTML text; escapes every text from outside and its control characters."""
    # macros leave blank lines at the start
    return _environment().get_template(template).render(**values).lstrip()


@cache
def _environment() -> Environment:
    """Compiles each template once: that takes longer than to render it."""
    environment = Environment(
        loader=PackageLoader("stages.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        # the results of macros were escaped already
        finalize=lambda value: one_line(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, thousands=lambda number: f"{number:,}")
    return environment


def percent(share: float | None) -> str:
    """Returns a share in per cent with one decimal, or a dash if it is not known."""
    return "–" if share is None else f"{100 * share:.1f}\u202f%"


def film_strip(clip_THW: NDArray[np.uint8], num_frames: int, frames_per_picture: int) -> list[str]:
    """Returns evenly spaced frames, including the first and last, as JPEG data: URIs of `frames_per_picture` frames."""
    count = min(num_frames, len(clip_THW))
    frames = clip_THW[np.linspace(0, len(clip_THW) - 1, count).round().astype(int)]
    return [
        jpeg_uri(np.hstack(list(frames[start : start + frames_per_picture])))
        for start in range(0, count, frames_per_picture)
    ]


def jpeg_uri(picture: NDArray[np.uint8], quality: int = JPEG_QUALITY) -> str:
    """Returns a gray or BGR picture as a data: URI."""
    done, payload = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "a uint8 picture can always be written as JPEG"
    return "data:image/jpeg;base64," + base64.b64encode(payload.tobytes()).decode("ascii")
