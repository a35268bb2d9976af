"""The vocabulary of a lip reader: its characters, and its syllables if it learns them. Imports no torch.

Syllables are toneless pinyin: the part of a Mandarin sentence that lips can show, without its homophones. pypinyin
reads its tables of phrases when it is imported, which takes 0.4 s: only functions that need them import it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from model.characters import simplified
from model.text import Tokenizer

LABELS_KEPT = 1 << 17


@lru_cache(LABELS_KEPT)  # a label repeats in every epoch, and takes a third of a millisecond
def syllables_of(label: str) -> tuple[str, ...]:
    """Returns one toneless syllable per Han character (`lü` as `lv`), by its reading in the phrase.

    Other characters are returned as they are; spaces are left out. 地 is mostly di, even where it is said de.
    Traditional characters are simplified first, since pypinyin's phrases are simplified: 銀行 would be yin xing.
    """
    simple = simplified(label)
    read = (
        # 鷿: the simplified character is so rare that pypinyin does not know its reading
        _read(own)[0] if syllable == written != own else syllable
        for own, written, syllable in zip(label, simple, _read(simple), strict=True)
    )
    return tuple(syllable for syllable in read if not syllable.isspace())


def _read(text: str) -> list[str]:
    from pypinyin import Style, lazy_pinyin

    return lazy_pinyin(text, style=Style.NORMAL, errors=lambda others: list(others))  # type: ignore[arg-type, return-value]


def readings_of(character: str) -> tuple[str, ...]:
    """Returns every toneless syllable that a Han character has in some word; any other character as it is."""
    from pypinyin import Style, pinyin

    return tuple(
        dict.fromkeys(
            reading
            for one in (character, simplified(character))
            for reading in pinyin(one, style=Style.NORMAL, heteronym=True, errors=lambda other: [[other]])[0]  # type: ignore[arg-type, return-value]
        )
    )


@dataclass(frozen=True)
class Vocabulary:
    """The character table of a lip reader, and its syllable table if it has one."""

    characters: Tokenizer
    syllables: Tokenizer | None = None

    @classmethod
    def of_labels(cls, labels: Iterable[str], with_syllables: bool) -> "Vocabulary":
        """Returns every character that occurs, and with `with_syllables` every syllable."""
        if not with_syllables:
            return cls(Tokenizer.of_units(unit for label in labels for unit in label))
        distinct = set(labels)
        return cls(
            Tokenizer.of_units(unit for label in distinct for unit in label),
            Tokenizer.of_units((unit for label in distinct for unit in syllables_of(label)), joiner=" "),
        )

    @property
    def num_syllables(self) -> int:
        """Returns the number of tokens of the syllable head, with special ones; 0 if there is no such head."""
        return self.syllables.num_tokens if self.syllables else 0

    def encode_syllables(self, label: str) -> list[int]:
        """Returns the ids of the label's syllables."""
        assert self.syllables is not None, "a vocabulary without syllables"
        return self.syllables.encode(syllables_of(label))

    def ctc_targets(self, label: str) -> list[list[int]]:
        """Returns the CTC targets of `label`: its characters, and its syllables if there is a syllable table."""
        targets = [self.characters.encode(label)]
        return [*targets, self.encode_syllables(label)] if self.syllables else targets
