"""The sizes of the networks of model.preset, without allocating them."""

import pytest
import torch

from model.networks.network import LipNetwork, num_parameters
from model.presets import PRESET_SIZES
from model.pretrained.sizes import network_of_shapes
from model.settings import Head, ModelParams
from model.text import Tokenizer
from model.vocabulary import Vocabulary

CHARACTERS = Vocabulary(Tokenizer(tuple(chr(ord("一") + number) for number in range(3_500))))
"""About as many as in Mandarin corpora."""
HEADS: tuple[Head, ...] = ("ctc", "decoder")
"""A reverse decoder would be extra."""
MILLIONS = {
    "cnn3d_bilstm_attention": (10, 13),
    "conformer_tiny": (3, 6),
    "conformer_small": (25, 40),
    "conformer_base": (80, 110),
    "conformer_large": (230, 260),
}


def test_the_table_has_every_preset() -> None:
    assert MILLIONS.keys() == PRESET_SIZES.keys()


@pytest.mark.parametrize("preset", MILLIONS)
def test_a_preset_has_its_documented_size(preset: str) -> None:
    network = network_of_shapes(ModelParams.model_validate({"preset": preset}), CHARACTERS, HEADS)
    assert all(parameter.is_meta for parameter in network.parameters())
    least, most = MILLIONS[preset]
    assert least * 1e6 <= num_parameters(network) <= most * 1e6


def test_the_network_of_shapes_has_the_shapes_of_the_network() -> None:
    model = ModelParams.model_validate({"preset": "conformer_tiny"})
    real = LipNetwork(model, CHARACTERS, HEADS).state_dict()
    meta = network_of_shapes(model, CHARACTERS, HEADS).state_dict()
    described = [{name: (t.shape, t.dtype) for name, t in tensors.items()} for tensors in (real, meta)]
    assert described[0] == described[1]
    assert not any(tensor.device == torch.device("cpu") for tensor in meta.values())
