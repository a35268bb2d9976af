"""The verb lm.

Heavy imports stay inside the verbs, so that `pipeline --help` answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.command import PARAMS, Assignments, Json, ParamsFile, app, load


@app.command()
def lm(
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="text to learn from, one sentence on each line; default: lm.text_file", metavar="FILE"
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Train the character language model for beam search and print its perplexity on split valid.

    Example: pipeline lm --text novels.txt --set lm.order=5
    """
    import json

    from stages.lm import make_language_model, summary_of

    values = load(params, assignments, lm__text_file=text)
    figures = make_language_model(Path(values.paths.samples), Path(values.paths.lm), values.lm, values.text)
    typer.echo(json.dumps(figures, ensure_ascii=False, indent=2) if json_ else summary_of(figures))
