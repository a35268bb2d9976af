"""How to run an exported model without this project: the Python code in its card, which tests run."""

from collections.abc import Sequence
from typing import Literal

from model.exports.onnx_reader import LOG_PROBS, SYLLABLE_LOG_PROBS

ExportFormat = Literal["onnx", "safetensors"]
FILES: dict[ExportFormat, str] = {"onnx": "model.onnx", "safetensors": "model.safetensors"}

_INPUTS = """Inputs: `video`, uint8 (B, T, {px}, {px}) at {fps:g} frames per second, padded to the longest clip, and
`num_frames`, int64 (B,). Outputs: the log-probabilities {outputs}, float32, and
`num_steps`, int64 (B,). Ids: 0 is the blank, then three special tokens, then the units of `config.json`. The model
normalises gray levels. `clip.npy` below holds one mouth clip, uint8 (T, {px}, {px}).
"""
_GREEDY = """
best = log_probs[0, : int(num_steps[0])].argmax(1).tolist()
path = [token for number, token in enumerate(best) if number == 0 or token != best[number - 1]]
table = config["TABLE"]
first = len(table["special_tokens"])
print(table.get("joiner", "").join(table["characters"][token - first] for token in path if token >= first))
"""
_ONNX = """import json

import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
config = json.loads(session.get_modelmeta().custom_metadata_map["config"])
clip = np.load("clip.npy")
fed = {"video": clip[None], "num_frames": np.array([len(clip)])}
log_probs, num_steps = session.run(["OUTPUT", "num_steps"], fed)
"""
_SAFETENSORS = """import json

from safetensors.torch import load_file

from model.networks.network import LipNetwork
from model.settings import ModelParams
from model.text import Tokenizer
from model.vocabulary import Vocabulary

with open("config.json", encoding="utf-8") as file:
    config = json.load(file)
characters, syllables = (
    config[name] and Tokenizer.from_json(config[name], name) for name in ("characters", "syllables")
)
network = LipNetwork(ModelParams.model_validate(config["model"]), Vocabulary(characters, syllables), config["heads"])
network.load_state_dict(load_file("model.safetensors"))
"""


def example(format: ExportFormat, heads: Sequence[str]) -> str:
    """Returns a program that runs in the folder of the export. For ONNX, it reads clip.npy and prints the text."""
    if format == "safetensors":
        return _SAFETENSORS
    output, table = (LOG_PROBS, "characters") if "ctc" in heads else (SYLLABLE_LOG_PROBS, "syllables")
    return (_ONNX + _GREEDY).replace("OUTPUT", output).replace("TABLE", table)


def how_to_run(format: ExportFormat, heads: Sequence[str], fps: float, crop_px: int) -> str:
    """Returns the section of the card, in Markdown."""
    code = f"```python\n{example(format, heads)}```\n"
    if format == "safetensors":
        return (
            "The weights by name. This project's `model` package builds the network from `config.json`:"
            f"\n\n{code}"
        )
    shapes = {
        "ctc": f"`{LOG_PROBS}` (B, S, V) of characters",
        "syllables": f"`{SYLLABLE_LOG_PROBS}` (B, S, W)",
    }
    outputs = " and ".join(shape for head, shape in shapes.items() if head in heads)
    inputs = _INPUTS.format(px=crop_px, fps=fps, outputs=outputs)
    return (
        "For videos, run `pipeline inference --onnx model.onnx VIDEO`, which needs no torch. For cropped clips:"
        f"\n\n{inputs}\n{code}"
    )
