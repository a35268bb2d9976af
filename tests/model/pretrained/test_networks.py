"""Our conformer network against the outputs of public lip readers' architectures with the same weights."""

import json
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from model.networks.conformer_encoder import ConformerEncoder
from model.networks.frontends import ResNetFrontend
from model.networks.network_input import step_mask
from model.networks.transformer_decoder import TransformerDecoder
from model.presets import PRESET_SIZES, ConformerSizes
from model.pretrained.files import PublicFormat, our_name

FORMATS: tuple[PublicFormat, ...] = get_args(PublicFormat)
TINY = ConformerSizes(
    hidden_dim=64,
    num_heads=4,
    feed_forward_dim=128,
    num_encoder_layers=2,
    num_decoder_layers=2,
    num_reverse_layers=1,
)


def network_of(format: PublicFormat, sizes: ConformerSizes, num_tokens: int) -> nn.ModuleDict:
    width, dropout = sizes.hidden_dim, 0.0
    frontend = ResNetFrontend(sizes, temporal_stride=1)
    parts = {
        "frontend": frontend,
        "encoder": ConformerEncoder(frontend.num_features, sizes, dropout),
        "ctc_head": nn.Linear(width, num_tokens),
        "decoder": TransformerDecoder(width, sizes, sizes.num_decoder_layers, num_tokens, dropout),
    }
    if format == "cnvsrc2025":
        layers = sizes.num_reverse_layers
        parts["reverse_decoder"] = TransformerDecoder(width, sizes, layers, num_tokens, dropout)
    return nn.ModuleDict(parts).eval()


@pytest.fixture(scope="module")
def reference(realdata: Path) -> Path:
    return realdata.parent / "reference"


def tiny_network(reference: Path, format: PublicFormat) -> nn.ModuleDict:
    """Returns the network with the referee's weights; the strict load fills every parameter."""
    weights = load_file(reference / f"{format}_tiny.weights.safetensors")
    if format == "cnvsrc2025":  # its file has no frontend: it is auto_avsr's
        shared = load_file(reference / "auto_avsr_tiny.weights.safetensors")
        weights |= {
            f"encoder.{name}": value for name, value in shared.items() if name.startswith("frontend.")
        }
    network = network_of(format, TINY, num_tokens=60)
    ours = network.state_dict()
    named = {our_name(format, name): value for name, value in weights.items()}
    assert named.keys() == ours.keys()
    network.load_state_dict({name: value.reshape(ours[name].shape) for name, value in named.items()})
    return network


def with_noise_behind(video_BTCYX: torch.Tensor, num_frames_B: torch.Tensor) -> torch.Tensor:
    """Returns float32 video (B, 1, T, Y, X) with noise as padding, which is black in the referee's file."""
    video_BCTYX = video_BTCYX.float().transpose(1, 2)
    torch.manual_seed(0)
    for clip, frames in enumerate(num_frames_B.tolist()):
        video_BCTYX[clip, :, frames:] = 3 * torch.randn_like(video_BCTYX[clip, :, frames:])
    return video_BCTYX


