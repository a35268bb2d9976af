"""Which clips an epoch visits, so that each of several packs, and the unlabelled clips, have their share of the epoch.

The labelled and the unlabelled clips of each pack are a group. In every epoch each clip of a group is visited n or
n + 1 times; over the epochs the numbers differ by at most 1.

Shapes: N clips, P packs, G groups (the labelled clips of each pack, then the unlabelled ones), R visits of an epoch.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from shards.errors import TrainingError
from shards.settings import LoaderParams

_FIXED_ORDER = 1 << 40
"""A place in the seeds of random generators that no epoch uses."""


IS_LABELLED = pa.field("is_labelled", pa.bool_(), nullable=False)
"""Column of a training table that also has unlabelled clips (`Packs.read_training`)."""


def packs_of(samples: pa.Table) -> tuple[list[str], np.ndarray]:
    """Returns the packs that have rows, and the number of each row's pack; one pack if there is no column `corpus`."""
    if "corpus" not in samples.column_names:
        return [""], np.zeros(samples.num_rows, np.int32)
    corpus = samples["corpus"].unify_dictionaries()
    names: list[str] = corpus.chunk(0).dictionary.to_pylist() if corpus.num_chunks else []
    pack_N = np.concatenate([chunk.indices.to_numpy() for chunk in corpus.chunks] or [np.zeros(0, np.int32)])
    used = np.flatnonzero(np.bincount(pack_N, minlength=len(names)))
    number_of_pack = np.zeros(len(names), np.int32)
    number_of_pack[used] = np.arange(len(used))
    return [names[number] for number in used.tolist()], number_of_pack[pack_N]


def shares_of(
    names: Sequence[str], num_clips_P: np.ndarray, weights: Mapping[str, float], temperature: float
) -> np.ndarray:
    """Returns the share of each pack in an epoch: by weight, or without weights by clips ** (1 / temperature)."""
    if not weights:
        size_P = num_clips_P.astype(float) ** (1 / temperature)
        return size_P / size_P.sum()
    weight_P = np.array([weights[name] for name in names], float)
    return weight_P / weight_P.sum()


def visits_of_packs(
    names: Sequence[str], num_clips_P: np.ndarray, params: LoaderParams, weights: Mapping[str, float]
) -> np.ndarray:
    """Returns the number of clips that an epoch visits of each pack, at least 1.

    `num_clips_P` are the clips that take part. Without `loader.epoch_clips` the largest pack is visited once.
    """
    share_P = shares_of(names, num_clips_P, weights, params.temperature)
    if not params.epoch_clips:
        largest = int(np.argmax(num_clips_P))
        visits_P = np.rint(num_clips_P[largest] / share_P[largest] * share_P).astype(np.int64)
    else:
        # the largest remainders are rounded up, so that the sum is exact
        exact_P = params.epoch_clips * share_P
        visits_P = exact_P.astype(np.int64)
        last = np.argsort(visits_P - exact_P, kind="stable")[: params.epoch_clips - int(visits_P.sum())]
        visits_P[last] += 1
    return np.maximum(visits_P, 1)


class Group(NamedTuple):
    """The labelled or the unlabelled clips of a pack."""

    name: str
    """The pack; "" for a single pack."""
    is_labelled: bool
    seed: int
    row_N: np.ndarray
    """The rows that take part in the epoch."""
    num_visits: int
    """Clips that an epoch visits."""


