"""The commands inference, label, live and serve.

Heavy imports are inside the commands, so that `pipeline --help` is fast.
"""

from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.command import (
    PARAMS,
    READING,
    AdapterFile,
    Assignments,
    CheckpointDir,
    Json,
    ModelFile,
    ModelFiles,
    ParamsFile,
    app,
    figures_of,
    load,
    print_json,
    say,
    shown,
)

Onnx = Annotated[
    Path | None, typer.Option(help="exported ONNX model, instead of --checkpoint", metavar="FILE")
]


class OutFormat(StrEnum):
    """Formats of the output."""

    TEXT = "text"
    JSON = "json"
    SRT = "srt"
    VTT = "vtt"
    KARAOKE = "karaoke"
    CTM = "ctm"
    TEXTGRID = "textgrid"
    ELAN = "elan"


@app.command(rich_help_panel=READING)
def inference(
    videos: Annotated[
        list[str] | None,
        typer.Argument(
            help="video files, folders (searched with all subfolders) or patterns", metavar="VIDEO..."
        ),
    ] = None,
    video_path: Annotated[
        list[str] | None, typer.Option(help="a video file; the same as the argument VIDEO, for older scripts")
    ] = None,
    ground_truth: Annotated[
        str | None, typer.Option(help="true text of the one video; also prints the CER")
    ] = None,
    format_: Annotated[
        OutFormat | None,
        typer.Option(
            "--format",
            help="text, json; captions: srt, vtt, karaoke (vtt with word times); word times: ctm, textgrid, elan; "
            "default: text",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="write one file for each video to this folder, instead of stdout", metavar="DIR"),
    ] = None,
    burn_in: Annotated[
        bool,
        typer.Option("--burn-in", help="with --out: also write each video with the mouth box and captions"),
    ] = False,
    checkpoint: ModelFiles = None,
    adapter: AdapterFile = None,
    onnx: Onnx = None,
    checkpoint_dir: CheckpointDir = None,
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    json_: Json = False,
) -> None:
    """Read the lips in videos of any length: find the speaking face, crop its mouth and print the text.

    Example: pipeline inference me.mp4 holidays/ --format srt --out captions
    """
    from pipeline.inference.found_videos import videos_to_read
    from pipeline.inference.inference_run import Outputs, print_readings, run_inference
    from pipeline.inference.readers import models_of
    from shards.errors import ConfigError

    names = [*(videos or []), *(video_path or [])]
    if not names:
        raise ConfigError("no video is given; write: pipeline inference VIDEO")
    if json_ and format_ not in (None, OutFormat.JSON):
        raise ConfigError(f"--json and --format {format_} cannot be used together; remove one of them")
    if burn_in and out is None:
        raise ConfigError("--burn-in writes videos; add --out DIR to choose the folder")
    paths = videos_to_read(names)
    if ground_truth is not None and len(paths) > 1:
        raise ConfigError(f"--ground-truth needs exactly one video, {len(paths)} are given")
    values = load(params, assignments, checkpoint_dir=checkpoint_dir)
    kind = OutFormat.JSON if json_ else format_ or OutFormat.TEXT
    outputs = Outputs(kind.value, out, burn_in)
    models = models_of(checkpoint, onnx, values)
    # text on stdout shows the progress itself, and a progress bar would overwrite it
    has_progress = len(paths) > 1 and (out is not None or kind is OutFormat.JSON)
    with shown("videos", "videos") if has_progress else nullcontext(lambda *_: None) as on_progress:
        readings = run_inference(paths, models, values, outputs, ground_truth, on_progress, adapter)
    if out is None and kind is OutFormat.JSON:
        print_readings(readings)
    if any(reading.reason for reading in readings):
        raise SystemExit(1)


