"""Checkpoints: self-contained, written atomically, read with weights_only=True.

Also the error for values that were modified, or were not written by this program.
"""

import contextlib
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.networks.network import differences
from model.settings import Head, ModelParams
from model.text import READABLE_NORMALISERS, Tokenizer
from model.vocabulary import Vocabulary
from shards.disk import FORBIDDEN
from shards.errors import CheckpointError, PipelineError
from shards.files import atomic_file
from shards.pipes import refuse_pipe
from shards.plan_identity import PlanIdentity

MODIFIED_ERRORS = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)
"""Raised when a value of a wrong type, shape or name is loaded; ValueError includes pydantic's errors."""
CHECKPOINT_VERSION = 3
MAX_LISTED_WEIGHTS = 3
MAX_FPS, MAX_CROP_PX = 120, 512
"""The largest values of clips that `crop` makes."""
OLDER_KEYS = (
    "epoch",
    "model_state_dict",
    "optimizer_state_dict",
    "scheduler_state_dict",
    "scaler_state_dict",
    "val_loss",
    "best_val_loss",
)


@contextlib.contextmanager
def reported_as_modified(path: Path) -> Iterator[None]:
    """Raises CheckpointError with `path` where the block cannot load a value of it. Use only around such loading."""
    try:
        yield
    except (PipelineError, torch.OutOfMemoryError):
        raise
    except MODIFIED_ERRORS as error:
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"checkpoint {path} was modified, or was not written by this program: {type(error).__name__}: {reason}"
        ) from error


class _CheckpointContent(BaseModel):
    """The type of each key of a checkpoint. None is for imported weights, which cannot resume a training."""

    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)

    epoch: int = Field(ge=-1)
    model_state_dict: dict[str, torch.Tensor]
    optimizer_state_dict: dict[str, Any] | None
    scheduler_state_dict: dict[str, Any] | None
    scaler_state_dict: dict[str, Any] | None
    val_loss: float | None
    best_val_loss: float | None
    version: int
    normaliser_version: int
    model_params: dict[str, Any]
    text_params: dict[str, Any]
    train_params: dict[str, Any]
    decode_params: dict[str, Any]
    tokenizer: dict[str, Any]
    syllables: dict[str, Any] | None
    heads: list[Head]
    training_state_dict: dict[str, torch.Tensor] | None
    averaged_steps: int = Field(ge=0)
    fps: float = Field(gt=0, le=MAX_FPS)
    crop_px: int = Field(gt=0, le=MAX_CROP_PX)
    progress: dict[str, Any]
    plan_identity: dict[str, Any] | None
    valid_hash: str | None
    threads: int = Field(ge=0)
    random_state: torch.Tensor | None
    cuda_random_state: torch.Tensor | None


KEYS = tuple(_CheckpointContent.model_fields)

CLIP_PROPERTIES = {"fps": "target_fps", "crop_px": "size_px"}
"""Maps each property of the training clips in a checkpoint to its parameter in section crop."""


def save_checkpoint(
    path: Path, state: Mapping[str, Any], before_rename: Callable[[], None] | None = None
) -> None:
    """Writes `state` (tensors and plain values only) atomically.

    Calls `before_rename` when the new file is complete and synced to disk, before it is renamed to `path`.
    Raises MachineError if the disk is full; an existing file at `path` then stays.
    """
    missing = [key for key in KEYS if key not in state]
    assert not missing, f"checkpoint lacks {missing}"
    with atomic_file(path, num_bytes(state)) as file:
        torch.save(dict(state), file)
        if before_rename:
            file.flush()
            os.fsync(file.fileno())
            before_rename()


def without_training(state: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Returns a checkpoint with other weights, to read with and to start a training from, not to resume."""
    training = ("optimizer_state_dict", "scheduler_state_dict", "scaler_state_dict", "training_state_dict")
    changed = {"model_state_dict": dict(weights), "val_loss": None, "val_cer": None, "averaged_steps": 0}
    return {**state, **dict.fromkeys(training), **changed}


def num_bytes(state: Mapping[str, Any]) -> int:
    """Returns the bytes of all tensors: the size of a checkpoint on disk, within a percent."""
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(state))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)


DAMAGE_ERRORS = (
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
)
"""Errors that reading a checkpoint raises if bytes are wrong or missing (a test flips bits all over the file)."""


def load_values(path: Path, kind: str, maker: str, mapped: bool = False) -> Any:
    """Returns what torch.save wrote to a file, read with weights_only=True, with tensors on the CPU.

    Raises CheckpointError if the file is missing or damaged; `kind` says what it is, `maker` what writes it.
    """
    refuse_pipe(path)
    try:
        if not mapped:
            refuse_wrong_checksums(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError:
        raise CheckpointError(f"{kind} {path} is missing; run {maker} to make it") from None
    except PermissionError as error:
        raise CheckpointError(f"{kind} {path} {FORBIDDEN}") from error
    except DAMAGE_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{kind} {path} is damaged, or is not a checkpoint of weights: {reason}"
        ) from error


def load_checkpoint(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Returns the checkpoint's values, with tensors on the CPU.

    Raises CheckpointError if the file is missing, damaged or was not written by this program, or if weights are not
    finite. `mapped` leaves the tensors in the file until they are read, so neither damage nor such weights are noticed.
    """
    state = load_values(path, "checkpoint", "`pipeline train`", mapped)
    if not isinstance(state, dict):
        raise CheckpointError(
            f"checkpoint {path} was not written by this program: it holds {type(state).__name__}"
        )
    version = state.get("version", CHECKPOINT_VERSION)
    if isinstance(version, int) and version != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"checkpoint {path} has version {version}, this program reads {CHECKPOINT_VERSION}; train again"
        )
    if missing := [key for key in KEYS if key not in state]:
        raise CheckpointError(
            f"checkpoint {path} was not written by this program: it lacks {', '.join(missing)}"
        )
    try:
        _CheckpointContent.model_validate(state)
    except ValidationError as error:
        wrong = error.errors(include_input=False)[0]
        where = ".".join(map(str, wrong["loc"]))[:200]
        raise CheckpointError(
            f"checkpoint {path} was modified, or was not written by this program: {where}: {wrong['msg']}"
        ) from error
    if state["normaliser_version"] not in READABLE_NORMALISERS:
        raise CheckpointError(
            f"checkpoint {path} was trained on labels of normaliser version {state['normaliser_version']}, this "
            f"program reads {', '.join(map(str, READABLE_NORMALISERS))}; train again"
        )
    if not mapped:
        with reported_as_modified(path):
            _refuse_not_finite(state["model_state_dict"], path)
    return state


