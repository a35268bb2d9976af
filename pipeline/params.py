"""Reads, overlays and checks params.yaml as typed settings.

Precedence, lowest first: params.yaml, preset, `--config`, `--set` and flags.
"""

import copy
import difflib
import re
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from model.presets import PRESET_SIZES
from model.settings import SIZE_FAMILIES, DecodeParams, LmParams, ModelParams, TextParams, TrainParams
from pipeline.legacy_config import sections_of_older_config
from recipes import LAYOUTS, RECIPES
from shards.errors import ConfigError
from shards.pipes import refuse_pipe
from shards.safe_text import indented_lines
from shards.settings import LoaderParams, MachineParams, PackParams, Section
from stages.settings import CorpusParams, CropParams, InferenceParams, ReportParams

MAX_SHOWN = 200
"""Characters of a wrong value that a message shows."""


class PathsParams(Section):
    """Every path that the stages write, relative to the working directory; dvc.yaml uses them."""

    clips: str = "data/clips.parquet"
    crops: str = "data/crops.parquet"
    tracks: str = "data/tracks.parquet"
    shards: str = "data/shards"
    samples: str = "data/samples.parquet"
    audit: str = "data/audit.parquet"
    lm: str = "data/lm.arpa"
    sound: str = "data/sound.parquet"
    stats: str = "stats"
    checkpoints: str = "checkpoints"
    logs: str = "logs"
    runs: str = Field(
        "runs", description="state of training runs; must not be a DVC output, so that it survives a rerun"
    )
    report: str = "report"


class Params(Section):
    """params.yaml, one field for each section."""

    corpus: CorpusParams
    text: TextParams
    crop: CropParams
    pack: PackParams
    loader: LoaderParams
    model: ModelParams
    train: TrainParams
    lm: LmParams
    decode: DecodeParams
    report: ReportParams
    inference: InferenceParams
    machine: MachineParams
    paths: PathsParams

    @model_validator(mode="before")
    @classmethod
    def _pinyin_is_learnt_by_syllables(cls, values: Any) -> Any:
        """With text.units: pinyin, changes a train.syllable_weight of 0 to 1, so that one key is enough."""
        text, train = (
            values.get(name) if isinstance(values, Mapping) else None for name in ("text", "train")
        )
        if not isinstance(text, Mapping) or not isinstance(train, Mapping) or text.get("units") != "pinyin":
            return values
        return {**values, "train": {**train, "syllable_weight": train.get("syllable_weight") or 1.0}}


PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "cpu": {
        "train": {"batch_size": 2, "mixed_precision": False},
        "machine": {"num_workers": 0, "device": "cpu"},
    },
    "12gb": {"train": {"batch_size": 8, "accumulation_steps": 4}},
    "24gb": {
        "train": {"batch_size": 16, "accumulation_steps": 2},
        "model": {"frame_height": 128, "frame_width": 128},
    },
}


