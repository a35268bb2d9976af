"""The `pipeline` command. Each verb reads the parameters and calls one stage.

Heavy imports stay inside the verbs, so that `pipeline --help` answers at once.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.params import Params

app = typer.Typer(
    name="pipeline",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Talking-face videos with transcripts become a lip reader and an honest report of its CER.\n\n"
    "The way of the data: ingest, crop, pack, stats, train, report. `dvc repro` runs them all.",
)

ParamsFile = Annotated[Path, typer.Option("--params", help="parameters", metavar="FILE")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", help="one value, e.g. train.batch_size=4; repeatable", metavar="SECTION.KEY=VALUE"),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="values on top: sections, or an older flat config.yaml", metavar="FILE"),
]
DataRoot = Annotated[str | None, typer.Option(help="folder of the corpus (corpus.root)", metavar="DIR")]
CheckpointDir = Annotated[
    str | None, typer.Option(help="where checkpoints are published (paths.checkpoints)", metavar="DIR")
]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]
PARAMS = Path("params.yaml")
PREPROCESSING = ("corpus", "crop", "pack")
"""Sections that train does not own."""


def main() -> None:
    """Entry point: older `--data_root` spellings are taken too; errors are one message and an exit code."""
    from shards.errors import ConfigError, PipelineError

    arguments = [_dashed(argument) for argument in sys.argv[1:]]
    try:
        app(arguments)
    except ConfigError as error:
        _fail(error, 2)
    except PipelineError as error:
        _fail(error, 1)


def _dashed(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def _fail(error: BaseException | str, code: int) -> None:
    typer.echo(f"pipeline: {error}", err=True)
    raise SystemExit(code)


def _load(params: Path, assignments: list[str] | None, **flags: Any) -> "Params":
    """Effective parameters.

    `flags` are preset, config, names of the older trainer (pipeline/older.py), or others spelled section__key.
    """
    from pipeline.console import show_logs
    from pipeline.older import OLDER_NAMES, keys_of_flags
    from pipeline.params import load_params

    show_logs()
    preset, config = flags.pop("preset", None), flags.pop("config", None)
    dotted = {name.replace("__", "."): value for name, value in flags.items() if name not in OLDER_NAMES}
    dotted |= keys_of_flags(flags)
    return load_params(params, preset=preset, config=config, assignments=assignments or (), flags=dotted)


@contextmanager
def _shown(what: str, unit: str) -> Iterator[Any]:
    """Yields a function of (done, total) that shows the progress; Ctrl-C becomes a message and exit code 1."""
    from pipeline.console import progress
    from shards.errors import Interrupted

    try:
        with progress(what, unit) as on_progress:
            yield on_progress
    except KeyboardInterrupt as error:
        raise Interrupted(f"{what}: stopped. What is done is kept; the same command goes on") from error


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
    values = _load(params, assignments)
    show_dvc_lock(params.absolute().parent, shown=False)
    workers = values.machine.workers or usable_cores()
    with _shown("drawing the demo corpus", "clips") as on_progress:
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
    _ingest(_load(params, assignments, config=config, data_root=data_root))


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
    _crop(_load(params, assignments, config=config, data_root=data_root))


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
    _pack(_load(params, assignments, config=config, data_root=data_root))


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
    values = _load(params, assignments, config=config, data_root=data_root)
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
    with _shown("cropping mouths", "clips") as on_progress:
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
    with _shown("packing shards", "clips") as on_progress:
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

    values = _load(params, assignments, config=config, data_root=data_root)
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
def train(
    context: typer.Context,
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    preset: Annotated[str | None, typer.Option(help="cpu, 12gb or 24gb")] = None,
    config: ConfigFile = None,
    resume: Annotated[
        Path | None, typer.Option(help="go on from this checkpoint_epoch_N.pt", metavar="FILE")
    ] = None,
    data_root: DataRoot = None,
    checkpoint_dir: CheckpointDir = None,
    max_frames: Annotated[int | None, typer.Option(help="longest clip; of preprocessing")] = None,
    fps: Annotated[float | None, typer.Option(help="frame rate; of preprocessing")] = None,
    batch_size: Annotated[int | None, typer.Option(help="clips in a batch")] = None,
    accumulation_steps: Annotated[int | None, typer.Option(help="batches for one step")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="peak learning rate")] = None,
    num_epochs: Annotated[int | None, typer.Option(help="epochs in all")] = None,
    warmup_epochs: Annotated[float | None, typer.Option(help="rise of the learning rate")] = None,
    scheduler: Annotated[str | None, typer.Option(help="cosine or constant")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="of AdamW")] = None,
    gradient_clip: Annotated[float | None, typer.Option(help="largest norm of the gradient")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="share of the other characters")] = None,
    teacher_forcing: Annotated[
        float | None,
        typer.Option(
            "--teacher-forcing", "--teacher-forcing-ratio", help="share of given characters, at first"
        ),
    ] = None,
    mixed_precision: Annotated[
        bool | None, typer.Option("--mixed-precision/--no-mixed-precision", help="bfloat16 where it is fast")
    ] = None,
    frame_size: Annotated[int | None, typer.Option(help="input height and width, pixels")] = None,
    frame_height: Annotated[int | None, typer.Option(help="input height, pixels")] = None,
    frame_width: Annotated[int | None, typer.Option(help="input width, pixels")] = None,
    hidden_dim: Annotated[int | None, typer.Option(help="of the LSTMs")] = None,
    num_lstm_layers: Annotated[int | None, typer.Option(help="of the encoder")] = None,
    dropout: Annotated[float | None, typer.Option(help="between layers")] = None,
    num_workers: Annotated[int | None, typer.Option(help="loader processes")] = None,
    prefetch_factor: Annotated[int | None, typer.Option(help="batches ready in each of them")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1")] = None,
) -> None:
    """Train on the shards; goes on by itself where an interrupted run of the same parameters stood.

    Example: pipeline train --preset 12gb --num-epochs 50
    """
    from model.job import TrainingJob
    from model.trainer import train as run
    from pipeline.older import OLDER_NAMES
    from pipeline.params import params_text

    flags = {name: context.params[name] for name in OLDER_NAMES if name in context.params}
    values = _load(params, assignments, preset=preset, config=config, **flags)
    _tell_of_packed(values, params, config)
    paths, num_epochs = values.paths, values.train.num_epochs
    with _shown("training", "batches") as on_progress:
        job = TrainingJob(
            samples=Path(paths.samples),
            shards=Path(paths.shards),
            runs=Path(paths.runs),
            checkpoints=Path(paths.checkpoints),
            logs=Path(paths.logs),
            text=values.text,
            model=values.model,
            train=values.train,
            loader=values.loader,
            decode=values.decode,
            machine=values.machine,
            config_text=params_text(values),
            resume=resume,
            on_batch=lambda epoch, done, total: on_progress(epoch * total + done, num_epochs * total),
        )
        summary = run(job)
    best = "no valid clips to choose by: the last model"
    if summary.best_val_cer is not None:
        best = f"best valid CER {summary.best_val_cer:.1%} in epoch {summary.best_epoch}"
    if summary.already_done:
        typer.echo("this run was finished before; nothing to do")
    typer.echo(
        f"{paths.checkpoints}: {summary.num_parameters:,} parameters, {summary.epochs} epochs, {best}, "
        f"{summary.seconds:.0f} s of training"
    )


def _tell_of_packed(values: "Params", params: Path, config: Path | None) -> None:
    """One line where values are given to train that are preprocessing's: the shards are packed already."""
    import shlex

    from pipeline.params import changed_keys, load_params

    given = changed_keys(values, load_params(params), PREPROCESSING)
    if not given:
        return
    by_flags = changed_keys(values, load_params(params, config=config), PREPROCESSING)
    options = [f"--config {shlex.quote(str(config))}"] if given.keys() - by_flags.keys() else []
    for key, value in by_flags.items():
        is_root = key == "corpus.root"
        options.append(
            f"--data-root {shlex.quote(value)}" if is_root else f"--set {shlex.quote(f'{key}={value}')}"
        )
    told = ", ".join(f"{key} ({value})" for key, value in given.items())
    typer.echo(
        f"{told}: not as in {params}; train reads shards that are packed already, preprocessing takes it: "
        f"pipeline preprocess {' '.join(options)}",
        err=True,
    )


