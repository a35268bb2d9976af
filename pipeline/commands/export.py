"""The command export: a trained model for other programs.

Heavy imports are inside the command, so that `pipeline --help` is fast.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.command import (
    PARAMS,
    Assignments,
    CheckpointDir,
    Json,
    ModelFile,
    ParamsFile,
    app,
    load,
    say,
    shown,
)


@app.command()
def export(
    format_: Annotated[
        Literal["onnx", "safetensors"],
        typer.Option("--format", help="onnx: a model for onnxruntime; safetensors: only the weights"),
    ] = "onnx",
    checkpoint: ModelFile = None,
    checkpoint_dir: CheckpointDir = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="default: export/<format>; holds one export, files of an older export are removed",
            metavar="DIR",
        ),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="for onnx: also write a quantised file, and score both files")
    ] = False,
    split: Annotated[str | None, typer.Option(help="split that --int8 scores; default: report.split")] = None,
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    json_: Json = False,
) -> None:
    """Write a model for other programs, with configuration and card: from uint8 mouth clips to log-probabilities.

    Example: pipeline export --format onnx --int8
    """
    import json
    from dataclasses import asdict

    from pipeline.command import check_writable
    from pipeline.export import export as run

    values = load(params, assignments, checkpoint_dir=checkpoint_dir, report__split=split)
    folder = out or Path("export") / format_
    check_writable(folder)
    with shown("reading clips", "clips") as on_progress:
        facts = run(
            checkpoint or Path(values.paths.checkpoints) / "best_model.pt",
            format_,
            folder,
            values,
            int8=int8,
            on_progress=on_progress,
        )
    if json_:
        typer.echo(json.dumps(asdict(facts) | {"out": str(folder)}, ensure_ascii=False, indent=2))
        return
    for file in facts.files:
        line = f"{folder / file.name}: {file.num_bytes / 1e6:.1f} MB"
        if file.cer is not None and file.clips_per_s is not None:
            line += f", CER {file.cer:.2%} on split {facts.scored_split}, {file.clips_per_s:.1f} clips/s"
        say(line)
    if facts.difference is not None:
        typer.echo(f"differs from the network by at most {facts.difference:.1e} in a log-probability")
    say(folder / "MODEL_CARD.md")