class _Loader(yaml.SafeLoader):
    """YAML in which 1e-4 is a number (in YAML 1.1 it is text) and a duplicate key is an error."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, int) and value.bit_length() > 64:
                raise ValueError(value.bit_length())
            return value
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            # raised by PyYAML for invalid numbers, dates, booleans and keys
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"this is not a valid {kind}; put text in quotes", node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                break  # the base class refuses it
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"duplicate key '{key}'", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9_]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


@lru_cache(16)  # a file takes 14 ms, and commands read the same files and recipes several times
def _parsed(text: str) -> Any:
    return yaml.load(text, _Loader)


def parse_yaml(text: str, name: str) -> Any:
    """Returns the YAML value of `text`; raises ConfigError with `name` and the line if it is not valid YAML."""
    try:
        return copy.deepcopy(_parsed(text))
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not valid YAML: {indented_lines(error)}") from error
    except RecursionError:
        raise ConfigError(
            f"{name} is nested too deep; a section contains keys, a key contains a value or a list"
        ) from None


def read_mapping(path: Path) -> dict[str, Any]:
    refuse_pipe(path)
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; write one with `pipeline init --recipe demo`") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must contain sections (key: value), but contains {type(value).__name__}")
    return value


def load_params(
    file: Path,
    *,
    preset: str | None = None,
    config: Path | None = None,
    assignments: Sequence[str] = (),
    flags: Mapping[str, Any] | None = None,
) -> Params:
    """Returns the effective parameters.

    `preset` names one of PRESETS, `config` a file of sections or of flat names of the older trainer,
    `assignments` are `section.key=value` (YAML, or plain text if the key is a text), `flags` maps `section.key` to a
    value (None: not given).
    Raises ConfigError with the key, the value and what is allowed.
    """
    sources = [_Source(str(file), read_mapping(file))]
    if preset is not None:
        if preset not in PRESETS:
            raise ConfigError(f"preset '{preset}' is unknown; known are {', '.join(PRESETS)}")
        sources.append(_Source(f"--preset {preset}", PRESETS[preset]))
    if config is not None:
        if not config.exists():
            raise ConfigError(f"--config: {config} is missing")
        sections = sections_of_older_config(read_mapping(config), str(config))
        sources.append(_Source(f"--config {config}", sections))
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or "." not in key:
            raise ConfigError(f"--set {assignment}: write it as section.key=value, e.g. train.batch_size=4")
        name = _cut(f"--set {assignment}")
        sources.append(_Source(name, _nested(key.strip(), _assigned(key.strip(), text.strip(), name))))
    for key, value in (flags or {}).items():
        if value is not None:
            sources.append(_Source("a flag", _nested(key, value)))
    return _check(sources)


def changed_keys(params: Params, other: Params, sections: Sequence[str]) -> dict[str, Any]:
    """Returns `section.key` → its value in `params`, for keys whose value differs in `other`."""
    values, others = params.model_dump(), other.model_dump()
    return {
        f"{name}.{key}": value
        for name in sections
        for key, value in values[name].items()
        if value != others[name][key]
    }


def check(values: Mapping[str, Any], name: str) -> Params:
    """Returns `values` as Params; raises ConfigError with every wrong key, its value and the fix."""
    return _check([_Source(name, values)])


class _Source(NamedTuple):
    """Where values come from; messages show `name`."""

    name: str
    values: Mapping[str, Any]

    def holds(self, keys: Sequence[str | int]) -> bool:
        value: Any = self.values
        for key in keys:
            if not isinstance(value, Mapping):
                break  # a list, or a value in place of a section: all of it comes from this source
            if key not in value:
                return False
            value = value[key]
        return True


def _check(sources: Sequence[_Source]) -> Params:
    """Returns the parameters of `sources`, where later sources override earlier ones; errors name their source."""
    values: dict[str, Any] = {}
    for source in sources:
        values = _overlay(values, source.values)
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        found = [(_blamed(item, sources), _explain(item, values)) for item in error.errors()]
        blamed = {name for name, _ in found}
        if len(blamed) > 1:
            raise ConfigError(
                "wrong values:" + "".join(f"\n  {name}: {line}" for name, line in found)
            ) from error
        lines = found[0][1] if len(found) == 1 else "".join(f"\n  {line}" for _, line in found)
        raise ConfigError(f"{found[0][0]}: {lines}") from error


def _blamed(item: Any, sources: Sequence[_Source]) -> str:
    """Returns the source of a wrong value; if values contradict each other, all sources above the first with them."""
    above = [source.name for source in sources[1:] if source.holds(_keys(item))]
    if not above:
        return sources[0].name
    return ", ".join(dict.fromkeys(above)) if isinstance(item["input"], Mapping) else above[-1]


def _keys(item: Any) -> list[str | int]:
    return [part for part in item["loc"] if part not in SIZE_FAMILIES]


def recipe_text(name: str) -> str:
    """Returns the params.yaml of a recipe with its comments."""
    if name not in RECIPES:
        raise ConfigError(f"recipe '{name}' is unknown; known are {', '.join(RECIPES)}")
    file = "table" if name in LAYOUTS else "demo" if name == "blend" else name
    text = (resources.files("recipes") / f"{file}.yaml").read_text("utf-8")
    if name in LAYOUTS:
        text = text.replace(text.partition("\n")[0], f"# A corpus in the layout {name} (docs/data.md).", 1)
        for key, value in {"kind": name, **LAYOUTS[name]}.items():
            line = f"  {key}: {value} ".ljust(28)
            text = re.sub(rf"^  {key}: \S+ *", line, text, count=1, flags=re.MULTILINE)
    if name == "blend":
        text = text[text.index("corpus:\n") :].replace("root: data/demo   ", "root: data/corpora", 1)
        packs = _PACK.format(name="demo_a", hash="") + _PACK.format(name="demo_b", hash="")
        packs += _PACK.format(name="grid", hash="# ")
        text = _BLEND_HEAD + re.sub(r"^  data: \[\] .*\n", _DATA + packs, text, count=1, flags=re.MULTILINE)
    return text


_BLEND_HEAD = """\
# Two corpora that `pipeline demo` draws, and a small model that trains on both; add GRID or your own (docs/data.md).
# corpora/NAME.yaml makes the pack NAME of train.data; it overrides the sections corpus and paths of this file.

