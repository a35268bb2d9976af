"""Verbs about data and the machine: init, demo, ingest, crop, pack, preprocess, stats, query, doctor.

Heavy imports stay inside the verbs, so that `pipeline --help` answers at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.command import PARAMS, Assignments, ConfigFile, DataRoot, Json, ParamsFile, app, load, shown

if TYPE_CHECKING:
    from pipeline.params import Params


@app.command()
def init(
    recipe: Annotated[str, typer.Option(help="demo, grid or chinese_lips")],
    corpus_root: Annotated[str | None, typer.Option(help="folder of your corpus", metavar="DIR")] = None,
    params: ParamsFile = PARAMS,
    force: Annotated[bool, typer.Option("--force", help="overwrite an edited file")] = False,
) -> None:
    """Write a recipe's complete params.yaml.

    Example: pipeline init --recipe chinese_lips --corpus-root /data/Chinese-LiPS
    """
    from pipeline.recipes import write_recipe

    typer.echo(write_recipe(recipe, params, corpus_root, force))


@app.command()
def demo(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    seed: Annotated[int, typer.Option(help="of everything that is drawn")] = 0,
) -> None:
    """Draw the demo corpus: a miniature Chinese-LiPS of animated faces.

    Example: pipeline demo && dvc repro
    """
    from pipeline.demo.corpus import build_demo_corpus
    from pipeline.recipes import refuse_other_recipe, show_dvc_lock
    from shards.cores import usable_cores

    refuse_other_recipe(params, "demo")
    values = load(params, assignments)
    show_dvc_lock(params.absolute().parent, shown=False)
    workers = values.machine.workers or usable_cores()
    with shown("drawing the demo corpus", "clips") as on_progress:
        summary = build_demo_corpus(Path(values.corpus.root), seed, workers, on_progress)
    counts = ", ".join(f"{split} {count}" for split, count in summary.num_clips.items())
    typer.echo(
        f"{values.corpus.root}: {sum(summary.num_clips.values())} clips ({counts}), "
        f"{summary.seconds / 60:.1f} minutes of video, {sum(summary.num_characters.values())} characters"
    )


@app.command()
def ingest(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    config: ConfigFile = None,
    data_root: DataRoot = None,
) -> None:
    """Read the corpus tables: one row a clip, in clips.parquet.

    Example: pipeline ingest --data-root /data/Chinese-LiPS
    """
    _ingest(load(params, assignments, config=config, data_root=data_root))


@app.command()
def crop(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    config: ConfigFile = None,
    data_root: DataRoot = None,
) -> None:
    """Find, follow and cut the mouth of every clip; crops.parquet tells what became of each.

    Example: pipeline crop --set crop.min_mouth_width_px=20
    """
    _crop(load(params, assignments, config=config, data_root=data_root))


@app.command()
def pack(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    config: ConfigFile = None,
    data_root: DataRoot = None,
) -> None:
    """Pack the mouth clips into WebDataset tar shards, with samples.parquet as their catalogue.

    Example: pipeline pack --set pack.shard_mb=512
    """
    _pack(load(params, assignments, config=config, data_root=data_root))


@app.command()
def preprocess(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    config: ConfigFile = None,
    data_root: DataRoot = None,
) -> None:
    """Run ingest, crop and pack in one go, without DVC (`dvc commit` then tells DVC of it).

    Example: pipeline preprocess --data-root /data/Chinese-LiPS
    """
    values = load(params, assignments, config=config, data_root=data_root)
    _ingest(values)
    _crop(values)
    _pack(values)


def _ingest(values: "Params") -> None:
    from stages.ingest import ingest as run

    summary = run(values.corpus, values.text, Path(values.paths.clips))
    counts = ", ".join(f"{split} {count}" for split, count in summary.clips_by_split.items())
    typer.echo(f"{values.paths.clips}: {sum(summary.clips_by_split.values())} clips ({counts})")
    if summary.num_missing:
        some = ", ".join(summary.first_missing)
        typer.echo(f"  {summary.num_missing} of them have no video file, e.g. {some}: crop will reject them")
    if summary.shared_speakers:
        typer.echo(f"  {len(summary.shared_speakers)} speakers stand in several splits: reports will say so")


def _crop(values: "Params") -> None:
    from stages.crop import crop as run

    paths = values.paths
    with shown("cropping mouths", "clips") as on_progress:
        summary = run(
            values.corpus,
            values.crop,
            values.machine,
            Path(paths.clips),
            Path(paths.crops),
            Path(paths.tracks),
            on_progress,
        )
    typer.echo(f"{paths.crops}: {summary}")


def _pack(values: "Params") -> None:
    from stages.pack import pack as run

    paths = values.paths
    with shown("packing shards", "clips") as on_progress:
        summary = run(
            values.corpus,
            values.crop,
            values.pack,
            values.machine,
            Path(paths.clips),
            Path(paths.crops),
            Path(paths.tracks),
            Path(paths.shards),
            Path(paths.samples),
            on_progress,
        )
    typer.echo(f"{paths.samples}: {summary}")


@app.command()
def stats(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    config: ConfigFile = None,
    data_root: DataRoot = None,
    json_: Json = False,
) -> None:
    """Tell what the corpus holds, split by split; also of a corpus that is only ingested.

    With --data-root, a corpus that is not even ingested: its tables and the headers of its videos are read,
    and nothing is written. The same with --config while there is no clips.parquet.

    Example: pipeline stats --data-root /data/Chinese-LiPS
    """
    import json
    import tempfile

    from pipeline.console import stdout
    from stages.stats import print_stats
    from stages.stats import stats as run

    values = load(params, assignments, config=config, data_root=data_root)
    paths = values.paths
    if data_root is None and (config is None or Path(paths.clips).exists()):
        crops, samples = Path(paths.crops), Path(paths.samples)
        summary = run(
            Path(paths.clips),
            crops if crops.exists() else None,
            samples if samples.exists() else None,
            Path(paths.stats),
            leave_out_others=True,
        )
    else:
        from stages.ingest import ingest as read

        with tempfile.TemporaryDirectory() as folder:
            clips = Path(folder) / "clips.parquet"
            read(values.corpus, values.text, clips)
            summary = run(clips, None, None, Path(folder))
    if json_:
        typer.echo(json.dumps(summary, ensure_ascii=False, indent=2))
    else:
        print_stats(summary, stdout)


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="over clips, crops, tracks, samples, predictions")],
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    format_: Annotated[str, typer.Option("--format", help="table, csv or json")] = "table",
) -> None:
    """Ask the tables in SQL (DuckDB), read only.

    Example: pipeline query "SELECT reason, count(*) FROM crops GROUP BY reason"
    """
    from pipeline.query import print_result, run_query

    values = load(params, assignments)
    print_result(run_query(sql, values.paths), format_)


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
