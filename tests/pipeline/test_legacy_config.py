"""Tests names of the older trainer: in a flat config.yaml, and as flags with underscores."""

from pathlib import Path
from typing import Any

import pytest

from model.presets import PRESET_SIZES
from pipeline.legacy_config import OLDER_NAMES, SECTIONS
from pipeline.params import Params, load_params, recipe_text
from shards.errors import ConfigError
from tests.support.in_process import pipeline
from tests.support.params_files import model_keys, overlay, params_file_fixture, value_at  # noqa: F401

OLDER: dict[str, tuple[Any, dict[str, Any]]] = {
    "data_root": ("/data/lips", {"corpus.root": "/data/lips"}),
    "batch_size": (3, {"train.batch_size": 3}),
    "accumulation_steps": (2, {"train.accumulation_steps": 2}),
    "learning_rate": ("2e-4", {"train.learning_rate": 2e-4}),
    "num_epochs": (7, {"train.num_epochs": 7}),
    "warmup_epochs": (1, {"train.warmup_epochs": 1}),
    "scheduler": ("cosine", {"train.scheduler": "cosine"}),
    "gradient_clip": (1.5, {"train.gradient_clip": 1.5}),
    "label_smoothing": (0.2, {"train.label_smoothing": 0.2}),
    "mixed_precision": ("false", {"train.mixed_precision": False}),
    "max_frames": (300, {"crop.max_frames": 300}),
    "frame_size": (64, {"model.frame_height": 64, "model.frame_width": 64}),
    "frame_height": (48, {"model.frame_height": 48}),
    "frame_width": (80, {"model.frame_width": 80}),
    "fps": (30, {"crop.target_fps": 30}),
    "num_workers": (5, {"machine.num_workers": 5}),
    "device": ("cpu", {"machine.device": "cpu"}),
    "hidden_dim": (32, {"model.sizes.hidden_dim": 32}),
    "num_lstm_layers": (3, {"model.sizes.num_lstm_layers": 3}),
    "dropout": (0.4, {"model.dropout": 0.4}),
    "checkpoint_dir": ("kept", {"paths.checkpoints": "kept"}),
}


@pytest.fixture
def baseline_file(tmp_path: Path) -> Path:
    """Names that only the model of the older trainer uses."""
    file = tmp_path / "params.yaml"
    file.write_text(recipe_text("chinese_lips"), "utf-8")
    return file


@pytest.mark.parametrize("name", OLDER)
def test_a_flat_older_name_reaches_its_owner(name: str, baseline_file: Path, tmp_path: Path) -> None:
    value, owners = OLDER[name]
    params = load_params(baseline_file, config=overlay(tmp_path, f"{name}: {value}\n"))
    assert {key: value_at(params, key) for key in owners} == owners


def test_every_older_name_maps_to_keys_that_exist() -> None:
    keys = {key for keys in OLDER_NAMES.values() for key in keys}
    keys_of_sizes = {f"model.sizes.{key}" for key in PRESET_SIZES["cnn3d_bilstm_attention"].model_dump()}
    assert keys <= model_keys(Params) | keys_of_sizes
    assert frozenset(Params.model_fields) == SECTIONS


def test_a_whole_older_config_is_accepted(baseline_file: Path, tmp_path: Path) -> None:
    text = "".join(f"{name}: {value}\n" for name, (value, _) in OLDER.items() if name != "frame_size")
    params = load_params(baseline_file, config=overlay(tmp_path, text))
    assert (params.train.batch_size, params.model.frame_width, params.corpus.root) == (3, 80, "/data/lips")


def test_an_unknown_older_name_is_named(params_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_sise"):
        load_params(params_file, config=overlay(tmp_path, "batch_sise: 4\n"))


@pytest.mark.parametrize("spelling", ["--data_root", "--data-root"])
def test_both_spellings_of_a_flag_are_accepted(spelling: str, params_file: Path) -> None:
    done = pipeline(
        params_file.parent, ["ingest", "--params", str(params_file), f"{spelling}=nowhere/at_all"]
    )
    assert done.returncode == 1, done.stderr
    assert "nowhere/at_all" in done.stderr, "the value's own underscores stay"