@app.command(rich_help_panel=READING)
def label(
    videos: Annotated[
        list[str],
        typer.Argument(
            help="video files, folders (searched with all subfolders) or patterns", metavar="VIDEO..."
        ),
    ],
    out: Annotated[Path, typer.Option(help="the table to write: .csv or .parquet", metavar="FILE")],
    root: Annotated[
        Path | None,
        typer.Option(help="corpus.root of the table; default: its folder", metavar="DIR"),
    ] = None,
    split: Annotated[str, typer.Option(help="split of the clips")] = "train",
    checkpoint: ModelFiles = None,
    adapter: AdapterFile = None,
    onnx: Onnx = None,
    checkpoint_dir: CheckpointDir = None,
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    json_: Json = False,
) -> None:
    """Read videos into a table of clips with text, confidence and other candidates, to correct and to train on.

    Example: pipeline label videos/ --out videos/labels.csv
    """
    from pipeline.inference.found_videos import videos_to_read
    from pipeline.inference.labelling import label_videos
    from pipeline.inference.readers import models_of

    paths = videos_to_read(videos)
    values = load(params, assignments, checkpoint_dir=checkpoint_dir)
    models = models_of(checkpoint, onnx, values)
    with shown("reading videos", "videos") as on_progress:
        summary = label_videos(list(paths), models, values, out, root, split, on_progress, adapter)
    if json_:
        print_json(figures_of(summary))
    else:
        say(f"{out}: {summary}")
    if summary.num_unread:
        raise SystemExit(1)


@app.command(rich_help_panel=READING)
def live(
    camera: Annotated[int | None, typer.Option(min=0, help="number of the camera; default: 0")] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="read this video at its own speed, instead of a camera", metavar="VIDEO"),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="stop after this many seconds; 0: at Ctrl-C")] = 0.0,
    checkpoint: ModelFiles = None,
    adapter: AdapterFile = None,
    onnx: Onnx = None,
    checkpoint_dir: CheckpointDir = None,
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    json_: Json = False,
) -> None:
    """Read the lips in a live camera picture, or in a file played as if live; print the text and its delay.

    Example: pipeline live --camera 0
    """
    from pipeline.inference.live import run_live
    from pipeline.inference.readers import models_of
    from shards.errors import ConfigError

    if camera is not None and file is not None:
        raise ConfigError("--camera and --file cannot be used together; remove one of them")
    values = load(params, assignments, checkpoint_dir=checkpoint_dir)
    source = file if file is not None else camera or 0
    summary = run_live(source, models_of(checkpoint, onnx, values), values, seconds, json_, adapter)
    # as in inference: a video without speech is not an error, speech that could not be read is one
    if summary.num_gaps and not summary.settled:
        raise SystemExit(1)


@app.command(rich_help_panel=READING)
def serve(
    checkpoint: ModelFile = None,
    adapter: AdapterFile = None,
    onnx: Onnx = None,
    checkpoint_dir: CheckpointDir = None,
    host: Annotated[
        str, typer.Option(help="address to listen on; any but 127.0.0.1 gives other machines access")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=0, max=65_535, help="port to listen on; 0: any free port")] = 8765,
    max_upload_mb: Annotated[float, typer.Option(min=0.001, help="refuse larger uploads, MB")] = 100.0,
    max_video_s: Annotated[float, typer.Option(min=1, help="refuse longer videos, s")] = 60.0,
    timeout_s: Annotated[float, typer.Option(min=1, help="stop reading a video after this time, s")] = 120.0,
    max_places: Annotated[int, typer.Option(min=1, help="videos at a time, waiting ones included")] = 8,
    pause_s: Annotated[float, typer.Option(min=1, help="close connections silent for this time, s")] = 10.0,
    slowest_kb_s: Annotated[float, typer.Option(min=0.1, help="stop slower uploads, kB/s")] = 50.0,
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
) -> None:
    """Serve a web page on this machine to try the model with a video file or the camera.

    The server does not keep videos. Ctrl-C stops it. Needs the extra `serve`.

    Example: pipeline serve --checkpoint checkpoints/best_model.pt --port 8765
    """
    from importlib.util import find_spec

    from shards.errors import ConfigError

    missing = [name for name in ("fastapi", "uvicorn", "python_multipart") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"pipeline serve needs {', '.join(missing)}; install them: pip install 'lip-pipeline[serve]'"
        )
    from pipeline.inference.readers import models_of
    from pipeline.serve.refusals import Limits
    from pipeline.serve.run import serve as run

    values = load(params, assignments, checkpoint_dir=checkpoint_dir)
    run(
        models_of([checkpoint] if checkpoint else None, onnx, values)[0],
        values,
        host,
        port,
        Limits(max_upload_mb, max_video_s, timeout_s, max_places, pause_s, slowest_kb_s),
        adapter,
    )
