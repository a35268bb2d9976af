"""Language models as ARPA files, the text format of SRILM and KenLM. Imports no torch.

An n-gram a line: log10 of its probability, its words, log10 of its backoff weight. A word is a character here; the
space stands as `<space>`, since spaces part the words.
"""

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from model.decoding.kneser_ney import NEVER_LOG10
from model.decoding.ngram import END, START, UNKNOWN, LanguageModel, Level, NgramFault, NgramModel
from model.settings import TextParams
from model.text import Tokenizer, describe_normaliser, without_version
from shards.errors import TableError
from shards.files import atomic_file
from shards.pipes import refuse_pipe

LOG = logging.getLogger(__name__)
SPACE = "<space>"
MAX_ORDER = 6
_ABOUT = "# pipeline lm "
"""Begins the first line of our files; KenLM passes over lines that begin with #."""
MAX_LINE_BYTES = 4096
LARGEST_LOG10 = 1000.0
"""Beyond it a figure is no logarithm of a probability or a weight, and sums of them could overflow."""
ROUNDING_LOG10 = 1e-4
"""Above 0 by as much, a log-probability is one of 0."""
_ROWS_AT_ONCE = 1 << 16
_COUNT = re.compile(r"ngram (\d{1,2})=[ \t]*(\d{1,12})", re.ASCII)


def write_arpa(path: Path, model: NgramModel, about: Mapping[str, Any] | None = None) -> None:
    """Writes the model; the same model gives the same bytes, and `read_arpa` the same model.

    `about` is what `arpa_metadata` gives back, a line of JSON in front of it all.
    """
    names = [SPACE if word == " " else word for word in model.words]
    assert not any(set(name) & set(" \t\n\r") or not name for name in names), "words hold no spaces"
    with atomic_file(path) as file:
        counts = "".join(f"ngram {order}={count}\n" for order, count in enumerate(model.counts, start=1))
        if about is not None:
            file.write(f"{_ABOUT}{json.dumps(about, ensure_ascii=False, sort_keys=True)}\n".encode())
        file.write(f"\\data\\\n{counts}".encode())
        for order, level in enumerate(model.levels(), start=1):
            file.write(f"\n\\{order}-grams:\n".encode())
            for first in range(0, len(level.log10_M), _ROWS_AT_ONCE):
                rows = slice(first, first + _ROWS_AT_ONCE)
                file.write(_lines(level, rows, names, order == model.order).encode())
        file.write(b"\n\\end\\\n")


def arpa_metadata(path: Path) -> dict[str, Any] | None:
    """What `write_arpa` was told of the model; None where there is no file, or another program's."""
    refuse_pipe(path)
    try:
        with path.open("rb") as file:
            line = file.readline(MAX_LINE_BYTES).decode()
        about = json.loads(line.removeprefix(_ABOUT)) if line.startswith(_ABOUT) else None
    except (FileNotFoundError, ValueError):
        return None
    return about if isinstance(about, dict) else None


def _lines(level: Level, rows: slice, names: list[str], is_longest: bool) -> str:
    # numpy spells a float32 by the fewest digits that read back as the same
    log10_M, backoff_M = level.log10_M[rows].astype(str), level.backoff_log10_M[rows].astype(str)
    words = (" ".join([names[word] for word in row]) for row in level.words_MK[rows].tolist())
    if is_longest:
        return "".join(f"{log10}\t{text}\n" for log10, text in zip(log10_M, words, strict=True))
    return "".join(
        f"{log10}\t{text}\t{backoff}\n"
        for log10, text, backoff in zip(log10_M, words, backoff_M, strict=True)
    )


def load_language_model(path: Path, table: Tokenizer, text: TextParams | None = None) -> LanguageModel:
    """The model of a file for the characters of `table`.

    Logs a warning where the file says that it was learnt by another normaliser than `text`, that of the labels. Raises
    TableError as `read_arpa` does, and where it knows none of the characters.
    """
    language_model = read_arpa(path).of_tokens(table)
    if text is not None and (told := _other_normaliser_told(path, text)):
        LOG.warning(told)
    if table.units and language_model.unseen_V.sum() == len(table.units):
        raise TableError(
            f"{path} knows none of the {len(table.units)} characters that are to be read; is it a model of words? "
            f"`pipeline lm` makes one of characters"
        )
    return language_model


def _other_normaliser_told(path: Path, text: TextParams) -> str | None:
    """What to warn of; None where options are the same (versions differ in rare texts only), or nothing says them."""
    theirs, ours = (arpa_metadata(path) or {}).get("normaliser"), without_version(describe_normaliser(text))
    if not isinstance(theirs, str) or without_version(theirs) == ours:
        return None
    return (
        f"{path} was made of text by another normaliser ({without_version(theirs)}) than the labels that the model "
        f"learnt ({ours}): characters that only the labels have are unknown to it; run `pipeline lm` with the model's "
        "section text"
    )


