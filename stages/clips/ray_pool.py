"""Gives clips to the processes of a Ray cluster (the extra `ray`).

Ray sends clips to machines, and to other machines when one is lost. `LocalPool` handles clips that die or hang:
each Ray worker has a pool of one process, so such a clip never ends a Ray worker. A clip whose process dies is
retried once in a new process, as on one machine. But here other clips run at the same time: where memory is
short, they may cause `crashed`, and the next run retries the clip. Every machine needs this package, the same
working directory (or absolute paths) and the corpus. The cache must be on shared storage, or mirrored by
`machine.share`.
"""

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from shards.errors import ConfigError, MachineError
from shards.machine import usable_cores
from shards.schema import Reason
from shards.settings import MachineParams
from stages.clips.clip_work import Clip, Done, Work, given_up, place
from stages.clips.local_pool import LocalPool

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before the import: nothing is sent to anyone
try:
    import ray
    from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError
except ImportError as error:
    raise ConfigError(
        f"machine.executor: ray needs Ray ({error}); install it with: pip install '.[ray]'"
    ) from error

MAX_LOST_MACHINES = 5
"""Retries of a clip on other machines when its machine is lost."""

CLIPS_A_CORE = 2
"""Clips assigned in advance to each core: enough to keep it busy, few to repeat when a machine is lost."""

LOOK_EVERY_S = 5.0
"""How often the size of the cluster is checked: machines come and go."""


class RayPool:
    """Runs one clip at a time on each core of the cluster, or `machine.workers` clips in total."""

    def __init__(self, work: Work, machine: MachineParams, timeout_s: float, native_log: Path) -> None:
        self.settings = (work, timeout_s, native_log, Path.cwd())
        self.num_workers = machine.workers
        self.address = machine.ray_address
        self._is_mine = False

    def __enter__(self) -> "RayPool":
        if ray.is_initialized():
            return self
        former = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(
                address=self.address or "local",
                include_dashboard=False,
                log_to_driver=False,
                logging_level="warning",
                num_cpus=None if self.address else self.num_workers or usable_cores(),
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise MachineError(
                f"no Ray cluster at machine.ray_address {self.address or '(this machine)'}: {error}"
            ) from error
        self._is_mine = True
        if threading.current_thread() is threading.main_thread():
            # Ray installs its own handler, which ends the command without a message
            signal.signal(signal.SIGTERM, former)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_mine:
            ray.shutdown()

    def run(self, clips: Iterable[Clip]) -> Iterator[tuple[Clip, Done]]:
        """Yields each clip with its result, in order of completion."""
        task = ray.remote(num_cpus=1, max_retries=MAX_LOST_MACHINES)(_crop_here)
        settings = ray.put(self.settings)
        waiting = deque(clips)
        in_flight: dict[Any, Clip] = {}
        limit, looked_s = 0, -LOOK_EVERY_S
        try:
            while waiting or in_flight:
                if time.monotonic() - looked_s >= LOOK_EVERY_S:
                    limit, looked_s = self._limit(), time.monotonic()
                while waiting and len(in_flight) < limit:
                    clip = waiting.popleft()
                    in_flight[task.remote(settings, clip)] = clip
                ready, _ = ray.wait([*in_flight], num_returns=1, timeout=LOOK_EVERY_S)
                for reference in ready:
                    clip = in_flight.pop(reference)
                    yield clip, _result(reference, clip)
        finally:
            # our own cluster ends its tasks at shutdown; cancelling just before makes Ray abort
            for reference in () if self._is_mine else in_flight:
                ray.cancel(reference, force=True)

    def _limit(self) -> int:
        cores = int(ray.cluster_resources().get("CPU", 0))
        return self.num_workers or max(1, CLIPS_A_CORE * cores)


def _result(reference: Any, clip: Clip) -> Done:
    try:
        done = ray.get(reference)
    except RayTaskError as error:
        # the work itself raised it: a bug, or something is missing on a machine
        cause = error.cause
        cause.add_note(place(clip))
        raise cause from error
    except (WorkerCrashedError, OutOfMemoryError) as error:
        detail = f"Ray lost the process of {clip.media} {MAX_LOST_MACHINES + 1} times ({_first_line(error)})"
        return given_up(clip, Reason.CRASHED, detail)
    except RayError as error:
        raise MachineError(f"Ray gave up at clip {clip.clip_id}: {_first_line(error)}") from error
    assert isinstance(done, Done)
    return done


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _crop_here(settings: tuple[Work, float, Path, Path], clip: Clip) -> Done:
    """Runs in a Ray worker."""
    ((_, done),) = _pool_of_this_worker(*settings).run([clip])
    return done


@lru_cache(maxsize=1)
def _pool_of_this_worker(work: Work, timeout_s: float, native_log: Path, folder: Path) -> LocalPool:
    try:
        os.chdir(folder)
    except OSError as error:
        raise MachineError(
            f"the working directory {folder} is missing on this machine ({error.strerror}); each machine needs it"
        ) from error
    return LocalPool(work, 1, timeout_s, native_log)
