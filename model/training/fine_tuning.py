"""Training that starts from another model's weights: what is taken over, what learns, and how fast."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.checkpoints import clip_differences, load_checkpoint, vocabulary_of
from model.networks.network import LipNetwork, differences
from model.pretrained.table import NEVER
from model.settings import HEAD_OF_MODULE, ModelParams, TrainParams
from model.text import SPECIAL_TOKENS, Tokenizer
from model.vocabulary import Vocabulary
from shards.errors import CheckpointError, TrainingError

NEW_ROW_SPREAD = 0.1
"""Of new characters' rows about the mean one, as a share of the known rows' deviation."""
SHOWN = 20
SEEN_AS = (
    *("window_px", "frame_height", "frame_width", "subtract_mean", "standardise"),
    *("input_mean", "input_std", "temporal_stride"),
)
"""What a model sees of a clip: no weight changes its shape by it, and every weight its meaning."""


# -- which parameters learn, and how fast ------------------------------------------------------------------


def parameter_groups(network: nn.Module, train: TrainParams) -> list[dict[str, Any]]:
    """Groups for AdamW of every parameter that learns; `rate_share` of a group is its share of the learning rate.

    Those of the parts in `train.freeze` learn no more, and are in no group. A layer's share is `train.layer_decay`
    times that of the layer above it: 1 for the heads, then each of the encoder's blocks from the last to the first,
    its projection, the frontend (Howard and Ruder 2018, section 3.2, by layer). Biases and normalisations have no
    weight decay. Raises TrainingError where a part is frozen that the network has not, or nothing is left to learn.
    """
    for part in frozen_parts(network, train):
        part.requires_grad_(False)
    depth_of = _depths(network)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        rate_share = train.layer_decay ** depth_of(name)
        # the attention's content_bias and position_bias have two axes, and are biases all the same
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
        raise TrainingError(f"train.freeze ({', '.join(train.freeze)}) leaves nothing to learn")
    return list(groups.values())


def to_training_mode(network: nn.Module, train: TrainParams) -> None:
    """Training mode, but for the frozen parts: their running statistics stay too, and dropout leaves them alone."""
    network.train()
    for part in frozen_parts(network, train):
        part.eval()
        for module in part.modules():
            if isinstance(module, nn.LSTM):
                # cuDNN goes backward through an LSTM in training mode alone, and what lies below may learn
                module.train()
                module.dropout = 0.0


def frozen_parts(network: nn.Module, train: TrainParams) -> list[nn.Module]:
    """The modules that `train.freeze` names. Raises TrainingError where the network has no such part."""
    parts = dict(network.named_children())
    if absent := [name for name in train.freeze if name not in parts]:
        raise TrainingError(
            f"train.freeze: this network has no {', '.join(absent)} (train.ctc_weight, train.reverse_weight, "
            f"train.syllable_weight); it has {', '.join(parts)}"
        )
    return [parts[name] for name in train.freeze]


def _depths(network: nn.Module) -> Callable[[str], int]:
    """A function of a parameter's name: how many layers stand above it."""
    blocks = getattr(network.get_submodule("encoder"), "blocks", None)
    # the baseline's LSTM is one layer here
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


# -- what is taken over ------------------------------------------------------------------------------------


@torch.no_grad()
def start_from(
    network: LipNetwork,
    vocabulary: Vocabulary,
    model: ModelParams,
    path: Path,
    seed: int,
    clips: Mapping[str, float],
) -> list[str]:
    """Takes over what the checkpoint `path` has learnt, in place; lines for the log that say what.

    Frontend and encoder have to be of the same sizes; a head of other sizes starts afresh. Rows of characters
    (embeddings, outputs) go to the same characters here; a new one gets the mean of the known rows and a tenth of
    their deviation as noise, drawn by `seed` alone, so that it is neither loud nor mute; so does a token that an
    import made mute, since label smoothing would add its logit up. Raises CheckpointError where the file is none,
    or the sizes differ.
    """
    state = load_checkpoint(path)
    theirs, their_vocabulary = state["model_state_dict"], vocabulary_of(state, path)
    learnt = state.get("learnt_parts")  # of an import: the other parts in it are fresh ones
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
            lines.append(f"{part}: fresh, {path} has not learnt it")
            continue
        rows = _rows_of(part, their_vocabulary, vocabulary)
        misfit = _misfit(part, ours, found, rows)
        if part in ("decoder", "reverse_decoder") and not misfit:
            misfit = _other_heads(state["model_params"], model)
        if not misfit:
            _take_part(part, ours, found, rows, random)
            lines.append(f"{part}: {len(ours)} tensors taken over" + (rows.told() if rows else ""))
        elif part in HEAD_OF_MODULE:
            lines.append(f"{part}: fresh, it is of other sizes ({misfit})")
        else:
            raise CheckpointError(_told_misfit(path, part, misfit, state["model_params"], model))
    unused = sorted({name.partition(".")[0] for name in theirs} - dict(network.named_children()).keys())
    if unused:
        lines.append(f"not taken over, this network has none: {', '.join(unused)}")
    there = {name: state["model_params"][name] for name in SEEN_AS}
    here = {name: getattr(model, name) for name in SEEN_AS}
    lines += [f"trained on other pictures: model.{line}" for line in differences(here, there)]
    lines += [f"trained on other clips: {line}" for line in clip_differences(state, clips)]
    return [f"train.init_from {path}: {line}" for line in lines]