@app.command()
def report(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    checkpoint: Annotated[Path | None, typer.Option(help="default: the best one", metavar="FILE")] = None,
) -> None:
    """Score a split, sighted and blind, and write metrics.json, predictions.parquet and report.html.

    Example: pipeline report --set report.split=valid
    """
    from stages.score import ReportJob
    from stages.score import report as run

    values = _load(params, assignments)
    paths = values.paths
    with _shown("reading clips", "clips") as on_progress:
        metrics = run(
            ReportJob(
                checkpoint=checkpoint or Path(paths.checkpoints) / "best_model.pt",
                clips=Path(paths.clips),
                crops=Path(paths.crops),
                samples=Path(paths.samples),
                shards=Path(paths.shards),
                curves=Path(paths.logs) / "curves.csv",
                report=Path(paths.report),
                corpus=values.corpus,
                report_params=values.report,
                loader=values.loader,
                decode=values.decode,
                machine=values.machine,
            ),
            on_progress,
        )
    from pipeline.console import stdout
    from pipeline.summary import print_metrics

    print_metrics(metrics, stdout)
    typer.echo(f"{Path(paths.report) / 'report.html'}")


@app.command()
def show(params: ParamsFile = PARAMS, assignments: Assignments = None, json_: Json = False) -> None:
    """Print the figures of the last report, and where its page is.

    Example: pipeline show
    """
    import json

    from pipeline.console import stdout
    from pipeline.summary import print_metrics
    from shards.errors import TableError

    folder = Path(_load(params, assignments).paths.report)
    file = folder / "metrics.json"
    try:
        metrics = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise TableError(f"{file} is missing; `pipeline report` makes it") from None
    except ValueError as error:
        raise TableError(f"{file} is damaged ({error}); `pipeline report` makes it again") from error
    if json_:
        typer.echo(json.dumps(metrics, ensure_ascii=False, indent=2))
    else:
        print_metrics(metrics, stdout)
        typer.echo(f"report: {folder / 'report.html'}")


