"""Trains the language model from the training labels or a text file, and measures it on valid.

Whether the language model is of the text that params.yaml names, which DVC does not watch: a dep cannot be empty.

What it was made from stands in the first line of its file (model/decoders/arpa.py); so does its normaliser, which a
reader compares with its own when it opens the file.
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

    It learns from `params.text_file` where there is one, otherwise from the training labels of `samples`.
    Raises ConfigError where the text file cannot be read, or is not UTF-8.
    """
    text_hash = hashlib.sha256()
    text_file = params.text_file
    if text_file:
        labels = [label for label in _labels_of(Path(text_file), text, text_hash.update) if label]
        normaliser: str | None = describe_normaliser(text)
    else:
        labels = _labels(samples, TRAIN_SPLIT)
        # labels stand there as they were made, whatever params.yaml says by now
        normaliser = describe_stored_normaliser(pq.read_schema(samples).metadata, samples)
    model = train(labels, params.order)
    about = {
        # its name alone: a file that is passed on need not tell where things lie on this machine
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
        foreseen = perplexity(model, _labels(samples, VALID_SPLIT))
        figures["valid"] = {
            "sentences": foreseen.num_texts,
            "characters": foreseen.num_chars,
            "perplexity": round(foreseen.perplexity, 3),
            "out_of_vocabulary_rate": round(foreseen.num_unknown / max(foreseen.num_chars, 1), 6),
        }
    return figures


def told(figures: dict[str, Any]) -> str:
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
            f"valid: perplexity {valid['perplexity']:.1f} a character, ends of sentences included; "
            f"{valid['out_of_vocabulary_rate']:.2%} of {valid['characters']:,} characters are unknown to it"
        )
    return "\n".join(lines)


def _labels(samples: Path, split: str) -> list[str]:
    labels: list[str] = read_samples(samples, split, ["label"])["label"].to_pylist()
    return labels


def _labels_of(file: Path, params: TextParams, on_line: Callable[[bytes], None]) -> Iterator[str]:
    """The lines of a UTF-8 file, normalised as transcripts are; `on_line` is given each as it stands there."""
    number = 0
    refuse_pipe(file)
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                on_line(line)
                yield normalise(line.decode("utf-8-sig" if number == 1 else "utf-8"), params)
    except UnicodeDecodeError as error:
        raise ConfigError(f"lm.text_file: {file}, line {number} is no UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise ConfigError(f"lm.text_file: {file} cannot be read: {error}") from error


def warn_of_other_text(lm: Path, text_file: str, decode: DecodeParams, decoders: Sequence[str] = ()) -> None:
    """Logs a warning where a decoder (`decode.decoder` by default) uses a language model of another text."""
    names = decoders or (decode.decoder,)
    # auto is greedy
    if any(name != "auto" and uses_language_model(name, decode) for name in names) and (
        warning := other_text_warning(lm, text_file)
    ):
        LOG.warning(warning)


def other_text_warning(lm: Path, text: str) -> str | None:
    """The warning where `lm` was not made from lm.text_file (`text`) as it is now; None where that is not known."""
    about = arpa_metadata(lm)
    if not text or about is None:
        return None
    learnt_from, mend = about.get("learnt_from"), "run `dvc repro -f lm`, or `pipeline lm`"
    if not Path(text).is_file():
        there = f"lm.text_file: {text} is not there; {lm} was made from {learnt_from}"
        return f"{there}: put it back, or name another and {mend}"
    if sha256_of(Path(text)) == about.get("text_sha256"):
        return None
    if Path(text).name == learnt_from:
        return f"{text} has changed since {lm} was made from it: {mend}"
    return f"{lm} was made from another text ({learnt_from}) than lm.text_file, {text}: {mend}"
