"""Imports a public lip reader's checkpoint: all of it, or its lower parts."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from model.checkpoints import CHECKPOINT_VERSION
from model.networks.network import LipNetwork
from model.pretrained.files import PublicFormat, PublicWeights, open_weights
from model.pretrained.report import PARTS, ImportReport, part_of, part_reports
from model.pretrained.sizes import model_params, network_of_shapes
from model.pretrained.table import NEVER_LOGIT, PublicTable, read_table
from model.progress import Progress
from model.settings import HEAD_OF_MODULE, DecodeParams, Head, ModelParams, TextParams, TrainParams
from model.text import NORMALISER_VERSION, Tokenizer
from model.vocabulary import Vocabulary
from shards.errors import CheckpointError, ConfigError

Part = Literal["whole", "frontend", "encoder"]
"""The parts to import: all; the frontend; or frontend and encoder, which do not depend on characters."""

FPS, CROP_PX = 25.0, 96
"""Frame rate and crop size of the training data of public lip readers."""
SHOWN = 5


def import_weights(
    file: Path,
    format: PublicFormat,
    part: Part = "whole",
    table: Path | None = None,
    corpus: Tokenizer | None = None,
    text: TextParams | None = None,
) -> tuple[dict[str, Any], ImportReport]:
    """Returns our checkpoint, for `save_checkpoint`, of a public one, and a report on its tensors.

    `table` is the public character table. `corpus` holds the characters of the packed clips, which replace the table
    if only lower parts are imported. Fresh weights are the same at every call. Raises CheckpointError if the file or
    the table is invalid, ConfigError if a table is needed and missing.
    """
    text = text or TextParams()
    weights = open_weights(file, format)
    public_table = read_table(table, text) if table else None
    characters = public_table.tokenizer if public_table else corpus
    if characters is None or (part == "whole" and public_table is None):
        raise ConfigError(
            "--vocabulary FILE is missing: give the checkpoint's character table (char_units.txt)"
            if part == "whole"
            else "--vocabulary FILE is missing, and there are no packed clips: a checkpoint needs characters; give the "
            "checkpoint's character table, or a params.yaml whose samples are packed"
        )
    learnt = _learnt_parts(weights, part)
    heads = tuple(head for name, head in HEAD_OF_MODULE.items() if name in learnt) or ("ctc",)
    model = model_params(weights, learnt)
    # without memory: the sizes of the file are checked before anything is allocated
    shapes_of = network_of_shapes(model, Vocabulary(characters), heads).state_dict()
    theirs = {name: tensor for name, tensor in weights.named.items() if part_of(name) in learnt}
    if part == "whole":
        assert public_table is not None
        theirs = _in_our_order(theirs, public_table, file)
    _refuse_misfits(file, theirs, shapes_of, learnt)
    network = _network(model, characters, heads)
    state = network.state_dict()
    for name, tensor in theirs.items():
        state[name].copy_(tensor.reshape(state[name].shape))
    _refuse_not_finite(file, {name: state[name] for name in theirs})
    report = ImportReport(
        file=str(file),
        format=format,
        part=part,
        nested_under=weights.nested_under,
        prefix=weights.prefix,
        preset=model.preset,
        sizes=model.sizes.model_dump(mode="json"),
        heads=heads,
        parts=tuple(part_reports(weights, learnt, state)),
        left=weights.unknown_names,
        table=str(table) if table else "the labels of the packed train clips",
        num_characters=len(characters.units),
        **_row_counts(public_table if part == "whole" else None),
        rewritten=public_table.rewritten if public_table else (),
        not_in_labels=public_table.not_in_labels if public_table else (),
        not_in_table=tuple(sorted(set(corpus.units) - set(characters.units))) if corpus else None,
    )
    return _checkpoint(state, model, characters, heads, text, learnt), report


def _learnt_parts(weights: PublicWeights, part: Part) -> tuple[str, ...]:
    """Returns the parts to import: those that are requested and in the file."""
    found = {part_of(name) for name in weights.named}
    wanted = {"whole": PARTS, "frontend": ("frontend",), "encoder": ("frontend", "encoder")}[part]
    learnt = tuple(name for name in wanted if name in found)
    needed = {"whole": "encoder", "encoder": "encoder", "frontend": "frontend"}[part]
    if needed not in learnt:
        raise CheckpointError(f"{weights.path} has no {needed}; it has {', '.join(sorted(found))}")
    if part == "whole" and not set(HEAD_OF_MODULE) & set(learnt):
        raise CheckpointError(
            f"{weights.path} has no head for characters; use --part encoder, which needs none"
        )
    return learnt


def _network(model: ModelParams, characters: Tokenizer, heads: Sequence[Head]) -> LipNetwork:
    """Returns a network with fresh weights, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LipNetwork(model, Vocabulary(characters), heads)


# -- tables of characters ------------------------------------------------------------------------------


