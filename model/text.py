"""The normaliser and the tokenizer. Imports neither torch nor mediapipe."""

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from model.annotations import ANNOTATION_HINT, unescaped, without_annotations
from model.characters import HAN, plain, simplified, with_zeros, with_zeros_of_letters
from model.scripts import described, with_apostrophes, written_plainly
from model.settings import TextParams
from model.units import CHARACTERS, UNWRITTEN_SPACES, Splitting
from shards.errors import CheckpointError, TableError
from shards.safe_text import is_control

NORMALISER_VERSION = 4
READABLE_NORMALISERS = (1, 2, 3, 4)
"""Versions whose labels are the same if the options that they lacked are off. Exceptions: 1 and 2 did not compose some
letters with their marks, and only 4 handles radicals, circles as zero, 著 and invisible characters."""

BLANK_ID, START_ID, END_ID, UNKNOWN_ID = 0, 1, 2, 3
SPECIAL_TOKENS = ("<blank>", "<start>", "<end>", "<unknown>")

_SPACE_NEXT_TO_HAN = re.compile(rf"(?<=[{HAN}]) | (?=[{HAN}])")
_IS_HAN = re.compile(rf"[{HAN}]")
_HAN_OR_WORD = re.compile(rf"[{HAN}]|[^\s{HAN}]+")
_CHINESE_DIGITS = str.maketrans("0123456789〇〡〢〣〤〥〦〧〨〩", "零一二三四五六七八九零一二三四五六七八九")


def normalise(text: str, params: TextParams) -> str:
    """Returns the label of a transcript: NFKC, case folded, without punctuation, one space between words.

    Removes spaces next to Han characters and keeps spaces between words of other scripts. Applying it twice changes
    nothing. No letter, ideograph or number is lost. It removes only punctuation and symbols (emoji are symbols),
    invisible characters (`characters.plain`) and, with `params.drop_annotations`, annotations.
    `params.digits` "chinese" reads every digit by itself and everywhere, 100 as 一零零: a rule for digits next to
    Han characters would read iPhone 15 in two ways. 二〇二四 becomes 二零二四.
    """
    # a step can make text that an earlier step changes: in ½O8, O follows a digit only without the line of 1⁄2
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
        keeps = params.apostrophes == "keep"
        text = with_apostrophes(text) if keeps else text
        text = "".join(one if keeps and one == "'" else _without_symbols(one) for one in text)
    # a removed character may have separated a letter from its mark: café written with a joiner
    text = unicodedata.normalize("NFKC", text)
    text = _SPACE_NEXT_TO_HAN.sub("", with_zeros_of_letters(" ".join(text.split())))
    text = written_plainly(text, params)
    if params.digits == "chinese":
        text = text.translate(_CHINESE_DIGITS)
        text = _SPACE_NEXT_TO_HAN.sub("", text)
    return simplified(text) if params.simplify else text


_MAY_HOLD_ANNOTATIONS = re.compile(ANNOTATION_HINT)


def in_brackets(text: str, params: TextParams) -> tuple[list[str], list[str]]:
    """Returns the annotations that `params.drop_annotations` removes or would remove, and other bracketed parts."""
    if not _MAY_HOLD_ANNOTATIONS.search(text):
        return [], []
    settled = _settled(text, params.model_copy(update={"drop_annotations": True}))
    _, dropped, kept = without_annotations(settled)
    return [_folded(part, params) for part in dropped], [_folded(part, params) for part in kept]


def _settled(text: str, params: TextParams) -> str:
    return plain(unicodedata.normalize("NFKC", unescaped(text) if params.drop_annotations else text))


def _folded(text: str, params: TextParams) -> str:
    # case folding can make a form that is not NFKC
    return unicodedata.normalize("NFKC", text.casefold()) if params.case_fold else text


def is_han(character: str) -> bool:
    """Returns whether it is a Han character or radical, which is written without spaces around it."""
    return _IS_HAN.match(character) is not None


