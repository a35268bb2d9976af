"""Training that starts from another model's weights: which weights are copied, which learn, and how fast."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.checkpoints import clip_differences, load_checkpoint, vocabulary_of
from model.networks.network import LipNetwork, differences
from model.pretrained.table import NEVER_LOGIT
from model.settings import HEAD_OF_MODULE, ModelParams, TrainParams
from model.text import SPECIAL_TOKENS, Tokenizer
from model.vocabulary import Vocabulary
from shards.errors import CheckpointError, TrainingError

NEW_ROW_SPREAD = 0.1
"""Noise of new characters' rows around the mean row, as a share of the known rows' standard deviation."""
SHOWN = 20
INPUT_SETTINGS = (
    *("window_px", "frame_height", "frame_width", "subtract_mean", "standardise"),
    *("input_mean", "input_std", "temporal_stride"),
)
"""Settings of the network's input. They change no weight's shape, but the meaning of every weight."""


# -- which parameters learn, and how fast ------------------------------------------------------------------


def parameter_groups(network: nn.Module, train: TrainParams) -> list[dict[str, Any]]:
    """Returns AdamW's groups of all trainable parameters; `rate_share` is the group's share of the learning rate.

    Freezes the parts in `train.freeze`; their parameters are in no group. The share of a layer is `train.layer_decay`
    times the share of the layer above it: 1 for the heads, then the encoder's blocks from the last to the first, its
    projection, the frontend (Howard and Ruder 2018, section 3.2, by layer). Biases and normalisations have no weight
    decay. Raises TrainingError if `train.freeze` names a part that the network does not have, or freezes everything.
    """
    for part in frozen_parts(network, train):
        part.requires_grad_(False)
    depth_of = _depths(network)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        rate_share = train.layer_decay ** depth_of(name)
        # content_bias and position_bias of the attention have two axes, but are biases
        decays = parameter.ndim > 1 and not name.endswith("bias")
        group = groups.setdefault(
            (rate_share, decays),
            {
                "params": [],
                "weight_decay": train.weight_decay if decays else 0.0,
                "rate_share": rate_share,
            },
        )
        group["params"].append(parameter)
    if not groups:
        raise TrainingError(
            f"train.freeze ({', '.join(train.freeze)}) freezes the whole network; remove a part"
        )
    return list(groups.values())


def head_groups(head: nn.Linear, train: TrainParams) -> list[dict[str, Any]]:
    """Returns AdamW's groups of a linear head outside the network."""
    return [
        {"params": [head.weight], "weight_decay": train.weight_decay, "rate_share": 1.0},
        {"params": [head.bias], "weight_decay": 0.0, "rate_share": 1.0},
    ]


def to_training_mode(network: nn.Module, train: TrainParams) -> None:
    """Sets training mode, except for frozen parts: no dropout there, and no change of running statistics."""
    network.train()
    for part in frozen_parts(network, train):
        part.eval()
        for module in part.modules():
            if isinstance(module, nn.LSTM):
                # cuDNN needs training mode for the backward pass, and parts below may learn
                module.train()
                module.dropout = 0.0


def frozen_parts(network: nn.Module, train: TrainParams) -> list[nn.Module]:
    """Returns the modules that `train.freeze` names. Raises TrainingError if the network lacks one of them."""
    parts = dict(network.named_children())
    if absent := [name for name in train.freeze if name not in parts]:
        raise TrainingError(
            f"train.freeze: this network has no {', '.join(absent)} (train.ctc_weight, train.reverse_weight, "
            f"train.syllable_weight); it has {', '.join(parts)}"
        )
    return [parts[name] for name in train.freeze]


def _depths(network: nn.Module) -> Callable[[str], int]:
    """Returns a function from a parameter's name to the number of layers above it."""
    blocks = getattr(network.get_submodule("encoder"), "blocks", None)
    # the baseline's LSTM counts as one layer
    num_blocks = len(blocks) if blocks is not None else 1

    def depth(name: str) -> int:
        part, *rest = name.split(".")
        if part in HEAD_OF_MODULE:
            return 0
        if part == "frontend":
            return num_blocks + (1 if blocks is None else 2)
        if blocks is None or rest[0] == "norm":
            return 1
        return num_blocks - int(rest[1]) if rest[0] == "blocks" else num_blocks + 1

    return depth


