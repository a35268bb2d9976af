"""Reads the character table of a public checkpoint as our tokenizer. Imports no torch.

A file like char_units.txt has a line "character index" for each unit, starting with index 1, usually `<unk>`. Index 0
is the blank; start and end are one token after the last line.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.settings import TextParams
from model.text import END_ID, SPECIAL_TOKENS, START_ID, UNKNOWN_ID, Tokenizer, normalise
from shards.errors import CheckpointError
from shards.pipes import refuse_pipe

MAX_BYTES = 4 << 20
"""A table of every Chinese character takes half a megabyte."""
SHOWN = 5
NEVER_LOGIT = -1e4
"""Logit of a token that the public model lacks: its probability is 0, those of other tokens do not change."""
UNKNOWN_NAMES = ("<unk>", "<UNK>")
SPACE_NAMES = ("<space>", "▁")
"""Names of the space in tables whose columns are separated by spaces; ▁ is sentencepiece's."""
_LINE = re.compile(r"(.+?)[ \t]+(\d{1,9})[ \t]*", re.ASCII)


@dataclass(frozen=True)
class PublicTable:
    """Our tokenizer of the public characters, in their order, and the positions of their rows."""

    tokenizer: Tokenizer
    public_ids: tuple[int, ...]
    """The public index of each unit."""
    unknown_id: int | None
    """The public index of `<unk>`; None if the public model has no unknown character."""
    rewritten: tuple[tuple[str, str], ...]
    """Characters that our table has in normal form, as pairs: public, ours."""
    not_in_labels: tuple[str, ...]
    """Characters that no normalised label contains. Their rows are kept, but reading them counts as an error."""

    @property
    def num_public_tokens(self) -> int:
        """Rows of the public heads: the lines of the file, the blank, and one for start and end."""
        return len(self.public_ids) + (self.unknown_id is not None) + 2

    def rows(self) -> tuple[list[int | None], list[int | None]]:
        """Returns for each of our ids the public row in an embedding and in an output layer; None if there is none.

        The public token for start and end is fed as our start and read as our end. Start is never read.
        """
        last = self.num_public_tokens - 1
        fed: list[int | None] = [0, last, last, self.unknown_id, *self.public_ids]
        read = list(fed)
        read[START_ID] = None
        assert (START_ID, END_ID, UNKNOWN_ID, len(SPECIAL_TOKENS)) == (1, 2, 3, 4)
        return fed, read


def read_table(path: Path, text: TextParams) -> PublicTable:
    """Reads the table `path`, with characters normalised like labels (`text`).

    Raises CheckpointError if it is not a table of single characters with the indexes 1, 2, 3, …
    """
    index_of = dict(_entries(path))
    wanted = range(1, len(index_of) + 1)
    if missing := set(wanted) - set(index_of.values()):
        raise CheckpointError(
            f"{path}: the indexes of its {len(index_of)} units must be 1 to {len(index_of)} (0 is the blank, start "
            f"and end come last), but index {min(missing)} is missing; use the unchanged table of the checkpoint"
        )
    unknown_id = next((index_of.pop(name) for name in UNKNOWN_NAMES if name in index_of), None)
    theirs = sorted(index_of, key=index_of.__getitem__)
    if not theirs:
        raise CheckpointError(f"{path} holds no characters")
    characters = [" " if unit in SPACE_NAMES or unit.isspace() else unit for unit in theirs]
    if long := [unit for unit in characters if len(unit) > 1]:
        raise CheckpointError(
            f"{path}: {len(long)} units are not single characters ({', '.join(long[:SHOWN])}). Models of this program "
            "output characters, so these heads cannot be imported; --part encoder without --vocabulary imports the "
            "parts below them"
        )
    if doubled := [unit for unit, count in Counter(characters).items() if count > 1]:
        raise CheckpointError(f"{path}: {doubled[0]!r} appears twice, under two names of the space")
    normal = [unit if unit == " " else normalise(unit, text) for unit in characters]
    units = _in_normal_form(characters, normal)
    return PublicTable(
        Tokenizer(tuple(units)),
        tuple(index_of[unit] for unit in theirs),
        unknown_id,
        tuple((unit, ours) for unit, ours in zip(theirs, units, strict=True) if unit != ours),
        tuple(unit for unit, form in zip(units, normal, strict=True) if unit != form),
    )


def _in_normal_form(characters: Sequence[str], normal: Sequence[str]) -> list[str]:
    """Returns each character as in labels, or unchanged if that is not one character or already in the table."""
    taken, units = set(characters), []
    for character, form in zip(characters, normal, strict=True):
        unit = form if len(form) == 1 and form not in taken else character
        taken.add(unit)
        units.append(unit)
    return units


def _entries(path: Path) -> Iterator[tuple[str, int]]:
    """Yields units and indexes in the order of the file; each unit and index appears once."""
    lines_of: dict[str | int, int] = {}
    # not splitlines: a table may contain characters that it treats as line ends
    for number, line in enumerate(_text(path).rstrip("\r\n").split("\n"), start=1):
        match = _LINE.fullmatch(line.removesuffix("\r"))
        if not match:
            raise CheckpointError(
                f"{path}, line {number}: {line[:40]!r} is not 'character index', for example 我 3; --vocabulary needs "
                "the public checkpoint's table (char_units.txt)"
            )
        unit, index = match[1], int(match[2])
        for what in (unit, index):
            if what in lines_of:
                raise CheckpointError(
                    f"{path}: {what!r} appears twice, in lines {lines_of[what]} and {number}"
                )
            lines_of[what] = number
        yield unit, index


def _text(path: Path) -> str:
    refuse_pipe(path)
    try:
        with path.open("rb") as file:
            payload = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"--vocabulary {path} cannot be read: {error.strerror}") from error
    if len(payload) > MAX_BYTES:
        raise CheckpointError(
            f"--vocabulary {path} has more than {MAX_BYTES >> 20} MiB, so it is not a table of characters"
        )
    try:
        return payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f"--vocabulary {path} is not UTF-8 text ({error.reason}); convert it"
        ) from error
