"""`pipeline inference`: reads the videos, and prints or writes each reading as soon as it is ready."""

import errno
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import av
import typer

from model.vocabulary import Vocabulary
from pipeline.command import check_writable, terminable
from pipeline.inference.captions import (
    TIMED,
    Format,
    out_paths,
    rendered,
    suffix_of,
    valid_utf8,
    write_reading,
)
from pipeline.inference.found_videos import BURNT_SUFFIX, VIDEO_SUFFIXES, is_kind
from pipeline.inference.readers import open_reader
from pipeline.inference.text_of_video import VideoReading, read_video
from pipeline.inference.timed_text import as_json_object
from pipeline.params import Params
from shards.errors import ClipRejected, ConfigError, DiskError, Interrupted, MachineError
from shards.files import atomic_file
from shards.safe_text import one_line
from stages.mouths.landmarker import NATIVE_LOG, native_stderr_to

if TYPE_CHECKING:
    from pipeline.inference.burn_in import MouthBoxes
    from pipeline.inference.caption_font import CaptionFont


@dataclass(frozen=True, slots=True)
class Outputs:
    """Where the readings go: to stdout, or one file each in `folder`, which also gets the captioned videos."""

    kind: Format
    folder: Path | None
    burn_in: bool


def run_inference(
    paths: Mapping[Path, Path],
    models: Sequence[Path],
    params: Params,
    outputs: Outputs,
    ground_truth: str | None,
    on_progress: Callable[[int, int], None],
    adapter: Path | None = None,
) -> list[VideoReading]:
    """Returns every reading, in order; prints the reason why a video could not be read to stderr.

    `paths` are the videos and their paths in the output folder (`find_videos`). JSON for stdout is left to
    `print_readings`, but printed here if the run is interrupted. `ground_truth` is normalised like training's labels.
    Raises CheckpointError if the model does not fit, ConfigError if the folder cannot be written or a file next to a
    video would be overwritten, MachineError if no font has the characters that the model may write into captions, and,
    after all videos are read, if some could not be written or captioned; Interrupted at Ctrl-C and SIGTERM.
    """
    if outputs.folder is None and outputs.kind not in ("text", "json") and len(paths) > 1:
        raise ConfigError(f"captions of {len(paths)} videos need one file each; name a folder with --out DIR")
    folder = outputs.folder or Path()
    files = out_paths(paths, folder, suffix_of(outputs.kind))
    captioned = out_paths(paths, folder, BURNT_SUFFIX)
    if outputs.folder is not None:
        check_writable(outputs.folder)
        _check_outputs(paths, files, list(captioned.values()) if outputs.burn_in else [])
    native_stderr_to(Path(params.machine.cache_dir) / NATIVE_LOG)
    readings: list[VideoReading] = []
    try:
        with terminable():
            unwritten = _read_all(
                *(
                    paths,
                    files,
                    captioned,
                    models,
                    params,
                    outputs,
                    ground_truth,
                    on_progress,
                    readings,
                    adapter,
                )
            )
    except KeyboardInterrupt as error:
        where = f"in {folder}" if outputs.folder is not None else "printed above"
        if outputs.folder is None and outputs.kind == "json":
            print_readings(readings)
        raise Interrupted(
            f"stopped after {len(readings)} of {len(paths)} videos; their texts are {where}; run it again to read all"
        ) from error
    if len(paths) > 1:
        num_unread = sum(reading.reason is not None for reading in readings)
        rest = f", {num_unread} could not be read (see above)" if num_unread else ""
        _print_message(f"{len(paths) - num_unread} of {len(paths)} videos read{rest}")
    if unwritten:
        raise MachineError(
            f"{unwritten} of {len(paths)} videos could not be written or captioned (see above)"
        )
    return readings


def _read_all(
    paths: Mapping[Path, Path],
    files: Mapping[Path, Path],
    captioned: Mapping[Path, Path],
    models: Sequence[Path],
    params: Params,
    outputs: Outputs,
    ground_truth: str | None,
    on_progress: Callable[[int, int], None],
    readings: list[VideoReading],
    adapter: Path | None,
) -> int:
    """Fills `readings`; returns the number of videos with an output that could not be written."""
    reader = open_reader(models, params, adapter)
    if outputs.kind in TIMED and not {"ctc", "syllables"} & set(reader.heads):
        raise ConfigError(
            f"--format {outputs.kind} needs the times of words, which the CTC head gives, but {models[0]} has none; "
            "train with train.ctc_weight above 0, or choose text, json, srt or vtt"
        )
    times = params.inference.times
    reader.times_by_evidence = times == "evidence" or (times == "auto" and outputs.kind in TIMED)
    # before the reading, which may take hours and would be useless without a font
    font = _caption_font(reader.vocabulary) if outputs.burn_in else None
    num_unwritten = 0
    for number, path in enumerate(paths, start=1):
        boxes = _boxes(params) if outputs.burn_in else None
        reading = read_video(path, reader, params, ground_truth, boxes)
        readings.append(reading)
        if outputs.folder is not None:
            is_written = _write(reading, outputs.kind, files[path])
            _print_cer(reading, outputs.kind)
            # the text is already written if the captioned video fails
            if boxes is not None and font is not None and reading.reason is None:
                is_written = _burn_in(reading, boxes, font, params, captioned[path]) and is_written
            num_unwritten += not is_written
        elif outputs.kind != "json":
            # printed immediately: the next video may take minutes
            _print(reading, outputs.kind, named=len(paths) > 1)
        on_progress(number, len(paths))
    return num_unwritten


