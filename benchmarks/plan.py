"""`python -m benchmarks.plan`: cost and quality of an epoch plan on synthetic catalogues.

Time and memory are measured in a fresh process that reads the catalogue, hashes it and plans one epoch for one rank,
like a trainer.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.options import print_progress, run
from benchmarks.synthetic_catalogue import REJECTED_SHARE, SPLIT_SHARES, write_catalogue
from benchmarks.versions import machine_facts
from shards.enums import TRAIN_SPLIT
from shards.files import write_json
from shards.machine import status_mb
from shards.packs import Pack, Packs
from shards.plan import EpochOrder, order_epoch, plan_epoch, shard_numbers
from shards.settings import LoaderParams
from shards.store import FolderStore

CHINESE_LIPS_CLIPS = 30_341
WORLD_SIZES = (1, 8, 1_000)
RANKS_A_NODE = 8
FRAME_BUDGET, BATCH_SIZE, WINDOW_SHARDS = 8_000, 8, 16
"""Values of the recipe chinese_lips."""


@dataclass(frozen=True)
class PlanBench:
    """The results for one catalogue and one world size."""

    num_packs: int
    num_clips: int
    """Clips of the train split of all packs; the catalogue has other splits too."""
    num_shards: int
    world_size: int
    read_s: float
    hash_s: float
    plan_s: float
    peak_mb: float
    """Peak resident memory of the process, including imports, MB."""
    num_steps: int
    left_out: int
    padding_share: float
    slowest: float
    """Padded frames of the rank with the most, divided by the mean of the ranks; mean over the steps."""
    shards_a_rank: float
    ranks_a_shard: float
    nodes_a_shard: float
    """Machines of RANKS_A_NODE neighbouring ranks that fetch a shard, if these ranks share a cache."""
    nodes_a_shard_at_random: float
    """The same for a random assignment of clips to ranks."""

    @property
    def seconds(self) -> float:
        return self.read_s + self.hash_s + self.plan_s


def bench_plan(
    num_clips: Sequence[int], out: Path, progress: Callable[[str], None], num_packs: int = 1
) -> list[PlanBench]:
    """Writes a catalogue with about that many train samples for each of `num_clips`, measures, writes results.json.

    Also plans `num_packs` packs of each catalogue, if there are several.
    """
    results = []
    for wanted in num_clips:
        folder = out / f"{wanted}_clips"
        if not (folder / "samples.parquet").exists():
            progress(f"writing a synthetic catalogue of {wanted:,} train samples")
            folder.mkdir(parents=True, exist_ok=True)
            write_catalogue(folder, round(wanted / SPLIT_SHARES[TRAIN_SPLIT] / (1 - REJECTED_SHARE)))
        for world_size in WORLD_SIZES:
            progress(f"planning {wanted:,} clips for {world_size} ranks")
            results.append(_run_in_fresh_process(folder / "samples.parquet", world_size, 1))
        if num_packs > 1:
            progress(f"planning {num_packs} packs of {wanted:,} clips")
            results.append(_run_in_fresh_process(folder / "samples.parquet", 1, num_packs))
    machine = machine_facts(["numpy", "pyarrow"])
    loader = {"frame_budget": FRAME_BUDGET, "batch_size": BATCH_SIZE, "window_shards": WINDOW_SHARDS}
    content = {"machine": machine, "loader": loader, "results": [asdict(result) for result in results]}
    write_json(out / "results.json", content)
    return results


def measure(samples_path: Path, world_size: int, num_packs: int = 1) -> PlanBench:
    """Plans epoch 0 for rank 0 in this process, then analyses the batches of all ranks.

    With several packs, the catalogue is read as each of them, and the last has twice the weight of the first.
    """
    store = FolderStore(samples_path.parent)
    packs = Packs.single(samples_path, store)
    if num_packs > 1:
        weights = np.linspace(1, 2, num_packs).tolist()
        packs = Packs(
            [Pack(f"p{number}", samples_path, store, weight=weight) for number, weight in enumerate(weights)]
        )
    params = LoaderParams(frame_budget=FRAME_BUDGET, window_shards=WINDOW_SHARDS)
    start = time.perf_counter()
    samples = packs.read_plan_columns(TRAIN_SPLIT)
    read = time.perf_counter()
    packs.plan_identity(params, BATCH_SIZE, world_size)
    hashed = time.perf_counter()
    plan = plan_epoch(samples, params, BATCH_SIZE, 0, world_size, weights=packs.weights)
    planned = time.perf_counter()
    peak_mb = status_mb("VmHWM")
    order = order_epoch(samples, params, BATCH_SIZE, 0, world_size, packs.weights)
    padded_SW = order.padded_SW
    shard_N = shard_numbers(samples)
    num_shards = int(shard_N.max()) + 1
    at_random = replace(order, row_N=np.random.default_rng(0).permutation(order.row_N))
    return PlanBench(
        num_packs=num_packs,
        num_clips=samples.num_rows,
        num_shards=num_shards,
        world_size=world_size,
        read_s=read - start,
        hash_s=hashed - read,
        plan_s=planned - hashed,
        peak_mb=peak_mb,
        num_steps=len(plan.batches),
        left_out=len(plan.left_out),
        padding_share=plan.padding_share,
        slowest=float((padded_SW.max(axis=1) / padded_SW.mean(axis=1)).mean()),
        shards_a_rank=_readers_a_shard(order, shard_N, 1) * num_shards / world_size,
        ranks_a_shard=_readers_a_shard(order, shard_N, 1),
        nodes_a_shard=_readers_a_shard(order, shard_N, RANKS_A_NODE),
        nodes_a_shard_at_random=_readers_a_shard(at_random, shard_N, RANKS_A_NODE),
    )


def _readers_a_shard(order: EpochOrder, shard_N: np.ndarray, ranks_a_reader: int) -> float:
    """Returns the mean number of groups of neighbouring ranks that read a shard."""
    num_ranks = order.first_SW.shape[1]
    clips_B = (order.stop_SW - order.first_SW).ravel()
    reader_N = np.repeat(np.tile(np.arange(num_ranks) // ranks_a_reader, len(order.first_SW)), clips_B)
    place_N = np.arange(len(reader_N)) + np.repeat(
        order.first_SW.ravel() - np.cumsum(clips_B) + clips_B, clips_B
    )
    pairs = np.unique(shard_N[order.row_N[place_N] % len(shard_N)] * num_ranks + reader_N)
    return len(pairs) / len(np.unique(pairs // num_ranks))


def _run_in_fresh_process(samples_path: Path, world_size: int, num_packs: int) -> PlanBench:
    program = (
        "import sys, json; from dataclasses import asdict; from pathlib import Path; "
        "from benchmarks.plan import measure; "
        "print(json.dumps(asdict(measure(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(samples_path), str(world_size), str(num_packs)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return PlanBench(**json.loads(done.stdout))


def print_plan_bench(results: Sequence[PlanBench], console: Console) -> None:
    """Prints the cost of the plans, then their quality."""
    cost = Table(title="one rank reads the catalogue, hashes it and plans an epoch", title_justify="left")
    for name in ("packs", "clips", "shards", "ranks", "read s", "hash s", "plan s", "total s", "peak MB"):
        cost.add_column(name, justify="right")
    made = Table(title="the epoch", title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in ("clips", "ranks", "steps", "out", "padding", "slowest", "ranks", "nodes", "random"):
        made.add_column(name, justify="right", no_wrap=True)
    for result in results:
        clips, ranks = f"{result.num_clips:,}", f"{result.world_size:,}"
        times = [
            f"{seconds:.3f}" for seconds in (result.read_s, result.hash_s, result.plan_s, result.seconds)
        ]
        cost.add_row(
            str(result.num_packs), clips, f"{result.num_shards:,}", ranks, *times, f"{result.peak_mb:.0f}"
        )
        made.add_row(
            clips,
            ranks,
            f"{result.num_steps:,}",
            f"{result.left_out:,}",
            f"{result.padding_share:.1%}",
            f"{result.slowest:.3f}",
            f"{result.ranks_a_shard:.2f}",
            f"{result.nodes_a_shard:.2f}",
            f"{result.nodes_a_shard_at_random:.1f}",
        )
    console.print(cost)
    console.print(made)
    console.print(
        "slowest: padded frames of the rank with the most in a step, divided by the mean of the ranks. ranks, nodes: "
        f"how many read a shard; random: nodes of {RANKS_A_NODE} ranks with a random assignment of clips to ranks"
    )


def command(
    clips: Annotated[
        int,
        typer.Option(min=10_000, help="train samples of a synthetic catalogue, in addition to one of 30,341"),
    ] = 10_000_000,
    packs: Annotated[
        int, typer.Option(min=1, help="also plan a blend of this number of packs of each catalogue")
    ] = 1,
    out: Annotated[Path, typer.Option(help="results.json and the catalogues", metavar="DIR")] = Path(
        "bench-plan"
    ),
) -> None:
    """Measure epoch plans of synthetic catalogues for 1, 8 and 1,000 ranks: seconds, memory, padding, shards per rank.

    Example: python -m benchmarks.plan --clips 1000000
    """
    from pipeline.console import stdout

    out.mkdir(parents=True, exist_ok=True)
    counts = sorted({CHINESE_LIPS_CLIPS, clips})
    print_plan_bench(bench_plan(counts, out, print_progress, packs), stdout)


if __name__ == "__main__":
    run(command)
