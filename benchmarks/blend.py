"""`python -m benchmarks.blend`: planning and reading several packs, against one pack of the same clips.

The shards of a pack are divided among several catalogues. One epoch of each is planned and read in turns, in this
process, with the files in the page cache. Figures are processor time of the whole process, since other work on the
machine changes it less than the clock.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.options import Rounds, print_progress, run
from benchmarks.versions import machine_facts
from shards.enums import TRAIN_SPLIT
from shards.files import read_table, write_json, write_table
from shards.packs import Pack, Packs
from shards.plan import EpochPlan, plan_epoch
from shards.samples import STREAM_COLUMNS
from shards.schema import SAMPLES
from shards.settings import LoaderParams, MachineParams
from shards.store import FolderStore
from shards.stream import ShardStream

BATCH_SIZE = 8
MACHINE = MachineParams(num_workers=1)


@dataclass(frozen=True)
class BlendBench:
    """Medians over the rounds; ratios are one pack's processor time divided by the blend's, in the same round."""

    num_clips: int
    num_packs: int
    plan_clips_per_s: dict[str, float]
    """"one pack", "blend" → clips planned in a second of processor time."""
    stream_clips_per_s: dict[str, float]
    plan_ratio: float
    stream_ratio: float
    ratio: float
    """Of both together: an epoch."""


def bench_blend(
    samples: Path, shards: Path, num_packs: int, rounds: int, progress: Callable[[str], None]
) -> BlendBench:
    """Measures the training split of a local pack as one pack and as `num_packs`."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Packs.single(samples, FolderStore(shards))
        variants = {"one pack": whole, "blend": _divided(samples, shards, num_packs, Path(folder))}
        tables = {name: packs.read(TRAIN_SPLIT, STREAM_COLUMNS) for name, packs in variants.items()}
        streams = {name: ShardStream(packs.store, tables[name], MACHINE) for name, packs in variants.items()}
        plan_s: dict[str, list[float]] = {name: [] for name in variants}
        stream_s: dict[str, list[float]] = {name: [] for name in variants}
        for number in range(rounds + 1):
            # the first round fills the page cache and is not counted; the order changes in every round
            for name in sorted(variants, reverse=number % 2 == 0):
                progress(f"round {number} of {rounds}: {name}")
                start = time.process_time()
                plan = plan_epoch(tables[name], LoaderParams(), BATCH_SIZE, number)
                planned = time.process_time()
                _read(streams[name], plan)
                if number:
                    plan_s[name].append(planned - start)
                    stream_s[name].append(time.process_time() - planned)
        num_clips = tables["blend"].num_rows
        assert num_clips == tables["one pack"].num_rows
        return BlendBench(
            num_clips,
            num_packs,
            {name: num_clips / statistics.median(values) for name, values in plan_s.items()},
            {name: num_clips / statistics.median(values) for name, values in stream_s.items()},
            _ratio(plan_s),
            _ratio(stream_s),
            _ratio(
                {
                    name: [a + b for a, b in zip(plan_s[name], stream_s[name], strict=True)]
                    for name in variants
                }
            ),
        )


def _ratio(seconds: dict[str, list[float]]) -> float:
    pairs = zip(seconds["one pack"], seconds["blend"], strict=True)
    return statistics.median(one / blend for one, blend in pairs)


def _divided(samples: Path, shards: Path, num_packs: int, folder: Path) -> Packs:
    """Writes a catalogue for every `num_packs`-th shard; all read the same store."""
    table = read_table(samples, SAMPLES, "pipeline pack")
    names = np.array(table["shard"].to_pylist())
    number_N = np.unique(names, return_inverse=True)[1] % num_packs
    packs = []
    for number in range(num_packs):
        path = folder / f"{number}.parquet"
        rows = table.filter(pa.array(number_N == number)).replace_schema_metadata(
            pq.read_schema(samples).metadata
        )
        write_table(path, rows, rows.schema)
        packs.append(Pack(f"p{number}", path, FolderStore(shards)))
    return Packs(packs)


def _read(stream: ShardStream, plan: EpochPlan) -> None:
    num_clips = sum(len(batch.clip_ids) for batch in stream.batches(plan.batches))
    assert num_clips == plan.num_clips


def print_blend_bench(result: BlendBench, console: Console) -> None:
    table = Table(
        title=f"{result.num_clips:,} clips as one pack and as {result.num_packs}, clips per processor second",
        title_justify="left",
    )
    for name in ("", "one pack", "blend", "ratio"):
        table.add_column(name, justify="right")
    for what, speeds, ratio in (
        ("plan", result.plan_clips_per_s, result.plan_ratio),
        ("stream", result.stream_clips_per_s, result.stream_ratio),
    ):
        table.add_row(what, *(f"{speeds[name]:,.0f}" for name in ("one pack", "blend")), f"{ratio:.3f}")
    console.print(table)
    console.print(f"both together: {result.ratio:.3f}")


def command(
    samples: Annotated[Path, typer.Argument(help="samples.parquet of a local pack", exists=True)],
    shards: Annotated[Path, typer.Argument(help="folder of its shards", exists=True, file_okay=False)],
    packs: Annotated[int, typer.Option(min=2, help="packs to divide the shards among")] = 2,
    rounds: Rounds = 9,
    out: Annotated[Path, typer.Option(help="results.json", metavar="DIR")] = Path("bench-blend"),
) -> None:
    """Measure plan and stream of several packs against one pack of the same clips.

    Example: python -m benchmarks.blend data/samples.parquet data/shards
    """
    from pipeline.console import stdout

    result = bench_blend(samples, shards, packs, rounds, print_progress)
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        out / "results.json", {"machine": machine_facts(["numpy", "pyarrow", "torch"]), **asdict(result)}
    )
    print_blend_bench(result, stdout)


if __name__ == "__main__":
    run(command)
