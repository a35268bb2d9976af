"""The units that the network writes: how a text is split into them, and put together again. Imports no torch.

A unit of `words` and `bpe` that starts a word starts with a space, also at the start of a text and next to Han
characters, so a word is the same unit everywhere. `join` leaves out the spaces that labels do not have there.
"""

import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from model.characters import HAN
from model.pinyin import syllables_of
from model.settings import TextParams, UnitKind
from shards.errors import CheckpointError, ConfigError, MachineError

MIN_COUNT = 2
"""A pair that occurs only once does not become a unit, because the unit would have a single example."""
MAX_KNOWN_PIECES = 1 << 20
UNWRITTEN_SPACES = rf"^ +| +(?=[ {HAN}]|$)|(?<=[{HAN}]) +"
"""Spaces in joined units of words and bpe that are not in the text; config.json of an export has it too."""
_UNWRITTEN = re.compile(UNWRITTEN_SPACES)
_WORD = re.compile(rf"[{HAN}]|[^\s{HAN}]+")
_RUN = re.compile(rf"[{HAN}]+|[^\s{HAN}]+")
_HAS_HAN = re.compile(rf"[{HAN}]")
_HAS_LATIN = re.compile("[A-Za-z\u00c0-\u024f]")
_SYLLABLE = re.compile("[가-힣]")

Merge = tuple[str, str]
MAX_MERGES = 1 << 20
Part = Annotated[str, StringConstraints(min_length=1)]


