"""Reads back what trackers stored on this machine: figures by name and step, run ids, parameters."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Figures = dict[str, dict[int, list[float]]]


def mlflow_figures(runs: Path) -> tuple[Figures, set[str], dict[str, Any]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    found = client.search_runs([each.experiment_id for each in client.search_experiments()])
    (run,) = found
    assert run.info.status == "FINISHED"
    figures: Figures = {}
    for name in run.data.metrics:
        for metric in client.get_metric_history(run.info.run_id, name):
            figures.setdefault(name, {}).setdefault(metric.step, []).append(metric.value)
    return (
        figures,
        {run.info.run_id for run in found},
        {k: json.loads(v) for k, v in run.data.params.items() if v.isdecimal()},
    )


def wandb_figures(runs: Path) -> tuple[Figures, set[str], dict[str, Any]]:
    from wandb.proto.wandb_internal_pb2 import Record

    figures: Figures = {}
    ids, config = set(), {}
    files = sorted(runs.glob("*/wandb/offline-run-*/*.wandb"))
    assert len(files) == 2, "one for each start"
    for file in files:
        for payload in _leveldb_records(file.read_bytes()):
            record = Record.FromString(payload)
            if record.HasField("run"):
                ids.add(record.run.run_id)
                config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            if record.HasField("history"):
                values = {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in record.history.item
                }
                for name, value in values.items():
                    if not name.startswith("_"):
                        figures.setdefault(name, {}).setdefault(values["_step"], []).append(value)
    return figures, ids, {f"train.{key}": value for key, value in config["train"].items()}


def _leveldb_records(content: bytes) -> Iterator[bytes]:
    """Returns the records of a .wandb file: LevelDB's log format after 7 bytes of header."""
    place, parts = 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, size, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or last part
            yield parts
            parts = b""


def swanlab_figures(runs: Path) -> tuple[Figures, set[str], dict[str, Any]]:
    import yaml
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    figures: Figures = {}
    files = sorted(runs.glob("*/swanlab/run-*/*.swanlab"))
    assert len(files) == 2, "one for each start"
    for file in files:
        reader = DataStoreReader()
        reader.open(str(file))
        while (payload := reader.scan()) is not None:
            if (record := Record.FromString(payload)).HasField("scalar"):
                value = record.scalar
                figures.setdefault(value.key, {}).setdefault(value.step, []).append(value.value.number)
    config = yaml.safe_load((files[0].parent / "files" / "config.yaml").read_text())
    train = config["train"].get("value", config["train"])
    return (
        figures,
        {file.stem.removeprefix("run-") for file in files},
        {f"train.{key}": value for key, value in train.items()},
    )
