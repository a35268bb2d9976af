"""The character table of a public checkpoint as a tokenizer of ours. Imports no torch.

A file like char_units.txt holds a line "character index" for each unit from index 1 on, `<unk>` usually first;
0 is the blank, and start and end are one token behind the last line.
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
"""Logit of a token that their reader does not have: its probability is 0, and the others' are theirs."""
UNKNOWN_NAMES = ("<unk>", "<UNK>")
SPACE_NAMES = ("<space>", "▁")
"""How tables that part their columns by a space call it; ▁ as sentencepiece does."""
_LINE = re.compile(r"(.+?)[ \t]+(\d{1,9})[ \t]*", re.ASCII)


@dataclass(frozen=True)
class PublicTable:
    """Our tokenizer of their characters, in their order, and where their rows stand."""

    tokenizer: Tokenizer
    public_ids: tuple[int, ...]
    """Their index of each unit."""
    unknown_id: int | None
    """Their index of `<unk>`; None: their reader knows no unknown character."""
    rewritten: tuple[tuple[str, str], ...]
    """Characters that stand in our table in normal form: theirs, ours."""
    not_in_labels: tuple[str, ...]
    """Characters that no label of this normaliser holds: their rows are kept, what they read counts as an error."""

    @property
    def num_public_tokens(self) -> int:
        """Rows of their heads: the lines of the file, the blank, start and end."""
        return len(self.public_ids) + (self.unknown_id is not None) + 2

    def rows(self) -> tuple[list[int | None], list[int | None]]:
        """Of each of our ids their row of an embedding, and of an output layer; None: they have none.

        Their one token for start and end is fed as our start and read as our end. Start is never read.
        """
        last = self.num_public_tokens - 1
        fed: list[int | None] = [0, last, last, self.unknown_id, *self.public_ids]
        read = list(fed)
        read[START_ID] = None
        assert (START_ID, END_ID, UNKNOWN_ID, len(SPECIAL_TOKENS)) == (1, 2, 3, 4)
        return fed, read


def read_table(path: Path, text: TextParams) -> PublicTable:
    """The table of `path`, its characters as `text` normalises labels.

    Raises CheckpointError where it is no table of single characters with the indexes 1, 2, 3, …
    """
    index_of = dict(_entries(path))
    wanted = range(1, len(index_of) + 1)
    if missing := set(wanted) - set(index_of.values()):
        raise CheckpointError(
            f"{path}: the indexes of its {len(index_of)} units must be 1 to {len(index_of)} (0 is the blank, start "
            f"and end come last), index {min(missing)} is missing; give the table as it came with the checkpoint"
        )
    unknown_id = next((index_of.pop(name) for name in UNKNOWN_NAMES if name in index_of), None)
    theirs = sorted(index_of, key=index_of.__getitem__)
    if not theirs:
        raise CheckpointError(f"{path} holds no characters")
    characters = [" " if unit in SPACE_NAMES or unit.isspace() else unit for unit in theirs]
    if long := [unit for unit in characters if len(unit) > 1]:
        raise CheckpointError(
            f"{path}: {len(long)} units are not single characters ({', '.join(long[:SHOWN])}): a reader of this "
            "program writes characters, so the heads cannot be taken over; --part encoder without --vocabulary "
            "takes what stands below them"
        )
    if doubled := [unit for unit, count in Counter(characters).items() if count > 1]:
        raise CheckpointError(f"{path}: the space stands twice ({doubled[0]!r}), under two names")
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
    """Each character as labels hold it, or as it is where that is none, or stands in the table already."""
    taken, units = set(characters), []
    for character, form in zip(characters, normal, strict=True):
        unit = form if len(form) == 1 and form not in taken else character
        taken.add(unit)
        units.append(unit)
    return units


def _entries(path: Path) -> Iterator[tuple[str, int]]:
    """Units and indexes, in the order of the file; every unit and index once."""
    lines_of: dict[str | int, int] = {}
    # not splitlines: a table may hold characters that end a line for it
    for number, line in enumerate(_text(path).rstrip("\r\n").split("\n"), start=1):
        match = _LINE.fullmatch(line.removesuffix("\r"))
        if not match:
            raise CheckpointError(
                f"{path}, line {number}: {line[:40]!r} is no 'character index', as 我 3; "
                "--vocabulary wants the public checkpoint's table (char_units.txt)"
            )
        unit, index = match[1], int(match[2])
        for what in (unit, index):
            if what in lines_of:
                raise CheckpointError(
                    f"{path}: {what!r} stands twice, in lines {lines_of[what]} and {number}"
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
            f"--vocabulary {path} has more than {MAX_BYTES >> 20} MiB: no table of characters"
        )
    try:
        return payload.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"--vocabulary {path} is no UTF-8 text ({error.reason}); convert it") from error
