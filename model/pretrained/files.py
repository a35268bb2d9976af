"""Opens a file of weights from an untrusted source: reads tensors by name and runs no code of the file.

Also maps the parameter names of public checkpoints to those of our conformer network. The mapping is one to one. Our
convolutions of one step are linear layers: `reshape` turns the public weight (E, F, 1) into ours. All other tensors
have our shape. The rows of embeddings, outputs and CTC head are in the order of the public character table: blank
first, then the characters, then one token for start and end.
"""

import pickle
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from model.checkpoints import refuse_wrong_checksums
from shards.errors import CheckpointError
from shards.pipes import refuse_pipe

PublicFormat = Literal["auto_avsr", "cnvsrc2025"]

_LEAF = r"((?:\.(?:weight|bias|running_mean|running_var|num_batches_tracked))?)"

_FRONTEND = {
    "frontend3D.0": "frontend.stem.convolution",
    "frontend3D.1": "frontend.stem.norm",
    **{
        f"trunk.layer{stage + 1}.#.{public}": f"frontend.stages.{stage}.#.{ours}"
        for stage in range(4)
        for public, ours in {
            "conv1": "conv1",
            "bn1": "norm1",
            "conv2": "conv2",
            "bn2": "norm2",
            "downsample.#": "shortcut.#",
        }.items()
    },
}
_ATTENTION = {"linear_q": "query", "linear_k": "key", "linear_v": "value", "linear_out": "output"}
_ENCODER_BLOCK = {
    "norm_ff_macaron": "norm_first_feed_forward",
    "feed_forward_macaron.w_1": "first_feed_forward.expand",
    "feed_forward_macaron.w_2": "first_feed_forward.contract",
    "norm_mha": "norm_attention",
    **{f"self_attn.{public}": f"attention.{ours}" for public, ours in _ATTENTION.items()},
    "self_attn.linear_pos": "attention.position",
    "self_attn.pos_bias_u": "attention.content_bias",
    "self_attn.pos_bias_v": "attention.position_bias",
    "norm_conv": "norm_convolution",
    "conv_module.pointwise_cov1": "convolution.expand",
    "conv_module.depthwise_conv": "convolution.depthwise",
    "conv_module.norm": "convolution.norm",
    "conv_module.pointwise_cov2": "convolution.contract",
    "norm_ff": "norm_second_feed_forward",
    "feed_forward.w_1": "second_feed_forward.expand",
    "feed_forward.w_2": "second_feed_forward.contract",
    "norm_final": "norm_output",
}
_DECODER_BLOCK = {
    "norm1": "norm_self_attention",
    **{f"self_attn.{public}": f"self_attention.{ours}" for public, ours in _ATTENTION.items()},
    "norm2": "norm_cross_attention",
    **{f"src_attn.{public}": f"cross_attention.{ours}" for public, ours in _ATTENTION.items()},
    "norm3": "norm_feed_forward",
    "feed_forward.w_1": "feed_forward.expand",
    "feed_forward.w_2": "feed_forward.contract",
}
_ENCODER = {
    **{f"encoder.encoders.#.{public}": f"encoder.blocks.#.{ours}" for public, ours in _ENCODER_BLOCK.items()},
    "encoder.after_norm": "encoder.norm",
}
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


def _decoder(public_decoder: str, our_decoder: str) -> dict[str, str]:
    blocks = {
        f"{public_decoder}.decoders.#.{public}": f"{our_decoder}.blocks.#.{ours}"
        for public, ours in _DECODER_BLOCK.items()
    }
    ends = {"embed.0": "embedding", "after_norm": "norm", "output_layer": "output"}
    return blocks | {f"{public_decoder}.{public}": f"{our_decoder}.{ours}" for public, ours in ends.items()}


RENAMES: Mapping[PublicFormat, Mapping[str, str]] = MappingProxyType(
    {
        "auto_avsr": {
            **{f"frontend.{public}": ours for public, ours in _FRONTEND.items()},
            "proj_encoder": "encoder.project",
            **_ENCODER,
            **_decoder("decoder", "decoder"),
            "ctc.ctc_lo": "ctc_head",
        },
        "cnvsrc2025": {
            **{f"encoder.frontend.{public}": ours for public, ours in _FRONTEND.items()},
            "encoder.embed.0": "encoder.project",
            **_ENCODER,
            **_decoder("decoder", "decoder"),
            **_decoder("r_decoder", "reverse_decoder"),
            "ctc.ctc_lo": "ctc_head",
        },
    }
)
"""From public to our module or parameter name; # is any number, the same on both sides."""

_PATTERNS = {
    format: [
        (re.compile(r"(\d{1,4})".join(map(re.escape, public.split("#"))) + _LEAF, re.ASCII), ours)
        for public, ours in renames.items()
    ]
    for format, renames in RENAMES.items()
}


def our_name(format: PublicFormat, public_name: str) -> str | None:
    """Returns our name of a public checkpoint's parameter or buffer; None if the format has no such name."""
    for pattern, ours in _PATTERNS[format]:
        if match := pattern.fullmatch(public_name):
            *numbers, leaf = match.groups()
            return ours.replace("#", "{}").format(*numbers) + leaf
    return None


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
