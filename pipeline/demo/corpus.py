"""Draws a small imitation of Chinese-LiPS in its raw layout: three CSVs, face videos, silent WAVs.

    <root>/meta_train.csv, meta_valid.csv, meta_test.csv
    <root>/train|val|test/<speaker>_<age>_<gender>_<topic>/FACE/<ID>_FACE.mp4
                                                          /WAV/<ID>.wav
    <root>/demo_corpus.json

The PPT column has the paths of the layout, but there are no slides, since the pipeline reads only lips.
demo_corpus.json has the state "building" until all files exist; then it lists them.

Each clip has an H.264 video and a silent WAV, each complete or absent; equal frames give equal bytes.
"""

import csv
import hashlib
import io
import json
import multiprocessing
import re
import shutil
import wave
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import av
import cv2
import numpy as np

from pipeline.demo.face import FRAME_HEIGHT, FRAME_WIDTH, Face
from pipeline.demo.motion import FPS, Viseme, clip_motion, viseme_sequence
from pipeline.demo.photograph import Image
from pipeline.demo.plan import (
    CSV_HEADER,
    SPLIT_FOLDERS,
    ClipPlan,
    CorpusSize,
    clip_rng,
    plan_corpus,
    speaker_of,
)
from shards.errors import CorpusError
from shards.files import atomic_file, write_bytes

# Increase it with every change of the corpus's bytes: a corpus of another version is built again.
DEMO_CORPUS_VERSION: Final = 1
MANIFEST_NAME: Final = "demo_corpus.json"
# Clips that a process draws at a time: few, to distribute them evenly; more than one, to reuse the speaker's canvas.
_BATCH_CLIPS: Final = 4

WAV_HZ: Final = 8000
# veryfast at CRF 21 made the files of a prototype a fifth of superfast's. One thread: the bytes depend on the number.
_X264_OPTIONS: Final = {"preset": "veryfast", "crf": "21", "threads": "1"}


@dataclass(frozen=True, slots=True)
class CorpusSummary:
    """Number of clips and of characters in the texts of each split, and the total seconds of video."""

    num_clips: dict[str, int]
    num_characters: dict[str, int]
    seconds: float


def render_frames(visemes: Sequence[Viseme], face: Face, rng: np.random.Generator) -> Iterator[Image]:
    """Yields the frames of one clip, uint8 BGR (360, 640, 3), 30 per second.

    The text is not an argument: texts with the same visemes are drawn the same.
    """
    motion = clip_motion(visemes, face.speaker.speed, face.speaker.effort, rng)
    for frame in range(len(motion.mouth)):
        yield face.draw(motion, frame)


def _render_clips(root: Path, seed: int, plans: Sequence[ClipPlan]) -> list[tuple[str, int]]:
    """Draws clips of one speaker; returns (clip_id, number of frames) of each."""
    threads_before = cv2.getNumThreads()
    cv2.setNumThreads(1)  # one process per core; more threads only slow it down
    try:
        face = Face(speaker_of(seed, plans[0].speaker_index))
        done = []
        for plan in plans:
            rng = clip_rng(seed, plan.speaker_index, plan.clip_number)
            frames = render_frames(viseme_sequence(plan.text), face, rng)
            num_frames = write_face_video(root / plan.face, frames)
            write_silence(root / plan.wav, num_frames / FPS)
            done.append((plan.clip_id, num_frames))
        return done
    finally:
        cv2.setNumThreads(threads_before)


def _batches(plans: Sequence[ClipPlan]) -> list[list[ClipPlan]]:
    """Groups the plans by speaker, at most _BATCH_CLIPS each."""
    batches: list[list[ClipPlan]] = []
    for plan in plans:
        last = batches[-1] if batches else []
        if last and len(last) < _BATCH_CLIPS and last[0].speaker_index == plan.speaker_index:
            last.append(plan)
        else:
            batches.append([plan])
    return batches