def _refuse_not_finite(weights: Any, path: Path) -> None:
    """Raises CheckpointError: these weights give empty or random text without any error."""
    named = weights.items() if isinstance(weights, Mapping) else ()
    wrong = [
        str(name)
        for name, tensor in named
        if isinstance(tensor, torch.Tensor)
        and tensor.is_floating_point()
        and not tensor.float().isfinite().all()
    ]
    if wrong:
        more = f" and {len(wrong) - MAX_LISTED_WEIGHTS} more" if len(wrong) > MAX_LISTED_WEIGHTS else ""
        raise CheckpointError(
            f"checkpoint {path} holds weights that are not finite ({', '.join(wrong[:MAX_LISTED_WEIGHTS])}{more}), so "
            "it cannot read clips; use an earlier checkpoint, or train again with a lower train.learning_rate"
        )


def refuse_wrong_checksums(path: Path) -> None:
    """Raises BadZipFile if a file that torch.save wrote has a wrong checksum, OSError if it is missing.

    torch.load (2.13) checks no checksum: it would read a flipped bit as a different number.
    """
    with zipfile.ZipFile(path) as archive:
        if packed := [info for info in archive.infolist() if info.compress_type != zipfile.ZIP_STORED]:
            raise zipfile.BadZipFile(f"{packed[0].filename} in it is compressed, but torch does not compress")
        if wrong := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of {wrong} in it is wrong")


def vocabulary_of(state: Mapping[str, Any], path: Path) -> Vocabulary:
    """Returns the vocabulary of a checkpoint. Raises CheckpointError if it is not valid."""
    syllables = state["syllables"]
    return Vocabulary(
        Tokenizer.from_json(state["tokenizer"], str(path)),
        Tokenizer.from_json(syllables, f"{path} (syllables)") if syllables is not None else None,
    )


def refuse_other_model(
    state: Mapping[str, Any],
    model: ModelParams,
    vocabulary: Vocabulary,
    heads: Sequence[Head],
    clips: Mapping[str, float],
    path: Path,
) -> None:
    """Raises CheckpointError with each difference if the model, vocabulary, heads or clips of `state` differ.

    `clips` holds the CLIP_PROPERTIES of the packed clips.
    """
    found = differences(model.model_dump(mode="json"), state["model_params"])
    found += clip_differences(state, clips)
    if set(state["heads"]) != set(heads):
        theirs, ours = ", ".join(state["heads"]), ", ".join(heads)
        found.append(
            f"heads: {theirs} there, {ours} here (train.ctc_weight, train.reverse_weight, train.syllable_weight)"
        )
    learnt = vocabulary_of(state, path)
    found += _other_units(vocabulary.characters.splitting.plural, learnt.characters, vocabulary.characters)
    if learnt.syllables and vocabulary.syllables:
        found += _other_units("syllables", learnt.syllables, vocabulary.syllables)
    if found:
        raise CheckpointError(f"{path} does not fit this model and data:\n  " + "\n  ".join(found))


def clip_differences(state: Mapping[str, Any], clips: Mapping[str, float]) -> list[str]:
    """Returns a line for the frame rate and one for the size if the training clips of `state` differ from `clips`."""
    names = {key: f"{key} (crop.{param})" for key, param in CLIP_PROPERTIES.items()}
    here, there = ({names[key]: some[key] for key in CLIP_PROPERTIES} for some in (clips, state))
    return differences(here, there)


def _other_units(what: str, theirs: Tokenizer, ours: Tokenizer) -> list[str]:
    if theirs == ours:
        return []
    if theirs.splitting != ours.splitting:
        return [
            f"units: {theirs.splitting} there, {ours.splitting} here (section text and the training labels)"
        ]
    only_there, only_here = (
        (ours.joiner or ("" if what == "characters" else "|")).join(
            sorted(set(some.units) - set(others.units))
        )[:40]
        for some, others in ((theirs, ours), (ours, theirs))
    )
    return [
        f"vocabulary: {len(theirs.units)} {what} there, {len(ours.units)} here; "
        f"only there '{only_there}', only here '{only_here}'"
    ]


def plan_identity_of(state: Mapping[str, Any], path: Path) -> PlanIdentity:
    """Returns the identity of the checkpoint's epoch plan. Raises CheckpointError if its fields are wrong."""
    try:
        return PlanIdentity.from_dict(state["plan_identity"])
    except TypeError as error:
        raise CheckpointError(f"checkpoint {path} has an epoch plan with wrong fields ({error})") from error
