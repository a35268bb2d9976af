"""Trains the language model from the training labels or a text file, and measures it on valid.

Also checks whether the language model was made from the text that params.yaml names. DVC does not check this, since a
dependency cannot be empty.

The first line of the model's file names its text and its normaliser (model/decoding/arpa.py). Decoding compares that
normaliser with its own when it opens the file.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from model.decoding.arpa import arpa_metadata, write_arpa
from model.decoding.kneser_ney import train
from model.decoding.ngram import perplexity
from model.decoding.registry import uses_language_model
from model.settings import DecodeParams, LmParams, TextParams
from model.text import describe_normaliser, normalise
from model.units import CHARACTERS, Splitting
from shards.enums import TRAIN_SPLIT, VALID_SPLIT
from shards.errors import ConfigError
from shards.files import sha256_of
from shards.packs import Packs
from shards.pipes import refuse_pipe
from stages.reports.clip_tables import normaliser_of

LOG = logging.getLogger("pipeline.lm")


def make_language_model(packs: Packs, lm: Path, params: LmParams, text: TextParams) -> dict[str, Any]:
    """Writes the ARPA file `lm`; returns its source, its number of n-grams by order, and its perplexity on valid.

    Trains on `params.text_file` where it is set, otherwise on the training labels of `packs`. Its words are the
    units of `text`; those of bpe are learnt from the training labels, as training learns them.
    Raises ConfigError where the text file cannot be read, or is not UTF-8.
    """
    tables = [pack.samples for pack in packs.packs]
    missing = [table for table in tables if not table.exists()]
    if text.units == "bpe" and missing:
        raise ConfigError(
            f"text.units: bpe learns its units from packed clips, but {missing[0]} is missing; run `pipeline pack`"
        )
    splitting = Splitting.learnt(text, _labels(packs, TRAIN_SPLIT) if text.units == "bpe" else ())
    text_hash = hashlib.sha256()
    text_file = params.text_file
    if text_file:
        labels = [label for label in _labels_of(Path(text_file), text, text_hash.update) if label]
        normaliser: str | None = describe_normaliser(text)
    else:
        labels = _labels(packs, TRAIN_SPLIT)
        # from the tables: params.yaml may have changed since the labels were made
        normaliser = normaliser_of(packs)
    model = train(_units(labels, splitting), params.order)
    about = {
        "learnt_from": Path(text_file).name if text_file else f"{_named(packs)}, split {TRAIN_SPLIT}",
        "text_sha256": text_hash.hexdigest() if text_file else None,
        "normaliser": normaliser,
    }
    about |= {"units": str(splitting)} if splitting != CHARACTERS else {}
    write_arpa(lm, model, about)
    figures: dict[str, Any] = {
        "file": str(lm),
        **about,
        "sentences": len(labels),
        "characters": sum(map(len, labels)),
        "unit": splitting.plural,
        "ngrams": list(model.counts),
        "valid": None,
    }
    # with a text file, clips need not be packed yet
    if not missing and VALID_SPLIT in packs.splits:
        valid = _labels(packs, VALID_SPLIT)
        measured = perplexity(model, _units(valid, splitting))
        figures["valid"] = {
            "sentences": measured.num_texts,
            "characters": sum(map(len, valid)),
            "units": measured.num_units,
            "perplexity": round(measured.perplexity, 3),
            "out_of_vocabulary_rate": round(measured.num_unknown / max(measured.num_units, 1), 6),
        }
    return figures


def summary_of(figures: dict[str, Any]) -> str:
    counts = ", ".join(
        f"{count:,} of order {order}" for order, count in enumerate(figures["ngrams"], start=1)
    )
    lines = [
        f"{figures['file']}: {figures['sentences']:,} sentences, {figures['characters']:,} characters "
        f"({figures['learnt_from']})",
        f"n-grams: {counts}",
    ]
    if valid := figures["valid"]:
        lines.append(
            f"valid: perplexity {valid['perplexity']:.1f} per {figures['unit'].removesuffix('s')}, including ends of "
            f"sentences; {valid['out_of_vocabulary_rate']:.2%} of {valid['units']:,} {figures['unit']} are not in the "
            "model"
        )
    return "\n".join(lines)


def _units(labels: Sequence[str], splitting: Splitting) -> Sequence[Sequence[str]]:
    return labels if splitting == CHARACTERS else [splitting.split(label) for label in labels]


def _named(packs: Packs) -> str:
    # only names: a file that is shared should not name paths of this machine
    return ", ".join(pack.name for pack in packs.packs) if packs.is_blend else packs.packs[0].samples.name


def _labels(packs: Packs, split: str) -> list[str]:
    labels: list[str] = packs.read(split, ["label"])["label"].to_pylist()
    return labels


def _labels_of(file: Path, params: TextParams, on_line: Callable[[bytes], None]) -> Iterator[str]:
    """Yields the lines of a UTF-8 file, normalised as transcripts are; calls `on_line` with the bytes of each line."""
    number = 0
    refuse_pipe(file)
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                on_line(line)
                yield normalise(line.decode("utf-8-sig" if number == 1 else "utf-8"), params)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"lm.text_file: {file}, line {number} is not UTF-8 text ({error.reason}); convert the file to UTF-8"
        ) from error
    except OSError as error:
        raise ConfigError(f"lm.text_file: {file} cannot be read: {error}") from error


def warn_of_other_text(
    lm: Path, params: LmParams, decode: DecodeParams, decoders: Sequence[str] = ()
) -> None:
    """Logs a warning where a decoder (`decode.decoder` by default) uses a language model made from another text."""
    names = decoders or (decode.decoder,)
    # auto is greedy
    if any(name != "auto" and uses_language_model(name, decode) for name in names) and (
        warning := other_text_warning(lm, params.text_file)
    ):
        LOG.warning(warning)


def other_text_warning(lm: Path, text: str) -> str | None:
    """Returns a warning where `lm` was not made from lm.text_file (`text`) as it is now; else, or if unknown, None."""
    about = arpa_metadata(lm)
    if not text or about is None:
        return None
    learnt_from, fix = about.get("learnt_from"), "run `dvc repro -f lm`, or `pipeline lm`"
    if not Path(text).is_file():
        missing = f"lm.text_file: {text} is missing; {lm} was made from {learnt_from}"
        return f"{missing}: restore it, or set lm.text_file to another file and {fix}"
    if sha256_of(Path(text)) == about.get("text_sha256"):
        return None
    if Path(text).name == learnt_from:
        return f"{text} has changed since {lm} was made from it: {fix}"
    return f"{lm} was made from another text ({learnt_from}) than lm.text_file, {text}: {fix}"