@app.command()
def test(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    checkpoint: Annotated[Path | None, typer.Option(help="default: the best one", metavar="FILE")] = None,
    checkpoint_dir: CheckpointDir = None,
    split: Annotated[str | None, typer.Option(help="default: report.split")] = None,
    data_root: DataRoot = None,
    batch_size: Annotated[int | None, typer.Option(help="taken for older scripts; changes no result")] = None,
    json_: Json = False,
) -> None:
    """Score a checkpoint on a split and print the figures; writes nothing.

    Example: pipeline test --checkpoint checkpoints/best_model.pt --split valid
    """
    import json

    from pipeline.console import stdout
    from pipeline.summary import print_examples, print_metrics
    from stages.report import split_metrics
    from stages.score import score_checkpoint, shared_speakers

    values = _load(
        params, assignments, data_root=data_root, checkpoint_dir=checkpoint_dir, report__split=split
    )
    paths = values.paths
    with _shown("reading clips", "clips") as on_progress:
        _, scored, blind = score_checkpoint(
            checkpoint or Path(paths.checkpoints) / "best_model.pt",
            Path(paths.samples),
            Path(paths.shards),
            values.report.split,
            loader=values.loader,
            decode=values.decode,
            machine=values.machine,
            on_progress=on_progress,
        )
    overlap = len(shared_speakers(Path(paths.samples), values.report.split))
    metrics = split_metrics(scored, blind, values.report.split, values.report.seed, overlap)
    if json_:
        typer.echo(json.dumps(metrics, ensure_ascii=False, indent=2))
    else:
        print_examples(scored, stdout)
        print_metrics(metrics, stdout)


@app.command()
def inference(
    videos: Annotated[list[Path] | None, typer.Argument(help="video files", metavar="VIDEO...")] = None,
    video_path: Annotated[list[Path] | None, typer.Option(help="a video file, older spelling")] = None,
    ground_truth: Annotated[str | None, typer.Option(help="what is said; prints the CER")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="default: the best one", metavar="FILE")] = None,
    checkpoint_dir: CheckpointDir = None,
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    json_: Json = False,
) -> None:
    """Read videos: the mouth is found and cut as in preprocessing, the text is printed.

    Example: pipeline inference me.mp4 --ground-truth 我们旨在搭建一个平台
    """
    from pipeline.inference import print_readings, read_videos
    from shards.errors import ConfigError

    paths = [*(videos or []), *(video_path or [])]
    if not paths:
        raise ConfigError("name a video: pipeline inference VIDEO")
    if ground_truth is not None and len(paths) > 1:
        raise ConfigError("--ground-truth is for one video")
    values = _load(params, assignments, checkpoint_dir=checkpoint_dir)
    readings = read_videos(
        paths, checkpoint or Path(values.paths.checkpoints) / "best_model.pt", values, ground_truth
    )
    print_readings(readings, as_json=json_)
    if any(reading.reason for reading in readings):
        raise SystemExit(1)


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

    values = _load(params, assignments)
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


if __name__ == "__main__":
    main()
