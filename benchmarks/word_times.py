"""`python -m benchmarks.word_times`: borders of words by the CTC head, against the alignments of GRID.

The labels of a split are aligned to their clips, by the best path and by evidence (model/decoding/alignment.py).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from rich.console import Console

from benchmarks.options import folder_argument, print_progress, run
from benchmarks.tables import figures_table
from benchmarks.versions import machine_facts
from model.decoding.reader import LipReader
from model.decoding.result import Reading, TimedCharacter
from model.settings import DecodeParams
from pipeline.params import load_params
from pipeline.training_job import packs_of
from shards.errors import ConfigError
from shards.files import write_json
from shards.sample_reader import read_sample
from stages.corpora.timed import Utterance, parse_timed

KINDS = ("path", "evidence")
GOAL_FRAMES = 2.0


@dataclass(frozen=True)
class TimesOfKind:
    """Errors are of the starts and ends of all words together, frames."""

    median_error: float
    p90_error: float
    bias: float
    seconds_per_clip: float


@dataclass(frozen=True)
class WordTimesBench:
    machine: dict[str, str]
    num_clips: int
    num_words: int
    kinds: dict[str, TimesOfKind]


def bench_word_times(
    params: Path,
    checkpoint: Path,
    align: Path,
    split: str,
    num_clips: int | None,
    progress: Callable[[str], None],
) -> WordTimesBench:
    """Aligns the labels of a split's clips, the first `num_clips` of them.

    Raises ConfigError if a word of a label is not in the clip's alignment.
    """
    values = load_params(params)
    packs = packs_of(values)
    reader = LipReader.from_checkpoint(checkpoint, torch.device("cpu"))
    records = packs.read(split).to_pylist()[:num_clips]
    errors: dict[str, list[float]] = {kind: [] for kind in KINDS}
    seconds = dict.fromkeys(KINDS, 0.0)
    num_words = 0
    for number, record in enumerate(records, start=1):
        clip_THW, _ = read_sample(packs.store, record)
        spoken = _spoken(align, record["clip_id"], record["label"])
        num_words += len(spoken)
        for kind in KINDS:
            start = time.perf_counter()
            characters = _label_characters(reader, clip_THW, record["label"], kind == "evidence")
            seconds[kind] += time.perf_counter() - start
            errors[kind] += _errors(characters, spoken, reader.fps)
        progress(f"{number} of {len(records)} clips")
    kinds = {
        kind: TimesOfKind(
            float(np.median(np.abs(of_kind))),
            float(np.quantile(np.abs(of_kind), 0.9)),
            float(np.median(of_kind)),
            seconds[kind] / len(records),
        )
        for kind, of_kind in errors.items()
    }
    return WordTimesBench(machine_facts(("torch", "numpy")), len(records), num_words, kinds)


@torch.no_grad()
def _label_characters(
    reader: LipReader, clip_THW: np.ndarray, label: str, by_evidence: bool
) -> Sequence[TimedCharacter]:
    video_BTHW, num_frames_B = torch.from_numpy(clip_THW.copy())[None], torch.tensor([len(clip_THW)])
    encoded_BSE, num_steps_B = reader.encode(video_BTHW, num_frames_B)
    params = DecodeParams(decoder="ctc")
    masked = reader.masked_log_probs(clip_THW, params) if by_evidence else ()
    (reading,) = reader.timed([Reading(label, 0.0)], encoded_BSE, num_steps_B, num_frames_B, params, masked)
    if not reading.characters:
        raise ConfigError(f"the label {label!r} cannot be aligned: the model needs a CTC head and more steps")
    return reading.characters


def _spoken(align: Path, clip_id: str, label: str) -> list[Utterance]:
    speaker, _, name = clip_id.partition("_")
    path = align / speaker / f"{name}.align"
    words = parse_timed(path.name, path.read_bytes())
    if [word.text for word in words] != label.split():
        raise ConfigError(f"{path} has other words than the label {label!r}")
    return words


def _errors(characters: Sequence[TimedCharacter], spoken: Sequence[Utterance], fps: float) -> list[float]:
    """Returns our borders minus those of the alignment, frames."""
    found, place = [], 0
    for word in spoken:
        first, last = characters[place], characters[place + len(word.text) - 1]
        found += [(first.start_s - word.start_s) * fps, (last.end_s - word.end_s) * fps]
        place += len(word.text) + 1
    return found


def print_bench(result: WordTimesBench, console: Console) -> None:
    table = figures_table(
        f"Borders of {result.num_words} words of {result.num_clips} clips, frames",
        *("", "median error", "90 % below", "bias", "s a clip"),
    )
    for kind, of_kind in result.kinds.items():
        errors = (of_kind.median_error, of_kind.p90_error, of_kind.bias)
        table.add_row(kind, *(f"{error:.2f}" for error in errors), f"{of_kind.seconds_per_clip:.2f}")
    console.print(table)
    reached = result.kinds["evidence"].median_error <= GOAL_FRAMES
    console.print(f"goal: median error of {GOAL_FRAMES:g} frames, {'reached' if reached else 'missed'}")


def command(
    params: Annotated[Path, typer.Argument(help="params.yaml of a project with a pack of GRID", exists=True)],
    checkpoint: Annotated[Path, typer.Argument(help="a model of GRID with a CTC head", exists=True)],
    align: Annotated[Path, folder_argument("ALIGN", "folder align/ of GRID")],
    split: Annotated[str, typer.Option(help="split whose clips are aligned")] = "test",
    clips: Annotated[int | None, typer.Option(min=1, help="clips; default: all")] = None,
    out: Annotated[Path | None, typer.Option(help="file for the figures as JSON", metavar="FILE")] = None,
) -> None:
    """Align the labels of GRID's clips, and compare the borders of words with GRID's alignments.

    Example: python -m benchmarks.word_times params.yaml checkpoints/best_model.pt grid/align
    """
    from pipeline.console import stdout

    result = bench_word_times(params, checkpoint, align, split, clips, print_progress)
    print_bench(result, stdout)
    if out:
        write_json(out, asdict(result))


if __name__ == "__main__":
    run(command)
