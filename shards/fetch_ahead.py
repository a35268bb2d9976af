"""Threads that fetch the shards of an epoch before they are asked for, as far as a share of the cache allows."""

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from shards.errors import PipelineError
from shards.index import IndexedShard
from shards.shard_cache import Expected

logger = logging.getLogger(__name__)

FETCHERS = 4
"""Threads, a shard each: one connection rarely fills a network."""


class FetchAhead:
    """Calls `fetch` for each shard expected, in order, while those not yet asked for have at most `max_bytes`.

    `path_of` is where the cache keeps a shard.
    """

    def __init__(
        self,
        fetch: Callable[[IndexedShard], None],
        path_of: Callable[[IndexedShard], Path],
        max_bytes: float,
    ) -> None:
        self._fetch, self._path_of, self._max_bytes = fetch, path_of, max_bytes
        # all that follows changes under this lock
        self._changed = threading.Condition()
        self._expected: Sequence[IndexedShard] = ()
        self._next = 0
        self._asked: set[str] = set()
        self._ahead: dict[str, int] = {}
        """Number in `_expected` of each shard that is fetched ahead and not yet asked for."""
        self._num_threads = 0

    def expect(self, shards: Sequence[IndexedShard]) -> None:
        """Replaces what was expected before."""
        with self._changed:
            self._expected, self._next = shards, 0
            self._asked, self._ahead = set(), {}
            self._changed.notify_all()
            while self._num_threads < min(FETCHERS, len(shards)):
                self._num_threads += 1
                threading.Thread(target=self._work, name="shards ahead", daemon=True).start()

    def note_asked(self, name: str) -> None:
        """The shard is wanted now: it makes place for another one ahead."""
        with self._changed:
            self._asked.add(name)
            self._ahead.pop(name, None)
            self._changed.notify_all()

    def expected_around(self, wanted: IndexedShard) -> Expected:
        """What is ahead, before and after `wanted`; the latest of all is the first to go."""
        with self._changed:
            number_wanted = self._ahead.get(wanted.name, -1)
            numbers = sorted(self._ahead.values(), reverse=True)
            paths = {number: self._path_of(self._expected[number]) for number in numbers}
        return Expected(
            sooner=frozenset(path for number, path in paths.items() if number <= number_wanted),
            later=tuple(path for number, path in paths.items() if number > number_wanted),
        )

    def stop(self, within_s: float) -> None:
        """Waits until the threads have ended what they are at."""
        self.expect(())
        with self._changed:
            self._changed.wait_for(lambda: not self._num_threads, within_s)

    def _work(self) -> None:
        try:
            while (shard := self._take()) is not None:
                try:
                    self._fetch(shard)
                except PipelineError as error:
                    # whoever needs the shard tries again and gets the error
                    logger.warning("fetching ahead: %s", error)
                    with self._changed:
                        self._ahead.pop(shard.name, None)
                        self._changed.notify_all()
        finally:
            with self._changed:
                self._num_threads -= 1
                self._changed.notify_all()

    def _take(self) -> IndexedShard | None:
        """The next shard to fetch, when there is room; None when all have been fetched or asked for."""
        with self._changed:
            while self._next < len(self._expected):
                shard = self._expected[self._next]
                num_bytes = sum(self._expected[number].num_bytes for number in self._ahead.values())
                if shard.name in self._asked:
                    self._next += 1
                elif num_bytes + shard.num_bytes <= self._max_bytes:
                    self._ahead[shard.name] = self._next
                    self._next += 1
                    return shard
                else:
                    self._changed.wait()
            return None
