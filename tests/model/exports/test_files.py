"""The weights next to best_model.pt, for other programs."""

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open

from model.checkpoints import load_checkpoint
from model.networks.network import LipNetwork
from model.settings import DecodeParams, ModelParams, TextParams
from model.text import Tokenizer
from model.vocabulary import Vocabulary
from stages.train import train
from tests.support.packed import pack_clips, toy_clips
from tests.support.trainings import MODEL, TRAIN, job_in


def test_the_published_weights_are_read_without_this_program(tmp_path: Path) -> None:
    """The safetensors package reads them, and config.json is enough to build the network."""
    packed = pack_clips(tmp_path, toy_clips(12, 2))
    train(job_in(tmp_path, packed, num_epochs=1, ema_decay=0.5, syllable_weight=0.2))
    folder = tmp_path / "checkpoints"
    best = load_checkpoint(folder / "best_model.pt")
    with safe_open(folder / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in best["model_state_dict"]}
        assert set(file.keys()) == best["model_state_dict"].keys()
        assert file.metadata() == {"format": "pt"}
    for name, tensor in tensors.items():
        assert tensor.dtype == best["model_state_dict"][name].dtype
        assert torch.equal(tensor, best["model_state_dict"][name]), name
    text = (folder / "config.json").read_text("utf-8")
    assert "一" in text and text.count("\n") > 40  # indented for people
    config = json.loads(text)
    vocabulary = Vocabulary(
        Tokenizer.from_json(config["characters"], "characters"),
        Tokenizer.from_json(config["syllables"], "syllables"),
    )
    network = LipNetwork(ModelParams.model_validate(config["model"]), vocabulary, config["heads"])
    network.load_state_dict(tensors)
    assert (config["fps"], config["crop_px"]) == (25.0, 96)
    assert ModelParams.model_validate(config["model"]).preset == MODEL.preset
    assert set(config["heads"]) == {*TRAIN.heads, "syllables"}
    assert DecodeParams.model_validate(config["decode"]) == DecodeParams(decoder="ctc")
    assert TextParams.model_validate(config["normaliser"]["params"]) == TextParams()
    assert config["normaliser"]["version"] == best["normaliser_version"]
    listed = json.loads((folder / "published.json").read_text())["files"]
    assert {"model.safetensors", "config.json"} <= set(listed)
    # another run publishes its own weights
    shutil.rmtree(tmp_path / "runs")
    train(job_in(tmp_path, packed, num_epochs=1, seed=3))
    other = load_checkpoint(folder / "best_model.pt")["model_state_dict"]
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert all(torch.equal(file.get_tensor(name), other[name]) for name in other)
