"""`python -m benchmarks.sound`: plants offsets between sound and picture of clips that a model has not seen.

Measures how many `pipeline sync`'s referee finds, and how well its agreement tells a clip's own sound from the sound of
another clip. Trains the model with sound first, unless one is given; the same command continues the training.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import torch
import typer
from rich.console import Console

from benchmarks.options import print_progress, run
from benchmarks.tables import figures_table
from benchmarks.versions import machine_facts
from model.decoding.sound_offset import SoundReferee
from model.device import choose_device
from model.training.training_data import TrainingJob
from pipeline.params import load_params
from pipeline.training_job import job_of
from shards.errors import ConfigError
from shards.files import write_json
from shards.packs import Packs
from shards.plan import plan_scoring
from shards.stream import ClipBatch, ShardStream
from stages.sync import BATCH
from stages.train import train

FARTHEST = 10
"""Largest planted offset, frames."""
SILENCE = float(np.float16(np.log(1e-10)))
"""Log-mel value of no sound, which comes in where a shifted sound ends."""


@dataclass(frozen=True)
class SoundBench:
    num_clips: int
    within_1_frame: float
    """Share of the clips whose planted offset was found within one frame."""
    exact: float
    errors: dict[str, list[int]]
    """Planted offset → errors of its clips, frames."""
    own_sound_wins: float
    """Share of the pairs of a clip with its own and with another clip's sound in which its own agrees more."""


def shifted(batch: ClipBatch, late_B: Sequence[int]) -> ClipBatch:
    """Returns the batch with the sound of each clip `late_B` frames later; negative: earlier."""
    assert batch.audio_BTKM is not None
    audio_BTKM = torch.full_like(batch.audio_BTKM, SILENCE)
    for number, (late, num_frames) in enumerate(zip(late_B, batch.num_frames_B.tolist(), strict=True)):
        first, stop = max(0, late), min(num_frames, num_frames + late)
        audio_BTKM[number, first:stop] = batch.audio_BTKM[number, first - late : stop - late]
        audio_BTKM[number, num_frames:] = 0
    return replace(batch, audio_BTKM=audio_BTKM)


def bench_sound(
    job: TrainingJob, checkpoint: Path, splits: Sequence[str], num_clips: int, seed: int
) -> SoundBench:
    """Measures the model of `checkpoint` on clips of `splits`, which it must not have seen."""
    columns = pa.concat_tables(job.packs.read(split) for split in splits)
    samples = columns.filter(columns["audio_sha256"].is_valid())
    if not samples.num_rows:
        raise ConfigError(
            f"no clip of {', '.join(splits)} has sound; set pack.audio to true and run `pipeline pack`"
        )
    rng = np.random.default_rng(seed)
    samples = samples.take(np.sort(rng.permutation(samples.num_rows)[:num_clips]))
    planted_N = rng.integers(-FARTHEST, FARTHEST + 1, samples.num_rows)
    referee = SoundReferee.from_checkpoint(checkpoint, choose_device(job.machine.device))
    stream = ShardStream(job.packs.store, samples, job.machine, audio=True)
    errors: dict[str, list[int]] = {}
    own, other = [], []
    for batch in stream.batches(plan_scoring(samples, job.loader, BATCH)):
        assert batch.audio_BTKM is not None
        late_B = planted_N[list(batch.rows)].tolist()
        for late, found in zip(late_B, referee.offsets_of(shifted(batch, late_B)), strict=True):
            assert found.offset_frames is not None
            errors.setdefault(str(late), []).append(found.offset_frames - late)
        if len(late_B) > 1:
            swapped = replace(batch, audio_BTKM=batch.audio_BTKM.roll(1, dims=0))
            own += [found.agreement or 0.0 for found in referee.offsets_of(batch)]
            other += [found.agreement or 0.0 for found in referee.offsets_of(swapped)]
    error_N = np.abs(np.concatenate(list(errors.values())))
    return SoundBench(
        num_clips=samples.num_rows,
        within_1_frame=float((error_N <= 1).mean()),
        exact=float((error_N == 0).mean()),
        errors=dict(sorted(errors.items(), key=lambda item: int(item[0]))),
        own_sound_wins=float((np.array(own)[:, None] > np.array(other)).mean()) if own else float("nan"),
    )


def print_sound_bench(result: SoundBench, console: Console) -> None:
    table = figures_table(
        f"{result.num_clips} clips, planted offsets of up to {FARTHEST} frames", "", "here", "goal"
    )
    table.add_row("found within 1 frame", f"{result.within_1_frame:.1%}", "≥ 95 %")
    table.add_row("found exactly", f"{result.exact:.1%}", "")
    table.add_row("own sound agrees more than another clip's", f"{result.own_sound_wins:.1%}", "")
    console.print(table)


def command(
    samples: Annotated[Path, typer.Argument(help="samples.parquet of a pack with sound", exists=True)],
    shards: Annotated[Path, typer.Argument(help="folder of its shards", exists=True, file_okay=False)],
    params: Annotated[Path, typer.Option(help="params.yaml of the training", exists=True)] = Path(
        "recipes/grid.yaml"
    ),
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="section.key=value; repeatable")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="model that was trained with sound; default: train one")
    ] = None,
    split: Annotated[list[str] | None, typer.Option(help="split to measure; repeatable")] = None,
    clips: Annotated[int, typer.Option(min=1)] = 100,
    seed: Annotated[int, typer.Option(min=0, help="draws clips and offsets")] = 0,
    out: Annotated[Path, typer.Option(help="run and results.json", metavar="DIR")] = Path("bench-sound"),
) -> None:
    """Plant offsets between sound and picture, and measure how many are found.

    Example: python -m benchmarks.sound data/samples.parquet data/shards --set train.audio_weight=1
    """
    from pipeline.console import stdout

    flags = {"paths.samples": str(samples), "paths.shards": str(shards)}
    job = job_of(load_params(params, assignments=assignments or (), flags=flags))
    job = replace(job, packs=Packs([replace(job.packs.packs[0], clips=None, crops=None)]))
    if checkpoint is None:
        checkpoint = train_model(job, out, print_progress)
    result = bench_sound(job, checkpoint, split or ("valid", "test"), clips, seed)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "results.json", {"machine": machine_facts(["numpy", "torch"]), **asdict(result)})
    print_sound_bench(result, stdout)


def train_model(job: TrainingJob, out: Path, progress: Callable[[str], None]) -> Path:
    """Trains the job in `out`, or continues; returns the best model."""
    progress("training with sound")
    folder = out / "model"
    train(replace(job, runs=out / "runs", checkpoints=folder / "checkpoints", logs=folder / "logs"))
    return folder / "checkpoints" / "best_model.pt"


if __name__ == "__main__":
    run(command)
