"""The verb inference.

Heavy imports stay inside the verbs, so that `pipeline --help` answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.command import PARAMS, Assignments, CheckpointDir, Json, ParamsFile, app, load


@app.command()
def inference(
    videos: Annotated[list[Path] | None, typer.Argument(help="video files", metavar="VIDEO...")] = None,
    video_path: Annotated[list[Path] | None, typer.Option(help="a video file, older spelling")] = None,
    ground_truth: Annotated[str | None, typer.Option(help="what is said; prints the CER")] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="default: the best one", metavar="FILE")] = None,
    checkpoint_dir: CheckpointDir = None,
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
    json_: Json = False,
) -> None:
    """Read videos: the mouth is found and cut as in preprocessing, the text is printed.

    Example: pipeline inference me.mp4 --ground-truth 我们旨在搭建一个平台
    """
    from pipeline.inference import print_readings, read_videos
    from shards.errors import ConfigError

    paths = [*(videos or []), *(video_path or [])]
    if not paths:
        raise ConfigError("name a video: pipeline inference VIDEO")
    if ground_truth is not None and len(paths) > 1:
        raise ConfigError("--ground-truth is for one video")
    values = load(params, assignments, checkpoint_dir=checkpoint_dir)
    readings = read_videos(
        paths, checkpoint or Path(values.paths.checkpoints) / "best_model.pt", values, ground_truth
    )
    print_readings(readings, as_json=json_)
    if any(reading.reason for reading in readings):
        raise SystemExit(1)
