"""Stage crop: every clip of clips.parquet becomes one row of the ledger, and a mouth clip in the cache."""

import errno
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2

from shards import schema
from shards.cores import usable_cores
from shards.errors import ClipRejected, MachineError
from shards.files import Progress, read_table, table_from_rows, write_table
from shards.schema import MediaKind, Reason, Status
from shards.settings import MachineParams
from stages.cache import ClipCache, Outcome
from stages.chatter import NATIVE_LOG, native_stderr_to
from stages.corpora.transcript import leaves_root
from stages.cropping import Figures
from stages.settings import CorpusParams, CropParams
from stages.video import sniff_media_kind

WAITING_A_WORKER = 4
"""Clips handed out ahead for each process: enough to keep it busy, few to try again when one dies."""


@dataclass(frozen=True, slots=True)
class CropSummary:
    """What became of the clips."""

    num_ok: int
    rejected: Mapping[str, int]
    num_from_cache: int
    source_frames: int
    seconds: float

    def __str__(self) -> str:
        total = self.num_ok + sum(self.rejected.values())
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.rejected.items()))
        return (
            f"{self.num_ok} of {total} clips ok, rejected: {reasons or 'none'}; {self.num_from_cache} from the "
            f"cache, {self.source_frames:,} source frames, {self.seconds:.0f} s"
        )


@dataclass(frozen=True, slots=True)
class _Clip:
    """What a worker needs to know of a row of clips.parquet."""

    clip_id: str
    root: str
    media: str
    media_kind: str | None
    label: str
    num_chars: int


@dataclass(frozen=True, slots=True)
class _Done:
    crop_row: dict[str, Any]
    track_row: dict[str, Any] | None
    from_cache: bool


def crop(
    corpus: CorpusParams,
    crop: CropParams,
    machine: MachineParams,
    clips_path: Path,
    crops_path: Path,
    tracks_path: Path,
    on_progress: Progress | None = None,
) -> CropSummary:
    """Writes crops.parquet and tracks.parquet, in the order of clips.parquet: a row a clip, ok or rejected.

    Clips finished before come from the cache. A clip on which a process dies is `crashed`; the run goes on.
    Raises TableError where clips.parquet is not there, MachineError where mediapipe cannot run.
    """
    start = time.monotonic()
    rows = read_table(clips_path, schema.CLIPS, "pipeline ingest").to_pylist()
    clips = [
        _Clip(r["clip_id"], corpus.root, r["media"], r["media_kind"], r["label"], r["num_chars"])
        for r in rows
    ]
    done: dict[str, _Done] = {}
    cache_folder = Path(machine.cache_dir)
    native_log = cache_folder / NATIVE_LOG
    native_log.unlink(missing_ok=True)
    work = partial(_crop_one, params=crop, cache_folder=cache_folder)
    for clip, result in _crop_all(clips, work, machine.workers or usable_cores(), native_log):
        done[clip.clip_id] = result
        if on_progress:
            on_progress(len(done), len(clips))
    assert len(done) == len(clips), f"{len(clips)} clips in, {len(done)} rows out"
    crop_rows = [done[clip.clip_id].crop_row for clip in clips]
    track_rows = [row for clip in clips if (row := done[clip.clip_id].track_row) is not None]
    write_table(crops_path, table_from_rows(crop_rows, schema.CROPS), schema.CROPS)
    write_table(tracks_path, table_from_rows(track_rows, schema.TRACKS), schema.TRACKS)
    return CropSummary(
        num_ok=sum(row["status"] == Status.OK for row in crop_rows),
        rejected=Counter(row["reason"] for row in crop_rows if row["status"] == Status.REJECTED),
        num_from_cache=sum(result.from_cache for result in done.values()),
        source_frames=sum(row["source_frames"] or 0 for row in crop_rows),
        seconds=time.monotonic() - start,
    )


def resolve_media(root: Path, media: str) -> Path:
    """The file `media` names under `root`; ClipRejected where it is missing, or would be read outside."""
    if not media:
        raise ClipRejected(Reason.MISSING_FILE, "the transcript names no video")
    if leaves_root(media):
        raise ClipRejected(
            Reason.UNSAFE_PATH, f"{media} leads out of the corpus; name it relative to the root"
        )
    path = root / media
    try:
        if not path.exists():
            raise ClipRejected(Reason.MISSING_FILE, f"{media} is not below the corpus root {root}")
        if not path.resolve().is_relative_to(root.resolve()):
            raise ClipRejected(
                Reason.UNSAFE_PATH, f"{media} is a link to a file outside the corpus; copy the file into it"
            )
    except OSError as error:
        # a name too long for the file system, a folder one may not enter
        raise ClipRejected(Reason.MISSING_FILE, f"{media[:200]}: {error.strerror}") from error
    if not path.is_file():
        raise ClipRejected(Reason.MISSING_FILE, f"{media} is no plain file")
    return path


