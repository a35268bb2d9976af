"""The verbs inference and live.

Heavy imports stay inside the verbs, so that `pipeline --help` answers at once.
"""

from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

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
    shown,
)

Onnx = Annotated[Path | None, typer.Option(help="an exported model instead of a checkpoint", metavar="FILE")]


class OutFormat(StrEnum):
    """How a reading is written."""

    TEXT = "text"
    JSON = "json"
    SRT = "srt"
    VTT = "vtt"


@app.command()
def inference(
    videos: Annotated[
        list[str] | None,
        typer.Argument(help="video files, folders with all below them, patterns", metavar="VIDEO..."),
    ] = None,
    video_path: Annotated[list[str] | None, typer.Option(help="a video file, older spelling")] = None,
    ground_truth: Annotated[str | None, typer.Option(help="what is said; prints the CER")] = None,
    format_: Annotated[
        OutFormat | None, typer.Option("--format", help="text (default), json, srt, vtt captions")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="one file a video here instead of stdout", metavar="DIR")
    ] = None,
    burn_in: Annotated[
        bool, typer.Option("--burn-in", help="with --out: also the video, mouth box and captions drawn in")
    ] = False,
    checkpoint: ModelFile = None,
    onnx: Onnx = None,
    checkpoint_dir: CheckpointDir = None,
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    json_: Json = False,
) -> None:
    """Read videos of any length: the speaking face is found, its mouth is cut as in preprocessing, the text is printed.

    Example: pipeline inference me.mp4 holidays/ --format srt --out captions
    """
    from pipeline.inference.found_videos import find_videos
    from pipeline.inference.inference_run import Outputs, print_json, run_inference
    from pipeline.inference.readers import model_of
    from shards.errors import ConfigError
    from shards.safe_text import one_line

    names = [*(videos or []), *(video_path or [])]
    if not names:
        raise ConfigError("name a video: pipeline inference VIDEO")
    if json_ and format_ not in (None, OutFormat.JSON):
        raise ConfigError(f"--json and --format {format_} are two formats; give one")
    if burn_in and out is None:
        raise ConfigError("--burn-in writes videos; say where with --out DIR")
    paths, skipped = find_videos(names)
    if skipped:
        told = ", ".join(map(one_line, skipped[:5])) + (", ..." if len(skipped) > 5 else "")
        typer.echo(f"skipped, no video file or captioned here: {told} ({len(skipped)})", err=True)
    if not paths:
        raise ConfigError(f"no video in {', '.join(names)}")
    if ground_truth is not None and len(paths) > 1:
        raise ConfigError("--ground-truth is for one video")
    values = load(params, assignments, checkpoint_dir=checkpoint_dir)
    kind = OutFormat.JSON if json_ else format_ or OutFormat.TEXT
    outputs = Outputs(kind.value, out, burn_in)
    model = model_of(checkpoint, onnx, values)
    # text on stdout shows by itself how far it is, and a bar would swallow it
    is_told = len(paths) > 1 and (out is not None or kind is OutFormat.JSON)
    with shown("videos", "videos") if is_told else nullcontext(lambda *_: None) as on_progress:
        readings = run_inference(paths, model, values, outputs, ground_truth, on_progress)
    if out is None and kind is OutFormat.JSON:
        print_json(readings)
    if any(reading.reason for reading in readings):
        raise SystemExit(1)


@app.command()
def live(
    camera: Annotated[int | None, typer.Option(min=0, help="number of the camera; default 0")] = None,
    file: Annotated[
        Path | None, typer.Option(help="a video, played at its own speed", metavar="VIDEO")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="stop after so long; 0: at Ctrl-C")] = 0.0,
    checkpoint: ModelFile = None,
    onnx: Onnx = None,
    checkpoint_dir: CheckpointDir = None,
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    json_: Json = False,
) -> None:
    """Read a camera as it sees, or a file as if live: text as it settles, and how long after its pictures.

    Example: pipeline live --camera 0
    """
    from pipeline.inference.live import run_live
    from pipeline.inference.readers import model_of
    from shards.errors import ConfigError

    if camera is not None and file is not None:
        raise ConfigError("--camera and --file are two sources; give one")
    values = load(params, assignments, checkpoint_dir=checkpoint_dir)
    source = file if file is not None else camera or 0
    summary = run_live(source, model_of(checkpoint, onnx, values), values, seconds, json_)
    # as inference: nobody spoke is no fault, somebody could not be read is one
    if summary.num_gaps and not summary.settled:
        raise SystemExit(1)
