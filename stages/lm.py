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

import pyarrow.parquet as pq

from model.decoding.arpa import arpa_metadata, write_arpa
from model.decoding.kneser_ney import train
from model.decoding.ngram import perplexity
from model.decoding.registry import uses_language_model
from model.settings import DecodeParams, LmParams, TextParams
from model.text import describe_normaliser, describe_stored_normaliser, normalise
from shards.enums import TRAIN_SPLIT, VALID_SPLIT
from shards.errors import ConfigError
from shards.files import sha256_of
from shards.pipes import refuse_pipe
from shards.samples import read_samples, splits_of

LOG = logging.getLogger("pipeline.lm")


def make_language_model(samples: Path, lm: Path, params: LmParams, text: TextParams) -> dict[str, Any]:
    """Writes the ARPA file `lm`; returns its source, its number of n-grams by order, and its perplexity on valid.

    Trains on `params.text_file` where it is set, otherwise on the training labels of `samples`.
    Raises ConfigError where the text file cannot be read, or is not UTF-8.
    """
    text_hash = hashlib.sha256()
    text_file = params.text_file
    if text_file:
        labels = [label for label in _labels_of(Path(text_file), text, text_hash.update) if label]
        normaliser: str | None = describe_normaliser(text)
    else:
        labels = _labels(samples, TRAIN_SPLIT)
        # from the table: params.yaml may have changed since the labels were made
        normaliser = describe_stored_normaliser(pq.read_schema(samples).metadata, samples)
    model = train(labels, params.order)
    about = {
        # only its name: a file that is shared should not name paths of this machine
        "learnt_from": Path(text_file).name if text_file else f"{samples.name}, split {TRAIN_SPLIT}",
        "text_sha256": text_hash.hexdigest() if text_file else None,
        "normaliser": normaliser,
    }
    write_arpa(lm, model, about)
    figures: dict[str, Any] = {
        "file": str(lm),
        **about,
        "sentences": len(labels),
        "characters": sum(map(len, labels)),
        "ngrams": list(model.counts),
        "valid": None,
    }
    # with a text file, clips need not be packed yet
    if samples.exists() and VALID_SPLIT in splits_of(samples):
        measured = perplexity(model, _labels(samples, VALID_SPLIT))
        figures["valid"] = {
            "sentences": measured.num_texts,
            "characters": measured.num_chars,
            "perplexity": round(measured.perplexity, 3),
            "out_of_vocabulary_rate": round(measured.num_unknown / max(measured.num_chars, 1), 6),
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
            f"valid: perplexity {valid['perplexity']:.1f} per character, including ends of sentences; "
            f"{valid['out_of_vocabulary_rate']:.2%} of {valid['characters']:,} characters are not in the model"
        )
    return "\n".join(lines)


def _labels(samples: Path, split: str) -> list[str]:
    labels: list[str] = read_samples(samples, split, ["label"])["label"].to_pylist()
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
