"""`shards.webdataset`: a pack, or any list of its shards, as a pipeline of webdataset.

For places without random access, and for programs that already use webdataset. Each sample is a dictionary:
`video_THW` (uint8 array), `label`, `clip_id`, `metadata` (the whole .json), `__key__` and `__url__`; of a pack with
sound also `audio_TKM` (float16 array).
"""

import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import braceexpand
import webdataset as wds

from shards.codec import clip_extension, decode_clip
from shards.errors import ConfigError, ShardError
from shards.loading import SharedEpoch, pad, rank_of
from shards.open_shards import ADVICE
from shards.open_store import URL
from shards.sound import EXTENSION, decode_sound
from shards.store import FolderStore
from shards.tar import INDEX, parse_index
from shards.tar_stream import PIPE, StreamedShard, read_shard

_TAR = re.compile(r"\.tar([?#].*)?$")


def webdataset(
    place: str | Path | Sequence[str],
    split: str = "train",
    *,
    batch_size: int | None = None,
    shuffle: int = 0,
    seed: int = 0,
    rank: int | None = None,
    world_size: int | None = None,
) -> "ClipPipeline":
    """Returns the clips of a split as a `webdataset.WebDataset`; it decodes every codec of `pipeline pack`.

    `place` is a pack (a folder, or a URL that fsspec opens), whose `<split>/index.json` lists the shards. Or it is the
    shards themselves: a list, or a pattern such as `https://host/train-{000000..000003}.tar` or `pipe:curl ...`;
    then `split` has no effect. Each rank and each DataLoader worker reads its own shards.

    With `shuffle` the shards are shuffled, and clips in a buffer of this many, by `seed` and the epoch of
    `set_epoch`. With `batch_size` it yields padded batches (`PaddedBatch`), the last one may be smaller.
    Raises ConfigError if there are fewer shards than ranks, and ShardError or MachineError while reading: a shard is
    read completely or raises an error.
    """
    if batch_size is not None and batch_size < 1:
        raise ConfigError(f"batch_size must be at least 1 (got {batch_size})")
    shards = shards_of(place, split)
    rank, world_size = rank_of(rank, world_size)
    if len(shards) < world_size:
        raise ConfigError(
            f"{place} has {len(shards)} shards of split '{split}', too few for {world_size} ranks; lower "
            "pack.shard_mb and run `pipeline pack`, or use shards.dataset"
        )
    pipeline = ClipPipeline(shards, shuffle, seed, rank, world_size)
    return pipeline if batch_size is None else pipeline.batched(batch_size, collation_fn=pad)


class ClipPipeline(wds.WebDataset):
    """A `webdataset.WebDataset` with our own source: all its methods (map, batched, ...) add steps as usual."""

    def __init__(
        self,
        shards: Sequence[StreamedShard],
        shuffle: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        # not WebDataset.__init__, which adds webdataset's reader
        wds.DataPipeline.__init__(self)
        self.epoch = SharedEpoch()
        self._shards, self._shuffle, self._seed = list(shards), shuffle, seed
        self._rank, self._world_size = rank, world_size
        self.pipeline += [self._source, wds.split_by_worker, _read, self._shuffled, _decoded]

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, on which the order depends; call it before each epoch, also with DataLoader workers."""
        self.epoch.set(epoch)

    def _source(self) -> Iterator[StreamedShard]:
        shards = list(self._shards)
        if self._shuffle:
            # the same order on all ranks, which then take turns
            random.Random(f"{self._seed} {self.epoch.number}").shuffle(shards)
        return islice(shards, self._rank, None, self._world_size)

    def _shuffled(self, samples: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        if not self._shuffle:
            return samples
        *_, worker, _ = wds.utils.pytorch_worker_info()
        rng = random.Random(f"{self._seed} {self.epoch.number} {self._rank} {worker}")
        shuffled: Iterator[dict[str, Any]] = wds.filters.shuffle(self._shuffle, rng=rng)(samples)
        return shuffled


def shards_of(place: str | Path | Sequence[str], split: str) -> list[StreamedShard]:
    """Returns the shards that `place` means; see `webdataset`. Raises ShardError if it is a pack without this split."""
    if isinstance(place, str) and (place.startswith(PIPE) or _TAR.search(place)):
        place = list(braceexpand.braceexpand(place))
    elif isinstance(place, Path) and _TAR.search(place.name):
        place = [str(place)]
    if not isinstance(place, str | Path):
        return [StreamedShard(str(url)) for url in place]
    root, name = str(place).rstrip("/"), f"{split}/{INDEX}"
    if URL.match(root):
        from shards.remote_files import RemoteFiles, RetryPolicy  # imports fsspec

        content = RemoteFiles(root, RetryPolicy(), "the URL of the pack").read_small(name)
    else:
        content = FolderStore(Path(root)).local(name).read_bytes()
    return [
        StreamedShard(f"{root}/{shard.name}", shard.num_samples, shard.num_bytes)
        for shard in parse_index(content, split, f"{root}/{name}").shards.values()
    ]


def _read(shards: Iterable[StreamedShard]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        yield from read_shard(shard)


def _decoded(samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    return map(_decode, samples)


def _decode(sample: dict[str, Any]) -> dict[str, Any]:
    key, url = sample["__key__"], sample["__url__"]
    members = {name: payload for name, payload in sample.items() if not name.startswith("__")}
    try:
        metadata = json.loads(members.pop("json", b""))
        clip_id, label, codec, num_frames = (
            metadata[name] for name in ("clip_id", "label", "codec", "num_frames")
        )
        if clip_id != key or not isinstance(label, str) or type(num_frames) is not int:
            raise ValueError("its metadata is of another clip, or has values of the wrong type")
        payload, sound = members.pop(clip_extension(codec)), members.pop(EXTENSION, None)
        if members:
            raise ValueError(f"it has other members too: {', '.join(members)}")
        video_THW = decode_clip(payload, codec, num_frames)
        with_sound = {} if sound is None else {"audio_TKM": decode_sound(sound, num_frames)}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ShardError(f"shard {url}: the sample of clip {key} is damaged: {what}; {ADVICE}") from error
    return {
        "__key__": key,
        "__url__": url,
        "video_THW": video_THW,
        "label": label,
        "clip_id": clip_id,
        "metadata": metadata,
        **with_sound,
    }