def print_readings(readings: Sequence[VideoReading]) -> None:
    content = [as_json_object(reading) for reading in readings]
    typer.echo(valid_utf8(json.dumps(content, ensure_ascii=False, indent=2, allow_nan=False)))


def _print(reading: VideoReading, kind: Format, named: bool) -> None:
    _print_unread(reading)
    if reading.reason is not None:
        return
    name = f"{one_line(reading.path)}: " if named else ""
    typer.echo(f"{name}{valid_utf8(rendered(reading, kind))}", nl=False)
    _print_cer(reading, kind, err=kind != "text")


def _print_cer(reading: VideoReading, kind: Format, err: bool = True) -> None:
    """Prints the CER, which JSON contains already."""
    if kind != "json" and reading.cer is not None:
        typer.echo(f"CER {reading.cer:.4f} (accuracy {1 - reading.cer:.2%})", err=err)


def _write(reading: VideoReading, kind: Format, path: Path) -> bool:
    """Writes the reading; returns False and prints the reason if the file cannot be written."""
    _print_unread(reading)
    # only JSON has a field for the reason
    if reading.reason is not None and kind != "json":
        return True
    try:
        write_reading(reading, kind, path)
    except (OSError, DiskError) as error:
        _print_message(f"{reading.path}: {path} was not written: {_reason_and_fix(error)}")
        return False
    return True


def _reason_and_fix(raised: OSError | DiskError) -> str:
    error = raised if isinstance(raised, OSError) else raised.__cause__
    assert isinstance(error, OSError), "every DiskError has one"
    if error.errno == errno.ENAMETOOLONG:
        return "the file name is too long; rename the video"
    return f"{error.strerror or error}; free some space, or choose another --out"


def _print_unread(reading: VideoReading) -> None:
    if reading.reason is not None:
        _print_message(f"{reading.path}: {reading.reason}")
    for gap in reading.gaps:
        _print_message(f"{reading.path}: {gap.start_s:.2f} to {gap.end_s:.2f} s not read: {gap.reason}")


def _print_message(line: str) -> None:
    typer.echo(one_line(line), err=True)


def _check_outputs(
    videos: Mapping[Path, Path], files: Mapping[Path, Path], captioned: Sequence[Path]
) -> None:
    """Refuses to overwrite a video or a transcript next to a video, which `ingest` reads as the label."""
    sources = {os.path.realpath(video) for video in videos}
    for file in (*files.values(), *captioned):
        if os.path.realpath(file) in sources:
            raise ConfigError(f"{file} is one of the videos and would be overwritten; choose another --out")
    for video, file in files.items():
        for other in file.parent.iterdir() if is_kind(Path.exists, file) else ():
            is_video = other.suffix.lower() in VIDEO_SUFFIXES or os.path.realpath(other) in sources
            if is_video and other.stem == file.stem:
                raise ConfigError(
                    f"{file} already exists next to {other.name} and may be its transcript; choose another --out, "
                    "or move the file"
                )
        if file.stem != videos[video].stem:
            _print_message(f"{video}: another video has the same name, so the text goes to {file.name}")


def _boxes(params: Params) -> "MouthBoxes":
    from pipeline.inference.burn_in import MouthBoxes

    return MouthBoxes(params.crop.size_px)


def _caption_font(vocabulary: Vocabulary) -> "CaptionFont":
    from pipeline.inference.caption_font import font_for

    tables = (vocabulary.characters, vocabulary.syllables)
    return font_for("".join(unit for table in tables if table is not None for unit in table.units))


def _burn_in(
    reading: VideoReading, boxes: "MouthBoxes", font: "CaptionFont", params: Params, path: Path
) -> bool:
    """Writes the captioned video to `path`; returns False and prints the reason if that fails."""
    from pipeline.inference.burn_in import burn_in

    try:
        with atomic_file(path) as file:
            lost = burn_in(Path(reading.path), reading, boxes, font, params, file)
    except (ClipRejected, av.error.FFmpegError) as error:
        _print_message(f"{reading.path}: not captioned: {error}")
        return False
    except (OSError, DiskError) as error:
        _print_message(f"{reading.path}: not captioned: {path} was not written: {_reason_and_fix(error)}")
        return False
    if lost:
        _print_message(f"{reading.path}: captioned, but {lost}")
    return True
