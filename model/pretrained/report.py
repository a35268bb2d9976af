"""The report of `import_weights`: which tensors and characters of a public checkpoint were imported."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from model.pretrained.files import PublicWeights
from model.settings import HEAD_OF_MODULE

PARTS = ("frontend", "encoder", *HEAD_OF_MODULE)


def part_of(name: str) -> str:
    """Returns the part of the network that a tensor belongs to, from our name."""
    return name.partition(".")[0]


@dataclass(frozen=True)
class PartReport:
    """The result of the import for one part of the network."""

    part: str
    matched: int
    """Imported tensors."""
    left: int
    """Tensors of the file that were not requested."""
    new: int
    """Tensors with fresh weights: the file does not have them, or they were not requested."""
    parameters: int
    """Parameters of the part in the result, including running statistics."""


@dataclass(frozen=True)
class ImportReport:
    """The content of a public checkpoint and the result of the import."""

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
    """The source of the characters."""
    num_characters: int
    rows_kept: int
    """Rows of the public heads: characters, blank, start and end, and `<unk>` if the table has it."""
    rows_new: tuple[str, ...]
    """Our tokens without a public row: they have probability 0 until they are trained."""
    rewritten: tuple[tuple[str, str], ...]
    not_in_labels: tuple[str, ...]
    not_in_table: tuple[str, ...] | None
    """Characters of the packed train clips that the table lacks; None if nothing is packed."""

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return asdict(self)


def part_reports(
    weights: PublicWeights, learnt: Collection[str], state: Mapping[str, torch.Tensor]
) -> list[PartReport]:
    """Returns a report per part that the file or the result `state` has."""
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
