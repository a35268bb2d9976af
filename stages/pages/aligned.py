"""Two texts under each other, character by character, as a page shows them."""

from dataclasses import dataclass

from model.metrics import Op, align


@dataclass(frozen=True, slots=True)
class Cell:
    """One column of the aligned texts: a character over a character, either of them "" where it is missing."""

    op: Op
    reference: str
    hypothesis: str


def aligned_cells(reference: str, hypothesis: str) -> list[Cell]:
    cells = []
    for part in align(reference, hypothesis):
        for index in range(max(len(part.reference), len(part.hypothesis))):
            # slices, not indices: one side of a deletion or an insertion is empty
            one = slice(index, index + 1)
            cells.append(Cell(part.op, part.reference[one], part.hypothesis[one]))
    return cells
