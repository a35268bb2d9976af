"""Tests params.yaml: every key is present, overlays have their order, every error names key and value."""

import copy
import datetime
import functools
import math
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from model.presets import PRESET_SIZES
from pipeline.legacy_config import OLDER_NAMES, SECTIONS
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

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params_file(tmp_path: Path) -> Path:
    file = tmp_path / "params.yaml"
    file.write_text(recipe_text("demo"), "utf-8")
    return file


def overlay(folder: Path, text: str) -> Path:
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


def file_keys(values: dict[str, Any], prefix: str = "") -> set[str]:
    keys: set[str] = set()
    for name, value in values.items():
        # model.sizes contains what differs from the preset, and may be empty
        is_section = isinstance(value, dict) and prefix + name != "model.sizes"
        keys |= file_keys(value, f"{prefix}{name}.") if is_section else {prefix + name}
    return keys


def value_at(params: Params, key: str) -> Any:
    value: Any = params
    for name in key.split("."):
        value = getattr(value, name)
    return value


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


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.batch_sise=4", ("train.batch_sise", "4")),
        ("trian.batch_size=4", ("trian",)),
        ("train.batch_size=0", ("train.batch_size", "0", "1")),
        ("train.batch_size=many", ("train.batch_size", "many")),
        ("train.scheduler=linear", ("train.scheduler", "linear", "cosine")),
        ("model.sizes.channels=[1, 2]", ("model.sizes.channels",)),
        ("model.sizes.channels=[0, 8, 8, 8]", ("model.sizes.channels", "0", "1")),
        ("model.sizes.num_heads=3", ("model.sizes", "num_heads 3", "must divide hidden_dim")),
        ("corpus.kind=lrs3", ("corpus.kind", "lrs3", "grid")),
        ("corpus.root=null", ("corpus.root", "None")),
        ("train.augment.flips=true", ("train.augment.flips",)),
        ("train.freeze=frontend", ("train.freeze", "'frontend' is not a list", "write [frontend]")),
        ("train.freeze=frontend, encoder", ("write [frontend, encoder]",)),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(
    assignment: str, message: tuple[str, ...], params_file: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_params(params_file, assignments=[assignment])
    for part in message:
        assert part in str(caught.value)


def test_an_input_that_leaves_the_resnet_one_pixel_is_refused(params_file: Path) -> None:
    smallest = ["model.frame_height=16", "model.frame_width=16"]
    with pytest.raises(
        ConfigError, match=r"not both be 16 with conformer_tiny, .* set one of them to 17 or more"
    ):
        load_params(params_file, assignments=smallest)
    load_params(params_file, assignments=[smallest[0], "model.frame_width=17"])
    load_params(params_file, assignments=[*smallest, "model.preset=cnn3d_bilstm_attention"])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "corpus.kidn=grid",
            r"^--set corpus\.kidn=grid: corpus\.kidn: no such key.*did you mean corpus\.kind\?",
        ),
        ("trian.batch_size=4", r"^--set .*: trian: no such key.*did you mean train\?"),
        ("train.augment.flips=true", r"did you mean train\.augment\.flip\?"),
        ("crop.zzzzzz=1", r"crop\.zzzzzz: no such key \(value 1\); check the spelling"),
        ("crop.size_px=1", r"^--set crop\.size_px=1: crop\.size_px: 1 is not allowed"),
        ("model.sizes.num_heads=3", r"^--set model\.sizes\.num_heads=3: model\.sizes"),
    ],
)
def test_an_error_of_set_names_set_and_a_similar_key(
    assignment: str, message: str, params_file: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_params(params_file, assignments=["train.batch_size=4", assignment])


def test_an_error_of_the_file_names_the_file(params_file: Path, tmp_path: Path) -> None:
    text = params_file.read_text("utf-8")
    params_file.write_text(text.replace("  size_px: 96", "  size_xp: 96"), "utf-8")
    with pytest.raises(ConfigError, match=r"params\.yaml: crop\.size_xp: no such key.*mean crop\.size_px\?"):
        load_params(params_file, assignments=["train.batch_size=4"])
    params_file.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=r"--config .*config\.yaml: crop\.size_px: 1 is not"):
        load_params(params_file, config=overlay(tmp_path, "crop:\n  size_px: 1\n"))
    with pytest.raises(ConfigError, match=r"flag.*: train\.num_epochs: 0 is not allowed"):
        load_params(params_file, flags={"train.num_epochs": 0})


