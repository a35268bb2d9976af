"""Verbs about the score of a split: report, show.

Heavy imports stay inside the verbs, so that `pipeline --help` answers at once.
"""

from pathlib import Path

import typer

from pipeline.command import PARAMS, Assignments, Json, ModelFile, ParamsFile, app, load, say, shown


@app.command()
def report(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    checkpoint: ModelFile = None,
) -> None:
    """Score a split and write metrics.json, predictions.parquet and report.html.

    The model reads each clip twice: normally, and blind (only the mean frame of the clip, without motion).

    Example: pipeline report --set report.split=valid
    """
    from pipeline.command import check_writable
    from shards.open_store import open_store
    from stages.lm import warn_of_other_text
    from stages.report import ReportJob
    from stages.report import report as run

    values = load(params, assignments)
    paths = values.paths
    check_writable(Path(paths.report), "paths.report")
    with shown("reading normally, then blind", "readings") as on_progress:
        warn_of_other_text(Path(values.paths.lm), values.lm.text_file, values.decode)
        metrics = run(
            ReportJob(
                checkpoint=checkpoint or Path(paths.checkpoints) / "best_model.pt",
                clips=Path(paths.clips),
                crops=Path(paths.crops),
                samples=Path(paths.samples),
                shards=open_store(paths.shards, values.machine),
                curves=Path(paths.logs) / "curves.csv",
                report=Path(paths.report),
                corpus=values.corpus,
                report_params=values.report,
                loader=values.loader,
                decode=values.decode,
                machine=values.machine,
                lm=Path(paths.lm),
            ),
            on_progress,
        )
    from pipeline.console import stdout
    from pipeline.tables.metrics import print_metrics

    print_metrics(metrics, stdout)
    say(Path(paths.report) / "report.html")


@app.command()
def show(params: ParamsFile = PARAMS, assignments: Assignments = None, json_: Json = False) -> None:
    """Print the figures of the last report and the path of its page.

    Example: pipeline show
    """
    import json

    from pipeline.console import stdout
    from pipeline.tables.metrics import print_metrics
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
        typer.echo(json.dumps(metrics, ensure_ascii=False, indent=2))
    else:
        print_metrics(metrics, stdout)
        say(f"report: {folder / 'report.html'}")
