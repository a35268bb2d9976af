"""The commands that make data: init, demo, run, ingest, crop, pack, preprocess.

Heavy imports are inside the commands, so that `pipeline --help` is fast.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.command import (
    DATA,
    PARAMS,
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
from recipes import RECIPES
from shards.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.params import Params

HasRights = Annotated[
    bool,
    typer.Option(
        "--i-have-the-rights",
        help="allow shards with a non-commercial or unknown licence to be written to remote storage",
    ),
]


@app.command(rich_help_panel=DATA)
def init(
    recipe: Annotated[str | None, typer.Option(help=f"one of {', '.join(RECIPES)}")] = None,
    corpus_root: Annotated[
        str | None, typer.Option(help="folder of your corpus; default: as in the recipe", metavar="DIR")
    ] = None,
    params: ParamsFile = PARAMS,
    dvc: Annotated[
        bool,
        typer.Option(
            "--dvc", help="also make this folder a DVC project; without --recipe, params.yaml stays"
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="overwrite files even if they were edited")] = False,
) -> None:
    """Write a complete params.yaml from a recipe.

    Example: pipeline init --recipe chinese_lips --corpus-root /data/Chinese-LiPS
    """
    from pipeline.project import write_recipe

    if recipe is None and not (dvc and params.exists()):
        raise ConfigError(f"--recipe is missing; use one of {', '.join(RECIPES)}")
    if dvc and params != PARAMS:
        raise ConfigError(f"--dvc: DVC reads {PARAMS} of this folder, not {params}; remove --params")
    written = f"{params}: unchanged; next: pipeline run"
    if recipe is not None:
        written = write_recipe(recipe, params, corpus_root, force)
    if dvc:
        from pipeline.project import write_dvc_files

        say(f"DVC project: {', '.join(write_dvc_files(Path.cwd(), force=force))}")
    say(written)


@app.command(rich_help_panel=DATA)
def demo(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    seed: Annotated[int, typer.Option(help="random seed of the drawn corpus")] = 0,
    json_: Json = False,
) -> None:
    """Draw the demo corpus, a miniature Chinese-LiPS with animated faces (for recipe blend: two of them).

    Example: pipeline demo && pipeline run
    """
    from pipeline.blend_project import corpora_of
    from pipeline.demo.corpus import build_demo_corpus
    from pipeline.project import DRAWN, refuse_other_recipe, show_dvc_lock, write_recipe
    from shards.machine import usable_cores

    if not params.exists():
        notice = write_recipe("demo", params, None, force=False)
        if not json_:
            say(notice)
    refuse_other_recipe(params, *DRAWN)
    values = load(params, assignments)
    drawn = [*corpora_of(params, values).values()] or [values]
    show_dvc_lock(params.absolute().parent, shown=False)
    workers = values.machine.workers or usable_cores()
    summaries = {}
    for number, corpus in enumerate(of.corpus.root for of in drawn):
        with shown("drawing the demo corpus", "clips") as on_progress:
            summaries[corpus] = build_demo_corpus(Path(corpus), seed + number, workers, on_progress)
    if json_:
        found = [figures_of(summary, corpus=corpus) for corpus, summary in summaries.items()]
        print_json(found if values.train.data else found[0])
        return
    for corpus, summary in summaries.items():
        counts = ", ".join(f"{split} {count}" for split, count in summary.num_clips.items())
        say(
            f"{corpus}: {sum(summary.num_clips.values())} clips ({counts}), "
            f"{summary.seconds / 60:.1f} minutes of video, {sum(summary.num_characters.values())} characters"
        )


@app.command(rich_help_panel=DATA, context_settings={"ignore_unknown_options": True})
def run(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="stages, default all, and options of `dvc repro`", metavar="[STAGE]..."),
    ] = None,
) -> None:
    """Run the stages whose inputs changed, with DVC; works without git and without dvc.yaml.

    Example: pipeline run; pipeline run stats; pipeline run --force report
    """
    from pipeline.console import show_logs
    from pipeline.project import run_stages

    show_logs()
    raise typer.Exit(run_stages(Path.cwd(), arguments or ()))


@app.command(rich_help_panel=DATA)
def ingest(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    config: ConfigFile = None,
    data_root: DataRoot = None,
    json_: Json = False,
) -> None:
    """Read the tables of the corpus and write clips.parquet with one row for each clip.

    Example: pipeline ingest --data-root /data/Chinese-LiPS
    """
    _print_if(json_, _ingest(load(params, assignments, config=config, data_root=data_root), json_))


@app.command(rich_help_panel=DATA)
def crop(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    config: ConfigFile = None,
    data_root: DataRoot = None,
    executor: Annotated[str | None, typer.Option(help="local or ray; default: machine.executor")] = None,
    job_index: Annotated[
        int | None, typer.Option(help="crop only this share of the clips, from 0 to --num-jobs minus 1")
    ] = None,
    num_jobs: Annotated[int | None, typer.Option(help="number of shares", min=1)] = None,
    merge: Annotated[bool, typer.Option("--merge", help="join the tables of all shares")] = False,
    json_: Json = False,
) -> None:
    """Find and track the mouth in every clip, cut it out, and write the result of each clip to crops.parquet.

    Example: pipeline crop --set crop.min_mouth_width_px=20

    With a Slurm array of 16 jobs and machine.cache_dir on shared storage, each job runs:
    pipeline crop --num-jobs 16 --job-index $SLURM_ARRAY_TASK_ID. After all jobs, run: pipeline crop --merge
    """
    if merge and job_index is not None:
        raise ConfigError("--merge joins the tables of all jobs; remove --job-index")
    if not merge and (job_index is None) != (num_jobs is None):
        raise ConfigError("--job-index and --num-jobs must be given together")
    flags = {"machine__executor": executor}
    values = load(params, assignments, config=config, data_root=data_root, **flags)
    done = _merge(values, num_jobs, json_) if merge else _crop(values, json_, job_index, num_jobs)
    _print_if(json_, done)


@app.command(rich_help_panel=DATA)
def pack(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    config: ConfigFile = None,
    data_root: DataRoot = None,
    i_have_the_rights: HasRights = False,
    json_: Json = False,
) -> None:
    """Pack the mouth clips into WebDataset tar shards and list them in samples.parquet.

    Example: pipeline pack --set pack.codec=jpeg --set pack.shard_mb=512
    """
    values = load(params, assignments, config=config, data_root=data_root)
    _check_pack_outputs(values)
    _print_if(json_, _pack(values, json_, i_have_the_rights))


@app.command(rich_help_panel=DATA)
def preprocess(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    config: ConfigFile = None,
    data_root: DataRoot = None,
    i_have_the_rights: HasRights = False,
    json_: Json = False,
) -> None:
    """Run ingest, crop and pack without DVC; run `dvc commit` afterwards to record the outputs in DVC.

    Example: pipeline preprocess --data-root /data/Chinese-LiPS
    """
    from shards.open_store import open_store
    from stages.cards.licences import refuse_unlicensed

    values = load(params, assignments, config=config, data_root=data_root)
    # check before hours of cropping
    refuse_unlicensed(
        values.corpus.license, open_store(values.paths.shards, values.machine), i_have_the_rights
    )
    _check_pack_outputs(values)
    ingested, cropped = _ingest(values, json_), _crop(values, json_)
    packed = _pack(values, json_, i_have_the_rights)
    _print_if(json_, {"ingest": ingested, "crop": cropped, "pack": packed})


def _print_if(json_: bool, done: Mapping[str, object]) -> None:
    if json_:
        print_json(done)


def _kinds_text(clips_by_kind: Mapping[str, int], setting: str) -> str:
    faces, mouths = clips_by_kind.get("face", 0), clips_by_kind.get("mouth", 0)
    return f"face videos: {faces}, ready mouth crops: {mouths} (corpus.media_kind: {setting})"


def _ingest(values: "Params", json_: bool) -> Mapping[str, object]:
    """Runs the stage and returns its figures; prints them as text unless `json_`. So do the functions below."""
    from stages.ingest import ingest as run

    check_writable(Path(values.paths.clips).parent, "paths.clips")
    cutting = shown("cutting long videos", "videos") if values.crop.split_long else nullcontext()
    with cutting as on_progress:
        summary = run(
            values.corpus,
            values.text,
            values.crop,
            Path(values.paths.clips),
            values.inference,
            values.machine,
            on_progress,
        )
    done = figures_of(summary)
    if json_:
        return done
    counts = ", ".join(f"{split} {count}" for split, count in summary.clips_by_split.items())
    say(f"{values.paths.clips}: {sum(summary.clips_by_split.values())} clips ({counts})")
    typer.echo(f"  {_kinds_text(summary.clips_by_kind, values.corpus.media_kind)}")
    if values.text.drop_annotations:
        for found, meaning in (
            (summary.annotations, "annotations were removed from the labels"),
            (summary.kept_in_brackets, "texts in brackets were kept in the labels"),
        ):
            most = ", ".join(f"{text} ({count})" for text, count in list(found.items())[:5])
            if most:
                say(f"  {sum(found.values())} {meaning}: {most}")
    if summary.num_split:
        typer.echo(f"  {summary.num_split} long clips were split at pauses into {summary.num_parts}")
    return done


def _crop(
    values: "Params", json_: bool, job_index: int | None = None, num_jobs: int | None = None
) -> Mapping[str, object]:
    from stages.clips.ledger import Part
    from stages.crop import crop as run

    paths = values.paths
    check_writable(Path(paths.crops).parent, "paths.crops")
    check_writable(Path(paths.tracks).parent, "paths.tracks")
    part = None if job_index is None or num_jobs is None else Part(job_index, num_jobs)
    with shown("cropping mouths", "clips") as on_progress:
        summary = run(
            values.corpus,
            values.crop,
            values.machine,
            Path(paths.clips),
            Path(paths.crops),
            Path(paths.tracks),
            on_progress,
            part,
        )
    crops = Path(paths.crops) if part is None else part.path(Path(paths.crops))
    if not json_:
        say(f"{crops}: {summary}")
    return figures_of(summary, crops=crops)


def _merge(values: "Params", num_jobs: int | None, json_: bool) -> Mapping[str, object]:
    from stages.clips.ledger import merge

    paths = values.paths
    merged = merge(values.crop, Path(paths.clips), Path(paths.crops), Path(paths.tracks), num_jobs)
    if not json_:
        say(f"{paths.crops}: {merged}")
    return figures_of(merged, crops=paths.crops)


def _pack(values: "Params", json_: bool, has_rights: bool) -> Mapping[str, object]:
    from shards.open_store import open_store
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
            open_store(paths.shards, values.machine),
            Path(paths.samples),
            on_progress,
            has_rights,
        )
    if not json_:
        say(f"{paths.samples}: {summary}")
    return figures_of(summary, samples=paths.samples)


def _check_pack_outputs(values: "Params") -> None:
    from shards.open_store import open_store

    check_writable(Path(values.paths.samples).parent, "paths.samples")
    if not open_store(values.paths.shards, values.machine).is_remote:
        check_writable(Path(values.paths.shards), "paths.shards")
