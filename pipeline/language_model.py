"""Trains the language model from the training labels or a text file, and measures it on valid."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from model.decoders.arpa import write_arpa
from model.decoders.kneser_ney import train
from model.decoders.ngram import perplexity
from model.settings import TextParams
from model.text import describe_mark, describe_normaliser, normalise
from pipeline.params import Params
from shards.errors import ConfigError
from shards.pipes import refuse_pipe
from shards.samples import read_samples, splits_of
from shards.terms import TRAIN_SPLIT, VALID_SPLIT


def make_language_model(params: Params) -> dict[str, Any]:
    """Writes paths.lm, with what it learnt from; gives that, its n-grams by order, and its perplexity on valid."""
    text_hash = hashlib.sha256()
    samples, text_file = Path(params.paths.samples), params.lm.text_file
    if text_file:
        labels = [label for label in _labels_of(Path(text_file), params.text, text_hash.update) if label]
        normaliser: str | None = describe_normaliser(params.text)
    else:
        labels = _labels(samples, TRAIN_SPLIT)
        # labels stand there as they were made, whatever params.yaml says by now
        normaliser = describe_mark(pq.read_schema(samples).metadata, samples)
    model = train(labels, params.lm.order)
    about = {
        # its name alone: a file that is passed on need not tell where things lie on this machine
        "learnt_from": Path(text_file).name if text_file else f"{samples.name}, split {TRAIN_SPLIT}",
        "text_sha256": text_hash.hexdigest() if text_file else None,
        "normaliser": normaliser,
    }
    write_arpa(Path(params.paths.lm), model, about)
    figures: dict[str, Any] = {
        "file": params.paths.lm,
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
