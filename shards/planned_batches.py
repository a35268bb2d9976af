"""`shards.dataset`: the batches of the epoch plan as a `torch.utils.data.IterableDataset`.

The same batches in the same order as in `pipeline train` with the same parameters, for any number of DataLoader
workers: worker w of n yields the batches w, w + n, and so on, and DataLoader takes turns.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic
from torch.utils.data import IterableDataset, get_worker_info

from shards.errors import ConfigError, TrainingError
from shards.loading import PaddedBatch, SharedEpoch, rank_of
from shards.open_store import open_store
from shards.plan import plan_epoch, plan_identity
from shards.plan_identity import PlanIdentity
from shards.samples import STREAM_COLUMNS, read_samples, sample_pieces, samples_hash
from shards.settings import LoaderParams, MachineParams
from shards.stream import ShardStream


def dataset(
    samples: str | Path,
    shards: str | Path,
    split: str = "train",
    *,
    batch_size: int,
    audio: bool = False,
    rank: int | None = None,
    world_size: int | None = None,
    machine: MachineParams | None = None,
    **loader: int,
) -> "PlannedBatches":
    """Returns the batches of a split, for a DataLoader with `batch_size=None` or for direct iteration.

    `samples` is samples.parquet, `shards` the folder or URL of the pack (paths.samples and paths.shards). With `audio`
    batches have the sound, too; then the pack must have sound (pack.audio). `loader` are
    the keys of that section of params.yaml, such as `seed` and `frame_budget`. Rank and world size come from
    torch.distributed or torchrun unless given; all ranks get the same number of batches. `machine` sets cache and
    reading threads; DataLoader workers use no threads.
    Raises ConfigError for a wrong value, and while reading ShardError or MachineError.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1 (got {batch_size})")
    try:
        params = LoaderParams.model_validate(loader)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"loader.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if params.max_bad_fraction:
        raise ConfigError("max_bad_fraction must be 0: shards.dataset raises for every damaged clip")
    if params.unlabelled_share:
        raise ConfigError(
            "unlabelled_share must be 0: make a dataset of split unlabelled, and draw from both"
        )
    return PlannedBatches(
        Path(samples),
        str(shards),
        split,
        batch_size,
        params,
        machine or MachineParams(),
        *rank_of(rank, world_size),
        audio,
    )


class PlannedBatches(IterableDataset[PaddedBatch]):
    """The batches of one rank; `len` is their number in the current epoch.

    `state_dict` and `load_state_dict` are those that torchdata's StatefulDataLoader calls, in each worker. Without a
    DataLoader they work as well.
    """

    def __init__(
        self,
        samples: Path,
        shards: str,
        split: str,
        batch_size: int,
        params: LoaderParams,
        machine: MachineParams,
        rank: int,
        world_size: int,
        audio: bool,
    ) -> None:
        super().__init__()
        self._audio = audio
        self._samples = read_samples(samples, split, (*STREAM_COLUMNS, *(["audio_sha256"] if audio else [])))
        if audio and self._samples["audio_sha256"].null_count == len(self._samples):
            raise ConfigError(
                f"no clip of split {split} of {samples} has sound; set pack.audio to true and run `pipeline pack`, or "
                "audio to False"
            )
        self._identity = plan_identity(
            samples_hash(sample_pieces(samples, split)), params, batch_size, world_size
        )
        self._shards, self._params, self._machine = shards, params, machine
        self._batch_size, self._rank, self._world_size = batch_size, rank, world_size
        self._epoch = SharedEpoch()
        self._planned: tuple[int, tuple[Any, ...]] | None = None
        self._stream: ShardStream | None = None
        """Only in the training process: DataLoader workers cannot use the threads of another process."""
        self._running = (0, 0)
        """Epoch of the last iterator, and number of batches that it yielded in this process."""
        self._resume: tuple[int, int] | None = None
        """The same of a loaded state, until the next iterator."""

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iterators; call it before each epoch, also with DataLoader workers."""
        self._epoch.set(epoch)

    def __len__(self) -> int:
        return len(self._batches(self._epoch.number))

    def __iter__(self) -> Iterator[PaddedBatch]:
        # not a generator: torchdata expects that a loaded state is used up here
        epoch, first = self._epoch.number, 0
        worker, num_workers = _worker()
        mine = self._batches(epoch)[worker::num_workers]
        if self._resume is not None:
            of_epoch, num_done = self._resume
            if of_epoch == epoch:
                first = num_done
            elif num_done < len(self._batches(of_epoch)[worker::num_workers]):
                raise TrainingError(
                    f"the loaded state is from the middle of epoch {of_epoch}, but the epoch is {epoch}; call "
                    f"set_epoch({of_epoch}) first"
                )
        self._resume, self._running = None, (epoch, first)
        return self._read(mine, epoch, first)

    def state_dict(self) -> dict[str, Any]:
        """Returns the position of the last iterator in this process, and the identity of the plan."""
        epoch, num_done = self._resume or self._running
        return {
            "epoch": epoch,
            "batches_done": num_done,
            "num_workers": _worker()[1],
            "plan": self._identity.as_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes the next iterator continue at this position; raises TrainingError if the state has another plan.

        The epoch becomes that of the state, unless `set_epoch` was called.
        """
        try:
            plan = PlanIdentity.from_dict(state["plan"])
            epoch, batches_done, workers_then = (
                int(state[key]) for key in ("epoch", "batches_done", "num_workers")
            )
        except (KeyError, TypeError, ValueError) as error:
            raise TrainingError(
                f"the state is not one of PlannedBatches.state_dict ({error!r}); save it again"
            ) from error
        differences = self._identity.differences(plan)
        if (num_workers := _worker()[1]) != workers_then:
            differences.append(f"DataLoader has {num_workers} workers, the checkpoint {workers_then}")
        if differences:
            raise TrainingError(f"the state belongs to other batches: {'; '.join(differences)}")
        self._resume = (epoch, batches_done)
        if not self._epoch.is_set:
            self._epoch.set(epoch)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_stream": None}

    def _batches(self, epoch: int) -> tuple[Any, ...]:
        if self._planned is None or self._planned[0] != epoch:
            plan = plan_epoch(
                self._samples, self._params, self._batch_size, epoch, self._world_size, self._rank
            )
            self._planned = (epoch, plan.batches)
        return self._planned[1]

    def _read(self, batches: tuple[Any, ...], epoch: int, first: int) -> Iterator[PaddedBatch]:
        for number, batch in enumerate(self._open_stream().batches(batches, first), start=first + 1):
            self._running = (epoch, number)
            padded = PaddedBatch(
                video_BTHW=batch.video_BTHW,
                num_frames_B=batch.num_frames_B,
                labels=list(batch.labels),
                clip_ids=list(batch.clip_ids),
            )
            if batch.audio_BTKM is not None and batch.has_audio_B is not None:
                padded |= {"audio_BTKM": batch.audio_BTKM, "has_audio_B": batch.has_audio_B}
            yield padded

    def _open_stream(self) -> ShardStream:
        if get_worker_info() is not None:
            machine = self._machine.model_copy(update={"num_workers": 0})
            return self._new_stream(machine)
        if self._stream is None:
            self._stream = self._new_stream(self._machine)
        return self._stream

    def _new_stream(self, machine: MachineParams) -> ShardStream:
        return ShardStream(
            open_store(self._shards, machine, "shards"), self._samples, machine, audio=self._audio
        )


def _worker() -> tuple[int, int]:
    """Returns number and count of the DataLoader worker that this process is; 0 and 1 for any other process."""
    info = get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
