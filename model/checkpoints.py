"""Checkpoints: self-contained, written atomically, read with weights_only=True."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from model.network import differences
from model.settings import ModelParams
from model.text import NORMALISER_VERSION, Tokenizer
from shards.errors import CheckpointError
from shards.files import atomic_file
from shards.identity import PlanIdentity

CHECKPOINT_VERSION = 2
OLDER_KEYS = (
    "epoch",
    "model_state_dict",
    "optimizer_state_dict",
    "scheduler_state_dict",
    "scaler_state_dict",
    "val_loss",
    "best_val_loss",
)
KEYS = (
    *OLDER_KEYS,
    "version",
    "normaliser_version",
    "model_params",
    "text_params",
    "train_params",
    "decode_params",
    "tokenizer",
    "with_decoder",
    "ctc_weight",
    "fps",
    "crop_px",
    "progress",
    "plan_identity",
    "valid_hash",
    "threads",
    "random_state",
    "cuda_random_state",
)


def save_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """Writes `state` (tensors and plain values only), whole or not at all."""
    missing = [key for key in KEYS if key not in state]
    assert not missing, f"checkpoint lacks {missing}"
    with atomic_file(path) as file:
        torch.save(dict(state), file)


def load_checkpoint(path: Path, mapped: bool = False) -> dict[str, Any]:
    """The checkpoint's values, tensors on the CPU; CheckpointError where it is missing, damaged or foreign.

    `mapped` leaves the tensors in the file until they are looked at.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path} is missing; `pipeline train` makes it") from None
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"checkpoint {path} is damaged or no checkpoint of weights: {reason}"
        ) from error
    version = state.get("version", CHECKPOINT_VERSION) if isinstance(state, dict) else CHECKPOINT_VERSION
    if version != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"checkpoint {path} has version {version}, this program reads {CHECKPOINT_VERSION}; train again"
        )
    missing = [key for key in KEYS if key not in state] if isinstance(state, dict) else list(KEYS)
    if missing:
        raise CheckpointError(f"checkpoint {path} is not of this program: it lacks {', '.join(missing)}")
    if state["normaliser_version"] != NORMALISER_VERSION:
        raise CheckpointError(
            f"checkpoint {path} was trained on labels of normaliser version {state['normaliser_version']}, this "
            f"program has {NORMALISER_VERSION}; train again"
        )
    return state


def refuse_other_model(
    state: Mapping[str, Any], model: ModelParams, tokenizer: Tokenizer, with_decoder: bool, path: Path
) -> None:
    """CheckpointError naming each difference where `state` is of another model or vocabulary."""
    found = differences(model.model_dump(mode="json"), state["model_params"])
    if state["with_decoder"] != with_decoder:
        here, there = ("with" if flag else "without" for flag in (with_decoder, state["with_decoder"]))
        found.append(f"{there} attention decoder there, {here} here (train.ctc_weight)")
    theirs = Tokenizer.from_json(state["tokenizer"], str(path))
    if theirs != tokenizer:
        only_there = "".join(sorted(set(theirs.characters) - set(tokenizer.characters)))
        only_here = "".join(sorted(set(tokenizer.characters) - set(theirs.characters)))
        found.append(
            f"vocabulary: {len(theirs.characters)} characters there, {len(tokenizer.characters)} here; "
            f"only there '{only_there[:40]}', only here '{only_here[:40]}'"
        )
    if found:
        raise CheckpointError(f"{path} does not fit:\n  " + "\n  ".join(found))


def plan_identity_of(state: Mapping[str, Any], path: Path) -> PlanIdentity:
    """The epoch plan that the checkpoint followed."""
    try:
        return PlanIdentity.from_dict(state["plan_identity"])
    except TypeError as error:
        raise CheckpointError(f"checkpoint {path} keeps an epoch plan of another kind ({error})") from error