def _in_our_order(
    theirs: Mapping[str, torch.Tensor], table: PublicTable, file: Path
) -> dict[str, torch.Tensor]:
    """Returns the tensors with the rows of embeddings and heads in the order of our tokens."""
    fed, read = table.rows()
    ordered = {}
    for name, tensor in theirs.items():
        part, _, rest = name.partition(".")
        is_fed, is_read = rest == "embedding.weight", part == "ctc_head" or rest.startswith("output.")
        if (is_fed or is_read) and tensor.shape[:1] != (table.num_public_tokens,):
            raise CheckpointError(
                f"{file} has rows for {tensor.shape[0] if tensor.ndim else 0} tokens ({name}), but the vocabulary "
                f"has {table.num_public_tokens}: {len(table.public_ids)} characters, "
                f"{'<unk>, ' if table.unknown_id is not None else ''}the blank, and one for start and end. "
                "The table belongs to another checkpoint; give the table of this one"
            )
        if is_fed:
            tensor = _rows(tensor, fed, tensor.float().mean(dim=0))
        elif is_read:
            tensor = _rows(tensor, read, torch.tensor(NEVER_LOGIT if rest.endswith("bias") else 0.0))
        ordered[name] = tensor
    return ordered


def _rows(tensor: torch.Tensor, sources: Sequence[int | None], missing: torch.Tensor) -> torch.Tensor:
    """Returns the rows `sources` of `tensor`, as float32, and `missing` for None."""
    rows = tensor.float()[[source or 0 for source in sources]]
    rows[[source is None for source in sources]] = missing
    return rows


def _row_counts(table: PublicTable | None) -> dict[str, Any]:
    if table is None:
        return {"rows_kept": 0, "rows_new": ()}
    new = ("start, as an output", *(() if table.unknown_id is not None else ("unknown",)))
    return {"rows_kept": table.num_public_tokens, "rows_new": new}


# -- checks ----------------------------------------------------------------------------------------------


def _refuse_misfits(
    file: Path,
    theirs: Mapping[str, torch.Tensor],
    ours: Mapping[str, torch.Tensor],
    learnt: Collection[str],
) -> None:
    """Raises CheckpointError if an imported part lacks tensors, has extra ones, or other shapes."""
    wanted = {name: tensor for name, tensor in ours.items() if part_of(name) in learnt}
    misfits: list[str] = []
    # the counters do not affect the output, and some converters omit them
    lacking = {name for name in wanted.keys() - theirs.keys() if not name.endswith(".num_batches_tracked")}
    for what, names in (("lacks", lacking), ("has in addition", theirs.keys() - wanted.keys())):
        if names:
            rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            misfits.append(f"it {what} {', '.join(sorted(names)[:SHOWN])}{rest}")
    for name in sorted(wanted.keys() & theirs.keys()):
        there, here = list(theirs[name].shape), list(wanted[name].shape)
        # public convolutions of one step are linear layers here
        is_pointwise = name.endswith((".expand.weight", ".contract.weight")) and there == [*here, 1]
        if there != here and not is_pointwise:
            misfits.append(f"{name} is {there}, but the sizes of the other tensors need {here}")
    if misfits:
        more = [f"and {len(misfits) - SHOWN} more"] if misfits[SHOWN:] else []
        lines = "\n  ".join([*misfits[:SHOWN], *more])
        raise CheckpointError(f"{file} is not a complete network of its format (our names):\n  {lines}")


def _refuse_not_finite(file: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    if wrong := [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]:
        raise CheckpointError(
            f"{file}: {len(wrong)} tensors hold infinite values or NaN, first {wrong[0]} (our name); the file is "
            "damaged or its training failed; download it again"
        )


# -- the result -------------------------------------------------------------------------------------------


def _checkpoint(
    state: Mapping[str, torch.Tensor],
    model: ModelParams,
    characters: Tokenizer,
    heads: Sequence[Head],
    text: TextParams,
    learnt: Sequence[str],
) -> dict[str, Any]:
    """Returns a checkpoint to read with and to start a training from. It cannot be resumed."""
    return {
        "epoch": -1,
        "model_state_dict": dict(state),
        "learnt_parts": list(learnt),
        "optimizer_state_dict": None,
        "scheduler_state_dict": None,
        "scaler_state_dict": None,
        "val_loss": None,
        "best_val_loss": None,
        "val_cer": None,
        "best_val_cer": None,
        "version": CHECKPOINT_VERSION,
        "normaliser_version": NORMALISER_VERSION,
        "model_params": model.model_dump(mode="json"),
        "text_params": text.model_dump(mode="json"),
        "train_params": TrainParams().model_dump(mode="json"),
        "decode_params": DecodeParams().model_dump(mode="json"),
        "tokenizer": characters.to_json(),
        "syllables": None,
        "heads": list(heads),
        "training_state_dict": None,
        "averaged_steps": 0,
        "fps": FPS,
        "crop_px": CROP_PX,
        "progress": Progress().recorded(),
        "plan_identity": None,
        "valid_hash": None,
        "threads": 0,
        "random_state": None,
        "cuda_random_state": None,
    }
