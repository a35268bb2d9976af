"""The page of `pipeline compare`: the difference and its interval, groups, and the clips that changed most.

Also aligns two texts character by character for a page.
"""

from dataclasses import dataclass

from model.bootstrap import ENOUGH_SPEAKERS
from model.metrics import Op, align, has_words
from stages.pages.page import rendered
from stages.reports.compare import Comparison, Difference
from stages.reports.figures import INTERVALS_NOTE, why_no_interval

NUM_CLIPS = 20
"""Largest number of improved, and of worsened, clips on the page."""


def compare_page(comparison: Comparison) -> str:
    """Returns the page as HTML text. It loads nothing, runs no script and escapes every text from outside."""
    return rendered(
        "compare.html.j2",
        comparison=comparison,
        verdict=verdict(comparison.whole),
        points=points,
        signed=signed,
        intervals_note=INTERVALS_NOTE,
        num_clips=NUM_CLIPS,
        cells_of=lambda clip: (
            aligned_cells(clip.reference, clip.hypothesis_a),
            aligned_cells(clip.reference, clip.hypothesis_b),
        ),
        has_words=has_words(clip.reference for clip in (*comparison.better, *comparison.worse)),
    )


def verdict(found: Difference) -> tuple[str, str]:
    """Returns whether B is better, worse or neither, as "good", "bad" or "open", with a sentence."""
    if found.interval is None or found.better_share is None:
        return (
            "open",
            f"No difference is shown. 95 % interval: {why_no_interval(found.num_clips, 'difference')}.",
        )
    middle = f"95 % interval {signed(found.interval.low)} to {points(found.interval.high)}, over {found.over}"
    share = f"B is better in {100 * found.better_share:.1f} % of the resamples"
    if found.num_speakers < ENOUGH_SPEAKERS:
        known = f"{found.num_speakers} speaker{'' if found.num_speakers == 1 else 's'}"
        return "open", (
            f"Too few speakers to exclude chance: {known} known; with fewer than {ENOUGH_SPEAKERS} the "
            f"interval is too narrow ({middle}; {share})."
        )
    if not found.is_shown:
        return "open", f"No difference is shown: the interval contains 0 ({middle}; {share})."
    better = found.interval.high < 0
    return ("good" if better else "bad"), f"B is {'better' if better else 'worse'} ({middle}; {share})."


def signed(share: float) -> str:
    """Returns a difference of two shares in percentage points, with its sign if it is not 0."""
    text = f"{100 * share:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def points(share: float) -> str:
    return f"{signed(share)}\u202fpoints"


@dataclass(frozen=True, slots=True)
class Cell:
    """One column of two aligned texts: a character of each, or "" if it is missing."""

    op: Op
    reference: str
    hypothesis: str


def aligned_cells(reference: str, hypothesis: str) -> list[Cell]:
    cells = []
    for part in align(reference, hypothesis):
        for index in range(max(len(part.reference), len(part.hypothesis))):
            # slices, not indices: one side of a deletion or an insertion is empty
            place = slice(index, index + 1)
            cells.append(Cell(part.op, part.reference[place], part.hypothesis[place]))
    return cells
