"""The graph as TorchScript: torch.jit.load reads it, from Python or C++, with no code of ours."""

import io
import json
import re
import zipfile
from collections.abc import Mapping
from typing import Any

import torch

from model.exports.graph import ExportedNetwork, tracing
from model.exports.names import CONFIG

LEFT_OUT = re.compile(r"\.debug_pkl$|/traced_inputs(/|\.pkl$)|/\.data/serialization_id$")
"""Records that loading does without: lines of source with paths of this machine, noise that was fed, a hash of both."""
_NUMBERED = re.compile(rb"___torch_mangle_(\d+)")


def torchscript_bytes(graph: ExportedNetwork, config: Mapping[str, Any]) -> bytes:
    """The file, the same for the same graph; `config` stands in it as the extra file config.json.

    torch 2.13 calls torch.jit outdated, and reads and writes it as before. A .pt2 of torch.export under this name
    would be of no use to those who ask for TorchScript: torch.jit.load and LibTorch's torch::jit::load refuse it.
    """
    file = io.BytesIO()
    text = json.dumps(config, ensure_ascii=False, sort_keys=True)
    with tracing():
        for _ in range(
            2
        ):  # in a process the first class of a name has no number: the second time all have one
            recorded = torch.jit.trace(graph, graph.example(), check_trace=False)
        torch.jit.save(recorded, file, _extra_files={f"{CONFIG}.json": text.encode()})
    return _canonical(file.getvalue())


def _canonical(saved: bytes) -> bytes:
    """The same module without LEFT_OUT, its classes numbered in the order in which its tree names them.

    torch tells classes of one name apart by a number that counts on through all that a process records.
    """
    with zipfile.ZipFile(io.BytesIO(saved)) as old:
        records = {name: old.read(name) for name in old.namelist() if not LEFT_OUT.search(name)}
    (tree,) = (payload for name, payload in records.items() if name.endswith("/data.pkl"))
    numbers = {number: index for index, number in enumerate(dict.fromkeys(_NUMBERED.findall(tree)))}

    def renumbered(text: bytes) -> bytes:
        # pickle writes the names of classes as lines, without their lengths
        return _NUMBERED.sub(lambda found: b"___torch_mangle_%d" % numbers[found[1]], text)

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as new:
        for name, payload in records.items():
            is_named = "/code/" in name or name.endswith(".pkl")
            # without a date, ZipInfo has 1980
            info = zipfile.ZipInfo(renumbered(name.encode()).decode())
            new.writestr(info, renumbered(payload) if is_named else payload)
    return file.getvalue()
