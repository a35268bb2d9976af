"""Small models with random weights, and the content of their exports."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from model.decoding.reader import LipReader
from model.device import Precision
from model.exports.files import reader_config
from model.networks.network import LipNetwork
from model.settings import Head, ModelParams, TextParams
from model.text import NORMALISER_VERSION
from model.vocabulary import Vocabulary
from shards.plan_identity import PlanIdentity

LABELS = ("今天天气很好", "我们一起去公园", "你好 ok")
MODELS = {
    "cnn3d": ModelParams(
        sizes={"channels": (4, 8, 8, 12), "hidden_dim": 16, "num_lstm_layers": 2, "pool_grid": 3},
    ),
    "conformer": ModelParams(
        preset="conformer_tiny",
        sizes={"channels": (4, 8, 8, 12), "hidden_dim": 32, "num_encoder_layers": 2, "pool_grid": 2},
        window_px=64,
        frame_height=44,
        frame_width=48,
        temporal_stride=2,
        standardise="clip",
        subtract_mean=0.8,
    ),
}
"""The default input, and one with every change: scale, stride, standardisation of each clip."""


def random_reader(
    model: ModelParams, heads: Sequence[Head] = ("ctc", "syllables"), seed: int = 0
) -> LipReader:
    """Returns a reader like a trained one: no batch normalisation is the identity, and texts have many characters."""
    torch.manual_seed(seed)
    vocabulary = Vocabulary.of_labels(LABELS, with_syllables="syllables" in heads)
    network = LipNetwork(model, vocabulary, heads)
    for module in network.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        for head in (network.ctc_head, network.syllable_head):
            if head is not None:
                head.weight *= 20
    return reader_of(network.eval(), vocabulary, model, epoch=4)


def reader_of(network: LipNetwork, vocabulary: Vocabulary, model: ModelParams, **more: Any) -> LipReader:
    """Returns a reader in float32 on the CPU, for clips of the default crop stage."""
    cpu, whole = torch.device("cpu"), Precision(None)
    return LipReader(network, vocabulary, model, TextParams(), 25.0, cpu, whole, 96, **more)


def state_of_reader(
    reader: LipReader, heads: Sequence[Head] = ("ctc", "syllables"), **changes: Any
) -> dict[str, Any]:
    """Returns the parts of its checkpoint that reading and exporting use."""
    characters, syllables = reader.vocabulary.characters, reader.vocabulary.syllables
    return {
        "epoch": 4,
        "val_cer": 0.25,
        "fps": 25.0,
        "crop_px": 96,
        "model_params": reader.model.model_dump(mode="json"),
        "model_state_dict": reader.network.state_dict(),
        "heads": list(heads),
        "tokenizer": characters.to_json(),
        "syllables": syllables.to_json() if syllables else None,
        "normaliser_version": NORMALISER_VERSION,
        "text_params": reader.text.model_dump(mode="json"),
        "decode_params": {},
        "plan_identity": PlanIdentity(1, "none", {}, 4, 1).as_dict(),
    } | changes


def config_of(reader: LipReader) -> dict[str, Any]:
    return reader_config(state_of_reader(reader))


def report_in(folder: Path, **changes: object) -> None:
    """Writes the figures of a small report that the card of an export quotes."""
    folder.mkdir(exist_ok=True)
    metrics = {
        "split": "test",
        "num_clips": 3,
        "num_chars": 9,
        "cer": 0.3,
        "cer_low": 0.25,
        "cer_high": 0.375,
        "cer_interval_over": "speakers",
        "blind_cer": 0.9,
        "chance_cer": None,
        "speaker_overlap": 2,
        "decoder": "ctc",
    }
    (folder / "metrics.json").write_text(json.dumps(metrics | changes), "utf-8")
    rows = "group,clips,characters,cer\nann,1,3,0.4\nbob,1,3,0.1\ncid,1,3,0.25\n(unknown),1,3,0.9\n"
    (folder / "by_speaker.csv").write_text(rows, "utf-8")