def read_arpa(path: Path) -> NgramModel:
    """The model of an ARPA file, of any maker.

    Raises TableError where the file is missing, and naming the line where it is damaged or cut off.
    """
    refuse_pipe(path)
    try:
        with path.open("rb") as file:
            return _Reader(path, file).model()
    except FileNotFoundError:
        raise TableError(f"{path} is missing; `pipeline lm` makes it") from None
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error}") from error


class _Reader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file, self._line = path, file, 0
        self._words: dict[str, int] = {}

    def model(self) -> NgramModel:
        while (line := self._next()) != "\\data\\":
            if self._line > 1000:
                raise self._fault("this is no ARPA file: no \\data\\ in its first lines")
        counts, line = self._counts()
        levels, first_lines = [], []
        for order, count in enumerate(counts, start=1):
            if order > 1:
                line = self._next_filled()
            if line != f"\\{order}-grams:":
                raise self._fault(f"\\{order}-grams: was expected")
            first_lines.append(self._line + 1)
            levels.append(self._level(order, count, order == len(counts)))
        if self._next_filled() != "\\end\\":
            raise self._fault("\\end\\ was expected")
        for needed in (START, END):
            if needed not in self._words:
                raise TableError(f"{self._path}: {needed} is no word of it, and texts begin and end by it")
        try:
            return NgramModel(list(self._words), levels)
        except NgramFault as fault:
            self._line = first_lines[fault.order - 1] + fault.row
            raise self._fault(fault.fault) from None

    def _counts(self) -> tuple[list[int], str]:
        """The announced counts, and the line behind them."""
        counts: list[int] = []
        size = self._path.stat().st_size
        while not (line := self._next_filled()).startswith("\\"):
            found = _COUNT.fullmatch(line)
            if found is None or int(found[1]) != len(counts) + 1:
                raise self._fault(f"'ngram {len(counts) + 1}=COUNT' was expected")
            counts.append(int(found[2]))
        if not 1 <= len(counts) <= MAX_ORDER:
            raise self._fault(f"n-grams of 1 to {MAX_ORDER} words can be read, it has {len(counts)} orders")
        if 4 * sum(counts) > size:
            raise self._fault(f"{sum(counts)} n-grams are announced, too many for a file of {size} bytes")
        return counts, line

    def _level(self, order: int, count: int, is_longest: bool) -> Level:
        words, log10, backoff = [], [], []
        ids = self._words
        for _ in range(count):
            fields = self._next().split()
            if len(fields) != order + 1 and (is_longest or len(fields) != order + 2):
                raise self._fault(f"an n-gram of {order} words was expected, {count} of them are announced")
            log10.append(self._figure(fields[0], ROUNDING_LOG10))
            backoff.append(self._figure(fields[-1], LARGEST_LOG10) if len(fields) == order + 2 else 0.0)
            if order == 1:
                word = " " if fields[1] == SPACE else fields[1]
                if word in ids:
                    raise self._fault("the word stands twice")
                ids[word] = len(ids)
                words.append(ids[word])
            else:
                try:
                    words += [ids[" " if name == SPACE else name] for name in fields[1 : order + 1]]
                except KeyError as unknown:
                    raise self._fault(f"{unknown} is no word among the 1-grams") from None
        if order == 1 and UNKNOWN not in ids:
            ids[UNKNOWN] = len(ids)
            words, log10, backoff = [*words, ids[UNKNOWN]], [*log10, NEVER_LOG10], [*backoff, 0.0]
        return Level(
            np.array(words, np.int32).reshape(-1, order),
            np.minimum(np.array(log10, np.float32), 0),
            np.array(backoff, np.float32),
        )

    def _figure(self, text: str, largest: float) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not -LARGEST_LOG10 <= value <= largest:
            raise self._fault(f"{text[:40]!r} is no log10 of a probability or a weight")
        return value

    def _next(self) -> str:
        """The next line; a TableError at the end of the file."""
        self._line += 1
        line = self._file.readline(MAX_LINE_BYTES)
        if not line:
            raise self._fault("the file ends here, without \\end\\")
        if len(line) == MAX_LINE_BYTES:
            raise self._fault(f"the line is longer than {MAX_LINE_BYTES} bytes")
        try:
            return line.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise self._fault("the line is no UTF-8 text") from None

    def _next_filled(self) -> str:
        while not (line := self._next()):
            pass
        return line

    def _fault(self, what: str) -> TableError:
        return TableError(
            f"{self._path}, line {self._line}: {what}; `pipeline lm` makes a language model anew"
        )
