"""A clip in the report: its film strip, and the output of a CTC head over time under it.

Positions are pixels along the whole strip, in which a frame is TILE wide: a moment is under its frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.decoding.ctc import Spikes
from model.metrics import unit_pairs
from stages.pages.compare_page import Cell, aligned_cells
from stages.pages.page import film_strip
from stages.reports.figures import CountedClip
from stages.statistics.charts import nice_ticks

# Two pictures of 8 frames: one strip on a wide screen; on a phone the second is below the first.
STRIP_FRAMES, FRAMES_PER_PICTURE = 16, 8
TILE = 48
# y of probability 1 (FULL) and 0 (AXIS); characters are above, seconds below.
FULL, AXIS, HEIGHT = 36, 84, 102
# Width of a text: Latin letters are narrow, Han characters wide. A text that would overlap moves up by ROW.
LETTER, HAN, GAP, ROW = 7.5, 12, 3, 15
MAX_ROWS = 3


@dataclass(frozen=True, slots=True)
class Stem:
    """One spike: a line up to `y` with its character or syllable; `is_right`: the reference has the same there."""

    x: float
    y: float
    text_x: float
    text_y: float
    text: str
    is_right: bool
    tooltip: str


@dataclass(frozen=True, slots=True)
class Piece:
    """One picture and the spikes under it; `blank` is the outline of the blank's probability, "" without a CTC head."""

    picture: str
    left: int
    width: int
    top: float = 0
    blank: str = ""
    stems: tuple[Stem, ...] = ()
    seconds: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True, slots=True)
class ShownClip:
    counted: CountedClip
    cells: Sequence[Cell]
    pieces: Sequence[Piece]


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """Maps moments of a clip to positions on its strip, whose frames are evenly spaced from first to last."""

    num_frames: int
    num_shown: int
    fps: float

    def x_of_frame(self, frame: float) -> float:
        """Returns x of the middle of a frame, counted from 0."""
        return TILE * (0.5 + frame * (self.num_shown - 1) / max(self.num_frames - 1, 1))

    def x_of_step(self, step: int, num_steps: int) -> float:
        """Returns x of the middle of an encoder step."""
        return self.x_of_frame((step + 0.5) * self.num_frames / num_steps - 0.5)

    def x_of_second(self, second: float) -> float:
        return self.x_of_frame(second * self.fps - 0.5)

    @property
    def seconds(self) -> list[float]:
        """Round times within the clip, s."""
        duration_s = self.num_frames / self.fps
        step = nice_ticks(0, duration_s / 2)[1]
        return [index * step for index in range(int(duration_s / step + 1e-6) + 1)]


def shown_clip(
    counted: CountedClip, clip_THW: NDArray[np.uint8], spikes: Spikes | None, fps: float
) -> ShownClip:
    """Returns the clip's film strip, the spikes of its CTC head if there is one, and its aligned texts."""
    clip = counted.clip
    num_shown = min(STRIP_FRAMES, len(clip_THW))
    axis = TimeAxis(len(clip_THW), num_shown, fps)
    stems = [] if spikes is None else _stems(spikes, axis, clip.reference)
    # the top of the highest character, the same for all pieces
    top = min((stem.text_y for stem in stems), default=FULL) - 14
    pieces = []
    for index, picture in enumerate(film_strip(clip_THW, STRIP_FRAMES, FRAMES_PER_PICTURE)):
        first = index * FRAMES_PER_PICTURE
        left, right = TILE * first, TILE * min(first + FRAMES_PER_PICTURE, num_shown)
        if spikes is None:
            pieces.append(Piece(picture, left, right - left))
            continue
        seconds = [(round(axis.x_of_second(second), 1), f"{second:g}") for second in axis.seconds]
        pieces.append(
            Piece(
                picture,
                left,
                right - left,
                top,
                _blank_outline(spikes, axis, left, right),
                tuple(stem for stem in stems if left <= stem.x < right),
                tuple((x, text) for x, text in seconds if left <= x < right),
            )
        )
    return ShownClip(counted, aligned_cells(clip.reference, clip.hypothesis), pieces)


def _y_of(probability: float) -> float:
    return round(AXIS - probability * (AXIS - FULL), 1)


def _stems(spikes: Spikes, axis: TimeAxis, reference: str) -> list[Stem]:
    said = list(reference) if spikes.reference is None else spikes.reference
    pairs = unit_pairs(said, [spike.text for spike in spikes.spikes])
    is_right = [unit == read for unit, read in pairs if read]
    stems: list[Stem] = []
    taken_to = [-np.inf] * MAX_ROWS
    for spike, right in zip(spikes.spikes, is_right, strict=True):
        x = round(axis.x_of_step(spike.step, len(spikes.blank_S)), 1)
        y = _y_of(spike.probability)
        half = (sum(LETTER if char.isascii() else HAN for char in spike.text) + GAP) / 2
        text_x = _within_picture(x, half, axis)
        free = (row for row, end in enumerate(taken_to) if text_x - half >= end)
        row = next(free, MAX_ROWS - 1)
        taken_to[row] = text_x + half
        second = (spike.step + 0.5) * axis.num_frames / len(spikes.blank_S) / axis.fps
        stems.append(
            Stem(
                x,
                y,
                text_x,
                y - 5 - ROW * row,
                spike.text.replace(" ", "␣"),
                right,
                f"{spike.text!r} at {second:.2f} s, probability {spike.probability:.2f}",
            )
        )
    return stems


def _within_picture(x: float, half: float, axis: TimeAxis) -> float:
    """Returns the middle of a text at `x` with that half width, moved so that it stays within the picture of `x`."""
    width = TILE * FRAMES_PER_PICTURE
    left = x // width * width
    right = min(left + width, TILE * axis.num_shown)
    return round(min(max(x, left + half), max(right - half, left + half)), 1)


def _blank_outline(spikes: Spikes, axis: TimeAxis, left: int, right: int) -> str:
    """Returns an SVG path from `left` to `right`, limited to the clip."""
    left_x = max(left, axis.x_of_frame(-0.5))
    right_x = min(right, axis.x_of_frame(axis.num_frames - 0.5))
    steps_x = np.array([axis.x_of_step(step, len(spikes.blank_S)) for step in range(len(spikes.blank_S))])
    within_x = steps_x[(steps_x > left_x) & (steps_x < right_x)]
    all_x = np.concatenate([[left_x], within_x, [right_x]])
    heights = np.interp(all_x, steps_x, spikes.blank_S)
    points = " ".join(f"{x:.1f} {_y_of(p)}" for x, p in zip(all_x, heights, strict=True))
    return f"M{left_x:.1f} {AXIS}L{points}L{right_x:.1f} {AXIS}Z"