def groups_of(
    samples: pa.Table, kept_N: np.ndarray, params: LoaderParams, weights: Mapping[str, float], epoch: int
) -> list[Group]:
    """Returns the groups of an epoch in which the clips `kept_N` take part, first those of labelled clips.

    Labelled clips are visited as without `loader.unlabelled_share`. Unlabelled clips are visited in addition, so that
    they have this share of all visits; the packs share these visits by their number of unlabelled clips
    (loader.temperature). `loader.epoch_clips` counts both. Raises TrainingError if no clip of a group takes part.
    """
    names, pack_N = packs_of(samples)
    is_labelled_N = np.ones(samples.num_rows, bool)
    if params.unlabelled_share:
        is_labelled_N = samples[IS_LABELLED.name].to_numpy()

    def groups(is_labelled: bool, num_clips: int, weights: Mapping[str, float]) -> list[Group]:
        numbers = np.unique(pack_N[is_labelled_N == is_labelled]).tolist()
        rows = [
            np.flatnonzero(kept_N & (is_labelled_N == is_labelled) & (pack_N == number)) for number in numbers
        ]
        for number, row_N in zip(numbers, rows, strict=True):
            if not len(row_N):
                raise TrainingError(
                    f"epoch {epoch} has no {'' if is_labelled else 'unlabelled '}clip of pack {names[number]}; raise "
                    "loader.curriculum_frames or loader.max_frames, or remove the pack from train.data"
                )
        own_names = [names[number] for number in numbers]
        num_rows = np.array([len(row_N) for row_N in rows])
        visits = visits_of_packs(
            own_names, num_rows, params.model_copy(update={"epoch_clips": num_clips}), weights
        )
        seeds = [number if is_labelled else len(names) + number for number in numbers]
        return [
            Group(name, is_labelled, seed, row_N, num_visits)
            for name, seed, row_N, num_visits in zip(own_names, seeds, rows, visits.tolist(), strict=True)
        ]

    share, total = params.unlabelled_share, params.epoch_clips
    labelled = groups(True, max(1, round(total * (1 - share))) if total else 0, weights)
    if not share:
        return labelled
    num_labelled = sum(group.num_visits for group in labelled)
    return labelled + groups(False, max(1, round(num_labelled * share / (1 - share))), {})


def blended_windows(
    samples: pa.Table,
    shard_N: np.ndarray,
    kept_N: np.ndarray,
    params: LoaderParams,
    weights: Mapping[str, float],
    epoch: int,
    world_size: int,
    rng: np.random.Generator,
) -> Iterator[np.ndarray]:
    """Yields the visits of each super-window of an epoch, as `visit * N + row`; the groups are mixed evenly.

    `shard_N` numbers the shards of all packs. Raises TrainingError if no clip of a group takes part.
    """
    all_groups = groups_of(samples, kept_N, params, weights, epoch)
    num_visits = sum(group.num_visits for group in all_groups)
    if num_visits < world_size:
        raise TrainingError(
            f"an epoch visits {num_visits} clips, too few for {world_size} ranks; raise loader.epoch_clips, or use "
            "fewer ranks"
        )
    parts: list[np.ndarray] = []
    place: list[np.ndarray] = []
    row_N = np.flatnonzero(kept_N)
    shard_size = max(1, round(len(row_N) / len(np.unique(shard_N[row_N]))))
    for group in all_groups:
        seed = [params.seed, group.seed, _FIXED_ORDER]
        of_group = [
            [part + visit * len(shard_N) for part in _runs(rows, shard_N, shard_size)]
            for visit, rows in enumerate(_passes(group.row_N, shard_N, group.num_visits, epoch, seed))
        ]
        shuffled = [visit[number] for visit in of_group for number in rng.permutation(len(visit))]
        place.append((np.arange(len(shuffled)) + rng.random(len(shuffled))) / len(shuffled))
        parts += shuffled
    order = np.argsort(np.concatenate(place), kind="stable")
    wanted = round(len(parts) / (params.window_shards * world_size))
    for window in np.array_split(order, max(1, min(wanted, len(parts) // world_size))):
        yield np.concatenate([parts[number] for number in window.tolist()])


def _passes(
    row_N: np.ndarray, shard_N: np.ndarray, num_visits: int, epoch: int, seed: Sequence[int]
) -> Iterator[np.ndarray]:
    """Yields the rows of each visit to a group, shard by shard: all rows, as often as they fit, then a part of them.

    The parts of successive epochs follow each other around the group, in the same order in all epochs.
    """
    shards = np.random.default_rng(seed).permutation(np.unique(shard_N[row_N]))
    place_of_shard = np.empty(int(shard_N.max()) + 1, np.int64)
    place_of_shard[shards] = np.arange(len(shards))
    row_N = row_N[np.argsort(place_of_shard[shard_N[row_N]], kind="stable")]
    num_whole, num_part = divmod(num_visits, len(row_N))
    for _ in range(num_whole):
        yield row_N
    if num_part:
        first = epoch * num_part % len(row_N)
        yield np.roll(row_N, -first)[:num_part]


def _runs(row_N: np.ndarray, shard_N: np.ndarray, shard_size: int) -> Iterator[np.ndarray]:
    """Cuts rows into the runs of their shards. A shard of more than twice the mean size is cut into even parts.

    Else a small pack of one large shard would be in one window only.
    """
    for run in np.split(row_N, np.flatnonzero(np.diff(shard_N[row_N])) + 1):
        yield from np.array_split(run, -(-len(run) // (2 * shard_size)))
