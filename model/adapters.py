"""Adapters: how one person's weights differ from those of a model, in a file of at most 1 MB.

Each weight matrix of the encoder and of the CTC heads differs by a product of two thin matrices (Hu et al. 2022,
"LoRA"), each normalisation of frontend and encoder by its scale and shift, each batch normalisation also by its
statistics. Whoever reads adds the differences to the weights, so that reading takes no longer than before.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.checkpoints import load_checkpoint, load_values, reported_as_modified, without_training
from shards.errors import CheckpointError
from shards.files import atomic_file, file_identity

ADAPTER_VERSION = 1
MAX_BYTES = 1_000_000
"""Of a file. Larger models get a smaller rank."""
MAX_RANK = 8
_FILE_BYTES = 8_192
"""Of everything but the differences."""
_PRODUCTS_IN = ("encoder", "ctc_head", "syllable_head")
"""Attention decoders stay as they are: they know texts, not faces, and have as many weights as the encoder."""
_SHIFTS_IN = ("frontend", "encoder")
_STATISTICS = ("running_mean", "running_var")

Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Layout:
    """The names of the weights that an adapter changes: it depends only on the names and shapes of the model."""

    matrices: tuple[str, ...]
    norms: tuple[str, ...]
    statistics: tuple[str, ...]

    @classmethod
    def of(cls, weights: Weights) -> Self:
        def within(parts: tuple[str, ...]) -> list[str]:
            return [name for name in weights if name.startswith(tuple(f"{part}." for part in parts))]

        scales = [n for n in within(_SHIFTS_IN) if n.endswith(".weight") and weights[n].ndim == 1]
        return cls(
            # an LSTM calls its matrices weight_ih_l0 and so on; attention biases have two axes too
            tuple(
                name
                for name in within(_PRODUCTS_IN)
                if weights[name].ndim == 2 and name.rpartition(".")[2].startswith("weight")
            ),
            tuple(name for scale in scales for name in (scale, scale.removesuffix("weight") + "bias")),
            tuple(name for name in within(_SHIFTS_IN) if name.endswith(_STATISTICS)),
        )

    def rank_for(self, weights: Weights) -> int:
        """Returns the largest rank, at most MAX_RANK, whose file has at most MAX_BYTES."""
        num_bytes = _FILE_BYTES + 2 * _numel(weights, self.norms) + 4 * _numel(weights, self.statistics)
        of_rank_1 = 2 * sum(sum(weights[name].shape) for name in self.matrices)
        return max(0, min(MAX_RANK, (MAX_BYTES - num_bytes) // max(of_rank_1, 1)))


def _numel(weights: Weights, names: tuple[str, ...]) -> int:
    return sum(weights[name].numel() for name in names)


@dataclass(frozen=True)
class Changes:
    """The differences of one person's weights, by name."""

    products: dict[str, tuple[torch.Tensor, torch.Tensor]]
    """(out, rank) and (rank, in): the difference of a matrix is their product."""
    norms: dict[str, torch.Tensor]
    statistics: dict[str, torch.Tensor]

    @classmethod
    def none_of(cls, weights: Weights, generator: torch.Generator, rank: int | None = None) -> Self:
        """Returns changes that change nothing. One factor of each product is random, so that the other can learn."""
        layout = Layout.of(weights)
        rank = layout.rank_for(weights) if rank is None else rank

        def factors(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            rows, columns = matrix.shape
            right = torch.randn(rank, columns, generator=generator) / columns**0.5
            return matrix.new_zeros(rows, rank), right.to(matrix)

        return cls(
            {name: factors(weights[name]) for name in layout.matrices},
            {name: torch.zeros_like(weights[name]) for name in layout.norms},
            {name: torch.zeros_like(weights[name]) for name in layout.statistics},
        )

    def added_to(self, weights: Weights) -> dict[str, torch.Tensor]:
        """Returns all weights, with these changes."""
        changed = {name: weights[name] + left @ right for name, (left, right) in self.products.items()}
        changed |= {name: weights[name] + shift for name, shift in self.norms.items()}
        changed |= {name: weights[name] + shift for name, shift in self.statistics.items()}
        return {**weights, **changed}

    @property
    def learnt(self) -> list[torch.Tensor]:
        """The tensors that training changes."""
        return [*(factor for pair in self.products.values() for factor in pair), *self.norms.values()]


class _AdapterContent(BaseModel):
    """The type of each key of an adapter file."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)

    adapter_version: int
    model_hash: str
    rank: int = Field(ge=0, le=MAX_RANK)
    learnt: torch.Tensor
    """float16: the changes that training made, one after the other."""
    statistics: torch.Tensor
    """float32"""
    facts: dict[str, Any]


def weights_hash(weights: Weights) -> str:
    """Returns a hash of all names and values, by which an adapter knows its model."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(f"{name} {weights[name].dtype} {tuple(weights[name].shape)}".encode())
        digest.update(weights[name].detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_adapter(path: Path, weights: Weights, changes: Changes, facts: Mapping[str, Any]) -> int:
    """Writes the adapter of the model with these weights, atomically; returns the size in bytes.

    `facts` say how it was made. An existing file at `path` stays until the new one is complete.
    """
    rank = next((left.shape[1] for left, _ in changes.products.values()), 0)
    state = {
        "adapter_version": ADAPTER_VERSION,
        "model_hash": weights_hash(weights),
        "rank": rank,
        "learnt": _joined(changes.learnt).half(),
        "statistics": _joined([*changes.statistics.values()]).float(),
        "facts": dict(facts),
    }
    with atomic_file(path, MAX_BYTES) as file:
        torch.save(state, file)
    return path.stat().st_size


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([torch.zeros(0), *(tensor.detach().cpu().flatten().float() for tensor in tensors)])


def identity_of(checkpoint: Path, adapter: Path | None) -> str:
    """Returns the names and hashes of a model's files."""
    return " with ".join(file_identity(path) for path in (checkpoint, adapter) if path is not None)


def load_adapted(checkpoint: Path, adapter: Path | None) -> dict[str, Any]:
    """Returns the checkpoint's values, with the changes of the adapter if there is one: a checkpoint of its own.

    Raises CheckpointError like `load_checkpoint`, also for the adapter, and if the adapter is of another model.
    """
    state = load_checkpoint(checkpoint)
    if adapter is None:
        return state
    weights = state["model_state_dict"]
    content = _content_of(adapter)
    if content.model_hash != weights_hash(weights):
        made_for = content.facts.get("checkpoint", "another model")
        raise CheckpointError(
            f"adapter {adapter} belongs to another model than {checkpoint} (it was made for {made_for}); give that "
            "model with --checkpoint, or make an adapter for this one with `pipeline adapt`"
        )
    with reported_as_modified(adapter):
        changes = _changes_of(content, weights)
        if not all(tensor.isfinite().all() for tensor in (content.learnt, content.statistics)):
            raise ValueError("it holds values that are not finite")
    return without_training(state, changes.added_to(weights))


def _content_of(path: Path) -> _AdapterContent:
    state = load_values(path, "adapter", "`pipeline adapt`")
    if not isinstance(state, dict) or "adapter_version" not in state:
        raise CheckpointError(f"{path} is not an adapter; `pipeline adapt` writes one")
    if (version := state["adapter_version"]) != ADAPTER_VERSION:
        raise CheckpointError(
            f"adapter {path} has version {version}, this program reads {ADAPTER_VERSION}; make it again with "
            "`pipeline adapt`"
        )
    try:
        return _AdapterContent.model_validate(state)
    except ValidationError as error:
        wrong = error.errors(include_input=False)[0]
        raise CheckpointError(
            f"adapter {path} was modified, or was not written by this program: {wrong['loc']}: {wrong['msg']}"
        ) from error


def _changes_of(content: _AdapterContent, weights: Weights) -> Changes:
    """Returns the changes of a file. Raises RuntimeError if their number does not fit the model."""
    empty = Changes.none_of(weights, torch.Generator(), content.rank)

    def split(joined: torch.Tensor, like: list[torch.Tensor]) -> list[torch.Tensor]:
        parts = joined.split([tensor.numel() for tensor in like])
        return [part.view_as(tensor).to(tensor) for part, tensor in zip(parts, like, strict=True)]

    learnt = iter(split(content.learnt, empty.learnt))
    return Changes(
        {name: (next(learnt), next(learnt)) for name in empty.products},
        {name: next(learnt) for name in empty.norms},
        dict(
            zip(
                empty.statistics,
                split(content.statistics, [*empty.statistics.values()]),
                strict=True,
            )
        ),
    )