@pytest.mark.parametrize("assignment", ["batch_size=4", "train.batch_size", "=4", "train.batch_size: 4"])
def test_an_assignment_in_a_wrong_form_is_refused(assignment: str, params_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        load_params(params_file, assignments=[assignment])


def test_all_wrong_keys_are_in_one_message(params_file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_params(params_file, assignments=["train.batch_size=0", "crop.size_px=1"])
    assert "train.batch_size" in str(caught.value)
    assert "crop.size_px" in str(caught.value)


def test_a_missing_key_is_named(params_file: Path) -> None:
    text = params_file.read_text("utf-8").replace("  root: data/demo ", "  # ")
    params_file.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=r"corpus\.root: is missing"):
        load_params(params_file)


def test_a_duplicate_key_is_refused(params_file: Path) -> None:
    params_file.write_text(params_file.read_text("utf-8") + "\npack:\n  codec: raw\n", "utf-8")
    with pytest.raises(ConfigError, match="duplicate key 'pack'"):
        load_params(params_file)


@pytest.mark.parametrize("text", ["- 1\n", "", "a: [1\n", "a: !!python/object:os.system {}\n"])
def test_a_file_without_sections_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        read_mapping(overlay(tmp_path, text))


def test_a_missing_file_names_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pipeline init"):
        load_params(tmp_path / "params.yaml")


def test_an_unknown_preset_and_recipe_list_the_known(params_file: Path) -> None:
    with pytest.raises(ConfigError, match="12gb"):
        load_params(params_file, preset="48gb")
    with pytest.raises(ConfigError, match="chinese_lips"):
        recipe_text("lrs3")


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


@pytest.mark.parametrize("text", ["train: 5\n", "train:\n", "train: [1]\n"])
def test_a_section_that_is_not_a_mapping_is_refused(text: str, params_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train"):
        load_params(params_file, config=overlay(tmp_path, text))


@pytest.mark.parametrize("spelling", ["--data_root", "--data-root"])
def test_both_spellings_of_a_flag_are_accepted(spelling: str, params_file: Path) -> None:
    pipeline = str(Path(sysconfig.get_path("scripts")) / "pipeline")
    command = [pipeline, "ingest", "--params", str(params_file), f"{spelling}=nowhere/at_all"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=params_file.parent, check=False)
    assert done.returncode == 1, done.stderr
    assert "nowhere/at_all" in done.stderr, "the value's own underscores stay"


def test_a_configuration_error_is_exit_code_2_and_no_traceback(params_file: Path) -> None:
    pipeline = str(Path(sysconfig.get_path("scripts")) / "pipeline")
    command = [pipeline, "ingest", "--params", str(params_file), "--set", "crop.size_px=1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=params_file.parent, check=False)
    assert done.returncode == 2
    assert "crop.size_px: 1 is not allowed" in done.stderr
    assert "Traceback" not in done.stderr


HOSTILE_VALUES: list[Any] = [
    "a\0b", b"a\0b", "\ud800", "x" * 10_000, 2**63, 2**64, -(2**70), 10**400, 1e308, float("inf"), -float("inf"),
    float("nan"), -1, None, [], {}, [[1]], ["a\0b"], [float("nan")], {"a": 1}, {1: 2}, datetime.date(2024, 1, 1),
]  # fmt: skip


def every_key(values: dict[str, Any], prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, value in values.items():
        yield (*prefix, name)
        if isinstance(value, dict):
            yield from every_key(value, (*prefix, name))


def plain(values: Any) -> Iterator[Any]:
    for value in values.values() if isinstance(values, dict) else values:
        if isinstance(value, dict | list | tuple):
            yield from plain(value)
        else:
            yield value


def test_every_key_accepts_or_refuses_hostile_values() -> None:
    """Accepted values work in every file system, table and random generator; others get a short message."""
    values = check(parse_yaml(recipe_text("demo"), "demo"), "demo").model_dump(mode="json")
    for keys in every_key(values):
        for hostile in HOSTILE_VALUES:
            changed = copy.deepcopy(values)
            section = functools.reduce(dict.__getitem__, keys[:-1], changed)
            section[keys[-1]] = hostile
            try:
                taken = check(changed, "p.yaml").model_dump()
            except ConfigError as error:
                assert keys[0] in str(error) and len(str(error)) < 2_000, (keys, hostile)
                continue
            for value in plain(taken):
                if isinstance(value, str):
                    assert "\0" not in value and value.encode() is not None, (keys, hostile)
                elif isinstance(value, int | float):
                    assert abs(value) < 2**63 or (isinstance(value, float) and math.isfinite(value)), (
                        keys,
                        hostile,
                    )


@pytest.mark.parametrize(
    "text",
    [
        "2024-13-45", "!!int x", "!!int", "9" * 5_000, "0x" + "f" * 5_000, "!!float x", "!!bool x", "!!timestamp x",
        "!!binary é", "!!set [a]", "!!pairs x", "!!omap x", "!!map x", "!!seq x", "? [1]\n: 2", "{[1]: 2}",
        "[" * 1_000, "{a: " * 1_000, "- " * 1_000 + "1", "!!python/object:os.system x", "<<: 5", "{a: *b}", "&a *a",
        "\0", "\x1b",
    ],
)  # fmt: skip
def test_an_invalid_yaml_value_is_refused_with_its_place(text: str, params_file: Path) -> None:
    for written in (text, f"a: {text}", f"a: [{text}]"):
        try:
            parse_yaml(written, "p.yaml")
        except ConfigError as error:
            assert str(error).startswith("p.yaml")
    with pytest.raises(ConfigError, match=r"--set corpus\.root") as caught:
        load_params(params_file, assignments=[f"corpus.root={text}"])
    assert len(str(caught.value)) < 1_000


def test_a_recursive_value_is_refused(params_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"corpus\.root"):
        load_params(params_file, assignments=["corpus.root=&a [*a]"])
