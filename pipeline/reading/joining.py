"""One text of the readings of neighbouring stretches, some of which show the same second twice."""

import math

from rapidfuzz.distance import Levenshtein

from model.text import is_han

REACH = 2.0
"""The shared text is looked for up to this many times the length it should have by the clock."""
SPARE_CHARS = 4

SURE_CHARS = 2
"""So many characters that agree are no chance, though the clock wants another length."""


def without_overlap(before: str, after: str, shared_chars: float) -> tuple[str, str]:
    """Both texts without what they say twice: the first gives up its end, the second its begin.

    `shared_chars` is how long the shared text should be by the clock. Of all ends of `before` and begins of `after`
    those are taken for the same words that agree best: characters that agree, less edits between them, less what the
    length differs from `shared_chars`. The cut lies in their middle, at a space where they have one: what a window
    shows at its very edge it shows in part, and its neighbour shows whole. Where nothing agrees, each gives up half
    of `shared_chars`.
    """
    reach = round(REACH * shared_chars) + SPARE_CHARS
    # sharing nothing is right only where the clock says so
    best, best_key = (0, 0), (-math.inf if shared_chars > 0 else 0.0, 0.0)
    for num_before in range(1, min(reach, len(before)) + 1):
        end = before[-num_before:]
        for num_after in range(1, min(reach, len(after)) + 1):
            edits = Levenshtein.distance(end, after[:num_after])
            # each edit spoils a character of the longer one
            num_same = max(num_before, num_after) - edits
            off = abs((num_before + num_after) / 2 - shared_chars)
            key = (num_same - edits - off, -off)
            is_sure = key[0] >= 0 or num_same >= max(edits, SURE_CHARS)
            if num_same > 0 and is_sure and key > best_key:
                best, best_key = (num_before, num_after), key
    if best == (0, 0):
        half = round(shared_chars / 2)
        return before[: max(0, len(before) - half)], after[half:]
    num_before, num_after = best
    end, begin = before[-num_before:], after[:num_after]
    same = [
        (i, i - block.src_start + block.dest_start)
        for block in Levenshtein.opcodes(end, begin)
        if block.tag == "equal"
        for i in range(block.src_start, block.src_end)
    ]
    assert same, "texts of which a character agrees"
    middle = len(same) / 2
    spaces = [place for place, (i, _) in enumerate(same) if end[i] == " "]
    i, j = same[min(spaces or range(len(same)), key=lambda place: abs(place + 0.5 - middle))]
    return before[: len(before) - num_before + i], after[j:]


def between(before: str, after: str) -> str:
    """What stands between two texts that follow each other: a space between words, nothing beside Han characters.

    A text's own space at the seam counts: the caller leaves out those that `after` begins with.
    """
    if not before or not after.strip() or before[-1].isspace():
        return ""
    return " " if after[0].isspace() or not (is_han(before[-1]) or is_han(after[0])) else ""
