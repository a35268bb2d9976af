"""Language models as ARPA files, the text format of SRILM and KenLM. Imports no torch.

One n-gram per line: log10 of its probability, its words, log10 of its backoff weight. Here a word is a unit of the lip
reader, mostly a character; a space in it is written `<space>`, since spaces separate the words.
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
from model.units import CHARACTERS
from shards.errors import TableError
from shards.files import atomic_file
from shards.pipes import refuse_pipe

LOG = logging.getLogger(__name__)
SPACE = "<space>"
MAX_ORDER = 6
_HEADER = "# pipeline lm "
"""Starts the first line of our files; KenLM skips lines that start with #."""
MAX_LINE_BYTES = 4096
LARGEST_LOG10 = 1000.0
"""A larger number is not a logarithm of a probability or a weight, and sums of such numbers could overflow."""
ROUNDING_LOG10 = 1e-4
"""A log-probability above 0 by at most this is read as 0."""
_ROWS_AT_ONCE = 1 << 16
_COUNT = re.compile(r"ngram (\d{1,2})=[ \t]*(\d{1,12})", re.ASCII)


def write_arpa(path: Path, model: NgramModel, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes the model. The same model gives the same bytes, and `read_arpa` returns the same model.

    `metadata` is written as a first line of JSON; `arpa_metadata` returns it.
    """
    names = [word.replace(" ", SPACE) for word in model.words]
    assert not any(set(name) & set(" \t\n\r") or not name for name in names), "words hold no spaces"
    with atomic_file(path) as file:
        counts = "".join(f"ngram {order}={count}\n" for order, count in enumerate(model.counts, start=1))
        if metadata is not None:
            file.write(f"{_HEADER}{json.dumps(metadata, ensure_ascii=False, sort_keys=True)}\n".encode())
        file.write(f"\\data\\\n{counts}".encode())
        for order, level in enumerate(model.levels(), start=1):
            file.write(f"\n\\{order}-grams:\n".encode())
            for first in range(0, len(level.log10_M), _ROWS_AT_ONCE):
                rows = slice(first, first + _ROWS_AT_ONCE)
                file.write(_lines(level, rows, names, order == model.order).encode())
        file.write(b"\n\\end\\\n")


def arpa_metadata(path: Path) -> dict[str, Any] | None:
    """Returns the `metadata` of `write_arpa`; None if the file is missing or another program wrote it."""
    refuse_pipe(path)
    try:
        with path.open("rb") as file:
            line = file.readline(MAX_LINE_BYTES).decode()
        metadata = json.loads(line.removeprefix(_HEADER)) if line.startswith(_HEADER) else None
    except (FileNotFoundError, ValueError):
        return None
    return metadata if isinstance(metadata, dict) else None


def _lines(level: Level, rows: slice, names: list[str], is_longest: bool) -> str:
    # numpy writes a float32 with the fewest digits that read back as the same number
    log10_M, backoff_M = level.log10_M[rows].astype(str), level.backoff_log10_M[rows].astype(str)
    words = (" ".join([names[word] for word in row]) for row in level.words_MK[rows].tolist())
    if is_longest:
        return "".join(f"{log10}\t{text}\n" for log10, text in zip(log10_M, words, strict=True))
    return "".join(
        f"{log10}\t{text}\t{backoff}\n"
        for log10, text, backoff in zip(log10_M, words, backoff_M, strict=True)
    )


def load_language_model(path: Path, table: Tokenizer, text: TextParams | None = None) -> LanguageModel:
    """Returns the language model of a file for the units of `table`.

    Logs a warning if the file names another normaliser than `text`, the normaliser of the labels. Raises TableError
    like `read_arpa`, if the file names other units, and if the model knows none of the units. A file of another program
    names no units, and some units of words and bpe are single characters. So if the units are not characters, such a
    file must know more than half of them.
    """
    about, ours = arpa_metadata(path), str(table.splitting)
    if about is not None and (theirs := about.get("units", str(CHARACTERS))) != ours:
        raise TableError(
            f"{path} is a model of other units ({theirs}) than this lip reader writes ({ours}); run `pipeline lm` with "
            "the lip reader's section text, or set decode.lm_weight=0"
        )
    language_model = read_arpa(path).of_tokens(table)
    if text is not None and (warning := _other_normaliser_warning(path, text)):
        LOG.warning(warning)
    num_known = len(table.units) - int(language_model.unseen_V.sum())
    fewest = len(table.units) // 2 if about is None and table.splitting != CHARACTERS else 0
    if table.units and num_known <= fewest:
        raise TableError(
            f"{path} knows {num_known or 'none'} of the {len(table.units)} {table.splitting.plural} of this lip "
            f"reader; it may be a model of other units: run `pipeline lm` to make one of {table.splitting.plural}"
        )
    return language_model


def _other_normaliser_warning(path: Path, text: TextParams) -> str | None:
    """Returns None if the options are the same or unknown; different versions matter only for rare texts."""
    theirs, ours = (arpa_metadata(path) or {}).get("normaliser"), without_version(describe_normaliser(text))
    if not isinstance(theirs, str) or without_version(theirs) == ours:
        return None
    return (
        f"{path} was made from text of another normaliser ({without_version(theirs)}) than the labels of the lip "
        f"reader ({ours}), so it may not know all characters of the labels; run `pipeline lm` with the lip reader's "
        "section text"
    )


def read_arpa(path: Path) -> NgramModel:
    """Returns the model of an ARPA file, also if another program wrote it.

    Raises TableError if the file is missing, and with the line if it is damaged or truncated.
    """
    refuse_pipe(path)
    try:
        with path.open("rb") as file:
            return _Reader(path, file).model()
    except FileNotFoundError:
        raise TableError(f"{path} is missing; run `pipeline lm` to make it") from None
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error}") from error


class _Reader:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file, self._line = path, file, 0
        self._words: dict[str, int] = {}

    def model(self) -> NgramModel:
        while (line := self._next()) != "\\data\\":
            if self._line > 1000:
                raise self._fault("this is not an ARPA file: its first lines have no \\data\\")
        counts, line = self._counts()
        levels, first_lines = [], []
        for order, count in enumerate(counts, start=1):
            if order > 1:
                line = self._next_filled()
            if line != f"\\{order}-grams:":
                raise self._fault(f"expected \\{order}-grams:")
            first_lines.append(self._line + 1)
            levels.append(self._level(order, count, order == len(counts)))
        if self._next_filled() != "\\end\\":
            raise self._fault("expected \\end\\")
        for needed in (START, END):
            if needed not in self._words:
                raise self._fault(f"the file ends here, but the word {needed} is missing")
        try:
            return NgramModel(list(self._words), levels)
        except NgramFault as fault:
            self._line = first_lines[fault.order - 1] + fault.row
            raise self._fault(fault.fault) from None

    def _counts(self) -> tuple[list[int], str]:
        """Returns the announced counts, and the line after them."""
        counts: list[int] = []
        size = self._path.stat().st_size
        while not (line := self._next_filled()).startswith("\\"):
            found = _COUNT.fullmatch(line)
            if found is None or int(found[1]) != len(counts) + 1:
                raise self._fault(f"expected 'ngram {len(counts) + 1}=COUNT'")
            counts.append(int(found[2]))
        if not 1 <= len(counts) <= MAX_ORDER:
            raise self._fault(f"it has {len(counts)} orders, but this program reads 1 to {MAX_ORDER}")
        if 4 * sum(counts) > size:
            raise self._fault(f"it announces {sum(counts)} n-grams, too many for a file of {size} bytes")
        return counts, line

    def _level(self, order: int, count: int, is_longest: bool) -> Level:
        words, log10, backoff = [], [], []
        ids = self._words
        for _ in range(count):
            fields = self._next().split()
            if len(fields) != order + 1 and (is_longest or len(fields) != order + 2):
                raise self._fault(f"expected an n-gram of {order} words: the file announces {count} of them")
            log10.append(self._figure(fields[0], ROUNDING_LOG10))
            backoff.append(self._figure(fields[-1], LARGEST_LOG10) if len(fields) == order + 2 else 0.0)
            if order == 1:
                word = fields[1].replace(SPACE, " ")
                if word in ids:
                    raise self._fault("this word is already in the file")
                ids[word] = len(ids)
                words.append(ids[word])
            else:
                try:
                    words += [ids[name.replace(SPACE, " ")] for name in fields[1 : order + 1]]
                except KeyError as unknown:
                    raise self._fault(f"{unknown} is not among the 1-grams") from None
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
            raise self._fault(f"{text[:40]!r} is not a log10 of a probability or a weight")
        return value

    def _next(self) -> str:
        """Returns the next line. Raises TableError at the end of the file."""
        self._line += 1
        line = self._file.readline(MAX_LINE_BYTES)
        if not line:
            raise self._fault("the file ends here, without \\end\\")
        if len(line) == MAX_LINE_BYTES:
            raise self._fault(f"the line is longer than {MAX_LINE_BYTES} bytes")
        try:
            return line.decode("utf-8").strip()
        except UnicodeDecodeError:
            raise self._fault("this line is not UTF-8 text") from None

    def _next_filled(self) -> str:
        while not (line := self._next()):
            pass
        return line

    def _fault(self, what: str) -> TableError:
        return TableError(
            f"{self._path}, line {self._line}: {what}; run `pipeline lm` to make a new language model"
        )
