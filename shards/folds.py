"""Folds of the training clips: a model trained on all folds but one has not seen the clips of that one."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from shards.errors import ConfigError


@dataclass(frozen=True)
class Fold:
    """One of `count` folds of equal size; a seeded hash of the clip's name decides its fold.

    Not of the speaker's: a model that knows the speaker reads better, and only the clip must be unknown to it.
    """

    number: int
    count: int
    is_held_out: bool
    """True: the clips of the fold; False: all others."""
    seed: int = 0

    def keeps(self, clip_ids: Sequence[str], pack: str) -> pa.BooleanArray:
        """Returns whether each training clip of a pack is kept. Raises ConfigError if there are fewer than folds."""
        if len(clip_ids) < self.count:
            raise ConfigError(
                f"{pack} has {len(clip_ids)} training clips, fewer than {self.count} folds; lower --folds"
            )
        drawn = [hashlib.md5(f"{self.seed}:{clip_id}".encode()).digest() for clip_id in clip_ids]
        is_in_fold = [False] * len(drawn)
        for row in sorted(range(len(drawn)), key=drawn.__getitem__)[self.number :: self.count]:
            is_in_fold[row] = True
        return pa.array([inside is self.is_held_out for inside in is_in_fold])
