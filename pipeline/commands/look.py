"""Verbs that look: stats, qc, query and verify at the data, doctor at the machine.

Heavy imports stay inside the verbs, so that `pipeline --help` answers at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.command import (
    PARAMS,
    Assignments,
    ConfigFile,
    DataRoot,
    Json,
    ParamsFile,
    app,
    load,
    say,
    shown,
)

if TYPE_CHECKING:
    from pipeline.params import Params

QC_PAGE = "qc.html"


@app.command()
def stats(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    config: ConfigFile = None,
    data_root: DataRoot = None,
    json_: Json = False,
) -> None:
    """Tell what the corpus holds, split by split; also of a corpus that is only ingested.

    With --data-root, a corpus that is not even ingested: its tables are read, its videos looked for, and nothing
    is written (hours and frames come with `pipeline crop`). The same with --config while there is no clips.parquet.

    Example: pipeline stats --data-root /data/Chinese-LiPS
    """
    import json
    import tempfile

    from pipeline.command import check_writable
    from pipeline.console import stdout
    from stages.statistics.shown import print_stats
    from stages.stats import stats as run

    values = load(params, assignments, config=config, data_root=data_root)
    paths = values.paths
    if data_root is None and (config is None or Path(paths.clips).exists()):
        check_writable(Path(paths.stats), "paths.stats")
        crops, samples = Path(paths.crops), Path(paths.samples)
        summary = run(
            Path(paths.clips),
            crops if crops.exists() else None,
            samples if samples.exists() else None,
            Path(paths.stats),
            leave_out_others=True,
        )
        _page_beside_stats(values, of_these_clips=summary["splits"]["total"]["ok"] is not None)
    else:
        from stages.ingest import ingest as read

        with tempfile.TemporaryDirectory() as folder:
            clips = Path(folder) / "clips.parquet"
            read(values.corpus, values.text, values.crop, clips)
            summary = run(clips, None, None, Path(folder))
    if json_:
        typer.echo(json.dumps(summary, ensure_ascii=False, indent=2))
    else:
        print_stats(summary, stdout)


@app.command()
def qc(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    out: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="the page; default: qc.html in paths.stats", metavar="FILE"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the random clips and speakers")] = 0,
    clips: Annotated[
        int, typer.Option(min=1, max=48, help="random clips shown; the other lists go with it")
    ] = 12,
) -> None:
    """Draw a page to look at what came out: film strips, figures against their limits, rejected clips.

    Example: pipeline qc --seed 7 --clips 24 --out look.html
    """
    from pipeline.command import check_writable

    values = load(params, assignments)
    check_writable(out.parent if out else Path(values.paths.stats), "--out" if out else "paths.stats")
    say(_qc(values, out or Path(values.paths.stats) / QC_PAGE, seed=seed, num_clips=clips))


def _qc(values: "Params", page: Path, **choice: Any) -> str:
    from stages.qc.pages import qc as run

    paths = values.paths
    tables = (Path(paths.clips), Path(paths.crops), Path(paths.tracks))
    with shown("drawing the page", "clips") as on_progress:
        return str(
            run(values.corpus, values.crop, values.machine, *tables, page, on_progress=on_progress, **choice)
        )


def _page_beside_stats(values: "Params", of_these_clips: bool) -> None:
    """The page of `pipeline qc` where crop has run on these clips; an older one of others goes."""
    page = Path(values.paths.stats) / QC_PAGE
    if of_these_clips and Path(values.paths.tracks).exists():
        _qc(values, page)
    else:
        page.unlink(missing_ok=True)


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="over clips, crops, tracks, samples, predictions")],
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    format_: Annotated[str, typer.Option("--format", help="table, csv, json or parquet")] = "table",
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="write here, not to stdout", metavar="FILE")
    ] = None,
) -> None:
    """Ask the tables in SQL (DuckDB), read only.

    Example: pipeline query "SELECT reason, count(*) FROM crops GROUP BY reason"
    """
    from pipeline.query import write_answer

    write_answer(sql, load(params, assignments).paths, format_, out)


@app.command()
def verify(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    split: Annotated[str | None, typer.Option(help="one split; default: all")] = None,
    decode: Annotated[bool, typer.Option("--decode", help="decode every clip too")] = False,
    json_: Json = False,
) -> None:
    """Compare every byte of the shards with their index and samples.parquet; name what is damaged and what it costs.

    Shards of a remote pack are all fetched anew, whatever this machine keeps of them.

    Example: pipeline verify --split train --decode
    """
    import json

    from pipeline.console import stdout
    from pipeline.tables.verification import print_verification
    from shards.open_store import open_store
    from shards.verify import verify as run

    values = load(params, assignments)
    paths = values.paths
    store = open_store(paths.shards, values.machine)
    with shown("verifying", "MB") as on_progress:
        found = run(store, Path(paths.samples), values.machine, split, decode, on_progress)
    if json_:
        typer.echo(json.dumps(found.as_dict(), ensure_ascii=False, indent=2))
    else:
        print_verification(found, stdout)
    if found.problems:
        raise SystemExit(1)


@app.command()
def doctor(json_: Json = False) -> None:
    """Check the machine: Python, memory, disk, packages, system libraries; say what would mend it.

    Example: pipeline doctor
    """
    from pipeline.doctor import examine, print_findings

    findings = examine()
    print_findings(findings, as_json=json_)
    if any(finding.mend for finding in findings if finding.is_fatal):
        raise SystemExit(1)