def units_of(text: str) -> list[str]:
    """Returns Han characters one by one, and words of other scripts: the units of the mixed error rate."""
    return _HAN_OR_WORD.findall(text)


@lru_cache(1 << 16)
def _without_symbols(character: str) -> str:
    kind = unicodedata.category(character)
    if kind == "Me":
        return ""  # a keycap encloses its digit
    # an apostrophe inside a word joins (don't, it's), other marks separate words
    return character if kind[0] not in "PS" else "" if character in "'’" else " "


DOUBTFUL = "\x1a"
"""Stands for any unit in a pseudo label (model/losses.py). No label has control characters."""


@dataclass(frozen=True)
class Tokenizer:
    """Units of text and their ids: blank 0, start 1, end 2, unknown 3, then `units` in order.

    `joiner` separates the units in a text: a space for syllables, whose `splitting` is then pinyin, nothing for others.
    """

    units: tuple[str, ...]
    joiner: str = ""
    splitting: Splitting = CHARACTERS

    def __post_init__(self) -> None:
        if self.joiner:
            object.__setattr__(self, "splitting", replace(self.splitting, kind="pinyin"))
        object.__setattr__(self, "_ids", {c: i for i, c in enumerate(self.units, start=len(SPECIAL_TOKENS))})

    @classmethod
    def of_units(
        cls, units: Iterable[str], joiner: str = "", splitting: Splitting = CHARACTERS
    ) -> "Tokenizer":
        """Returns the table of all distinct units in code point order, independent of the order of `units`."""
        return cls(tuple(sorted(set(units))), joiner, splitting)

    @property
    def num_tokens(self) -> int:
        return len(SPECIAL_TOKENS) + len(self.units)

    def encode(self, label: str | Iterable[str]) -> list[int]:
        """Returns one id per unit of a label, or of units; UNKNOWN_ID for units outside the table."""
        ids: dict[str, int] = self._ids  # type: ignore[attr-defined]
        units = self.splitting.split(label) if isinstance(label, str) else label
        return [ids.get(unit, UNKNOWN_ID) for unit in units]

    def unknown_units(self, label: str) -> list[str]:
        """Returns the units of a label that are outside the table, in order."""
        units = self.splitting.split(label)
        return [unit for unit, token in zip(units, self.encode(units), strict=True) if token == UNKNOWN_ID]

    def unit(self, token: int) -> str:
        """Returns the unit of an id; empty for special tokens."""
        return self.units[token - len(SPECIAL_TOKENS)] if token >= len(SPECIAL_TOKENS) else ""

    def decode(self, ids: Iterable[int]) -> str:
        """Returns the text of `ids`, without special tokens."""
        return self.splitting.join(filter(None, map(self.unit, ids)))

    def to_json(self) -> dict[str, object]:
        named = {"version": 1, "special_tokens": list(SPECIAL_TOKENS), "characters": list(self.units)}
        named |= {"joiner": self.joiner} if self.joiner else {}
        splitting = self.splitting.to_json()
        if splitting in ({}, {"kind": "pinyin"}):  # as in older files
            return named
        unwritten = {"unwritten_spaces": UNWRITTEN_SPACES} if self.splitting.kind in ("words", "bpe") else {}
        return named | {"splitting": splitting} | unwritten

    @classmethod
    def from_json(cls, value: object, name: str) -> "Tokenizer":
        """Returns the tokenizer of a `to_json` value. Raises CheckpointError, with `name`, if the value is wrong."""
        if not isinstance(value, dict) or value.get("special_tokens") != list(SPECIAL_TOKENS):
            raise CheckpointError(f"{name} is not a tokenizer of this program (special_tokens differ)")
        units, joiner = value.get("characters"), value.get("joiner", "")
        if not isinstance(units, list) or not all(isinstance(unit, str) and unit for unit in units):
            raise CheckpointError(f"{name}: 'characters' must be a list of characters (or syllables)")
        splitting = Splitting.from_json(value.get("splitting", {}), name)
        if lost := {first + second for first, second in splitting.merges} - set(units):
            raise CheckpointError(
                f"{name}: 'characters' lacks {min(lost)!a}, which a merge of 'splitting' makes"
            )
        single = not joiner and splitting.kind == "characters"
        if single and not all(len(unit) == 1 for unit in units):
            raise CheckpointError(f"{name}: 'characters' must be a list of single characters")
        if joiner not in ("", " ") or (splitting.kind == "pinyin" and not joiner):
            raise CheckpointError(
                f"{name}: 'joiner' must be empty, or a space for syllables (got {joiner!r})"
            )
        if bad := [unit for unit in units if any(map(is_control, unit))]:
            raise CheckpointError(
                f"{name}: 'characters' holds {bad[0]!a} with a control character, which no label has, so the file was "
                "modified or was not written by this program: train again, or get the file again"
            )
        if len(set(units)) != len(units):
            raise CheckpointError(f"{name}: 'characters' holds a character twice")
        return cls(tuple(units), joiner, splitting)


