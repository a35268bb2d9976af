"""The decoders, and the heads and settings that each uses. Imports no torch, since exported models use it too."""

from collections.abc import Collection, Mapping
from typing import Any

from model.settings import DecodeParams, Head
from shards.errors import ConfigError

HEADS_OF_DECODER: Mapping[str, tuple[Head, ...]] = {
    "attention": ("decoder",),
    "ctc": ("ctc",),
    "syllables": ("syllables",),
    "ctc_beam": ("ctc",),
    "attention_beam": ("decoder",),
    "joint_beam": ("decoder", "ctc"),
    "pinyin": ("syllables",),
}
GREEDY = ("attention", "ctc", "syllables")
"""In the order in which decode.decoder=auto chooses."""


def learnt_decoders(heads: Collection[Head]) -> list[str]:
    """Returns the decoders for a model with these heads, greedy ones first."""
    return [name for name, wanted in HEADS_OF_DECODER.items() if set(wanted) <= set(heads)]


def uses_language_model(name: str, params: DecodeParams) -> bool:
    """Returns whether this decoder uses a language model."""
    return name not in GREEDY and params.lm_weight > 0


def uses_syllable_head(name: str, params: DecodeParams, heads: Collection[Head]) -> bool:
    """Returns whether this decoder weighs characters by the syllable head; decoder pinyin always uses that head."""
    is_weighed = name not in (*GREEDY, "pinyin") and params.syllable_weight > 0
    return is_weighed and "syllables" in heads


def used_settings(name: str, params: DecodeParams, heads: Collection[Head]) -> dict[str, Any]:
    """Returns the decoder's name and the settings of `params` that it uses."""
    settings: dict[str, Any] = {"decoder": name}
    if name not in GREEDY:
        settings |= {"beam": params.beam, "length_bonus": params.length_bonus}
    if name == "joint_beam":
        settings["ctc_share"] = params.ctc_share
    if uses_language_model(name, params):
        settings["lm_weight"] = params.lm_weight
    if uses_syllable_head(name, params, heads):
        settings["syllable_weight"] = params.syllable_weight
    if "decoder" in HEADS_OF_DECODER[name]:
        settings["max_chars_per_s"] = params.max_chars_per_s
    return settings


def describe_settings(settings: Mapping[str, Any]) -> str:
    """Returns the settings of a reader (`used_settings`, and fusion and views) as one line of text."""
    name = settings["decoder"]
    first = f"{name}, greedy" if name in GREEDY and "fusion" not in settings else str(name)
    written = {
        key: str(value) if key == "fusion" else " ".join(value) if key == "views" else f"{value:g}"
        for key, value in settings.items()
        if key != "decoder"
    }
    return ", ".join([first, *(f"{key} {value}" for key, value in written.items())])


def unused_weights(params: DecodeParams, heads: Collection[Head]) -> str | None:
    """Returns a warning if weights of beam searches are set that the chosen decoder does not use."""
    name = chosen_decoder(params, heads)
    weights = ("lm_weight", "syllable_weight", "length_bonus")
    unused = [
        key for key in weights if getattr(params, key) and key not in used_settings(name, params, heads)
    ]
    if not unused:
        return None
    warning = " and ".join(f"decode.{key}" for key in unused)
    warning += " changes nothing" if len(unused) == 1 else " change nothing"
    if name in GREEDY:
        beams = ", ".join(beam for beam in learnt_decoders(heads) if beam not in GREEDY)
        return f"{warning}: {name} is greedy; set decode.decoder to a beam search ({beams})"
    why = "pinyin reads only by that head" if name == "pinyin" else "this model has no syllable head"
    return f"{warning}: {why}"


def chosen_decoder(params: DecodeParams, heads: Collection[Head]) -> str:
    """Returns the decoder of `params`; auto is the first greedy one for these heads.

    Raises ConfigError if a model with these heads cannot use it, or if decoder pinyin has decode.lm_weight 0.
    """
    learnt, name = learnt_decoders(heads), params.decoder
    if name == "auto":
        return next(name for name in GREEDY if name in learnt)
    if name not in learnt:
        raise ConfigError(f"decode.decoder: this model has not learnt {name}; set it to {', '.join(learnt)}")
    if name == "pinyin" and params.lm_weight == 0:
        raise ConfigError(
            "decode.lm_weight must be above 0, since decoder pinyin chooses characters by the language model"
        )
    return name


def ready_decoder(params: DecodeParams, heads: Collection[Head], has_language_model: bool) -> str:
    """Returns `chosen_decoder`. Also raises ConfigError if it uses a language model and the reader has none."""
    name = chosen_decoder(params, heads)
    if not has_language_model and uses_language_model(name, params):
        raise ConfigError(
            f"decode.lm_weight is {params.lm_weight:g}, but {name} has no language model: run `pipeline lm` "
            "to make one, or set decode.lm_weight=0"
        )
    return name
