"""The verb serve.

Heavy imports stay inside the verbs, so that `pipeline --help` answers at once.
"""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.command import PARAMS, Assignments, CheckpointDir, ModelFile, ParamsFile, app, load


@app.command()
def serve(
    checkpoint: ModelFile = None,
    onnx: Annotated[
        Path | None, typer.Option(help="exported ONNX model, instead of --checkpoint", metavar="FILE")
    ] = None,
    checkpoint_dir: CheckpointDir = None,
    host: Annotated[
        str, typer.Option(help="address to listen on; any but 127.0.0.1 gives other machines access")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(min=0, max=65_535, help="port to listen on; 0: any free port")] = 8765,
    max_upload_mb: Annotated[float, typer.Option(min=0.001, help="refuse larger uploads, MB")] = 100.0,
    max_video_s: Annotated[float, typer.Option(min=1, help="refuse longer videos, s")] = 60.0,
    timeout_s: Annotated[float, typer.Option(min=1, help="stop reading a video after this time, s")] = 120.0,
    max_places: Annotated[int, typer.Option(min=1, help="most videos in work and waiting")] = 8,
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
    from pipeline.inference.readers import model_of
    from pipeline.serve.limits import Limits
    from pipeline.serve.run import serve as run

    values = load(params, assignments, checkpoint_dir=checkpoint_dir)
    run(
        model_of(checkpoint, onnx, values),
        values,
        host,
        port,
        Limits(max_upload_mb, max_video_s, timeout_s, max_places, pause_s, slowest_kb_s),
    )