# -- which weights are copied ------------------------------------------------------------------------------


@torch.no_grad()
def start_from(
    network: LipNetwork,
    vocabulary: Vocabulary,
    model: ModelParams,
    path: Path,
    seed: int,
    clips: Mapping[str, float],
) -> list[str]:
    """Copies the learnt weights of the checkpoint `path` into `network`; returns lines for the log that list them.

    Frontend and encoder must have the same sizes. A head of other sizes keeps its fresh weights. Rows of characters
    (embeddings, outputs) are copied to the same characters here. A new character gets the mean of the known rows plus
    noise of a tenth of their standard deviation, which depends only on `seed`, so its probability is neither high nor
    zero. A token that an import gave probability 0 gets such a row too: label smoothing would add up its logit. Raises
    CheckpointError if the file is not a checkpoint, or the sizes of frontend or encoder differ.
    """
    state = load_checkpoint(path)
    theirs, their_vocabulary = state["model_state_dict"], vocabulary_of(state, path)
    learnt = state.get("learnt_parts")  # only in imported checkpoints; their other parts have fresh weights
    random = torch.Generator().manual_seed(seed)
    lines = []
    for part, module in network.named_children():
        ours = module.state_dict()
        found = {
            name.removeprefix(f"{part}."): tensor
            for name, tensor in theirs.items()
            if name.startswith(f"{part}.")
        }
        if not found or (learnt is not None and part not in learnt):
            lines.append(f"{part}: fresh weights, {path} has not learnt this part")
            continue
        rows = _rows_of(part, their_vocabulary, vocabulary)
        misfit = _misfit(part, ours, found, rows)
        if part in ("decoder", "reverse_decoder") and not misfit:
            misfit = _other_heads(state["model_params"], model)
        if not misfit:
            _take_part(part, ours, found, rows, random)
            lines.append(f"{part}: {len(ours)} tensors copied" + (rows.summary() if rows else ""))
        elif part in HEAD_OF_MODULE:
            lines.append(f"{part}: fresh weights, the sizes differ ({misfit})")
        else:
            raise CheckpointError(_misfit_message(path, part, misfit, state["model_params"], model))
    unused = sorted({name.partition(".")[0] for name in theirs} - dict(network.named_children()).keys())
    if unused:
        lines.append(f"not copied, this network does not have them: {', '.join(unused)}")
    there = {name: state["model_params"][name] for name in INPUT_SETTINGS}
    here = {name: getattr(model, name) for name in INPUT_SETTINGS}
    lines += [f"trained with another input: model.{line}" for line in differences(here, there)]
    lines += [f"trained on other clips: {line}" for line in clip_differences(state, clips)]
    return [f"train.init_from {path}: {line}" for line in lines]


def _take_part(
    part: str,
    ours: Mapping[str, torch.Tensor],
    theirs: Mapping[str, torch.Tensor],
    rows: "_Rows | None",
    random: torch.Generator,
) -> None:
    """Copies a part's tensors into ours; rows of characters go to the same characters."""
    for name, tensor in ours.items():
        if rows is not None and _holds_rows(part, name):
            tensor.copy_(rows.copied_rows(theirs[name], _mute(theirs, name), random))
        else:
            tensor.copy_(theirs[name])


