"""The verb compare.

Heavy imports stay inside the verbs, so that `pipeline --help` answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.command import Json, app, say


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(help="report A: its folder, or its predictions.parquet")],
    run_b: Annotated[Path, typer.Argument(help="report B: its folder, or its predictions.parquet")],
    html: Annotated[
        Path | None, typer.Option(help="also write an HTML page to this file", metavar="FILE")
    ] = None,
    num_clips: Annotated[
        int, typer.Option("--clips", min=0, help="number of improved, and of worsened, clips to print")
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
    import json

    from pipeline.console import show_logs, stdout
    from pipeline.tables.comparison import print_comparison
    from shards.files import write_text
    from stages.pages.compare_page import compare_page
    from stages.reports.compare import compare as run

    show_logs()
    comparison = run(run_a, run_b, resamples, seed)
    if html is not None:
        write_text(html, compare_page(comparison))
    if json_:
        typer.echo(json.dumps(comparison.as_json(), ensure_ascii=False, indent=2))
    else:
        print_comparison(comparison, num_clips, stdout)
        if html is not None:
            say(html)
