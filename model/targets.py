"""Labels as targets of the network's heads.

Shapes: B clips, L characters of the longest label, K syllables of the longest label.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from model.text import END_ID
from model.vocabulary import Vocabulary


class Targets(NamedTuple):
    """Labels of a batch, padded with END_ID, on the network's device. `num_…_B` are their lengths, on the CPU."""

    characters_BL: torch.Tensor
    num_characters_B: torch.Tensor
    reversed_BL: torch.Tensor
    """The characters of each label from its last to its first."""
    syllables_BK: torch.Tensor | None
    num_syllables_B: torch.Tensor | None


def targets_of(labels: Sequence[str], vocabulary: Vocabulary, device: torch.device) -> Targets:
    """Returns the targets of `labels` for all heads; `syllables_BK` is None if the vocabulary has no syllables."""
    characters = [vocabulary.characters.encode(label) for label in labels]
    characters_BL, num_characters_B = _padded(characters, device)
    reversed_BL, _ = _padded([ids[::-1] for ids in characters], device)
    syllables_BK, num_syllables_B = None, None
    if vocabulary.syllables:
        syllables_BK, num_syllables_B = _padded(
            [vocabulary.encode_syllables(label) for label in labels], device
        )
    return Targets(characters_BL, num_characters_B, reversed_BL, syllables_BK, num_syllables_B)


def _padded(ids: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    lengths_B = torch.tensor([len(label) for label in ids])
    padded = torch.full((len(ids), max(map(len, ids), default=0)), END_ID)
    for row, label in enumerate(ids):
        padded[row, : len(label)] = torch.tensor(label, dtype=torch.long)
    return padded.to(device, non_blocking=True), lengths_B
