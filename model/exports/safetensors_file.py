"""A trained model for other programs: model.safetensors with weights, config.json with the configuration."""

from typing import Any

import safetensors.torch

from model.checkpoints import load_checkpoint
from model.runs import RunFolder
from model.settings import TextParams
from model.text import describe_normaliser
from shards.files import write_bytes, write_json

CONFIG_VERSION = 1


def write_weights(run: RunFolder) -> None:
    """Writes the best model's weights and configuration next to it. Raises CheckpointError, MachineError."""
    state = load_checkpoint(run.best)
    write_bytes(run.weights, weights_bytes(state))
    write_json(run.reader_config, reader_config(state))


def weights_bytes(state: dict[str, Any]) -> bytes:
    """Returns the weights of checkpoint `state` by name, as a .safetensors file."""
    weights = {name: tensor.contiguous() for name, tensor in state["model_state_dict"].items()}
    return safetensors.torch.save(weights, {"format": "pt"})


def reader_config(state: dict[str, Any]) -> dict[str, Any]:
    """Returns what reading needs in addition to the weights of checkpoint `state`, as plain JSON values."""
    return {
        "version": CONFIG_VERSION,
        "epoch": state["epoch"],
        "valid_cer": state["val_cer"],
        "fps": state["fps"],
        "crop_px": state["crop_px"],
        # the network
        "model": state["model_params"],
        "heads": list(state["heads"]),
        "characters": state["tokenizer"],
        "syllables": state["syllables"],
        # the text
        "normaliser": {
            "version": state["normaliser_version"],
            "description": describe_normaliser(
                TextParams.model_validate(state["text_params"]), state["normaliser_version"]
            ),
            "params": state["text_params"],
        },
        "decode": state["decode_params"],
    }
