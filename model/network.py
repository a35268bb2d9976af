"""Builds the network a ModelParams names, and says what would keep weights from fitting it."""

from collections.abc import Mapping

from torch import nn

from model.cnn3d_bilstm_attention import Cnn3dBilstmAttention
from model.settings import ModelParams

PRESETS = {"cnn3d_bilstm_attention": Cnn3dBilstmAttention}


def build_network(params: ModelParams, num_tokens: int, with_decoder: bool) -> Cnn3dBilstmAttention:
    """The network with fresh weights, drawn from torch's global random state."""
    return PRESETS[params.preset](params, num_tokens, with_decoder)


def num_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def differences(ours: Mapping[str, object], theirs: Mapping[str, object]) -> list[str]:
    """One line for each key whose value differs: `key: theirs, here ours`."""
    keys = sorted(ours.keys() | theirs.keys())
    return [
        f"{key}: {theirs.get(key, 'absent')} there, {ours.get(key, 'absent')} here"
        for key in keys
        if ours.get(key) != theirs.get(key)
    ]
