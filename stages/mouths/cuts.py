"""Finds hard cuts: frames at which a face and its surroundings suddenly change.

The face and its surroundings are compared between frames as thumbnails: small gray pictures without their slow shading,
at the best of some small shifts. Neighbouring frames of a moving person correlate by 0.7 and more, also at 4 frames a
second or with a hand before the mouth. Frames of two people framed alike correlate by 0.56 at most (docs/decisions.md).

Shapes: F frames, S side of a thumbnail.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray

from stages.mouths.geometry import Doubles
from stages.videos.picture import SourceFrame, Window

THUMBNAIL_PX = 32
"""Width and height of a thumbnail, px."""
SAMPLES = 2
"""Each pixel of a thumbnail is the mean of SAMPLES x SAMPLES samples of the picture."""
SHADING_PX = 3.0
"""Standard deviation of the blur that is subtracted: it removes changes of light."""
SHIFT_PX = 3
"""Largest shift in pixels at which two thumbnails are compared: a tenth of the face."""
FACE_REGION, SHOT_REGION = 1.3, 2.5
"""Sides of the compared squares, as multiples of the mesh's box: the face, and head and shoulders. A hand in front of
the mouth changes only the first; a moving background changes only the second."""

SAME_FACE, SAME_SHOT = 0.5, 0.6
"""A correlation of two faces below SAME_FACE means two people, even if a caption or a wall does not change. A
correlation of faces or surroundings from SAME_SHOT on means one shot."""
FLAT = 1.0
"""Root mean square in gray levels below which a thumbnail is black, white or fog: unlike any face."""
FAINT = 0.25
"""A thumbnail with a root mean square below this share of the other's is not evidence of a cut: decoders make faint
pictures after a lost key frame, and a face may be faintly visible in them (0.15 to 0.19 in GRID)."""
CHECKED_EVERY = 4
"""Every fourth frame is compared first. Where two of them differ, the frames between are compared one by one."""


class FaceThumbnail:
    """Small gray pictures (S, S) of a face in one frame and of its surroundings. Each is made when first needed."""

    def __init__(self, frame: SourceFrame, box_4: Doubles) -> None:
        self._frame, self._box_4 = frame, box_4

    @cached_property
    def face(self) -> NDArray[np.float32]:
        return _small(self._frame, self._box_4, FACE_REGION)

    @cached_property
    def surroundings(self) -> NDArray[np.float32]:
        return _small(self._frame, self._box_4, SHOT_REGION)

    def is_alike(self, other: "FaceThumbnail") -> bool:
        """Returns whether the two thumbnails may show the same shot."""
        face = _correlation(self.face, other.face)
        if face >= SAME_SHOT or face < SAME_FACE:
            return face >= SAME_SHOT
        return _correlation(self.surroundings, other.surroundings) >= SAME_SHOT


def cut_frames(frames: Sequence[SourceFrame], box_F4: Doubles, begin: int, end: int) -> list[int]:
    """Returns which frames from `begin` + 1 to `end` begin a new shot around a face, in rising order.

    `box_F4` is the face's box in each frame. The frames before `begin` and after `end` distinguish cuts from flashes: a
    single frame that differs does not begin a shot.
    """
    thumbnails: dict[int, FaceThumbnail] = {}

    def thumbnail(number: int) -> FaceThumbnail:
        if number not in thumbnails:
            thumbnails[number] = FaceThumbnail(frames[number], box_F4[number])
        return thumbnails[number]

    stops = [*range(begin, end, CHECKED_EVERY), end]
    cuts: list[int] = []
    for first, last in pairwise(stops):
        if not thumbnail(first).is_alike(thumbnail(last)):
            numbers = range(first + 1, last + 1)
            # frame rate converters mix the last picture of a shot with the first of the next
            cuts += [n for n in numbers if _is_cut(thumbnail, n, len(frames), num_mixed=0)] or [
                n for n in numbers if _is_cut(thumbnail, n, len(frames), num_mixed=1)
            ]
    return cuts


def _is_cut(thumbnail: Callable[[int], FaceThumbnail], number: int, num_frames: int, num_mixed: int) -> bool:
    """Returns whether frame `number` begins a new shot.

    No frame shortly before it may be similar to it or to the next frames. `num_mixed` frames right before it are not
    compared, since they may mix both shots. The frames of each side must be similar: those of a fast object are not.
    """
    last, reach = number - 1 - num_mixed, range(2 + num_mixed)
    befores = [last - back for back in reach if last >= back]
    afters = [number + ahead for ahead in reach if number + ahead < num_frames]
    if not befores or any(thumbnail(a).is_alike(thumbnail(b)) for a in befores for b in afters):
        return False
    return all(thumbnail(side[0]).is_alike(thumbnail(side[-1])) for side in (befores, afters))


def _correlation(thumbnail_SS: NDArray[np.float32], other_SS: NDArray[np.float32]) -> float:
    less, more = sorted(math.sqrt(np.vdot(each, each) / each.size) for each in (thumbnail_SS, other_SS))
    if less < FLAT:
        return 1.0 if more < FLAT / FAINT else 0.0
    if less < FAINT * more:
        return 1.0
    # the plain correlation is cheap, and nearly always enough
    plain = float(np.vdot(thumbnail_SS, other_SS)) / (thumbnail_SS.size * less * more)
    if plain >= SAME_SHOT:
        return plain
    middle = thumbnail_SS[SHIFT_PX:-SHIFT_PX, SHIFT_PX:-SHIFT_PX]
    return float(cv2.matchTemplate(other_SS, middle, cv2.TM_CCOEFF_NORMED).max())


def _small(frame: SourceFrame, box_4: Doubles, region: float) -> NDArray[np.float32]:
    """Returns a square around the face whose mesh has this box in source pixels, without its slow shading."""
    left, top, right, bottom = box_4.tolist()
    side_px = region * max(right - left, bottom - top)
    x_px, y_px = (left + right - side_px) / 2, (top + bottom - side_px) / 2
    width, height = frame.size
    begin_x, begin_y = min(max(0, int(x_px)), width - 1), min(max(0, int(y_px)), height - 1)
    end_x, end_y = (
        min(max(begin + 1, math.ceil(place + side_px)), side)
        for begin, place, side in ((begin_x, x_px, width), (begin_y, y_px, height))
    )
    step = side_px / (THUMBNAIL_PX * SAMPLES)
    sampled = cv2.warpAffine(
        frame.luma(Window(begin_x, begin_y, end_x, end_y)),
        np.array([[step, 0, x_px + (step - 1) / 2 - begin_x], [0, step, y_px + (step - 1) / 2 - begin_y]]),
        (THUMBNAIL_PX * SAMPLES, THUMBNAIL_PX * SAMPLES),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    small = cv2.resize(sampled, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.asarray(small - cv2.GaussianBlur(small, (0, 0), SHADING_PX), np.float32)
