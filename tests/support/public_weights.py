"""Synthetic public checkpoints. Import the names that end in _fixture to use the fixtures format and public."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import save_file

from model.checkpoints import save_checkpoint
from model.decoding.reader import LipReader
from model.networks.network import LipNetwork
from model.pretrained.files import PublicFormat, our_name
from model.pretrained.weights import import_weights
from model.settings import ModelParams
from model.text import BLANK_ID, END_ID, UNKNOWN_ID, Tokenizer
from model.vocabulary import Vocabulary

FORMATS: tuple[PublicFormat, ...] = get_args(PublicFormat)
CPU = torch.device("cpu")
CHARACTERS = [chr(ord("一") + number) for number in range(57)]
"""Characters of the referees: 60 tokens minus blank, `<unk>`, and one for start and end."""
SMALL = CHARACTERS[:7]
SIZES = {
    "channels": (4, 6, 8, 10),
    "blocks_per_stage": 2,
    "pool_grid": 1,
    "hidden_dim": 16,
    "num_heads": 2,
    "feed_forward_dim": 24,
    "num_encoder_layers": 2,
    "conv_kernel": 7,
    "num_decoder_layers": 1,
    "num_reverse_layers": 2,
}
Weights = dict[str, torch.Tensor]


def table_file(folder: Path, characters: Sequence[str], first: Sequence[str] = ("<unk>",)) -> Path:
    path = folder / "char_units.txt"
    units = [*first, *characters]
    path.write_text("".join(f"{unit} {index}\n" for index, unit in enumerate(units, start=1)), "utf-8")
    return path


def public_name(format: PublicFormat, ours: str) -> str:
    """Returns the public name, from a table written by hand, opposite to model/pretrained/files.py."""
    renames = {
        "frontend.stem.convolution": "frontend.frontend3D.0",
        "frontend.stem.norm": "frontend.frontend3D.1",
        **{f"frontend.stages.{stage}.": f"frontend.trunk.layer{stage + 1}." for stage in range(4)},
        ".norm1.": ".bn1.",
        ".norm2.": ".bn2.",
        ".shortcut.": ".downsample.",
        "encoder.project": "proj_encoder",
        "encoder.norm": "encoder.after_norm",
        "encoder.blocks": "encoder.encoders",
        "decoder.blocks": "decoder.decoders",
        "decoder.norm.": "decoder.after_norm.",
        "decoder.embedding": "decoder.embed.0",
        "decoder.output": "decoder.output_layer",
        ".norm_first_feed_forward.": ".norm_ff_macaron.",
        ".norm_second_feed_forward.": ".norm_ff.",
        ".first_feed_forward.": ".feed_forward_macaron.",
        ".second_feed_forward.": ".feed_forward.",
        ".norm_attention.": ".norm_mha.",
        ".norm_convolution.": ".norm_conv.",
        ".norm_output.": ".norm_final.",
        ".convolution.expand.": ".conv_module.pointwise_cov1.",
        ".convolution.contract.": ".conv_module.pointwise_cov2.",
        ".convolution.depthwise.": ".conv_module.depthwise_conv.",
        ".convolution.norm.": ".conv_module.norm.",
        ".norm_self_attention.": ".norm1.",
        ".norm_cross_attention.": ".norm2.",
        ".norm_feed_forward.": ".norm3.",
        ".self_attention.": ".self_attn.",
        ".cross_attention.": ".src_attn.",
        ".attention.content_bias": ".self_attn.pos_bias_u",
        ".attention.position_bias": ".self_attn.pos_bias_v",
        ".attention.": ".self_attn.",
        ".position.": ".linear_pos.",
        ".query.": ".linear_q.",
        ".key.": ".linear_k.",
        ".value.": ".linear_v.",
        "attn.output.": "attn.linear_out.",
        ".expand.": ".w_1.",
        ".contract.": ".w_2.",
        "ctc_head": "ctc.ctc_lo",
        "reverse_decoder": "r_decoder",
    }
    name = ours
    for our_part, public_part in renames.items():
        name = name.replace(our_part, public_part)
    if format == "cnvsrc2025":
        name = name.replace("proj_encoder", "encoder.embed.0")
        name = f"encoder.{name}" if name.startswith("frontend.") else name
    assert our_name(format, name) == ours, (ours, name)
    return name


def synthetic_weights(format: PublicFormat) -> Weights:
    """Returns random weights of a small network, with public names, and tables in the public order."""
    heads = ("ctc", "decoder", *(("reverse_decoder",) if format == "cnvsrc2025" else ()))
    model = ModelParams.model_validate({"preset": "conformer_large", "sizes": SIZES})
    torch.manual_seed(3)
    # blank, <unk>, 7 characters, start and end: as many tokens as a tokenizer of 6 units has
    network = LipNetwork(model, Vocabulary(Tokenizer(tuple(SMALL[:6]))), heads)
    weights = {}
    for ours, tensor in network.state_dict().items():
        if tensor.is_floating_point():  # also statistics, which must differ from 0 and 1
            tensor = 0.1 * torch.randn(tensor.shape) + (0.8 if tensor.ndim == 1 and "bias" not in ours else 0)
        weights[public_name(format, ours)] = tensor
    return weights


def in_their_order(values: torch.Tensor, num_characters: int) -> torch.Tensor:
    """Returns our columns in the public order: blank, `<unk>`, characters, one for start and end."""
    characters = range(UNKNOWN_ID + 1, UNKNOWN_ID + 1 + num_characters)
    return values[..., [BLANK_ID, UNKNOWN_ID, *characters, END_ID]]


def saved(folder: Path, weights: Mapping[str, Any], name: str = "public.pth") -> Path:
    path = folder / name
    if path.suffix == ".safetensors":
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)
    else:
        torch.save(weights, path)
    return path


def imported(folder: Path, *arguments: Any) -> tuple[LipReader, Any]:
    checkpoint, report = import_weights(*arguments)
    save_checkpoint(folder / "imported.pt", checkpoint)
    return LipReader.from_checkpoint(folder / "imported.pt", CPU), report


@pytest.fixture(scope="module", name="format", params=FORMATS)
def format_fixture(request: pytest.FixtureRequest) -> PublicFormat:
    return request.param


@pytest.fixture(scope="module", name="public")
def public_fixture(format: PublicFormat) -> Weights:
    return synthetic_weights(format)
