"""Opens a file of weights from an untrusted source: reads tensors by name and runs no code of the file."""

import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from model.checkpoints import refuse_wrong_checksums
from model.pretrained.names import RENAMES, PublicFormat, our_name
from shards.errors import CheckpointError
from shards.pipes import refuse_pipe

MAX_BYTES = 16 << 30
MAX_TENSORS = 20_000
MAX_NUMBERS = 2_000_000_000
"""Limit over all tensors; the largest public lip readers have 300 million parameters."""
NESTED_UNDER = ("state_dict", "model_state_dict", "model")
DAMAGED = (
    *(SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, struct.error),
    *(RuntimeError, OSError, EOFError, MemoryError),
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError),
)
"""Errors of reading a file with wrong bytes. torch's pickle reader raises any of the last line."""
_WRAPPERS = re.compile(r"(?:(?:model|module|net|network|_orig_mod)\.)*")


@dataclass(frozen=True)
class PublicWeights:
    """The tensors of a file, under our names if the format knows them."""

    path: Path
    nested_under: str
    """Keys under which the tensors are nested, joined by dots; empty if they are at the top level."""
    prefix: str
    """The prefix of the names in the file; it is removed in `named`."""
    named: Mapping[str, torch.Tensor]
    """Tensors by our names."""
    unknown_names: tuple[str, ...]
    """Names in the file that the format does not know, and keys without a tensor."""


def open_weights(path: Path, format: PublicFormat) -> PublicWeights:
    """Returns the tensors of a .pt, .pth, .ckpt or .safetensors file, on the CPU, most of them memory-mapped.

    Raises CheckpointError if the file is missing, damaged, in another format, or holds more than plain tensors.
    """
    values, nested_under = _unnested(path, _opened(path))
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    _refuse_strange_tensors(path, tensors)
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors, so it is not a checkpoint of a lip reader")
    prefix = _prefix(tensors, format)
    named, unknown_names = {}, [name for name in values if name not in tensors]
    for name, tensor in tensors.items():
        ours = our_name(format, name.removeprefix(prefix)) if name.startswith(prefix) else None
        if ours is None:
            unknown_names.append(name)
        else:
            named[ours] = tensor
    if len(named) < len(tensors):
        _refuse_other_format(path, format, len(named), [name.removeprefix(prefix) for name in tensors])
    return PublicWeights(path, nested_under, prefix, named, tuple(unknown_names))


def _opened(path: Path) -> object:
    refuse_pipe(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if size > MAX_BYTES:
        raise CheckpointError(
            f"{path} has {size >> 30} GiB, but public lip readers have one or two; it is not opened"
        )
    try:
        if head[8:] == b"{":  # safetensors: 8 bytes of length, then JSON
            return load_file(path)
        is_archive = head[:2] == b"PK"  # files from before torch 1.6 are not archives and cannot be mapped
        if is_archive:
            refuse_wrong_checksums(path)
        with warnings.catch_warnings(action="ignore"):  # errors are reported below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} has objects other than tensors; reading it would run code from the file: {_reason(error)}. This "
            "program never does that. If you trust the file, extract its weights on a machine without valuable data, "
            "then import weights.pt:\n"
            "  import torch; state = torch.load('FILE', weights_only=False, map_location='cpu')\n"
            "  torch.save(state['state_dict'], 'weights.pt')"
        ) from error
    except DAMAGED as error:
        raise CheckpointError(
            f"{path} is damaged (download it again) or not a file of weights: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """Returns torch's message, without its advice to trust the file."""
    text = str(error)
    if found := re.search(r"(?:GLOBAL|class|Unsupported operand|Unsupported class) [^\n]{0,120}", text):
        return found[0].split(" was not an allowed")[0].rstrip(".")
    return text.splitlines()[0][:200] if text else type(error).__name__


def _unnested(path: Path, values: object) -> tuple[Mapping[str, object], str]:
    keys: list[str] = []
    while isinstance(values, Mapping):
        inner = next((key for key in NESTED_UNDER if isinstance(values.get(key), Mapping)), None)
        if inner is None or len(keys) == 3:
            break
        keys.append(inner)
        values = values[inner]
    if not isinstance(values, Mapping) or not all(isinstance(key, str) for key in values):
        raise CheckpointError(
            f"{path} holds {type(values).__name__}, not weights by name; expected a state dict, at the top level or "
            f"under {', '.join(NESTED_UNDER)}"
        )
    return values, ".".join(keys)


def _refuse_strange_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    if len(tensors) > MAX_TENSORS:
        raise CheckpointError(
            f"{path} holds {len(tensors)} tensors, but public lip readers have about a thousand"
        )
    for name, tensor in tensors.items():
        is_plain = tensor.layout == torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not is_plain or tensor.is_complex():
            raise CheckpointError(
                f"{path}: {name} is not a plain tensor ({tensor.layout}, {tensor.dtype}, {tensor.device})"
            )
        # a view may claim to be larger than its data in the file
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path}: {name} has shape {list(tensor.shape)}, but fewer numbers in the file"
            )
    if sum(tensor.numel() for tensor in tensors.values()) > MAX_NUMBERS:
        raise CheckpointError(f"{path} holds more than {MAX_NUMBERS:,} numbers")


def _prefix(tensors: Mapping[str, torch.Tensor], format: PublicFormat) -> str:
    """Returns the prefix of most names that the format knows: `model.` of a training program, `module.` of DDP."""
    candidates = {match[0] for name in tensors if (match := _WRAPPERS.match(name))}
    if len(candidates) == 1:
        return candidates.pop()

    def known(prefix: str) -> int:
        return num_known([name.removeprefix(prefix) for name in tensors if name.startswith(prefix)], format)

    return max(sorted(candidates, key=len), key=known, default="")


def num_known(names: list[str], format: PublicFormat) -> int:
    """Returns how many of `names` belong to the format."""
    return sum(our_name(format, name) is not None for name in names)


def _refuse_other_format(path: Path, format: PublicFormat, known: int, names: list[str]) -> None:
    by_format = {other: num_known(names, other) for other in RENAMES}
    best = max(by_format, key=by_format.__getitem__)
    if by_format[best] > known:
        raise CheckpointError(
            f"{path} has {by_format[best]} names of {best} and {known} of {format}; use --format {best}"
        )
    if known == 0:
        raise CheckpointError(
            f"{path}: none of its {len(names)} names, such as {', '.join(names[:3])}, belongs to --format {format}"
        )
