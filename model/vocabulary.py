"""What a reader can write: its characters, and its syllables where it learns them. Imports no torch."""

from collections.abc import Iterable
from dataclasses import dataclass

from model.pinyin import syllables_of
from model.text import Tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """The tables of a reader."""

    characters: Tokenizer
    syllables: Tokenizer | None = None

    @classmethod
    def of_labels(cls, labels: Iterable[str], with_syllables: bool) -> "Vocabulary":
        """Every character, and every syllable where wanted, that occurs."""
        if not with_syllables:
            return cls(Tokenizer.of_units(unit for label in labels for unit in label))
        distinct = set(labels)
        return cls(
            Tokenizer.of_units(unit for label in distinct for unit in label),
            Tokenizer.of_units((unit for label in distinct for unit in syllables_of(label)), joiner=" "),
        )

    @property
    def num_syllables(self) -> int:
        """Tokens of the syllable head, special ones included; 0: there is none."""
        return self.syllables.num_tokens if self.syllables else 0

    def encode_syllables(self, label: str) -> list[int]:
        """Ids of the label's syllables."""
        assert self.syllables is not None, "a vocabulary without syllables"
        return self.syllables.encode(syllables_of(label))

    def ctc_targets(self, label: str) -> list[list[int]]:
        """What CTC has to spell of `label`: its characters, and its syllables where they are known."""
        targets = [self.characters.encode(label)]
        return [*targets, self.encode_syllables(label)] if self.syllables else targets