def outputs(
    network: nn.ModuleDict, video_BCTYX: torch.Tensor, num_frames_B: torch.Tensor, fed_BL: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Returns the outputs of a batch, by the names of the referee file (`output.*`)."""
    features_BSF, num_steps_B = network["frontend"](video_BCTYX, num_frames_B)
    encoded_BSE = network["encoder"](features_BSF, num_steps_B)
    padding_BS = ~step_mask(num_steps_B, encoded_BSE.shape[1])
    found = {
        "frontend": features_BSF,
        "encoder": encoded_BSE,
        "ctc_log_probs": network["ctc_head"](encoded_BSE).log_softmax(2),
        "decoder_logits": network["decoder"].logits(encoded_BSE, padding_BS, fed_BL),
    }
    if "reverse_decoder" in network:
        # the referee fed it the tokens in normal order, not reversed
        found["r_decoder_logits"] = network["reverse_decoder"].logits(encoded_BSE, padding_BS, fed_BL)
    return found


@pytest.mark.realdata
@pytest.mark.parametrize("batched", [False, True], ids=["alone", "padded batch"])
@pytest.mark.parametrize("format", FORMATS)
@torch.no_grad()
def test_every_output_of_the_referee_agrees(reference: Path, format: PublicFormat, batched: bool) -> None:
    network = tiny_network(reference, format)
    io = load_file(reference / f"{format}_tiny.io.safetensors")
    num_frames = io["input.lengths"]
    video = with_noise_behind(io["input.video"], num_frames)
    fed, num_fed = io["input.decoder_tokens"], (7, 5)
    compared = set()
    together = outputs(network, video, num_frames, fed)
    for clip, frames in enumerate(num_frames.tolist()):
        one = slice(clip, clip + 1)
        found = {name: values[one] for name, values in together.items()}
        if not batched:
            found = outputs(network, video[one, :, :frames], num_frames[one], fed[one, : num_fed[clip]])
        for name, values in found.items():
            expected = io[f"output.{name}.clip{clip}"]
            compared.add(f"output.{name}.clip{clip}")
            inside = values[:, : expected.shape[1]]
            torch.testing.assert_close(inside, expected, rtol=0, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert compared == {name for name in io if name.startswith("output.")}


@pytest.mark.realdata
@torch.no_grad()
def test_the_comparison_detects_leaking_padding(reference: Path) -> None:
    network = tiny_network(reference, "auto_avsr")
    io = load_file(reference / "auto_avsr_tiny.io.safetensors")
    video = with_noise_behind(io["input.video"], io["input.lengths"])
    leaking = outputs(network, video[1:], torch.tensor([23]), io["input.decoder_tokens"][1:])
    for name in ("frontend", "encoder", "ctc_log_probs", "decoder_logits"):
        expected = io[f"output.{name}.clip1"]
        assert float((leaking[name][:, : expected.shape[1]] - expected).abs().max()) > 1e-3


@pytest.mark.realdata
@pytest.mark.parametrize("format", FORMATS)
def test_full_size_names_map_one_to_one(reference: Path, format: PublicFormat) -> None:
    shapes = json.loads((reference / f"{format}_keys.json").read_text())
    large = PRESET_SIZES["conformer_large"]
    assert isinstance(large, ConformerSizes)
    with torch.device("meta"):
        network = network_of(format, large, num_tokens=shapes["ctc.ctc_lo.bias"][0])
    ours = network.state_dict()
    named = Counter(our_name(format, name) for name in shapes)
    assert named == Counter(list(ours))
    for name, shape in shapes.items():
        parameter = ours[our_name(format, name)]
        pointwise = ".pointwise_cov" in name and shape[-1:] == [1] and len(shape) == 3
        assert list(parameter.shape) == (shape[:-1] if pointwise else shape), name


@pytest.mark.parametrize(
    ("format", "public", "ours"),
    [
        ("auto_avsr", "frontend.frontend3D.1.num_batches_tracked", "frontend.stem.norm.num_batches_tracked"),
        (
            "cnvsrc2025",
            "encoder.frontend.trunk.layer3.0.downsample.1.running_var",
            "frontend.stages.2.0.shortcut.1.running_var",
        ),
        ("auto_avsr", "proj_encoder.weight", "encoder.project.weight"),
        (
            "auto_avsr",
            "encoder.encoders.11.self_attn.pos_bias_u",
            "encoder.blocks.11.attention.content_bias",
        ),
        (
            "cnvsrc2025",
            "r_decoder.decoders.2.src_attn.linear_k.bias",
            "reverse_decoder.blocks.2.cross_attention.key.bias",
        ),
        ("auto_avsr", "r_decoder.embed.0.weight", None),
        ("cnvsrc2025", "proj_encoder.weight", None),
        ("auto_avsr", "encoder.encoders.x.norm_ff.weight", None),
        ("auto_avsr", "model.proj_encoder.weight", None),
        ("auto_avsr", "proj_encoder.weight.extra", None),
        ("auto_avsr", "", None),
    ],
)
def test_public_names_by_hand(format: PublicFormat, public: str, ours: str | None) -> None:
    assert our_name(format, public) == ours
