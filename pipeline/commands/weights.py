"""Verb import-weights: a public lip reader's checkpoint becomes one of ours."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.command import PARAMS, Json, app, load

if TYPE_CHECKING:
    from model.text import Tokenizer
    from pipeline.params import Params


@app.command("import-weights")
def import_weights(
    file: Annotated[Path, typer.Argument(help=".pt, .pth, .ckpt or .safetensors", metavar="FILE")],
    format_: Annotated[
        Literal["auto_avsr", "cnvsrc2025"], typer.Option("--format", help="whose names its tensors have")
    ],
    vocabulary: Annotated[
        Path | None, typer.Option(help='its table of "character index" lines', metavar="char_units.txt")
    ] = None,
    part: Annotated[
        Literal["whole", "frontend", "encoder"],
        typer.Option(help="what is taken over; encoder: with the frontend below it"),
    ] = "whole",
    out: Annotated[Path, typer.Option(help="the checkpoint", metavar="FILE")] = Path("imported.pt"),
    params: Annotated[
        Path,
        typer.Option("--params", help="parameters, of which text and paths.samples count", metavar="FILE"),
    ] = PARAMS,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="one value of text, or paths.samples; repeatable", metavar="SECTION.KEY=VALUE"
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Turn a public lip reader's weights into a checkpoint that test and inference read and train.init_from takes.

    Example: pipeline import-weights vsr.pth --format cnvsrc2025 --vocabulary char_units.txt
    """
    import json

    from model.checkpoints import save_checkpoint
    from model.pretrained.weights import import_weights as run
    from pipeline.console import stdout
    from pipeline.tables.imported_weights import print_import
    from shards.errors import ConfigError

    if out.resolve() == file.resolve():
        raise ConfigError(f"--out {out} is the file that is read; name another one")
    for assignment in assignments or ():
        if not assignment.strip().startswith(("text.", "paths.samples=")):
            raise ConfigError(
                f"--set {assignment}: import-weights asks for text and paths.samples alone; sizes are the file's, "
                "the rest is for train"
            )
    values = load(params, assignments) if params.exists() or params != PARAMS or assignments else None
    checkpoint, report = run(
        file,
        format_,
        part,
        vocabulary,
        _packed_characters(values) if values else None,
        values.text if values else None,
    )
    save_checkpoint(out, checkpoint)
    if json_:
        typer.echo(json.dumps(report.as_dict() | {"out": str(out)}, ensure_ascii=False, indent=2))
    else:
        print_import(report, out, stdout)


def _packed_characters(values: "Params") -> "Tokenizer | None":
    """Those that training would learn; None where nothing is packed yet."""
    from model.vocabulary import Vocabulary
    from shards.enums import TRAIN_SPLIT
    from shards.samples import sample_pieces

    samples = Path(values.paths.samples)
    if not samples.exists():
        return None
    pieces = sample_pieces(samples, TRAIN_SPLIT, ["label"])
    labels = (label for piece in pieces for label in piece["label"].to_pylist())
    return Vocabulary.of_labels(labels, with_syllables=False).characters
