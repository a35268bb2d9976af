"""Threads that fetch the shards of an epoch ahead, within a share of the cache."""

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from shards.errors import PipelineError
from shards.index import IndexedShard
from shards.shard_cache import Expected

logger = logging.getLogger(__name__)

FETCHERS = 4
"""Number of threads, each with one shard: one connection rarely uses the whole bandwidth."""


class FetchAhead:
    """Calls `fetch` for each expected shard, in order, while shards not yet requested have at most `max_bytes`.

    `path_of` returns the path of a shard in the cache.
    """

    def __init__(
        self,
        fetch: Callable[[IndexedShard], None],
        path_of: Callable[[IndexedShard], Path],
        max_bytes: float,
    ) -> None:
        self._fetch, self._path_of, self._max_bytes = fetch, path_of, max_bytes
        # this lock guards all fields below
        self._changed = threading.Condition()
        self._expected: Sequence[IndexedShard] = ()
        self._next = 0
        self._requested: set[str] = set()
        self._ahead: dict[str, int] = {}
        """Index in `_expected` of each shard that is fetched ahead and not yet requested."""
        self._num_threads = 0

    def expect(self, shards: Sequence[IndexedShard]) -> None:
        """Replaces the expected shards."""
        with self._changed:
            self._expected, self._next = shards, 0
            self._requested, self._ahead = set(), {}
            self._changed.notify_all()
            while self._num_threads < min(FETCHERS, len(shards)):
                self._num_threads += 1
                threading.Thread(target=self._work, name="shards ahead", daemon=True).start()

    def note_requested(self, name: str) -> None:
        """Records that the shard is needed now, so that another one can be fetched ahead."""
        with self._changed:
            self._requested.add(name)
            self._ahead.pop(name, None)
            self._changed.notify_all()

    def expected_around(self, wanted: IndexedShard) -> Expected:
        """Returns the shards fetched ahead before and after `wanted`; `later` begins with the last one."""
        with self._changed:
            number_wanted = self._ahead.get(wanted.name, -1)
            numbers = sorted(self._ahead.values(), reverse=True)
            paths = {number: self._path_of(self._expected[number]) for number in numbers}
        return Expected(
            sooner=frozenset(path for number, path in paths.items() if number <= number_wanted),
            later=tuple(path for number, path in paths.items() if number > number_wanted),
        )

    def stop(self, within_s: float) -> None:
        """Waits until the threads have finished their current shards, at most `within_s`."""
        self.expect(())
        with self._changed:
            self._changed.wait_for(lambda: not self._num_threads, within_s)

    def _work(self) -> None:
        try:
            while (shard := self._take()) is not None:
                try:
                    self._fetch(shard)
                except PipelineError as error:
                    # the thread that needs the shard tries again and gets the error
                    logger.warning("fetching a shard ahead failed: %s", error)
                    with self._changed:
                        self._ahead.pop(shard.name, None)
                        self._changed.notify_all()
        finally:
            with self._changed:
                self._num_threads -= 1
                self._changed.notify_all()

    def _take(self) -> IndexedShard | None:
        """Waits for room and returns the next shard to fetch; None when all have been fetched or requested."""
        with self._changed:
            while self._next < len(self._expected):
                shard = self._expected[self._next]
                num_bytes = sum(self._expected[number].num_bytes for number in self._ahead.values())
                if shard.name in self._requested:
                    self._next += 1
                elif num_bytes + shard.num_bytes <= self._max_bytes:
                    self._ahead[shard.name] = self._next
                    self._next += 1
                    return shard
                else:
                    self._changed.wait()
            return None