_VERSION_PREFIX = " (version "
_SPACES_STEP = "no spaces next to Han characters"


def describe_normaliser(params: TextParams, version: int = NORMALISER_VERSION) -> str:
    """Returns one line for reports."""
    steps = ["NFKC"]
    if params.case_fold:
        steps.append("case folded")
    if params.drop_punctuation:
        steps.append("without punctuation and symbols")
    if params.drop_annotations:
        steps.append("without annotations")
    steps.append(_SPACES_STEP)
    if params.digits == "chinese":
        steps.append("digits as Chinese characters, one by one")
    steps += described(params)
    if params.simplify:
        steps.append("traditional characters simplified (OpenCC t2s, 著)")
    return f"{', '.join(steps)}{_VERSION_PREFIX}{version})"


def without_version(described: str) -> str:
    """Returns only the options of a `describe_normaliser` line, also of a line that an older program wrote."""
    # the older wording of the same step
    return re.sub(r"no spaces \w+ Han characters", _SPACES_STEP, described.partition(_VERSION_PREFIX)[0])


_KEY = b"normaliser"


def normaliser_metadata(params: TextParams) -> dict[bytes, bytes]:
    """Returns the schema metadata of a table of labels: the normaliser that made them."""
    # other units are other targets of the same labels
    options = {key: value for key, value in params.recorded().items() if key not in params.UNIT_KEYS}
    normaliser = {"version": NORMALISER_VERSION, "params": options}
    return {_KEY: json.dumps(normaliser, sort_keys=True).encode()}


def copied_normaliser_metadata(metadata: Mapping[bytes, bytes] | None) -> dict[bytes, bytes]:
    """Returns the normaliser metadata of a table, for a table that copies its labels; empty if there is none."""
    return {_KEY: metadata[_KEY]} if metadata and _KEY in metadata else {}


def describe_stored_normaliser(metadata: Mapping[bytes, bytes] | None, table: object) -> str | None:
    """Returns `describe_normaliser` of a table's labels; None if an older program wrote the table without metadata.

    Raises TableError with `table` if this program does not know the normaliser in the metadata.
    """
    normaliser = normaliser_from_metadata(metadata, table)
    return describe_normaliser(*normaliser) if normaliser else None


def normaliser_from_metadata(
    metadata: Mapping[bytes, bytes] | None, table: object
) -> tuple[TextParams, int] | None:
    """Returns options and version of the normaliser; None and TableError as for `describe_stored_normaliser`."""
    if not metadata or _KEY not in metadata:
        return None
    try:
        normaliser = json.loads(metadata[_KEY])
        return TextParams.model_validate(normaliser["params"]), int(normaliser["version"])
    except (ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise TableError(
            f"{table}: this program does not know the normaliser of its labels ({reason}); run `pipeline ingest` again"
        ) from error
