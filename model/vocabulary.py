"""The vocabulary of a lip reader: the units that it writes, and its syllables if it learns them. Imports no torch."""

from collections.abc import Iterable
from dataclasses import dataclass

from model.settings import TextParams
from model.text import Tokenizer
from model.units import Splitting


@dataclass(frozen=True)
class Vocabulary:
    """The tables of a lip reader."""

    characters: Tokenizer
    """Of the CTC head and the attention decoders: characters, or other units of `TextParams.units`."""
    syllables: Tokenizer | None = None

    @classmethod
    def of_labels(
        cls, labels: Iterable[str], with_syllables: bool, text: TextParams | None = None
    ) -> "Vocabulary":
        """Returns the units of the training labels, and with `with_syllables` every syllable; default: characters.

        Raises ConfigError and MachineError like `Splitting.learnt`.
        """
        text = text or TextParams()
        # labels may be more than memory should hold
        labels = list(labels) if with_syllables or text.units == "bpe" else labels
        splitting = Splitting.learnt(text, labels if text.units == "bpe" else ())
        table = Tokenizer.of_units(splitting.unit_names(labels), splitting=splitting)
        if not with_syllables:
            return cls(table)
        of_sounds = Splitting("pinyin", text.latin)
        return cls(table, Tokenizer.of_units(of_sounds.unit_names(labels), " ", of_sounds))

    @property
    def num_syllables(self) -> int:
        """Returns the number of tokens of the syllable head, with special ones; 0 if there is no such head."""
        return self.syllables.num_tokens if self.syllables else 0

    def encode_syllables(self, label: str) -> list[int]:
        """Returns the ids of the label's syllables."""
        assert self.syllables is not None, "a vocabulary without syllables"
        return self.syllables.encode(label)

    def pinyin_of(self, label: str) -> str:
        """Returns the syllables of a label, with spaces between them."""
        assert self.syllables is not None, "a vocabulary without syllables"
        return self.syllables.joiner.join(self.syllables.splitting.split(label))

    def ctc_targets(self, label: str) -> list[list[int]]:
        """Returns the CTC targets of `label`: its units, and its syllables if there is a syllable table."""
        targets = [self.characters.encode(label)]
        return [*targets, self.encode_syllables(label)] if self.syllables else targets
