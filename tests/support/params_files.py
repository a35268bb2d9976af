"""Writes params.yaml and overlays, and reads keys and values. Import params_file_fixture as the fixture params_file."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline.params import Params, recipe_text


@pytest.fixture(name="params_file")
def params_file_fixture(tmp_path: Path) -> Path:
    file = tmp_path / "params.yaml"
    file.write_text(recipe_text("demo"), "utf-8")
    return file


def overlay(folder: Path, text: str) -> Path:
    """Writes a file for --config."""
    file = folder / "config.yaml"
    file.write_text(text, "utf-8")
    return file


def model_keys(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Returns the dotted names of all values of `model`."""
    keys: set[str] = set()
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys |= model_keys(kind, f"{prefix}{name}.")
        else:
            keys.add(prefix + name)
    return keys


def value_at(params: Params, key: str) -> Any:
    """Returns the value of a dotted key."""
    value: Any = params
    for name in key.split("."):
        value = getattr(value, name)
    return value