def _csv_bytes(plans: Sequence[ClipPlan]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    writer.writerows((p.clip_id, p.topic, p.wav, p.ppt, p.face, p.text) for p in plans)
    return text.getvalue().encode("utf-8-sig")


def _write_manifest(root: Path, manifest: dict[str, Any]) -> None:
    write_bytes(root / MANIFEST_NAME, (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())


def _read_manifest(root: Path) -> dict[str, Any] | None:
    try:
        manifest = json.loads((root / MANIFEST_NAME).read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return manifest if isinstance(manifest, dict) else None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _is_whole(root: Path, manifest: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Returns whether the manifest lists a finished corpus as wanted, and the files match it in size and hash."""
    if manifest.get("state") != "whole" or any(manifest.get(key) != wanted[key] for key in wanted):
        return False
    for name, known in manifest["files"].items():
        path = root / name
        if not path.is_file() or path.stat().st_size != known["bytes"]:
            return False
        if "sha256" in known and _sha256(path) != known["sha256"]:
            return False
    return True


def _clear(root: Path) -> None:
    """Removes the clips of an earlier demo. Raises CorpusError if the root has clips but no manifest."""
    folders = [f for split in SPLIT_FOLDERS.values() for f in (root / split).glob("*") if f.is_dir()]
    tables = [root / f"meta_{split}.csv" for split in SPLIT_FOLDERS]
    if not (root / MANIFEST_NAME).exists():
        if folders or any(table.exists() for table in tables):
            raise CorpusError(
                f"{root} contains a corpus without {MANIFEST_NAME}, so it is not a demo; choose another folder"
            )
        return
    for table in tables:
        table.unlink(missing_ok=True)
    for folder in folders:
        if re.fullmatch(r"\d+_\d+_[MF]_[A-Z]+", folder.name):
            shutil.rmtree(folder)


def _summary(manifest: dict[str, Any]) -> CorpusSummary:
    return CorpusSummary(manifest["num_clips"], manifest["num_characters"], manifest["seconds"])


def build_demo_corpus(
    root: Path,
    seed: int = 0,
    workers: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    size: CorpusSize | None = None,
) -> CorpusSummary:
    """Builds the demo corpus under `root`; does nothing if it is already complete there.

    The files depend only on `seed`, `size` and the code, not on `workers`, the number of processes.
    `on_progress` is called with the number of finished clips and of all clips; not if there is nothing to do.
    Raises CorpusError if `root` contains a corpus that is not a demo.
    """
    root = Path(root)
    size = size or CorpusSize()
    counts = {split: list(pair) for split, pair in asdict(size).items()}
    wanted: dict[str, Any] = {"version": DEMO_CORPUS_VERSION, "seed": seed, "size": counts}
    found = _read_manifest(root)
    if found is not None and _is_whole(root, found, wanted):
        return _summary(found)

    _clear(root)
    _write_manifest(root, {**wanted, "state": "building"})
    plans = plan_corpus(seed, size)
    num_frames: dict[str, int] = {}

    def note(done: list[tuple[str, int]]) -> None:
        num_frames.update(done)
        if on_progress is not None:
            on_progress(len(num_frames), len(plans))

    if workers <= 1:
        for batch in _batches(plans):
            note(_render_clips(root, seed, batch))
    else:
        # spawn: a forked child would inherit locks held by threads of OpenCV and PyAV.
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            for future in as_completed(
                [pool.submit(_render_clips, root, seed, batch) for batch in _batches(plans)]
            ):
                note(future.result())

    listed: dict[str, dict[str, Any]] = {}
    for plan in plans:
        for name in (plan.face, plan.wav):
            listed[name] = {"bytes": (root / name).stat().st_size}
    by_split = {split: [p for p in plans if p.split == split] for split in SPLIT_FOLDERS}
    for split, members in by_split.items():
        path = root / f"meta_{split}.csv"
        write_bytes(path, _csv_bytes(members))
        listed[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
    manifest = {
        **wanted,
        "state": "whole",
        "num_clips": {split: len(members) for split, members in by_split.items()},
        "num_characters": {split: sum(len(p.text) for p in members) for split, members in by_split.items()},
        "seconds": round(sum(num_frames.values()) / FPS, 3),
        "files": listed,
    }
    _write_manifest(root, manifest)
    return _summary(manifest)


def write_face_video(path: Path, frames: Iterable[Any]) -> int:
    """Writes an H.264 yuv420p MP4 at 30 fps from uint8 BGR frames (360, 640, 3); returns the number of frames."""
    num_frames = 0
    exact = {"fflags": "+bitexact"}  # keeps library versions out of the file
    with atomic_file(path) as file, av.open(file, "w", format="mp4", options=exact) as container:
        stream = container.add_stream("libx264", rate=FPS, options=dict(_X264_OPTIONS))
        stream.width, stream.height, stream.pix_fmt = FRAME_WIDTH, FRAME_HEIGHT, "yuv420p"
        stream.thread_count = 1
        for image in frames:
            planes = np.ascontiguousarray(cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
            num_frames += 1
        container.mux(stream.encode())
    return num_frames


def write_silence(path: Path, seconds: float) -> None:
    """Writes a silent WAV: 8 kHz, mono, 8 bits (silence is 128)."""
    with atomic_file(path) as file, wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(1)
        sound.setframerate(WAV_HZ)
        sound.writeframes(b"\x80" * round(seconds * WAV_HZ))
