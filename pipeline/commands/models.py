"""The commands import-weights, average, adapt and export.

Heavy imports are inside the commands, so that `pipeline --help` is fast.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.command import (
    PARAMS,
    TOOLS,
    TRAINING,
    AdapterFile,
    Assignments,
    CheckpointDir,
    Json,
    ModelFile,
    ParamsFile,
    app,
    check_writable,
    figures_of,
    load,
    print_json,
    say,
    shown,
)

if TYPE_CHECKING:
    from model.text import Tokenizer
    from pipeline.params import Params


@app.command("import-weights", rich_help_panel=TOOLS)
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
    from model.checkpoints import save_checkpoint
    from model.pretrained.weights import import_weights as run
    from pipeline.console import stdout
    from pipeline.tables.checks import print_import
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
        print_json(report.as_dict() | {"out": str(out)})
    else:
        print_import(report, out, stdout)


def _packed_characters(values: "Params") -> "Tokenizer | None":
    """Returns the characters of the packed training splits; None if a samples.parquet is missing."""
    from model.vocabulary import Vocabulary
    from pipeline.training_job import packs_of
    from shards.enums import TRAIN_SPLIT

    packs = packs_of(values)
    if not all(pack.samples.exists() for pack in packs.packs):
        return None
    pieces = packs.pieces(TRAIN_SPLIT, ["label"])
    labels = (label for piece in pieces for label in piece["label"].to_pylist())
    return Vocabulary.of_labels(labels, with_syllables=False).characters


@app.command(rich_help_panel=TOOLS)
def average(
    checkpoints: Annotated[
        list[Path], typer.Argument(help="two or more checkpoints of one run", metavar="CHECKPOINT...")
    ],
    out: Annotated[Path, typer.Option(help="checkpoint to write", metavar="FILE")] = Path("average.pt"),
    json_: Json = False,
) -> None:
    """Average the weights of several checkpoints into one, which often reads better and is as fast.

    Example: pipeline average checkpoints/checkpoint_epoch_*.pt --out average.pt
    """
    from model.average import average_checkpoints
    from model.checkpoints import save_checkpoint
    from shards.errors import ConfigError

    if out.resolve() in [checkpoint.resolve() for checkpoint in checkpoints]:
        raise ConfigError(f"--out {out} is one of the checkpoints; choose another file")
    save_checkpoint(out, average_checkpoints(checkpoints))
    if json_:
        print_json({"out": str(out), "checkpoints": list(map(str, checkpoints))})
    else:
        say(f"{out}: average of {len(checkpoints)} checkpoints")


@app.command(rich_help_panel=TRAINING)
def adapt(
    clips: Annotated[
        list[str] | None,
        typer.Argument(
            help="tables of clips (.csv, .parquet: media, start, end, text); with --unlabelled also videos; "
            "default: the packed clips",
            metavar="CLIPS...",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="adapter to write", metavar="FILE")] = Path("person.pt"),
    split: Annotated[str, typer.Option(help="split of the clips, in tables and in packs")] = "train",
    where: Annotated[
        str, typer.Option(help="condition on the packed clips, as \"speaker = 's26'\"", metavar="SQL")
    ] = "",
    root: Annotated[
        Path | None, typer.Option(help="folder of the tables' videos; default: the table's", metavar="DIR")
    ] = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="use no texts: adapt only the statistics of normalisations")
    ] = False,
    merge: Annotated[
        Path | None,
        typer.Option(help="no clips: write the model with this adapter as a checkpoint", metavar="ADAPTER"),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="random seed of folds and training")] = 0,
    checkpoint: ModelFile = None,
    checkpoint_dir: CheckpointDir = None,
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    json_: Json = False,
) -> None:
    """Adapt a model to one person with 5 to 50 labelled clips: writes a small file for --adapter of other commands.

    Cross-validation within the clips decides how long to train, and prints the CER before and after.

    Example: pipeline adapt me/labels.csv --checkpoint checkpoints/best_model.pt --out me.pt
    """
    from model.adapters import load_adapted
    from model.checkpoints import save_checkpoint
    from pipeline.adapting import PersonSource, adapt_person
    from shards.errors import ConfigError

    values = load(params, assignments, checkpoint_dir=checkpoint_dir)
    model = checkpoint or Path(values.paths.checkpoints) / "best_model.pt"
    if merge is not None:
        if clips or out.resolve() in (model.resolve(), merge.resolve()):
            raise ConfigError("--merge takes no clips, and --out must be another file than model and adapter")
        save_checkpoint(out, load_adapted(model, merge))
        if json_:
            print_json({"out": str(out), "checkpoint": str(model), "adapter": str(merge)})
        else:
            say(f"{out}: {model} with {merge}")
        return
    source = PersonSource(clips or (), root, split, where, is_labelled=not unlabelled)
    with shown("adapting", "steps") as on_progress:
        summary = adapt_person(model, out, source, values, seed, on_progress)
    if json_:
        print_json(figures_of(summary))
    else:
        say(f"{out}: {summary}")


@app.command(rich_help_panel=TOOLS)
def export(
    format_: Annotated[
        Literal["onnx", "safetensors"],
        typer.Option("--format", help="onnx: a model for onnxruntime; safetensors: only the weights"),
    ] = "onnx",
    checkpoint: ModelFile = None,
    adapter: AdapterFile = None,
    checkpoint_dir: CheckpointDir = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="folder of one export; files of an older export there are removed; default: export/<format>",
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
    from dataclasses import asdict

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
            adapter=adapter,
        )
    if json_:
        print_json(asdict(facts) | {"out": str(folder)})
        return
    for file in facts.files:
        line = f"{folder / file.name}: {file.num_bytes / 1e6:.1f} MB"
        if file.cer is not None and file.clips_per_s is not None:
            line += f", CER {file.cer:.2%} on split {facts.scored_split}, {file.clips_per_s:.1f} clips/s"
        say(line)
    if facts.difference is not None:
        typer.echo(f"differs from the network by at most {facts.difference:.1e} in a log-probability")
    say(folder / "MODEL_CARD.md")
