"""Runs the work of many clips in the processes of this machine, or on a Ray cluster."""

from collections.abc import Sequence
from pathlib import Path

from shards.disk import disk_errors_reported
from shards.files import Progress, sweep_temporaries, writable_by_this_user
from shards.machine import usable_cores
from shards.pipes import refuse_pipe
from shards.settings import MachineParams
from stages.clips.clip_work import Clip, Done, Executor, Work
from stages.clips.local_pool import LocalPool
from stages.clips.shared_cache import SharedCache

PARTIAL_FILE_AGE_S = 24 * 3_600.0
"""Older temporary files in the cache are partial files of killed processes: no clip takes a day."""


def run_clips(
    work: Work,
    clips: Sequence[Clip],
    machine: MachineParams,
    timeout_s: float,
    native_log: Path,
    on_progress: Progress | None,
) -> dict[str, Done]:
    """Returns the result of every clip by its id. `native_log`, in the cache folder, gets what native code prints.

    Raises MachineError where the machine is the cause of a failure.
    """
    cache_folder = Path(machine.cache_dir)
    sweep_temporaries(cache_folder, PARTIAL_FILE_AGE_S)
    native_log = writable_by_this_user(native_log)
    refuse_pipe(native_log)
    # checked here: the workers cannot report it
    with disk_errors_reported(f"machine.cache_dir: {native_log}"):
        cache_folder.mkdir(parents=True, exist_ok=True)
        native_log.write_bytes(b"")
    if machine.share:
        SharedCache(machine.share, cache_folder)  # reports a wrong URL before the first clip
    done: dict[str, Done] = {}
    with _executor(work, machine, timeout_s, native_log) as executor:
        for clip, result in executor.run(clips):
            done[clip.clip_id] = result
            if on_progress:
                on_progress(len(done), len(clips))
    assert len(done) == len(clips), f"{len(clips)} clips in, {len(done)} results out"
    return done


def _executor(work: Work, machine: MachineParams, timeout_s: float, native_log: Path) -> Executor:
    if machine.executor == "ray":
        from stages.clips.ray_pool import RayPool

        return RayPool(work, machine, timeout_s, native_log)
    return LocalPool(work, machine.workers or usable_cores(), timeout_s, native_log)
