"""The declared normaliser and the character table. Imports neither torch nor mediapipe."""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from model.annotations import ANNOTATION_HINT, unescaped, without_annotations
from model.characters import plain, simplified, with_zeros, with_zeros_of_letters
from model.settings import TextParams
from shards.errors import CheckpointError, TableError
from shards.safe_text import is_control

NORMALISER_VERSION = 4
READABLE_NORMALISERS = (1, 2, 3, 4)
"""Versions whose labels are the same where the switches that they did not have yet are off, but for letters that 1 and
2 left apart from their marks, and for radicals, circles as zero, 著 and invisible characters, which 4 reads first."""

BLANK_ID, START_ID, END_ID, UNKNOWN_ID = 0, 1, 2, 3
SPECIAL_TOKENS = ("<blank>", "<start>", "<end>", "<unknown>")

# The blocks whose characters are written without spaces between words (Unicode 17, chapter 18), and planes 2 and 3.
_HAN = "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"
_SPACE_BESIDE_HAN = re.compile(rf"(?<=[{_HAN}]) | (?=[{_HAN}])")
_IS_HAN = re.compile(rf"[{_HAN}]")
_HAN_OR_WORD = re.compile(rf"[{_HAN}]|[^\s{_HAN}]+")
_CHINESE_DIGITS = str.maketrans("0123456789〇〡〢〣〤〥〦〧〨〩", "零一二三四五六七八九零一二三四五六七八九")


def normalise(text: str, params: TextParams) -> str:
    """The label of a transcript: NFKC, case folded, without punctuation, one space between words.

    Spaces beside Han characters go, spaces between words of other scripts stay. Applying it twice changes
    nothing. No letter, ideograph or number is lost: what goes is punctuation and symbols (emoji are symbols), what
    nobody sees (`characters.plain`) and, with `params.drop_annotations`, what nobody says.
    `params.digits` reads every digit by itself, 100 is 一零零, wherever it stands: a rule for the
    neighbours of Han characters alone would read iPhone 15 in two ways. 二〇二四 is 二零二四 then.
    """
    # what one step makes, another may change: ½O8, where O meets its neighbour only as 1⁄2 is without its line
    while (again := _once(text, params)) != text:
        text = again
    return text


def _once(text: str, params: TextParams) -> str:
    text = _settled(text, params)
    if params.drop_annotations:
        text, *_ = without_annotations(text)
    text = _folded(text, params)
    text = with_zeros(text)
    if params.drop_punctuation:
        text = "".join(map(_without_symbols, text))
    # what is dropped may have stood between a letter and its mark: café written with a joiner in it
    text = unicodedata.normalize("NFKC", text)
    text = _SPACE_BESIDE_HAN.sub("", with_zeros_of_letters(" ".join(text.split())))
    if params.digits == "chinese":
        text = text.translate(_CHINESE_DIGITS)
        text = _SPACE_BESIDE_HAN.sub("", text)
    return simplified(text) if params.simplify else text


_MAY_HOLD_ANNOTATIONS = re.compile(ANNOTATION_HINT)


def in_brackets(text: str, params: TextParams) -> tuple[list[str], list[str]]:
    """What `params.drop_annotations` drops of a transcript, or would; and what else stands in brackets, and stays."""
    if not _MAY_HOLD_ANNOTATIONS.search(text):
        return [], []
    settled = _settled(text, params.model_copy(update={"drop_annotations": True}))
    _, dropped, kept = without_annotations(settled)
    return [_folded(one, params) for one in dropped], [_folded(one, params) for one in kept]


def _settled(text: str, params: TextParams) -> str:
    return plain(unicodedata.normalize("NFKC", unescaped(text) if params.drop_annotations else text))


def _folded(text: str, params: TextParams) -> str:
    # folding can leave a form that NFKC changes once more; the second pass settles it
    return unicodedata.normalize("NFKC", text.casefold()) if params.case_fold else text


def is_han(character: str) -> bool:
    """Whether it is written without spaces around it: a Han character or radical."""
    return _IS_HAN.match(character) is not None


def units_of(text: str) -> list[str]:
    """Each Han character by itself, and the words of other scripts: the units of the mixed error rate."""
    return _HAN_OR_WORD.findall(text)


@lru_cache(1 << 16)
def _without_symbols(character: str) -> str:
    kind = unicodedata.category(character)
    if kind == "Me":
        return ""  # a keycap stands around its digit
    # don't, it's: an apostrophe inside a word joins, any other mark parts
    return character if kind[0] not in "PS" else "" if character in "'’" else " "


