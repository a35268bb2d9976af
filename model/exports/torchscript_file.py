"""The graph as TorchScript: torch.jit.load reads it, from Python or C++, with no code of ours."""

import io
import json
from collections.abc import Mapping
from typing import Any

import torch

from model.exports.graph import ExportedNetwork, tracing
from model.exports.names import CONFIG


def torchscript_bytes(graph: ExportedNetwork, config: Mapping[str, Any]) -> bytes:
    """The file; `config` stands in it as the extra file config.json.

    torch 2.13 calls torch.jit outdated, and reads and writes it as before. A .pt2 of torch.export under this name
    would be of no use to those who ask for TorchScript: torch.jit.load and LibTorch's torch::jit::load refuse it.
    """
    file = io.BytesIO()
    text = json.dumps(config, ensure_ascii=False, sort_keys=True)
    with tracing():
        recorded = torch.jit.trace(graph, graph.example(), check_trace=False)
        torch.jit.save(recorded, file, _extra_files={f"{CONFIG}.json": text.encode()})
    return file.getvalue()
