"""The verb import-weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.command import PARAMS, Json, app, load

if TYPE_CHECKING:
    from model.text import Tokenizer
    from pipeline.params import Params


@app.command("import-weights")
def import_weights(
    file: Annotated[Path, typer.Argument(help="weights: .pt, .pth, .ckpt or .safetensors", metavar="FILE")],
    format_: Annotated[
        Literal["auto_avsr", "cnvsrc2025"],
        typer.Option("--format", help="project of the tensor names"),
    ],
    vocabulary: Annotated[
        Path | None,
        typer.Option(
            help='file with the characters of the model, lines "character index"', metavar="char_units.txt"
        ),
    ] = None,
    part: Annotated[
        Literal["whole", "frontend", "encoder"],
        typer.Option(help="part to import; encoder includes the frontend"),
    ] = "whole",
    out: Annotated[Path, typer.Option(help="checkpoint to write", metavar="FILE")] = Path("imported.pt"),
    params: Annotated[
        Path,
        typer.Option(
            "--params", help="file of parameters; only text and paths.samples are used", metavar="FILE"
        ),
    ] = PARAMS,
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="set paths.samples or one value of text; repeatable", metavar="SECTION.KEY=VALUE"
        ),
    ] = None,
    json_: Json = False,
) -> None:
    """Convert weights of a public lip reader into a checkpoint for test, inference and train.init_from.

    Example: pipeline import-weights vsr.pth --format cnvsrc2025 --vocabulary char_units.txt
    """
    import json

    from model.checkpoints import save_checkpoint
    from model.pretrained.weights import import_weights as run
    from pipeline.console import stdout
    from pipeline.tables.imported_weights import print_import
    from shards.errors import ConfigError

    if out.resolve() == file.resolve():
        raise ConfigError(f"--out {out} is the input file; choose another file")
    for assignment in assignments or ():
        if not assignment.strip().startswith(("text.", "paths.samples=")):
            raise ConfigError(
                f"--set {assignment}: import-weights uses only text and paths.samples; sizes come from the file; set "
                "other values for train"
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
    """Returns the characters of the packed training split; None if there is no samples.parquet yet."""
    from model.vocabulary import Vocabulary
    from shards.enums import TRAIN_SPLIT
    from shards.samples import sample_pieces

    samples = Path(values.paths.samples)
    if not samples.exists():
        return None
    pieces = sample_pieces(samples, TRAIN_SPLIT, ["label"])
    labels = (label for piece in pieces for label in piece["label"].to_pylist())
    return Vocabulary.of_labels(labels, with_syllables=False).characters
