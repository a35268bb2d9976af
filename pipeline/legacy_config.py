"""The flat names of the trainer this replaces, mapped to the sections that own them now."""

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
    """`values` with each flat older name moved to its section; sections stay as they are.

    Raises ConfigError for a name that is neither.
    """
    mapped: dict[str, Any] = {}
    for key, value in values.items():
        if key in SECTIONS:
            if not isinstance(value, Mapping):
                raise ConfigError(f"{name}: section '{key}' must hold keys and values, it holds {value!r}")
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
    """`section.key` to value for the flags that were given (are not None), spelled as older names.

    A side of the frame wins over the size of both.
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
