"""What `import_weights` tells of a public checkpoint: what became of each of its tensors and characters."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from model.pretrained.files import PublicWeights
from model.settings import HEAD_OF_MODULE

PARTS = ("frontend", "encoder", *HEAD_OF_MODULE)


def part_of(name: str) -> str:
    """The part of the network that a tensor is of, by our name."""
    return name.partition(".")[0]


@dataclass(frozen=True)
class PartReport:
    """What became of one part of the network."""

    part: str
    matched: int
    """Tensors taken over."""
    left: int
    """Tensors of the file that were not asked for."""
    new: int
    """Tensors that the file does not have, or that were not asked for: fresh ones."""
    parameters: int
    """Of the part in the result, running statistics included."""


@dataclass(frozen=True)
class ImportReport:
    """What was found in a public checkpoint, and what was made of it."""

    file: str
    format: str
    part: str
    nested_under: str
    prefix: str
    preset: str
    sizes: dict[str, Any]
    heads: tuple[str, ...]
    parts: tuple[PartReport, ...]
    left: tuple[str, ...]
    """Names in the file that the format does not know."""
    table: str
    """Where the characters come from."""
    num_characters: int
    rows_kept: int
    """Of the tables: characters, blank, start and end, and `<unk>` where they have it."""
    rows_new: tuple[str, ...]
    """Tokens of ours that they have no row of: never read until they are trained."""
    rewritten: tuple[tuple[str, str], ...]
    not_in_labels: tuple[str, ...]
    not_in_table: tuple[str, ...] | None
    """Characters of the packed train clips that the table lacks; None: nothing is packed here."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def part_reports(
    weights: PublicWeights, learnt: Collection[str], state: Mapping[str, torch.Tensor]
) -> list[PartReport]:
    """Of each part that the file or the result `state` has."""
    reports = []
    for part in PARTS:
        there = sum(part_of(name) == part for name in weights.named)
        here = [tensor for name, tensor in state.items() if part_of(name) == part]
        if there or here:
            is_learnt = part in learnt
            reports.append(
                PartReport(
                    part,
                    matched=there if is_learnt else 0,
                    left=0 if is_learnt else there,
                    new=0 if is_learnt else len(here),
                    parameters=sum(tensor.numel() for tensor in here),
                )
            )
    return reports
