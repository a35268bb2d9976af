"""`python -m benchmarks.catalogue`: time and memory of queries and stats on a synthetic catalogue of any size.

Each question runs in a fresh process, as from a terminal: imports and opening the tables are included.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.options import print_progress, run
from benchmarks.synthetic_catalogue import write_catalogue
from benchmarks.versions import machine_facts
from shards.files import write_json
from shards.machine import status_mb

QUERIES = {
    "clips by split": "SELECT split, count(*), sum(num_chars) FROM clips GROUP BY split",
    "rejections by reason": "SELECT reason, count(*), avg(yaw_deg) FROM crops GROUP BY reason ORDER BY 2 DESC",
    "all of one speaker": "FROM clips JOIN crops USING (clip_id) WHERE speaker = '000042'",
    "quantiles of length": "SELECT split, quantile_cont(num_frames, [0.01, 0.5, 0.99]) AS frames, "
    "quantile_cont(num_chars, [0.01, 0.5, 0.99]) AS chars FROM samples GROUP BY split",
    "shards by size": "SELECT shard, count(*) AS clips, sum(sample_size) AS bytes FROM samples "
    "GROUP BY shard ORDER BY bytes DESC LIMIT 20",
    "hours a speaker, join of two": "SELECT speaker, count(*) AS clips, sum(duration_s) / 3600 AS hours "
    "FROM clips JOIN crops USING (clip_id) WHERE status = 'ok' GROUP BY speaker ORDER BY hours DESC LIMIT 20",
    "quality by topic, join of three": "SELECT c.split, c.topic, count(*) AS clips, avg(r.jitter_px) AS jitter, "
    "sum(s.clip_size) AS bytes FROM clips c JOIN crops r USING (clip_id) JOIN samples s USING (clip_id) "
    "GROUP BY ALL ORDER BY ALL",
    "all clips to Parquet": "FROM clips",
}
STATS = "pipeline stats"


@dataclass(frozen=True, slots=True)
class Answered:
    """Time and memory of one question in a separate process."""

    question: str
    seconds: float
    peak_mb: float


def bench_catalogue(num_clips: int, out: Path, progress: Callable[[str], None]) -> list[Answered]:
    """Writes a catalogue into `out` unless it exists, asks all questions, and writes results.json."""
    folder = out / f"{num_clips}_clips"
    made_s = None
    if not (folder / "samples.parquet").exists():
        progress(f"writing a synthetic catalogue of {num_clips:,} clips")
        start = time.perf_counter()
        write_catalogue(folder, num_clips)
        made_s = time.perf_counter() - start
    results = []
    for question in (*QUERIES, STATS):
        results.append(_run_in_fresh_process(question, folder))
        progress(f"{question}: {results[-1].seconds:.1f} s")
    write_json(
        out / "results.json",
        {
            "machine": machine_facts(["duckdb", "pyarrow", "numpy"]),
            "num_clips": num_clips,
            "made_s": made_s,
            "table_mb": {path.name: path.stat().st_size / 1e6 for path in sorted(folder.glob("*.parquet"))},
            "results": [asdict(result) for result in results],
        },
    )
    return results


def answer(question: str, folder: Path) -> float:
    """Answers the question in this process; returns the peak resident memory, MB."""
    tables = {name: folder / f"{name}.parquet" for name in ("clips", "crops", "samples")}
    if question == STATS:
        from stages.stats import stats

        stats(tables["clips"], tables["crops"], tables["samples"], folder / "stats")
    else:
        from pipeline.params import PathsParams
        from pipeline.query import write_answer

        absent = folder / "none"
        paths = PathsParams(
            **{name: str(path) for name, path in tables.items()}, tracks=str(absent), report=str(absent)
        )
        write_answer(QUERIES[question], paths, "parquet", folder / "answer.parquet")
        (folder / "answer.parquet").unlink()
    return status_mb("VmHWM")


def _run_in_fresh_process(question: str, folder: Path) -> Answered:
    program = (
        "import os, sys; from pathlib import Path; from benchmarks.catalogue import answer; "
        "print(answer(sys.argv[1], Path(sys.argv[2])), flush=True); "
        # like `pipeline`: DuckDB's bindings print warnings when Python unloads them
        "os._exit(0)"
    )
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", program, question, str(folder)], stdout=subprocess.PIPE, text=True, check=True
    )
    return Answered(question, time.perf_counter() - start, float(json.loads(done.stdout)))


def print_catalogue_bench(results: list[Answered], console: Console) -> None:
    table = Table(title="each question in a fresh process", title_justify="left")
    for name in ("question", "seconds", "peak MB"):
        table.add_column(name, justify="left" if name == "question" else "right")
    for result in results:
        table.add_row(result.question, f"{result.seconds:.1f}", f"{result.peak_mb:.0f}")
    console.print(table)


def command(
    clips: Annotated[int, typer.Option(min=1, help="rows of the synthetic clips.parquet")] = 10_000_000,
    out: Annotated[
        Path, typer.Option(help="results.json, the synthetic catalogue (4 GB) and its stats", metavar="DIR")
    ] = Path("bench-catalogue"),
) -> None:
    """Measure time and memory of typical queries and of `stats` on a synthetic catalogue, each in a fresh process.

    Example: python -m benchmarks.catalogue --clips 1000000
    """
    from pipeline.console import stdout

    out.mkdir(parents=True, exist_ok=True)
    print_catalogue_bench(bench_catalogue(clips, out, print_progress), stdout)


if __name__ == "__main__":
    run(command)
