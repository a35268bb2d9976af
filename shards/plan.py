"""The epoch plan: the clips of every batch of every rank, computed before any video is read.

It is a pure function of samples, seed, epoch, world size and loader parameters, so each rank computes its own plan.
To resume, a run needs only its position (epoch, step). A checkpoint stores the plan's identity, so that a resumed run
can list the differences.

Shapes: N clips, B batches, S steps, W ranks.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.epoch_shuffle import cut, plan_window
from shards.errors import TableError, TrainingError
from shards.files import fingerprint
from shards.samples import samples_hash
from shards.settings import LoaderParams

PLAN_VERSION = 2


@dataclass(frozen=True)
class PlanIdentity:
    """Two runs with equal identities see the same batches in the same order in every epoch."""

    plan_version: int
    samples: str
    """Result of `samples_hash`."""
    loader: dict[str, int | float]
    """The section `loader` without max_bad_fraction, which a user may raise after a bad sample."""
    batch_size: int
    world_size: int

    @property
    def hash(self) -> str:
        """Hex sha256 of all fields."""
        return fingerprint(self.as_dict())

    def as_dict(self) -> dict[str, Any]:
        """Returns plain values for a checkpoint or JSON; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "PlanIdentity":
        """Returns the identity stored in a checkpoint; raises TypeError for wrong keys."""
        return cls(**values)

    def differences(self, stored: "PlanIdentity") -> list[str]:
        """Returns messages about the differences to the epoch plan of a checkpoint; empty if there are none."""
        messages = []
        if self.plan_version != stored.plan_version:
            messages.append(
                f"plan version is {self.plan_version}, the checkpoint has {stored.plan_version}: the code has changed"
            )
        if self.samples != stored.samples:
            messages.append("the clips differ: samples.parquet was packed again")
        for key in sorted(self.loader.keys() | stored.loader.keys()):
            here, other = self.loader.get(key), stored.loader.get(key)
            if here != other:
                messages.append(f"loader.{key} is {_shown(here)}, the checkpoint has {_shown(other)}")
        if self.batch_size != stored.batch_size:
            messages.append(f"train.batch_size is {self.batch_size}, the checkpoint has {stored.batch_size}")
        if self.world_size != stored.world_size:
            messages.append(
                f"this run has {self.world_size} {_ranks(self.world_size)}, the checkpoint {stored.world_size}"
            )
        return messages


def _shown(value: int | float | None) -> str:
    return "none" if value is None else str(value)


def _ranks(number: int) -> str:
    return "rank" if number == 1 else "ranks"


@dataclass(frozen=True)
class EpochPlan:
    """Batches of one rank, as row numbers into the split's samples table."""

    batches: tuple[np.ndarray, ...]
    left_out: np.ndarray
    """Rows in no batch: longer than the limit of this epoch or, rarely, left over after equal batches. int64."""
    num_frames: int
    """Frames of the clips in all ranks' batches."""
    padded_frames: int
    """`num_frames` with padding to the longest clip of each batch."""

    @property
    def padding_share(self) -> float:
        return 1 - self.num_frames / self.padded_frames if self.padded_frames else 0.0


@dataclass(frozen=True)
class EpochOrder:
    """Batches of all ranks: at step s rank w has the rows `row_N[first_SW[s, w] : stop_SW[s, w]]`; all int64."""

    row_N: np.ndarray
    first_SW: np.ndarray
    stop_SW: np.ndarray
    longest_SW: np.ndarray
    """Frames of the longest clip of each batch."""
    left_out: np.ndarray

    def batches(self, rank: int) -> tuple[np.ndarray, ...]:
        """Returns the batches of one rank, in the order of the steps."""
        edges = zip(self.first_SW[:, rank].tolist(), self.stop_SW[:, rank].tolist(), strict=True)
        # copies, because a view would keep the order of the whole epoch in memory
        return tuple(self.row_N[first:stop].copy() for first, stop in edges)

    @property
    def padded_SW(self) -> np.ndarray:
        """Frames of each batch including padding: the cost of a step for a rank."""
        return self.longest_SW * (self.stop_SW - self.first_SW)


def plan_identity(
    samples: pa.Table | Iterable[pa.RecordBatch], params: LoaderParams, batch_size: int, world_size: int = 1
) -> PlanIdentity:
    """Returns everything that the plans of all epochs depend on; `samples` as for `samples_hash`."""
    loader = params.model_dump(mode="json", exclude={"max_bad_fraction"})
    return PlanIdentity(PLAN_VERSION, samples_hash(samples), loader, batch_size, world_size)


def length_limit(params: LoaderParams, epoch: int, longest: int) -> int:
    """Returns the maximum number of frames of a clip in `epoch`; `longest` is the length of the longest clip.

    Rises linearly from curriculum_frames in epoch 0 to max_frames (or to `longest` if max_frames is 0) in epoch
    curriculum_epochs, then stays constant.
    """
    full = params.max_frames or longest
    if epoch >= params.curriculum_epochs or params.curriculum_frames >= full:
        return full
    return params.curriculum_frames + (full - params.curriculum_frames) * epoch // params.curriculum_epochs


def plan_epoch(
    samples: pa.Table,
    params: LoaderParams,
    batch_size: int,
    epoch: int,
    world_size: int = 1,
    rank: int = 0,
) -> EpochPlan:
    """Returns the batches of `rank` in `epoch`, in order; every rank gets the same number. See `order_epoch`.

    `samples` needs the columns clip_id, num_frames and shard. Raises TrainingError if a clip that takes part in any
    epoch is longer than the frame budget, or if there are fewer clips than ranks.
    """
    assert 0 <= rank < world_size
    order = order_epoch(samples, params, batch_size, epoch, world_size)
    num_frames_N = _lengths(samples)
    return EpochPlan(
        batches=order.batches(rank),
        left_out=order.left_out,
        num_frames=int(num_frames_N.sum() - num_frames_N[order.left_out].sum()),
        padded_frames=int(order.padded_SW.sum()),
    )


