"""Tests params.yaml: every key is present, and overlays have their order."""

from pathlib import Path
from typing import Any

import pytest

from model.presets import PRESET_SIZES
from pipeline.params import (
    PRESETS,
    Params,
    check,
    load_params,
    params_text,
    parse_yaml,
    read_mapping,
    recipe_text,
)
from recipes import RECIPES
from shards.errors import ConfigError
from tests.support.params_files import model_keys, overlay, params_file_fixture, value_at  # noqa: F401

ROOT = Path(__file__).parents[2]


def file_keys(values: dict[str, Any], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for name, value in values.items():
        # model.sizes contains what differs from the preset, and may be empty
        is_section = isinstance(value, dict) and prefix + name != "model.sizes"
        keys |= file_keys(value, f"{prefix}{name}.") if is_section else {prefix + name}
    return keys


def test_changed_values_do_not_appear_in_the_next_reading() -> None:
    first = parse_yaml(recipe_text("grid"), "grid")
    first["train"]["augment"]["speed_change"] = first["train"]["seed"] = -1
    second = parse_yaml(recipe_text("grid"), "grid")
    assert second["train"]["seed"] != -1 != second["train"]["augment"]["speed_change"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_has_every_key_and_no_other(recipe: str) -> None:
    assert file_keys(parse_yaml(recipe_text(recipe), recipe)) == model_keys(Params)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_loads_and_survives_a_round_trip(recipe: str, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(recipe_text(recipe), "utf-8")
    params = load_params(file)
    file.write_text(params_text(params), "utf-8")
    assert load_params(file) == params


def test_the_committed_params_are_the_demos() -> None:
    assert (ROOT / "params.yaml").read_text("utf-8") == recipe_text("demo")


def test_chinese_lips_has_the_older_trainers_defaults(tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(recipe_text("chinese_lips"), "utf-8")
    params = load_params(file)
    expected = {
        "train.batch_size": 8,
        "train.accumulation_steps": 4,
        "train.learning_rate": 1e-4,
        "train.num_epochs": 100,
        "train.warmup_epochs": 5,
        "train.scheduler": "cosine",
        "train.gradient_clip": 5.0,
        "train.label_smoothing": 0.1,
        "train.mixed_precision": True,
        "model.frame_height": 96,
        "model.frame_width": 96,
        "model.sizes.hidden_dim": 256,
        "model.sizes.num_lstm_layers": 2,
        "model.dropout": 0.3,
        "crop.target_fps": 25.0,
        "crop.max_frames": 1000,
        "loader.max_frames": 0,
    }
    assert {key: value_at(params, key) for key in expected} == expected


def test_the_recipe_for_a_table_makes_no_claims_about_the_corpus() -> None:
    params = check(parse_yaml(recipe_text("table"), "table"), "table")
    assert (params.corpus.kind, params.corpus.license, params.corpus.speaker_overlap) == (
        "table",
        "",
        "error",
    )


def test_presets_are_those_of_the_older_trainer() -> None:
    assert PRESETS["cpu"]["train"] == {"batch_size": 2, "mixed_precision": False}
    assert PRESETS["cpu"]["machine"]["num_workers"] == 0
    assert PRESETS["12gb"]["train"] == {"batch_size": 8, "accumulation_steps": 4}
    assert PRESETS["24gb"]["train"] == {"batch_size": 16, "accumulation_steps": 2}
    assert PRESETS["24gb"]["model"] == {"frame_height": 128, "frame_width": 128}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_preset_fits_every_recipe(preset: str, recipe: str, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"
    file.write_text(recipe_text(recipe), "utf-8")
    params = load_params(file, preset=preset)
    for section, values in PRESETS[preset].items():
        for key, value in values.items():
            assert value_at(params, f"{section}.{key}") == value


def test_precedence_rises_from_params_over_preset_and_config_to_set_and_flags(
    params_file: Path, tmp_path: Path
) -> None:
    config = overlay(tmp_path, "train:\n  batch_size: 5\nhidden_dim: 64\n")
    stated = load_params(params_file).train
    assert stated.batch_size not in (2, 5, 6, 7), "each step below must be seen"
    assert load_params(params_file, preset="cpu").train.batch_size == 2
    third = load_params(params_file, preset="cpu", config=config)
    assert (third.train.batch_size, third.model.sizes.hidden_dim) == (5, 64)
    assert third.train.mixed_precision is False, "what the overlay does not name stays"
    fourth = load_params(params_file, preset="cpu", config=config, assignments=["train.batch_size=6"])
    assert fourth.train.batch_size == 6
    flags = {"train.batch_size": 7, "train.num_epochs": None}
    assert load_params(params_file, preset="cpu", config=config, flags=flags).train.batch_size == 7
    assert load_params(params_file, flags=flags).train.num_epochs == stated.num_epochs, (
        "None: the flag was not given"
    )


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("*.json", "*.json"),
        ("**/*.jsonl", "**/*.jsonl"),
        ("&a", "&a"),
        ("!x", "!x"),
        ("[ab]*.csv", "[ab]*.csv"),
        ("{a", "{a"),
        ("a: b # c", "a: b # c"),
        ("%d", "%d"),
        (" x ", "x"),
        ("2024", "2024"),
        ("yes", "yes"),
        ("", ""),
        ("'*.json'", "*.json"),
        (r'"a\tb"', "a\tb"),
        ("'", "'"),
        ("\"speaker\" = 's1'", "\"speaker\" = 's1'"),
        ("'a' # b", "a"),
        ("a=b", "a=b"),
    ],
)
def test_set_takes_text_as_it_is_written(given: str, value: str, params_file: Path) -> None:
    assert load_params(params_file, assignments=[f"corpus.table={given}"]).corpus.table == value
    assert load_params(params_file, assignments=[f"train.where ={given}"]).train.where == value


def test_a_preset_brings_its_sizes_and_drops_those_of_another(params_file: Path) -> None:
    changes = ["model.sizes.hidden_dim=64"]
    params_file.write_text(params_text(load_params(params_file, assignments=changes)), "utf-8")
    stated = load_params(params_file)
    assert stated.model.sizes != PRESET_SIZES[stated.model.preset]
    other = next(name for name in PRESET_SIZES if name != stated.model.preset)
    assert load_params(params_file, assignments=[f"model.preset={other}"]).model.sizes == PRESET_SIZES[other]
    same = load_params(params_file, assignments=[f"model.preset={stated.model.preset}"])
    assert same.model.sizes == stated.model.sizes
    changed = load_params(
        params_file, assignments=["model.preset=conformer_small", "model.sizes.num_encoder_layers=3"]
    )
    assert changed.model.sizes == PRESET_SIZES["conformer_small"].model_copy(update={"num_encoder_layers": 3})


@pytest.mark.parametrize(
    ("preset", "size", "has"),
    [
        ("conformer_base", "num_lstm_layers", "it has channels, blocks_per_stage"),
        ("cnn3d_bilstm_attention", "conv_kernel", "pool_grid, hidden_dim, num_lstm_layers, num_heads"),
        (None, "hiden_dim", "it has channels"),
    ],
)
def test_an_unknown_size_is_refused_with_the_sizes_of_the_preset(
    preset: str | None, size: str, has: str, params_file: Path
) -> None:
    assignments = [f"model.preset={preset}"] if preset else []
    preset = preset or load_params(params_file).model.preset
    message = rf"model\.sizes\.{size}: not a size of model\.preset {preset}; .*{has}"
    with pytest.raises(ConfigError, match=message):
        load_params(params_file, assignments=[*assignments, f"model.sizes.{size}=2"])


def test_a_saved_configuration_takes_the_sizes_of_another_preset(params_file: Path, tmp_path: Path) -> None:
    changed = load_params(params_file, assignments=["model.sizes.channels=[4, 8, 8, 12]"])
    saved = overlay(tmp_path, params_text(changed))
    assert read_mapping(saved)["model"]["sizes"] == {"channels": [4, 8, 8, 12]}
    saved.write_text(params_text(load_params(params_file)), "utf-8")
    assert read_mapping(saved)["model"]["sizes"] == {}
    edited = saved.read_text("utf-8").replace("conformer_tiny", "conformer_small")
    for file in (overlay(tmp_path, edited), params_file):
        params = load_params(file, config=saved)  # by itself, and over a file of another preset
        assert (
            params.model.sizes == PRESET_SIZES["conformer_small"] and params.model.preset == "conformer_small"
        )


def test_a_saved_configuration_brings_all_its_sizes(params_file: Path, tmp_path: Path) -> None:
    """Also if the file below it changes sizes of the same preset."""
    saved = overlay(tmp_path, params_text(load_params(params_file)))
    params_file.write_text(
        params_text(load_params(params_file, assignments=["model.sizes.hidden_dim=64"])), "utf-8"
    )
    assert load_params(params_file).model.sizes.hidden_dim == 64
    assert load_params(params_file, config=saved) == load_params(saved)


def test_a_nested_value_can_be_set(params_file: Path) -> None:
    params = load_params(
        params_file, assignments=["train.augment.shift_px=3", "model.sizes.channels=[4, 8, 8, 12]"]
    )
    assert params.train.augment.shift_px == 3.0
    assert params.train.augment.zoom_sigma == load_params(params_file).train.augment.zoom_sigma
    assert params.model.sizes.channels == (4, 8, 8, 12)


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-4", 1e-4), ("3e-3", 3e-3), ("1E5", 1e5), ("-2e3", -2e3), (".5e1", 5.0), ("2.5e-1", 0.25)],
)
def test_numbers_with_exponents_are_numbers(text: str, number: float) -> None:
    assert parse_yaml(f"value: {text}", "test") == {"value": number}
    assert isinstance(parse_yaml(f"value: {text}", "test")["value"], float)


@pytest.mark.parametrize("text", ["1e", "e4", "1e4px", "'1e-4'", "s1_bbaf2n"])
def test_text_similar_to_a_number_stays_text(text: str) -> None:
    assert isinstance(parse_yaml(f"value: {text}", "test")["value"], str)


def test_a_learning_rate_with_an_exponent_is_accepted_everywhere(params_file: Path, tmp_path: Path) -> None:
    config = overlay(tmp_path, "learning_rate: 2e-4\n")
    assert isinstance(load_params(params_file).train.learning_rate, float)
    assert load_params(params_file, config=config).train.learning_rate == 2e-4
    assert load_params(params_file, assignments=["train.learning_rate=5e-5"]).train.learning_rate == 5e-5


def test_pinyin_units_are_learnt_by_the_syllable_head_alone(params_file: Path) -> None:
    params = load_params(params_file, assignments=["text.units=pinyin"])
    assert params.train.syllable_weight == 1 and params.train.heads == ("syllables",)
    params.text.refuse_other_heads(params.train.heads)
    # a share for characters is a contradiction, which training refuses
    mixed = load_params(params_file, assignments=["text.units=pinyin", "train.syllable_weight=0.3"])
    assert mixed.train.syllable_weight == 0.3
    assert load_params(params_file).train.syllable_weight == 0
