"""`pipeline inference`: reads the videos, and prints or writes what was read as each is done."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import av
import typer

from pipeline.captions import Format, out_paths, rendered, suffix_of, write_reading
from pipeline.found_videos import BURNT_SUFFIX, VIDEO_SUFFIXES
from pipeline.inference import VideoReading, read_video
from pipeline.params import Params
from pipeline.readers import open_reader
from shards.errors import ClipRejected, ConfigError, MachineError
from shards.files import atomic_file
from stages.chatter import NATIVE_LOG, native_stderr_to

if TYPE_CHECKING:
    from pipeline.burn_in import MouthBoxes


@dataclass(frozen=True, slots=True)
class Outputs:
    """What becomes of the readings: to stdout, or a file each in `folder`, and the captioned videos beside them."""

    kind: Format
    folder: Path | None
    burn_in: bool


def run_inference(
    paths: Mapping[Path, Path],
    model: Path,
    params: Params,
    outputs: Outputs,
    ground_truth: str | None,
    on_progress: Callable[[int, int], None],
) -> list[VideoReading]:
    """Every reading, in order; why a video could not be read goes to stderr, in the ledger's reasons.

    `paths` are the videos and their places in the folder of outputs (`find_videos`). JSON for stdout is left to
    `print_json`. `ground_truth` is normalised as the labels of training were. Raises CheckpointError where the model
    does not fit, ConfigError where a file that stands beside a video would be written over, and, after all are read,
    MachineError where some could not be captioned.
    """
    if outputs.folder is None and outputs.kind in ("srt", "vtt") and len(paths) > 1:
        raise ConfigError(f"captions of {len(paths)} videos are files of their own; say where with --out DIR")
    folder = outputs.folder or Path()
    files = out_paths(paths, folder, suffix_of(outputs.kind))
    captioned = out_paths(paths, folder, BURNT_SUFFIX)
    if outputs.folder is not None:
        _check_outputs(paths, files, list(captioned.values()) if outputs.burn_in else [])
    native_stderr_to(Path(params.machine.cache_dir) / NATIVE_LOG)
    reader = open_reader(model, params)
    readings = []
    not_captioned = []
    for number, path in enumerate(paths, start=1):
        boxes = _boxes(params) if outputs.burn_in else None
        reading = read_video(path, reader, params, ground_truth, boxes)
        readings.append(reading)
        if outputs.folder is not None:
            _write(reading, outputs.kind, files[path])
            _tell_cer(reading, outputs.kind)
            # the text is safe, whatever becomes of the pictures
            is_read = reading.reason is None
            if boxes is not None and is_read and not _burn_in(reading, boxes, params, captioned[path]):
                not_captioned.append(path)
        elif outputs.kind != "json":
            # the next one may take minutes
            _print(reading, outputs.kind, named=len(paths) > 1)
        on_progress(number, len(paths))
    if not_captioned:
        raise MachineError(f"{len(not_captioned)} of {len(paths)} videos could not be captioned, see above")
    return readings


def print_json(readings: Sequence[VideoReading]) -> None:
    typer.echo(json.dumps([asdict(reading) for reading in readings], ensure_ascii=False, indent=2))


def _print(reading: VideoReading, kind: Format, named: bool) -> None:
    _tell_unread(reading)
    if reading.reason is not None:
        return
    name = f"{reading.path}: " if named else ""
    typer.echo(f"{name}{rendered(reading, kind)}", nl=False)
    _tell_cer(reading, kind, err=kind != "text")


def _tell_cer(reading: VideoReading, kind: Format, err: bool = True) -> None:
    """JSON has it among its figures."""
    if kind != "json" and reading.cer is not None:
        typer.echo(f"CER {reading.cer:.4f} (accuracy {1 - reading.cer:.2%})", err=err)


def _write(reading: VideoReading, kind: Format, path: Path) -> None:
    _tell_unread(reading)
    # only JSON has a place for what was not read
    if reading.reason is None or kind == "json":
        write_reading(reading, kind, path)


def _tell_unread(reading: VideoReading) -> None:
    if reading.reason is not None:
        typer.echo(f"{reading.path}: {reading.reason}", err=True)
    for gap in reading.gaps:
        typer.echo(f"{reading.path}: {gap.start_s:.2f} to {gap.end_s:.2f} s not read: {gap.reason}", err=True)


def _check_outputs(
    videos: Mapping[Path, Path], files: Mapping[Path, Path], captioned: Sequence[Path]
) -> None:
    """Beside a video its transcript stands, which the next ingest takes for what is said."""
    sources = {video.resolve() for video in videos}
    for file in (*files.values(), *captioned):
        if file.resolve() in sources:
            raise ConfigError(f"{file} is one of the videos, and would be written over; give another --out")
    for video, file in files.items():
        for other in file.parent.iterdir() if file.exists() else ():
            is_video = other.suffix.lower() in VIDEO_SUFFIXES or other.resolve() in sources
            if is_video and other.stem == file.stem:
                raise ConfigError(
                    f"{file} is there already, beside {other.name}, and may be its transcript; give another --out, "
                    "or move it away"
                )
        if file.stem != videos[video].stem:
            typer.echo(f"{video}: its name is taken, written to {file.name}", err=True)


def _boxes(params: Params) -> "MouthBoxes":
    from pipeline.burn_in import MouthBoxes

    return MouthBoxes(params.crop.size_px)


def _burn_in(reading: VideoReading, boxes: "MouthBoxes", params: Params, path: Path) -> bool:
    """Whether the captioned video, `path`, is there; why not goes to stderr, and the next is read all the same."""
    from pipeline.burn_in import burn_in

    try:
        with atomic_file(path) as file:
            lost = burn_in(Path(reading.path), reading, boxes, params, file)
    except (MachineError, ClipRejected, av.error.FFmpegError) as error:
        typer.echo(f"{reading.path}: not captioned: {error}", err=True)
        return False
    if lost:
        typer.echo(f"{reading.path}: captioned, but {lost}", err=True)
    return True