def _take_part(
    part: str,
    ours: Mapping[str, torch.Tensor],
    theirs: Mapping[str, torch.Tensor],
    rows: "_Rows | None",
    random: torch.Generator,
) -> None:
    """Copies a part's tensors into ours, where the rows of characters find their own."""
    for name, tensor in ours.items():
        if rows is not None and _holds_rows(part, name):
            tensor.copy_(rows.taken_over(theirs[name], _mute(theirs, name), random))
        else:
            tensor.copy_(theirs[name])


class _Rows:
    """Where the rows of our characters stand in their tables."""

    def __init__(self, theirs: Tokenizer, ours: Tokenizer) -> None:
        first = len(SPECIAL_TOKENS)
        there = {unit: number for number, unit in enumerate(theirs.units, start=first)}
        specials: list[int | None] = list(range(first))
        self.sources = specials + [there.get(unit) for unit in ours.units]
        self.new = [unit for unit in ours.units if unit not in there]
        self.num_kept = len(ours.units) - len(self.new)
        self.num_left = len(theirs.units) - self.num_kept

    def taken_over(
        self, theirs: torch.Tensor, mute: Collection[int], random: torch.Generator
    ) -> torch.Tensor:
        """Their rows in our order, and new ones, also for the tokens `mute`."""
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

    def told(self) -> str:
        """What became of the characters."""
        shown = "".join(self.new[:SHOWN]) + ("…" if len(self.new) > SHOWN else "")
        new = f"{len(self.new)} new ({shown})" if self.new else "none new"
        return f"; rows of characters: {self.num_kept} kept, {new}, {self.num_left} of theirs left"


def _rows_of(part: str, theirs: Vocabulary, ours: Vocabulary) -> _Rows | None:
    """Of a head's table; None: the part holds no rows of characters."""
    if part == "syllable_head":
        assert theirs.syllables and ours.syllables
        return _Rows(theirs.syllables, ours.syllables)
    return _Rows(theirs.characters, ours.characters) if part in HEAD_OF_MODULE else None


def _holds_rows(part: str, name: str) -> bool:
    """Whether a head's tensor has a row for each token."""
    return part in ("ctc_head", "syllable_head") or name.startswith(("embedding.", "output."))


def _mute(found: Mapping[str, torch.Tensor], name: str) -> list[int]:
    """Tokens whose rows in this output layer an import made up, because the public reader has no such token."""
    if name.startswith("embedding."):
        return []
    return (
        (found[name.removesuffix("weight").removesuffix("bias") + "bias"] == NEVER).nonzero()[:, 0].tolist()
    )


def _misfit(
    part: str, ours: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor], rows: _Rows | None
) -> str | None:
    """The first difference in names and shapes, the number of tokens aside; None: the part fits."""
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
    """No tensor of a decoder tells the number of its attention's heads."""
    here, there = model.sizes.num_heads, their_model["sizes"]["num_heads"]
    return None if here == there else f"{there} heads there, {here} here"


def _times(shape: Sequence[int]) -> str:
    return " × ".join(map(str, shape)) or "one number"


def _told_misfit(
    path: Path, part: str, misfit: str, their_model: Mapping[str, Any], model: ModelParams
) -> str:
    ours = model.model_dump(mode="json")
    told: Iterable[str] = differences(
        {name: ours[name] for name in ("preset", "sizes")},
        {name: their_model[name] for name in ("preset", "sizes")},
    )
    lines = "".join(f"\n  model.{line}" for line in told)
    return (
        f"train.init_from: the {part} of {path} is of other sizes: {misfit}{lines}\n"
        "set model.preset and model.sizes as there, or start from a checkpoint of these sizes"
    )
