"""Keeps the part of each picture in which the mouth will be cut, so that a video is decoded only once.

The final window is known only after the whole track is smoothed, and pictures are too large to keep. So the
surroundings of the largest face's mouth are kept. If they do not contain the window, the video is decoded again.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.mouths.geometry import CANONICAL_WINDOW_PX, Doubles, mouth_windows
from stages.videos.picture import SourceFrame, Window

KEPT_BYTES = 256_000_000
"""Most memory for one video: about 3,000 frames of a 720p portrait."""

MARGIN_PX = 20
"""How far smoothing may move the window from the face of its frame, in pixels of the 96-px crop."""


class MouthPatches:
    """Gray surroundings of the mouth, or whole pictures of a ready mouth video, by source frame."""

    def __init__(self, max_bytes: int | None = None) -> None:
        self.picture_size: tuple[int, int] | None = None
        """Width and height of the pictures; None until one is kept."""
        self._max_bytes = KEPT_BYTES if max_bytes is None else max_bytes
        self._patches: dict[int, tuple[Window, NDArray[np.uint8]]] = {}
        self._num_bytes = 0

    def keep_settled(self, frames: Sequence[SourceFrame]) -> None:
        """Receives every frame, with or without a face. Keeps nothing here: `keep_mouths` keeps frames with a mouth."""

    def keep_mouths(self, frames: Sequence[SourceFrame], points_FK3: Doubles) -> None:
        """Keeps the surroundings of the mouth of a face with these landmarks, frame by frame."""
        for frame, parameters_4 in zip(
            frames, mouth_windows(points_FK3, CANONICAL_WINDOW_PX).tolist(), strict=True
        ):
            window = _surroundings(parameters_4, *frame.size)
            if window is not None:
                self.keep(frame, window)

    def keep(self, frame: SourceFrame, window: Window) -> None:
        """Keeps a part of the picture, or nothing if the memory is used up."""
        num_bytes = _area(window)
        if self._num_bytes + num_bytes > self._max_bytes:
            return
        self._num_bytes += num_bytes
        self.picture_size = frame.size
        self._patches[frame.index] = (window, frame.gray(window))

    def find(self, frame_index: int, window: Window) -> NDArray[np.uint8] | None:
        """Returns the gray pixels of `window` in that frame; None if they were not kept."""
        if frame_index not in self._patches:
            return None
        kept, patch = self._patches[frame_index]
        if not kept.holds(window):
            return None
        return patch[
            window.top - kept.top : window.bottom - kept.top,
            window.left - kept.left : window.right - kept.left,
        ]

    def part(self, begin: int, end: int) -> "MouthPatches":
        """Returns the patches of the frames from `begin` to before `end`, counted from `begin`. Copies no pixels."""
        part = type(self)(self._max_bytes)
        part.picture_size = self.picture_size
        part._patches = {
            index - begin: patch for index, patch in self._patches.items() if begin <= index < end
        }
        return part

    def forget_before(self, frame_index: int) -> None:
        """Removes the frames before that one and frees their memory."""
        self._forget([index for index in self._patches if index < frame_index])

    def _forget(self, indices: Sequence[int]) -> None:
        for index in indices:
            window, _ = self._patches.pop(index)
            self._num_bytes -= _area(window)


class WholePictures(MouthPatches):
    """Keeps every whole picture: for a camera, whose pictures cannot be decoded again.

    The mouth is also cut in frames without a face, over a bridged gap. If the memory is used up, every other picture is
    removed, and `find` returns its neighbour instead.
    """

    def keep_settled(self, frames: Sequence[SourceFrame]) -> None:
        for frame in frames:
            whole = Window(0, 0, *frame.size)
            if self._num_bytes + _area(whole) > self._max_bytes:
                self._forget(sorted(self._patches)[1::2])
            self.keep(frame, whole)

    def keep_mouths(self, frames: Sequence[SourceFrame], points_FK3: Doubles) -> None:
        """Keeps nothing: `keep_settled` kept the whole pictures."""

    def find(self, frame_index: int, window: Window) -> NDArray[np.uint8] | None:
        if frame_index not in self._patches and self._patches:
            frame_index = min(self._patches, key=lambda kept: abs(kept - frame_index))
        return super().find(frame_index, window)


def _area(window: Window) -> int:
    return (window.right - window.left) * (window.bottom - window.top)


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
