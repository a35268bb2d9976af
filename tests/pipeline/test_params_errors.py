"""Tests errors of params.yaml and of assignments: each names its key, its value and its place."""

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

from pipeline.params import check, load_params, parse_yaml, read_mapping, recipe_text
from shards.errors import ConfigError
from tests.support.params_files import overlay, params_file_fixture  # noqa: F401


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
        ("corpus.kind=lrw", ("corpus.kind", "lrw", "grid")),
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
        recipe_text("lrw")


@pytest.mark.parametrize("text", ["train: 5\n", "train:\n", "train: [1]\n"])
def test_a_section_that_is_not_a_mapping_is_refused(text: str, params_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train"):
        load_params(params_file, config=overlay(tmp_path, text))


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
    with pytest.raises(ConfigError, match=r"--set train\.heads") as caught:
        load_params(params_file, assignments=[f"train.heads={text}"])
    assert len(str(caught.value)) < 1_000


def test_a_recursive_value_is_refused(params_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.heads"):
        load_params(params_file, assignments=["train.heads=&a [*a]"])
