"""The commands test, report, show and compare.

Heavy imports are inside the commands, so that `pipeline --help` is fast.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.command import (
    EVALUATION,
    PARAMS,
    AdapterFile,
    Assignments,
    CheckpointDir,
    DataRoot,
    Json,
    ModelFiles,
    ParamsFile,
    app,
    check_writable,
    load,
    print_json,
    say,
    shown,
)


@app.command(rich_help_panel=EVALUATION)
def test(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    checkpoint: ModelFiles = None,
    adapter: AdapterFile = None,
    checkpoint_dir: CheckpointDir = None,
    split: Annotated[str | None, typer.Option(help="split to score; default: report.split")] = None,
    data_root: DataRoot = None,
    decoder: Annotated[
        list[str] | None,
        typer.Option(
            help="compare decoders in one table: ctc, ctc_beam, attention, attention_beam, joint_beam, syllables, "
            "pinyin, auto, all; repeatable"
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="has no effect; accepted for older scripts")] = None,
    json_: Json = False,
) -> None:
    """Score a checkpoint on a split and print the figures; write no file.

    Example: pipeline test --checkpoint checkpoints/best_model.pt --split valid --decoder ctc --decoder ctc_beam
    """

    from pipeline.console import stdout
    from pipeline.tables.evaluation import print_examples, print_metrics
    from pipeline.training_job import packs_of
    from stages.lm import warn_of_other_text
    from stages.report import reading_facts, score_checkpoint
    from stages.reports.clip_tables import rejected_clips
    from stages.reports.counting import split_metrics
    from stages.reports.train_test_leakage import seen_in_training

    values = load(
        params, assignments, data_root=data_root, checkpoint_dir=checkpoint_dir, report__split=split
    )
    paths = values.paths
    checkpoints = checkpoint or [Path(paths.checkpoints) / "best_model.pt"]
    if decoder:
        from pipeline.tables.decoders import compare_decoders, print_decoders

        with shown("reading clips", "clips") as on_progress:
            warn_of_other_text(Path(values.paths.lm), values.lm, values.decode, decoder)
            rows = compare_decoders(checkpoints, values, decoder, on_progress, adapter)
        if json_:
            print_json(rows)
        else:
            print_decoders(rows, values.report.split, stdout)
        return
    # read the tables first: a damaged one is reported before the work
    packs = packs_of(values)
    seen = seen_in_training(packs, values.report.split, values.loader)
    clip_ids = packs.read(values.report.split, ["clip_id"])["clip_id"].to_pylist()
    rejected = rejected_clips(packs, values.report.split, clip_ids)
    with shown("reading normally, then blind", "readings") as on_progress:
        warn_of_other_text(Path(values.paths.lm), values.lm, values.decode)
        reader, scored, blind = score_checkpoint(
            checkpoints,
            packs,
            values.report.split,
            loader=values.loader,
            decode=values.decode,
            machine=values.machine,
            lm=Path(paths.lm),
            on_progress=on_progress,
            adapter=adapter,
        )
    metrics = split_metrics(
        scored,
        blind,
        values.report.split,
        values.report.seed,
        seen.num_speakers,
        resamples=values.report.resamples,
        facts=reading_facts(reader, values.decode, checkpoints, packs, Path(paths.lm), adapter=adapter),
        num_rejected=next(iter(rejected.values())),
        corpora=rejected if packs.is_blend else None,
    )
    if json_:
        print_json(metrics)
    else:
        print_examples(scored, stdout)
        print_metrics(metrics, stdout)


@app.command(rich_help_panel=EVALUATION)
def report(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    checkpoint: ModelFiles = None,
    adapter: AdapterFile = None,
    json_: Json = False,
) -> None:
    """Score a split and write metrics.json, predictions.parquet and report.html.

    The model reads each clip twice: normally, and blind (only the mean frame of the clip, without motion).

    Example: pipeline report --set report.split=valid
    """
    from pipeline.training_job import packs_of
    from stages.lm import warn_of_other_text
    from stages.report import ReportJob
    from stages.report import report as run

    values = load(params, assignments)
    paths = values.paths
    check_writable(Path(paths.report), "paths.report")
    with shown("reading normally, then blind", "readings") as on_progress:
        warn_of_other_text(Path(values.paths.lm), values.lm, values.decode)
        metrics = run(
            ReportJob(
                checkpoints=checkpoint or [Path(paths.checkpoints) / "best_model.pt"],
                packs=packs_of(values),
                curves=Path(paths.logs) / "curves.csv",
                report=Path(paths.report),
                corpus=values.corpus,
                report_params=values.report,
                loader=values.loader,
                decode=values.decode,
                machine=values.machine,
                lm=Path(paths.lm),
                adapter=adapter,
            ),
            on_progress,
        )
    if json_:
        print_json(metrics)
        return
    from pipeline.console import stdout
    from pipeline.tables.evaluation import print_metrics

    print_metrics(metrics, stdout)
    say(Path(paths.report) / "report.html")


@app.command(rich_help_panel=EVALUATION)
def show(params: ParamsFile = PARAMS, assignments: Assignments = None, json_: Json = False) -> None:
    """Print the figures of the last report and the path of its page.

    Example: pipeline show
    """
    import json

    from pipeline.console import stdout
    from pipeline.tables.evaluation import print_metrics
    from shards.errors import TableError
    from shards.pipes import refuse_pipe

    folder = Path(load(params, assignments).paths.report)
    file = folder / "metrics.json"
    refuse_pipe(file)
    try:
        metrics = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise TableError(f"{file} is missing; run `pipeline report`") from None
    except ValueError as error:
        raise TableError(f"{file} is damaged ({error}); run `pipeline report` again") from error
    if json_:
        print_json(metrics)
    else:
        print_metrics(metrics, stdout)
        say(f"report: {folder / 'report.html'}")


@app.command(rich_help_panel=EVALUATION)
def compare(
    run_a: Annotated[Path, typer.Argument(help="report A: its folder, or its predictions.parquet")],
    run_b: Annotated[Path, typer.Argument(help="report B: its folder, or its predictions.parquet")],
    html: Annotated[
        Path | None, typer.Option(help="also write an HTML page to this file", metavar="FILE")
    ] = None,
    num_clips: Annotated[
        int, typer.Option("--clips", min=0, help="number of improved and of worsened clips to print")
    ] = 3,
    resamples: Annotated[
        int, typer.Option(min=100, max=100_000, help="bootstrap resamples of speakers for the 95 % interval")
    ] = 2_000,
    seed: Annotated[int, typer.Option(min=0, help="random seed of the resamples")] = 0,
    json_: Json = False,
) -> None:
    """Compare two reports of the same split clip by clip, and test whether the difference in CER may be chance.

    Example: pipeline compare report-ctc report-joint --html compare.html
    """

    from pipeline.console import show_logs, stdout
    from pipeline.tables.evaluation import print_comparison
    from shards.files import write_text
    from stages.pages.compare_page import compare_page
    from stages.reports.compare import compare as run

    show_logs()
    comparison = run(run_a, run_b, resamples, seed)
    if html is not None:
        write_text(html, compare_page(comparison))
    if json_:
        print_json(comparison.as_json())
    else:
        print_comparison(comparison, num_clips, stdout)
        if html is not None:
            say(html)