def order_epoch(
    samples: pa.Table, params: LoaderParams, batch_size: int, epoch: int, world_size: int = 1
) -> EpochOrder:
    """Returns the batches of all ranks in `epoch`.

    Clips longer than the limit of the epoch are left out. The shards are shuffled and cut into super-windows of
    about `window_shards` for each rank. In a super-window each rank gets a run of neighbouring shards, with about
    the same number of batches for all. Its clips are sorted by length times a random factor and cut into batches of
    at most `batch_size` clips and `frame_budget` padded frames. Ranks with fewer batches halve their largest. Then
    the steps are shuffled in the same way for all ranks, so at each step all ranks have clips of similar length.
    """
    rng = np.random.default_rng([params.seed, epoch])
    num_frames_N = _lengths(samples)
    longest = int(num_frames_N.max(initial=0))
    _refuse_over_budget(samples, num_frames_N, params.max_frames or longest, params.frame_budget)
    limit = length_limit(params, epoch, longest)
    kept_N = num_frames_N <= limit
    if (num_kept := int(kept_N.sum())) < world_size:
        raise TrainingError(
            f"epoch {epoch} has {num_kept} clips of at most {limit} frames, too few for {world_size} ranks; "
            "use fewer ranks, or raise loader.curriculum_frames or loader.max_frames"
        )
    rows, parts, left_out, base = [], [], [np.flatnonzero(~kept_N)], 0
    for row_N in _super_windows(shard_numbers(samples), kept_N, params.window_shards, world_size, rng):
        ordered_N, first_SW, stop_SW, longest_SW = plan_window(
            row_N, num_frames_N[row_N], world_size, batch_size, params.frame_budget, rng
        )
        if (stop_SW - first_SW).sum() < len(row_N):
            is_used_N = np.zeros(len(row_N), bool)
            for first, stop in zip(first_SW.ravel(), stop_SW.ravel(), strict=True):
                is_used_N[first:stop] = True
            left_out.append(ordered_N[~is_used_N])
        rows.append(ordered_N)
        parts.append((first_SW + base, stop_SW + base, longest_SW))
        base += len(row_N)
    first_SW, stop_SW, longest_SW = (np.concatenate(matrices) for matrices in zip(*parts, strict=True))
    return EpochOrder(np.concatenate(rows), first_SW, stop_SW, longest_SW, np.concatenate(left_out))


def plan_scoring(samples: pa.Table, params: LoaderParams, batch_size: int) -> tuple[np.ndarray, ...]:
    """Returns batches for scoring: every clip of the split once, also long ones, shortest first."""
    num_frames_N = _lengths(samples)
    row_N = np.argsort(num_frames_N, kind="stable")
    batches = cut(num_frames_N[row_N], 0, len(row_N), batch_size, params.frame_budget)
    return tuple(row_N[first:stop] for first, stop in batches)


def _lengths(samples: pa.Table) -> np.ndarray:
    num_frames_N = samples["num_frames"].to_numpy().astype(np.int64)
    if num_frames_N.min(initial=1) < 1:
        shortest = samples["clip_id"][int(np.argmin(num_frames_N))].as_py()
        raise TableError(f"clip {shortest} of samples.parquet has no frames; run `pipeline pack` again")
    return num_frames_N


def _refuse_over_budget(samples: pa.Table, num_frames_N: np.ndarray, limit: int, budget: int) -> None:
    over = np.flatnonzero((num_frames_N <= limit) & (num_frames_N > budget))
    if len(over):
        worst = over[np.argmax(num_frames_N[over])]
        raise TrainingError(
            f"{len(over)} clips are longer than loader.frame_budget {budget}, the longest is "
            f"{samples['clip_id'][int(worst)].as_py()} with {num_frames_N[worst]} frames; raise loader.frame_budget, "
            "or leave out long clips with loader.max_frames"
        )


def shard_numbers(samples: pa.Table) -> np.ndarray:
    """Returns the index of each row's shard in the sorted names, for any encoding and chunks of the column."""
    column = samples["shard"]
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = column.unify_dictionaries()
    code_N = np.concatenate([chunk.indices.to_numpy() for chunk in column.chunks])
    names = column.chunk(0).dictionary
    used = np.flatnonzero(np.bincount(code_N, minlength=len(names)))
    number_of_code = np.zeros(len(names), np.int64)
    number_of_code[used] = pc.rank(names.take(pa.array(used)), tiebreaker="dense").to_numpy() - 1
    return number_of_code[code_N]


def _super_windows(
    shard_N: np.ndarray, kept_N: np.ndarray, window_shards: int, world_size: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yields the kept rows of each group of shuffled shards: shard by shard, in table order within a shard."""
    row_N = np.flatnonzero(kept_N)
    row_N = row_N[np.argsort(shard_N[row_N], kind="stable")]
    edges = np.concatenate([[0], np.cumsum(np.bincount(shard_N[row_N]))])
    shards = rng.permutation(np.flatnonzero(np.diff(edges)))
    # equal groups, as close to window_shards for each rank as possible; as many shards as ranks, if there are enough
    wanted = round(len(shards) / (window_shards * world_size))
    num_windows = max(1, min(wanted, len(shards) // world_size))
    for window in np.array_split(shards, num_windows):
        yield np.concatenate([row_N[edges[shard] : edges[shard + 1]] for shard in window])
