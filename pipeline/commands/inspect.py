"""The commands that inspect data and machine: stats, qc, overlap, query, verify, doctor.

Heavy imports are inside the commands, so that `pipeline --help` is fast.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.command import (
    DATA,
    PARAMS,
    TOOLS,
    Assignments,
    ConfigFile,
    DataRoot,
    Json,
    ParamsFile,
    app,
    check_writable,
    figures_of,
    load,
    print_json,
    say,
    shown,
)

if TYPE_CHECKING:
    from pipeline.params import Params
    from stages.qc.pages import QcSummary

QC_PAGE = "qc.html"


@app.command(rich_help_panel=DATA)
def stats(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    config: ConfigFile = None,
    data_root: DataRoot = None,
    json_: Json = False,
) -> None:
    """Print the contents of the corpus by split; works after ingest, and shows more after crop and pack.

    With --data-root, or with --config while clips.parquet does not exist, stats reads the tables of a corpus before
    ingest, checks that its videos exist and writes nothing. Hours and frames need `pipeline crop`.

    Example: pipeline stats --data-root /data/Chinese-LiPS
    """
    import tempfile

    from pipeline.console import stdout
    from stages.statistics.tables import print_stats
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
            text=values.text,
        )
        _write_qc_page(values, of_these_clips=summary["splits"]["total"]["ok"] is not None)
    else:
        from stages.ingest import ingest as read

        with tempfile.TemporaryDirectory() as folder:
            clips = Path(folder) / "clips.parquet"
            read(values.corpus, values.text, values.crop, clips)
            summary = run(clips, None, None, Path(folder), text=values.text)
    if json_:
        print_json(summary)
    else:
        print_stats(summary, stdout)


@app.command(rich_help_panel=DATA)
def qc(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    config: ConfigFile = None,
    out: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, help="HTML page to write; default: qc.html in paths.stats", metavar="FILE"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="random seed of the chosen clips and speakers")] = 0,
    clips: Annotated[
        int, typer.Option(min=1, max=48, help="number of random clips; the other lists grow with it")
    ] = 12,
    json_: Json = False,
) -> None:
    """Write a quality control page: film strips, measurements with their limits, rejected clips.

    Example: pipeline qc --seed 7 --clips 24 --out qc.html
    """
    values = load(params, assignments, config=config)
    check_writable(out.parent if out else Path(values.paths.stats), "--out" if out else "paths.stats")
    summary = _qc(values, out or Path(values.paths.stats) / QC_PAGE, seed=seed, num_clips=clips)
    if json_:
        print_json(figures_of(summary))
    else:
        say(summary)


def _qc(values: "Params", page: Path, **choice: Any) -> "QcSummary":
    from stages.qc.pages import qc as run

    paths = values.paths
    tables = (Path(paths.clips), Path(paths.crops), Path(paths.tracks))
    with shown("drawing the page", "clips") as on_progress:
        return run(
            values.corpus,
            values.crop,
            values.machine,
            *tables,
            page,
            audit_path=Path(paths.audit),
            sound_path=Path(paths.sound),
            on_progress=on_progress,
            **choice,
        )


def _write_qc_page(values: "Params", of_these_clips: bool) -> None:
    """Writes the page of `pipeline qc` if crop has run on these clips, and removes an outdated page otherwise."""
    page = Path(values.paths.stats) / QC_PAGE
    if of_these_clips and Path(values.paths.tracks).exists():
        _qc(values, page)
    else:
        page.unlink(missing_ok=True)


@app.command(rich_help_panel=DATA)
def overlap(
    packs: Annotated[
        list[str] | None,
        typer.Argument(
            help="packs to compare: NAME=FOLDER, with samples.parquet and shards in FOLDER, or "
            "NAME=SAMPLES,SHARDS, where SHARDS may be a URL; default: the packs of --params",
            metavar="PACK",
        ),
    ] = None,
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    json_: Json = False,
) -> None:
    """Find videos and names of speakers that several packs share, and videos that are twice in one pack.

    Also finds re-encoded copies. Exit code 1 if a video is in training and in another split.

    Example: pipeline overlap lips=lips/data cmlr=cmlr/samples.parquet,s3://bucket/cmlr
    """
    from pipeline.console import stdout
    from pipeline.tables.overlap import packs_to_compare, print_overlap
    from stages.corpora.pack_overlap import find_overlap

    values = load(params, assignments)
    found = find_overlap(packs_to_compare(packs or (), values), values.machine, shown)
    if json_:
        print_json(found.as_dict())
    else:
        print_overlap(found, stdout)
    if found.num_leaks:
        raise SystemExit(1)


@app.command(rich_help_panel=TOOLS)
def query(
    sql: Annotated[
        str, typer.Argument(help="SELECT over clips, crops, tracks, samples, audit, sound, predictions")
    ],
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    format_: Annotated[str, typer.Option("--format", help="table, csv, json or parquet")] = "table",
    out: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="write to this file, instead of stdout", metavar="FILE"),
    ] = None,
) -> None:
    """Query the tables of the pipeline in SQL (DuckDB), read-only.

    Example: pipeline query "SELECT reason, count(*) FROM crops GROUP BY reason"
    """
    from pipeline.query import write_answer

    write_answer(sql, load(params, assignments).paths, format_, out)


@app.command(rich_help_panel=TOOLS)
def verify(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    split: Annotated[str | None, typer.Option(help="split to check; default: all")] = None,
    decode: Annotated[bool, typer.Option("--decode", help="also decode every clip")] = False,
    foreign: Annotated[
        bool,
        typer.Option("--foreign", help="also read every clip through shards.webdataset, and compare"),
    ] = False,
    json_: Json = False,
) -> None:
    """Check every byte of the shards against their index and samples.parquet; list damage and lost samples.

    Remote shards are all downloaded again, even if this machine has cached copies.

    Example: pipeline verify --split train --decode
    """
    from pipeline.console import stdout
    from pipeline.tables.checks import print_verification
    from shards.open_store import open_store
    from shards.verify import verify as run

    values = load(params, assignments)
    paths = values.paths
    store = open_store(paths.shards, values.machine)
    with shown("verifying", "MB") as on_progress:
        found = run(store, Path(paths.samples), values.machine, split, decode, on_progress)
    if foreign:
        from shards.verify_foreign import verify_foreign

        with shown("reading with webdataset", "clips") as on_progress:
            found = verify_foreign(found, store, Path(paths.samples), split, on_progress)
    if json_:
        print_json(found.as_dict())
    else:
        print_verification(found, stdout)
    if found.problems:
        raise SystemExit(1)


@app.command(rich_help_panel=TOOLS)
def doctor(json_: Json = False) -> None:
    """Check Python, memory, disk, packages and system libraries of this machine, and print fixes.

    Example: pipeline doctor
    """
    from pipeline.doctor import examine, print_findings

    findings = examine()
    print_findings(findings, as_json=json_)
    if any(finding.fix for finding in findings if finding.is_fatal):
        raise SystemExit(1)
