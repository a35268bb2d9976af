"""The vocabulary of a lip reader: its characters, and its syllables if it learns them. Imports no torch."""

from collections.abc import Iterable
from dataclasses import dataclass

from model.pinyin import syllables_of
from model.text import Tokenizer


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