"""
_DATA = "  data:                     # packs to train on together; for GRID remove the # below\n"
_PACK = """\
    {hash}- name: {name}
    {hash}  samples: data/packs/{name}/samples.parquet
    {hash}  shards: data/packs/{name}/shards
    {hash}  clips: data/packs/{name}/clips.parquet
    {hash}  crops: data/packs/{name}/crops.parquet
    {hash}  audit: data/packs/{name}/audit.parquet
    {hash}  sound: data/packs/{name}/sound.parquet
    {hash}  weight: 1
"""


def params_text(params: Params) -> str:
    """Returns the effective configuration as YAML; `load_params` reads the same values from it.

    It contains only those model.sizes that differ from the preset: after an edit of model.preset, the sizes of the new
    preset apply.
    """
    values = params.model_dump(mode="json")
    of_preset = PRESET_SIZES[params.model.preset].model_dump(mode="json")
    sizes = values["model"]["sizes"]
    values["model"]["sizes"] = {name: size for name, size in sizes.items() if size != of_preset[name]}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    if "preset" in above and ("sizes" in above or above["preset"] != below.get("preset")):
        merged.pop(
            "sizes", None
        )  # the sizes belong to another preset, or `above` gives all sizes that differ
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = (
            _overlay(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
        )
    return merged


def _nested(key: str, value: Any) -> dict[str, Any]:
    *sections, last = key.split(".")
    nested = {last: value}
    for name in reversed(sections):
        nested = {name: nested}
    return nested


def _explain(item: Any, values: Mapping[str, Any]) -> str:
    loc = _keys(item)
    key = ".".join(map(str, loc)) or "params"
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden" and loc[:2] == ["model", "sizes"]:
        preset = values["model"].get("preset", ModelParams.model_fields["preset"].default)
        known = ", ".join(PRESET_SIZES[preset].model_dump())
        return f"{key}: not a size of model.preset {preset}; it has {known}"
    if item["type"] == "tuple_type" and isinstance(item["input"], str):
        return f"{key}: {_shown(item['input'])} is not a list; write [{_cut(item['input'])}]"
    if item["type"] == "extra_forbidden":
        near = _near(loc)
        fix = "check the spelling" if near is None else f"did you mean {near}?"
        return f"{key}: no such key (value {_shown(item['input'])}); {fix}"
    if item["type"] == "missing":
        return f"{key}: is missing; `pipeline init --recipe demo` writes every key with its meaning"
    return f"{key}: {_shown(item['input'])} is not allowed: {message}"


def _shown(value: Any) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _near(keys: Sequence[str | int]) -> str | None:
    """Returns the known key that is most similar to an unknown one; None if no key is similar."""
    *sections, last = map(str, keys)
    near = difflib.get_close_matches(last, _fields_of(sections), n=1)
    return ".".join([*sections, *near]) if near else None


def _fields_of(sections: Sequence[str]) -> Mapping[str, FieldInfo]:
    """Returns the keys of a section; empty if there is none of this name."""
    model: Any = Params
    for section in sections:
        model = model.model_fields[section].annotation if section in model.model_fields else None
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            return {}
    return model.model_fields


def _assigned(key: str, text: str, name: str) -> Any:
    """Returns the value of `--set key=text`: text as it is, also * & # and :, which have a meaning in YAML."""
    *sections, last = key.split(".")
    field = _fields_of(sections).get(last)
    if field is None or field.annotation is not str:
        return parse_yaml(text, name)
    if text[:1] in ("'", '"'):
        with suppress(ConfigError):
            if isinstance(quoted := parse_yaml(text, name), str):
                return quoted
    return None if text in ("null", "~") else text