def _crop_all(
    clips: Sequence[_Clip], work: Callable[[_Clip], _Done], num_workers: int, native_log: Path
) -> Iterator[tuple[_Clip, _Done]]:
    """Each clip with what `work`, in a process of the pool, made of it, as they finish."""
    waiting = list(reversed(clips))
    while waiting:
        in_flight: dict[Future[_Done], _Clip] = {}
        with _pool(num_workers, native_log) as pool:
            try:
                while waiting or in_flight:
                    while waiting and len(in_flight) < WAITING_A_WORKER * num_workers:
                        # known to be in flight before the pool can break on it
                        clip = waiting[-1]
                        in_flight[pool.submit(work, clip)] = clip
                        waiting.pop()
                    for future in wait(in_flight, return_when=FIRST_COMPLETED).done:
                        result = _result(future, in_flight[future])
                        yield in_flight.pop(future), result
            except BrokenProcessPool:
                # one of these clips killed its process, and the pool with it
                pass
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        yield from _crop_singly(list(in_flight.values()), work, native_log)


def _crop_singly(
    clips: Sequence[_Clip], work: Callable[[_Clip], _Done], native_log: Path
) -> Iterator[tuple[_Clip, _Done]]:
    """One clip at a time: where the process dies, the clip it had did it."""
    waiting = list(reversed(clips))
    while waiting:
        with _pool(1, native_log) as pool:
            try:
                pool.submit(os.getpid).result()
            except BrokenProcessPool as error:
                # not the clip's fault, and no clip's: else each in turn would be called crashed
                raise MachineError(
                    "worker processes die before they read a clip; `pipeline doctor` looks for the cause"
                ) from error
            died = False
            while waiting and not died:
                clip = waiting.pop()
                try:
                    done = _result(pool.submit(work, clip), clip)
                except BrokenProcessPool:
                    died = True
                    detail = (
                        f"the process that read {clip.media} alone died; look at the file, or leave it out "
                        f"({native_log} has the last words)"
                    )
                    done = _Done(_crop_row(clip, Figures(), Reason.CRASHED, detail), None, from_cache=False)
                yield clip, done


def _pool(num_workers: int, native_log: Path) -> ProcessPoolExecutor:
    # spawned: mediapipe's threads do not survive a fork
    return ProcessPoolExecutor(
        num_workers,
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(native_log,),
    )


def _start_worker(native_log: Path) -> None:
    native_stderr_to(native_log)
    # Ctrl-C is the parent's to handle; one process a core is all the parallelism there is
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)


def _end_with_parent() -> None:
    """A parent that is killed outright says nothing to its workers, which would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "runs in a worker"
    parent.join()
    os._exit(1)


def _result(future: "Future[_Done]", clip: _Clip) -> _Done:
    try:
        return future.result()
    except BrokenProcessPool:
        raise
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise MachineError(
                f"the disk is full ({error.filename or 'cache'}); what is done is kept, the same command goes on"
            ) from error
        error.add_note(_place(clip))
        raise
    except Exception as error:
        error.add_note(_place(clip))
        raise


def _place(clip: _Clip) -> str:
    return f"while cropping clip {clip.clip_id} ({clip.media})"


def _crop_one(clip: _Clip, params: CropParams, cache_folder: Path) -> _Done:
    """The ledger's row, and the track, of one clip; runs in a worker."""
    try:
        if not clip.label:
            raise ClipRejected(Reason.EMPTY_TEXT, "nothing is left of the transcript after normalising")
        path = resolve_media(Path(clip.root), clip.media)
        # without a kind, ingest could not read the header: looking again finds the reason, or a file that came
        kind = sniff_media_kind(path) if clip.media_kind is None else MediaKind(clip.media_kind)
        outcome = ClipCache(cache_folder).crop(path, kind, params)
    except ClipRejected as rejection:
        return _Done(_crop_row(clip, Figures(), rejection.reason, rejection.detail), None, from_cache=False)
    rejection_or_none = outcome.rejection or _too_dense(clip, outcome.figures, params)
    if rejection_or_none is not None:
        row = _crop_row(clip, outcome.figures, rejection_or_none.reason, rejection_or_none.detail, outcome)
        return _Done(row, None, outcome.from_cache)
    return _Done(
        _crop_row(clip, outcome.figures, None, None, outcome), _track_row(clip, outcome), outcome.from_cache
    )


def _too_dense(clip: _Clip, figures: Figures, params: CropParams) -> ClipRejected | None:
    """A label that nobody speaks in that time belongs to another video, or to a cut one."""
    assert figures.duration_s is not None, "a clip that was cut has a duration"
    if clip.num_chars <= params.max_chars_per_s * figures.duration_s:
        return None
    return ClipRejected(
        Reason.LABEL_TOO_LONG,
        f"{clip.num_chars} characters in {figures.duration_s:.2f} s; crop.max_chars_per_s is "
        f"{params.max_chars_per_s:g}: is the video cut?",
    )


def _crop_row(
    clip: _Clip, figures: Figures, reason: Reason | None, detail: str | None, outcome: Outcome | None = None
) -> dict[str, Any]:
    return {
        "clip_id": clip.clip_id,
        "status": (Status.OK if reason is None else Status.REJECTED).value,
        "reason": None if reason is None else reason.value,
        "detail": detail,
        **figures.as_row(),
        "track_key": None if outcome is None else outcome.keys.track,
        "clip_key": None if outcome is None else outcome.keys.clip,
        "bytes": None if outcome is None else outcome.num_bytes,
    }


def _track_row(clip: _Clip, outcome: Outcome) -> dict[str, Any] | None:
    track = outcome.track
    if track is None or track.transform_T23 is None:
        return None
    return {
        "clip_id": clip.clip_id,
        "transform": track.transform_T23.ravel(),
        "frame_index": track.frame_index_T,
        "landmarked": track.landmarked,
    }
