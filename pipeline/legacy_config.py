"""Maps the flat names of the older trainer to sections of params.yaml."""

from collections.abc import Mapping
from typing import Any

from shards.errors import ConfigError

OLDER_NAMES: Mapping[str, tuple[str, ...]] = {
    "data_root": ("corpus.root",),
    "batch_size": ("train.batch_size",),
    "accumulation_steps": ("train.accumulation_steps",),
    "learning_rate": ("train.learning_rate",),
    "weight_decay": ("train.weight_decay",),
    "num_epochs": ("train.num_epochs",),
    "warmup_epochs": ("train.warmup_epochs",),
    "scheduler": ("train.scheduler",),
    "gradient_clip": ("train.gradient_clip",),
    "label_smoothing": ("train.label_smoothing",),
    "mixed_precision": ("train.mixed_precision",),
    "teacher_forcing": ("train.teacher_forcing",),
    "teacher_forcing_ratio": ("train.teacher_forcing",),
    "max_frames": ("crop.max_frames",),
    "frame_size": ("model.frame_height", "model.frame_width"),
    "frame_height": ("model.frame_height",),
    "frame_width": ("model.frame_width",),
    "fps": ("crop.target_fps",),
    "num_workers": ("machine.num_workers",),
    "prefetch_factor": ("machine.prefetch",),
    "device": ("machine.device",),
    "hidden_dim": ("model.sizes.hidden_dim",),
    "num_lstm_layers": ("model.sizes.num_lstm_layers",),
    "dropout": ("model.dropout",),
    "checkpoint_dir": ("paths.checkpoints",),
}

SECTIONS = frozenset(
    [
        "corpus",
        "text",
        "crop",
        "pack",
        "loader",
        "model",
        "train",
        "lm",
        "decode",
        "report",
        "inference",
        "machine",
        "paths",
    ]
)


def sections_of_older_config(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns `values` with each flat name of the older trainer moved to its section; sections stay unchanged.

    Raises ConfigError for a key that is neither.
    """
    mapped: dict[str, Any] = {}
    for key, value in values.items():
        if key in SECTIONS:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{name}: section '{key}' must contain keys with values (got {value!r})")
            mapped[key] = {**value, **mapped.get(key, {})}
            continue
        if key not in OLDER_NAMES:
            raise ConfigError(
                f"{name}: '{key}' is neither a section ({', '.join(sorted(SECTIONS))}) "
                f"nor a name of the older trainer ({', '.join(OLDER_NAMES)})"
            )
        for target in OLDER_NAMES[key]:
            *sections, field = target.split(".")
            inner = mapped
            for section in sections:
                inner = inner.setdefault(section, {})
            inner[field] = _older_value(key, value)
    return mapped


def keys_of_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `section.key` → value for flags with names of the older trainer that were given (are not None).

    frame_height and frame_width override frame_size.
    """
    keys: dict[str, Any] = {}
    for name, targets in OLDER_NAMES.items():
        if (value := flags.get(name)) is not None:
            keys |= dict.fromkeys(targets, _older_value(name, value))
    return keys


def _older_value(key: str, value: Any) -> Any:
    if key == "scheduler" and isinstance(value, str) and value.startswith("cosine"):
        return "cosine"  # the older trainer wrote "cosine annealing"
    return value