@dataclass(frozen=True)
class Splitting:
    """How texts are split into units, see `TextParams.units`. Kind pinyin is for the table of the syllable head."""

    kind: UnitKind = "characters"
    latin: Literal["keep", "spell"] = "keep"
    hangul: Literal["syllables", "letters"] = "syllables"
    merges: tuple[Merge, ...] = ()
    """Of bpe: the pairs of neighbours that become one unit, in the order of merging (Sennrich et al. 2016)."""
    # not in __init__, so that `replace` does not share them with another splitting
    _known: dict[str, list[str]] = field(default_factory=dict, init=False, compare=False, repr=False)
    _ranks: dict[Merge, int] = field(default_factory=dict, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        self._ranks.update((pair, rank) for rank, pair in enumerate(self.merges))

    @classmethod
    def learnt(cls, params: TextParams, texts: Iterable[str]) -> "Splitting":
        """Returns the splitting of the network's main table; only bpe learns from `texts`, the training labels.

        The same texts in any order give the same splitting. Raises ConfigError if `params.bpe_size` has no room for
        a unit of several characters, MachineError if the package tokenizers is missing.
        """
        if params.units == "pinyin":  # learnt by the syllable head
            return CHARACTERS
        bare = cls(params.units, params.latin, params.hangul)
        return (
            replace(bare, merges=_learnt_merges(bare, params.bpe_size, texts)) if bare.kind == "bpe" else bare
        )

    def split(self, text: str) -> list[str]:
        """Returns the units of a label; `join` returns the label."""
        if self.kind == "pinyin":
            return list(syllables_of(text, self.latin == "spell"))
        if self.kind == "characters":
            return list(self._lettered(text))
        return [unit for piece in self.pieces(text) for unit in self._merged(piece)]

    def pieces(self, text: str) -> Iterator[str]:
        """Yields the parts that no unit crosses: words, letters of spelled words, Han characters (in bpe, runs)."""
        spells = self.latin == "spell" and _HAS_HAN.search(text) is not None
        for run in (_RUN if self.kind == "bpe" else _WORD).findall(self._lettered(text)):
            if _HAS_HAN.match(run):
                yield run
            elif spells and _HAS_LATIN.search(run):
                yield from (f" {run[0]}", *run[1:])
            else:
                yield f" {run}"

    def join(self, units: Iterable[str]) -> str:
        if self.kind == "pinyin":
            return " ".join(units)
        text = "".join(units)
        if self.hangul == "letters":
            text = unicodedata.normalize("NFC", text)
        return text if self.kind == "characters" else _UNWRITTEN.sub("", text)

    def unit_names(self, texts: Iterable[str]) -> set[str]:
        """Returns the units that a table needs to write `texts`.

        For bpe also the merged units that are always a part of a longer unit in `texts`: an unseen word may need them.
        """
        merged = {first + second for first, second in self.merges}
        return (
            merged.union(*(self._characters(text) for text in texts))
            if self.kind == "bpe"
            else {unit for text in texts for unit in self.split(text)}
        )

    def _characters(self, text: str) -> set[str]:
        return set("".join(self.pieces(text)))

    def _lettered(self, text: str) -> str:
        if self.hangul == "syllables":
            return text
        return _SYLLABLE.sub(lambda one: unicodedata.normalize("NFD", one[0]), text)

    def _merged(self, piece: str) -> list[str]:
        """Merges the pair that was learnt first, the leftmost of equal ones, until no pair was learnt."""
        if self.kind == "words":
            return [piece]
        if piece not in self._known:
            units, never = list(piece), len(self.merges)
            while len(units) > 1:
                ranks = (self._ranks.get(pair, never) for pair in pairwise(units))
                rank, place = min((rank, place) for place, rank in enumerate(ranks))
                if rank == never:
                    break
                units[place : place + 2] = [units[place] + units[place + 1]]
            if len(self._known) >= MAX_KNOWN_PIECES:
                self._known.clear()
            self._known[piece] = units
        return self._known[piece]

    def to_json(self) -> dict[str, object]:
        """Returns what differs from single characters; `from_json` is the inverse."""
        values = {"kind": self.kind, "latin": self.latin, "hangul": self.hangul}
        plain = {"kind": "characters", "latin": "keep", "hangul": "syllables"}
        found: dict[str, object] = {name: value for name, value in values.items() if value != plain[name]}
        return found | ({"merges": [list(pair) for pair in self.merges]} if self.merges else {})

    @classmethod
    def from_json(cls, value: object, name: str) -> "Splitting":
        """Returns the splitting of a `to_json` value. Raises CheckpointError, with `name`, if the value is wrong."""
        try:
            read = _Stored.model_validate(value)
        except ValidationError as error:
            wrong = error.errors(include_input=False)[0]
            where = ".".join(map(str, ("splitting", *wrong["loc"])))[:200]
            raise CheckpointError(f"{name}: {where}: {wrong['msg']}") from error
        return cls(read.kind, read.latin, read.hangul, read.merges)

    @property
    def plural(self) -> str:
        """Returns the name of the units in messages."""
        return {"words": "words", "bpe": "bpe units", "pinyin": "syllables"}.get(
            self.kind, "letters" if self.hangul == "letters" else "characters"
        )

    def __str__(self) -> str:
        """Returns a name for messages and for the first line of a language model: equal names, equal units."""
        parts: list[str] = [self.kind]
        if self.kind == "bpe":
            digest = hashlib.sha256(json.dumps(self.merges, ensure_ascii=False).encode()).hexdigest()
            parts[0] = f"bpe of {len(self.merges)} merges (sha256 {digest[:12]})"
        parts += ["Latin words spelled"] if self.latin == "spell" else []
        parts += ["Hangul as letters"] if self.hangul == "letters" else []
        return ", ".join(parts)


CHARACTERS = Splitting()


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: UnitKind = "characters"
    latin: Literal["keep", "spell"] = "keep"
    hangul: Literal["syllables", "letters"] = "syllables"
    merges: Annotated[tuple[tuple[Part, Part], ...], Field(max_length=MAX_MERGES)] = ()


def _learnt_merges(bare: Splitting, size: int, texts: Iterable[str]) -> tuple[Merge, ...]:
    """Returns the merges with which characters and merged units are `size`, or fewer if too few pairs repeat."""
    try:
        from tokenizers import Tokenizer, models, trainers
    except ImportError:
        raise MachineError(
            "text.units: bpe learns its units with the package tokenizers, which is missing; it comes with "
            "`pip install 'lip-pipeline[bpe]'`"
        ) from None
    counts = Counter(piece for text in texts for piece in bare.pieces(text))
    num_characters = len(set().union(*counts))
    if size <= num_characters:
        raise ConfigError(
            f"text.bpe_size: {size} leaves no room for units of several characters, since the training labels have "
            f"{num_characters} characters; set it higher, or text.units to characters"
        )
    model = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=size, min_frequency=MIN_COUNT, show_progress=False)
    model.train_from_iterator((piece for piece in sorted(counts) for _ in range(counts[piece])), trainer)
    return tuple((first, second) for first, second in json.loads(model.to_str())["model"]["merges"])
