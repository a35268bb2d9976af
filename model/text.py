"""The declared normaliser and the character table. Imports neither torch nor mediapipe."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from model.settings import TextParams
from shards.errors import CheckpointError

NORMALISER_VERSION = 1

BLANK_ID, START_ID, END_ID, UNKNOWN_ID = 0, 1, 2, 3
SPECIAL_TOKENS = ("<blank>", "<start>", "<end>", "<unknown>")

# The blocks whose characters are written without spaces between words (Unicode 16, chapter 18).
_HAN = "\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_SPACE_BESIDE_HAN = re.compile(rf"(?<=[{_HAN}]) | (?=[{_HAN}])")


def normalise(text: str, params: TextParams) -> str:
    """The label of a transcript: NFKC, case folded, without punctuation, one space between words.

    Spaces beside Han characters go, spaces between words of other scripts stay. Applying it twice changes
    nothing.
    """
    text = unicodedata.normalize("NFKC", text)
    if params.case_fold:
        # folding can leave a form that NFKC changes once more; the second pass settles it
        text = unicodedata.normalize("NFKC", text.casefold())
    text = "".join(_kept(character, params) for character in text)
    return _SPACE_BESIDE_HAN.sub("", " ".join(text.split()))


def _kept(character: str, params: TextParams) -> str:
    kind = unicodedata.category(character)[0]
    if character.isspace() or kind in "ZC":
        # control and format characters join nothing: a zero-width space is no letter
        return " " if character.isspace() or kind == "Z" else ""
    if kind in "PS" and params.drop_punctuation:
        # don't, it's: an apostrophe inside a word joins, any other mark parts
        return "" if character in "'’" else " "
    return character


@dataclass(frozen=True)
class Tokenizer:
    """Characters and their ids: blank 0, start 1, end 2, unknown 3, then `characters` in order."""

    characters: tuple[str, ...]

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "_ids", {c: i for i, c in enumerate(self.characters, start=len(SPECIAL_TOKENS))}
        )

    @classmethod
    def of_labels(cls, labels: Iterable[str]) -> "Tokenizer":
        """The table of every character that occurs, in code point order: independent of the labels' order."""
        return cls(tuple(sorted({character for label in labels for character in label})))

    @property
    def num_tokens(self) -> int:
        return len(SPECIAL_TOKENS) + len(self.characters)

    def encode(self, label: str) -> list[int]:
        """One id a character; UNKNOWN_ID for characters outside the table."""
        ids: dict[str, int] = self._ids  # type: ignore[attr-defined]
        return [ids.get(character, UNKNOWN_ID) for character in label]

    def decode(self, ids: Sequence[int]) -> str:
        """The characters of `ids`; special tokens are left out."""
        first = len(SPECIAL_TOKENS)
        return "".join(self.characters[i - first] for i in ids if i >= first)

    def to_json(self) -> dict[str, object]:
        return {"version": 1, "special_tokens": list(SPECIAL_TOKENS), "characters": list(self.characters)}

    @classmethod
    def from_json(cls, value: object, name: str) -> "Tokenizer":
        """Reads what `to_json` gave; `name` stands in the CheckpointError where it is something else."""
        if not isinstance(value, dict) or value.get("special_tokens") != list(SPECIAL_TOKENS):
            raise CheckpointError(f"{name} is no tokenizer of this program (special_tokens differ)")
        characters = value.get("characters")
        if not isinstance(characters, list) or not all(
            isinstance(c, str) and len(c) == 1 for c in characters
        ):
            raise CheckpointError(f"{name}: 'characters' must be a list of single characters")
        if len(set(characters)) != len(characters):
            raise CheckpointError(f"{name}: a character stands twice in 'characters'")
        return cls(tuple(characters))


def describe_normaliser(params: TextParams) -> str:
    """One line for reports."""
    steps = ["NFKC"]
    if params.case_fold:
        steps.append("case folded")
    if params.drop_punctuation:
        steps.append("without punctuation and symbols")
    steps.append("no spaces beside Han characters")
    return f"{', '.join(steps)} (version {NORMALISER_VERSION})"