class _Rows:
    """Maps the rows of our characters to the rows of their tables."""

    def __init__(self, theirs: Tokenizer, ours: Tokenizer) -> None:
        first = len(SPECIAL_TOKENS)
        there = {unit: number for number, unit in enumerate(theirs.units, start=first)}
        specials: list[int | None] = list(range(first))
        self.sources = specials + [there.get(unit) for unit in ours.units]
        self.new = [unit for unit in ours.units if unit not in there]
        self.num_kept = len(ours.units) - len(self.new)
        self.num_dropped = len(theirs.units) - self.num_kept

    def copied_rows(
        self, theirs: torch.Tensor, mute: Collection[int], random: torch.Generator
    ) -> torch.Tensor:
        """Returns their rows in our order, with new rows for new characters and for the tokens `mute`."""
        sources = [None if source in mute else source for source in self.sources]
        first = len(SPECIAL_TOKENS)
        known = [source for source in sources[first:] if source is not None]
        known_rows = theirs[known or slice(first, None)]
        noise = torch.randn((len(sources), *theirs.shape[1:]), generator=random)
        new = known_rows.mean(dim=0) + NEW_ROW_SPREAD * known_rows.std(dim=0, correction=0) * noise
        rows = theirs[[source or 0 for source in sources]]
        is_new = torch.tensor([source is None for source in sources])
        rows[is_new] = new[is_new]
        return rows

    def summary(self) -> str:
        """Returns how many rows were kept, are new, or were dropped."""
        between = "" if all(len(unit) == 1 for unit in self.new[:SHOWN]) else "|"
        listed = between.join(self.new[:SHOWN]) + ("…" if len(self.new) > SHOWN else "")
        new = f"{len(self.new)} new ({listed})" if self.new else "0 new"
        return f"; rows of characters: {self.num_kept} kept, {new}, {self.num_dropped} dropped"


def _rows_of(part: str, theirs: Vocabulary, ours: Vocabulary) -> _Rows | None:
    """Returns the row map of a head's table; None if the part has no rows of characters."""
    if part == "syllable_head":
        assert theirs.syllables and ours.syllables
        return _Rows(theirs.syllables, ours.syllables)
    return _Rows(theirs.characters, ours.characters) if part in HEAD_OF_MODULE else None


def _holds_rows(part: str, name: str) -> bool:
    """Returns whether a head's tensor has one row per token."""
    return part in ("ctc_head", "syllable_head") or name.startswith(("embedding.", "output."))


def _mute(found: Mapping[str, torch.Tensor], name: str) -> list[int]:
    """Returns the tokens that the public model did not have: an import gave them probability 0 in this layer."""
    if name.startswith("embedding."):
        return []
    return (
        (found[name.removesuffix("weight").removesuffix("bias") + "bias"] == NEVER_LOGIT)
        .nonzero()[:, 0]
        .tolist()
    )


def _misfit(
    part: str, ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], rows: _Rows | None
) -> str | None:
    """Returns the first difference in names and shapes, ignoring the number of tokens; None if the part fits."""
    if ours.keys() != theirs.keys():
        return f"{len(theirs)} tensors there, {len(ours)} here"
    for name, tensor in ours.items():
        here, there = list(tensor.shape), list(theirs[name].shape)
        if rows is not None and _holds_rows(part, name):
            here, there = here[1:], there[1:]
        if here != there:
            return f"{name} is {_times(there)} there, {_times(here)} here"
    return None


def _other_heads(their_model: Mapping[str, Any], model: ModelParams) -> str | None:
    """Compares the number of attention heads, which no tensor of a decoder shows."""
    here, there = model.sizes.num_heads, their_model["sizes"]["num_heads"]
    return None if here == there else f"{there} heads there, {here} here"


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or "one number"


def _misfit_message(
    path: Path, part: str, misfit: str, their_model: Mapping[str, Any], model: ModelParams
) -> str:
    ours = model.model_dump(mode="json")
    changed: Iterable[str] = differences(
        {name: ours[name] for name in ("preset", "sizes")},
        {name: their_model[name] for name in ("preset", "sizes")},
    )
    lines = "".join(f"\n  model.{line}" for line in changed)
    return (
        f"train.init_from: the {part} of {path} has other sizes: {misfit}{lines}\n"
        "set model.preset and model.sizes to the checkpoint's, or choose a checkpoint of these sizes"
    )
