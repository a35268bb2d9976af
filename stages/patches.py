"""The part of each picture in which the mouth will be cut, kept while a video is decoded once.

Where the window ends up is known only when the whole track is smoothed, and pictures are too large to keep. What is
kept is the surroundings of the largest face's mouth; a frame that lacks what is needed is decoded once more.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.geometry import CANONICAL_WINDOW_PX, Doubles, mouth_windows
from stages.picture import SourceFrame, Window

KEPT_BYTES = 256_000_000
"""At most this much of one video is held: some 3,000 frames of a 720p portrait."""

MARGIN_PX = 20
"""In pixels of the 96-px crop: how far smoothing moves the window from where the face is in that very frame."""


class MouthPatches:
    """Gray surroundings of the mouth, or whole pictures of a ready mouth video, by source frame."""

    def __init__(self) -> None:
        self.picture_size: tuple[int, int] | None = None
        """Width and height of the pictures, once one was kept."""
        self._patches: dict[int, tuple[Window, NDArray[np.uint8]]] = {}
        self._num_bytes = 0

    def keep_mouths(self, frames: Sequence[SourceFrame], points_FK3: Doubles) -> None:
        """Keeps what the mouth of a face with these landmarks needs, frame by frame."""
        for frame, parameters_4 in zip(
            frames, mouth_windows(points_FK3, CANONICAL_WINDOW_PX).tolist(), strict=True
        ):
            window = _surroundings(parameters_4, *frame.size)
            if window is not None:
                self.keep(frame, window)

    def keep(self, frame: SourceFrame, window: Window) -> None:
        """Keeps a part of the picture; nothing where all room is taken."""
        num_bytes = (window.right - window.left) * (window.bottom - window.top)
        if self._num_bytes + num_bytes > KEPT_BYTES:
            return
        self._num_bytes += num_bytes
        self.picture_size = frame.size
        self._patches[frame.index] = (window, frame.gray(window))

    def find(self, frame_index: int, window: Window) -> NDArray[np.uint8] | None:
        """The gray pixels of `window` in that frame; None where they were not kept."""
        if frame_index not in self._patches:
            return None
        kept, patch = self._patches[frame_index]
        if not kept.holds(window):
            return None
        return patch[
            window.top - kept.top : window.bottom - kept.top,
            window.left - kept.left : window.right - kept.left,
        ]


def _surroundings(parameters_4: Sequence[float], width: int, height: int) -> Window | None:
    a_x, a_y, t_x, t_y = parameters_4
    factor, shift = a_x + 1j * a_y, t_x + 1j * t_y
    low, high = -MARGIN_PX, CANONICAL_WINDOW_PX + MARGIN_PX
    corners = [(x + 1j * y - shift) / factor for x in (low, high) for y in (low, high)]
    left, right = (pick(z.real for z in corners) for pick in (min, max))
    top, bottom = (pick(z.imag for z in corners) for pick in (min, max))
    if not all(map(math.isfinite, (left, right, top, bottom))):
        return None
    window = Window(
        max(0, math.floor(left)),
        max(0, math.floor(top)),
        min(width, math.ceil(right)),
        min(height, math.ceil(bottom)),
    )
    return window if window.left < window.right and window.top < window.bottom else None