@dataclass(frozen=True)
class Tokenizer:
    """Units of text and their ids: blank 0, start 1, end 2, unknown 3, then `units` in order.

    Units are characters, or syllables; `joiner` stands between them in a text.
    """

    units: tuple[str, ...]
    joiner: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ids", {c: i for i, c in enumerate(self.units, start=len(SPECIAL_TOKENS))})

    @classmethod
    def of_units(cls, units: Iterable[str], joiner: str = "") -> "Tokenizer":
        """The table of every unit that occurs, in code point order: independent of the units' order."""
        return cls(tuple(sorted(set(units))), joiner)

    @property
    def num_tokens(self) -> int:
        return len(SPECIAL_TOKENS) + len(self.units)

    def encode(self, units: Iterable[str]) -> list[int]:
        """One id a unit (a label's characters, say); UNKNOWN_ID for those outside the table."""
        ids: dict[str, int] = self._ids  # type: ignore[attr-defined]
        return [ids.get(unit, UNKNOWN_ID) for unit in units]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; special tokens are left out."""
        first = len(SPECIAL_TOKENS)
        return self.joiner.join(self.units[i - first] for i in ids if i >= first)

    def to_json(self) -> dict[str, object]:
        named = {"version": 1, "special_tokens": list(SPECIAL_TOKENS), "characters": list(self.units)}
        return named | ({"joiner": self.joiner} if self.joiner else {})

    @classmethod
    def from_json(cls, value: object, name: str) -> "Tokenizer":
        """Reads what `to_json` gave; `name` stands in the CheckpointError where it is something else."""
        if not isinstance(value, dict) or value.get("special_tokens") != list(SPECIAL_TOKENS):
            raise CheckpointError(f"{name} is no tokenizer of this program (special_tokens differ)")
        units, joiner = value.get("characters"), value.get("joiner", "")
        if not isinstance(units, list) or not all(isinstance(unit, str) and unit for unit in units):
            raise CheckpointError(f"{name}: 'characters' must be a list of characters (or syllables)")
        if not joiner and not all(len(unit) == 1 for unit in units):
            raise CheckpointError(f"{name}: 'characters' must be a list of single characters")
        if joiner not in ("", " "):
            raise CheckpointError(f"{name}: 'joiner' must be empty or a space, it is {joiner!r}")
        if bad := [unit for unit in units if any(map(is_control, unit))]:
            raise CheckpointError(
                f"{name}: 'characters' holds {bad[0]!a}, which is no character of a text but steers the terminal; no "
                "label has it, so the file was modified or is not of this program: train again, or get it anew"
            )
        if len(set(units)) != len(units):
            raise CheckpointError(f"{name}: a character stands twice in 'characters'")
        return cls(tuple(units), joiner)


_VERSION_TOLD = " (version "


def describe_normaliser(params: TextParams, version: int = NORMALISER_VERSION) -> str:
    """One line for reports."""
    steps = ["NFKC"]
    if params.case_fold:
        steps.append("case folded")
    if params.drop_punctuation:
        steps.append("without punctuation and symbols")
    if params.drop_annotations:
        steps.append("without annotations")
    steps.append("no spaces beside Han characters")
    if params.digits == "chinese":
        steps.append("digits as Chinese characters, one by one")
    if params.simplify:
        steps.append("traditional characters simplified (OpenCC t2s, 著)")
    return f"{', '.join(steps)}{_VERSION_TOLD}{version})"


def without_version(described: str) -> str:
    """The options alone of what `describe_normaliser` says."""
    return described.partition(_VERSION_TOLD)[0]


_MARK = b"normaliser"


def normaliser_metadata(params: TextParams) -> dict[bytes, bytes]:
    """Schema metadata of a table of labels: the normaliser that made them."""
    told = {"version": NORMALISER_VERSION, "params": params.model_dump(mode="json")}
    return {_MARK: json.dumps(told, sort_keys=True).encode()}


def copied_normaliser_metadata(metadata: Mapping[bytes, bytes] | None) -> dict[bytes, bytes]:
    """The mark of a table, for one that takes its labels over; nothing where it has none."""
    return {_MARK: metadata[_MARK]} if metadata and _MARK in metadata else {}


def describe_stored_normaliser(metadata: Mapping[bytes, bytes] | None, table: object) -> str | None:
    """`describe_normaliser` of a table's labels; None where it was written before they were marked.

    Raises TableError, which names `table`, where the mark is none of this program.
    """
    mark = normaliser_from_metadata(metadata, table)
    return describe_normaliser(*mark) if mark else None


def normaliser_from_metadata(
    metadata: Mapping[bytes, bytes] | None, table: object
) -> tuple[TextParams, int] | None:
    """The normaliser of a table's labels and its version, as `describe_stored_normaliser` tells them."""
    if not metadata or _MARK not in metadata:
        return None
    try:
        told = json.loads(metadata[_MARK])
        return TextParams.model_validate(told["params"]), int(told["version"])
    except (ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TableError(
            f"{table}: its labels are of a normaliser that is not known here ({reason}); run `pipeline ingest` again"
        ) from error
