"""Maps the parameter names of public checkpoints to those of our conformer network.

The mapping is one to one. Our convolutions of one step are linear layers: `reshape` turns the public weight (E, F, 1)
into ours. All other tensors have our shape. The rows of embeddings, outputs and CTC head are in the order of the
public character table: blank first, then the characters, then one token for start and end.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

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
