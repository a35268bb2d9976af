"""Finds videos and speakers that are in several packs, or twice in one: leaks from training into scores."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from shards.copies import Fingerprints, find_copies
from shards.enums import TRAIN_SPLIT, UNLABELLED_SPLIT
from shards.errors import ConfigError
from shards.files import Progress
from shards.pack_fingerprints import fingerprints_of, read_catalogue
from shards.packs import Packs
from shards.settings import MachineParams
from shards.store import ShardStore
from stages.corpora.transcript import NAMES_SHOWN, one_spelling

Shown = Callable[[str, str], AbstractContextManager[Any]]
"""Called with the name of the work and its unit; yields a function of (done, total)."""


@dataclass(frozen=True, slots=True)
class ComparedPack:
    name: str
    samples: Path
    store: ShardStore
    train_splits: tuple[str, ...] = (TRAIN_SPLIT, UNLABELLED_SPLIT)


def compared_packs(packs: Packs) -> list[ComparedPack]:
    """Returns the packs of train.data."""
    return [
        ComparedPack(
            pack.name,
            pack.samples,
            pack.store,
            pack.splits_for(TRAIN_SPLIT) + pack.splits_for(UNLABELLED_SPLIT),
        )
        for pack in packs.packs
    ]


@dataclass(frozen=True, slots=True, order=True)
class PackedClip:
    pack: str
    split: str
    clip_id: str


@dataclass(frozen=True, slots=True)
class Copies:
    """Clips that show the same video, or parts of it. `similarity`: the smallest of the pairs that were found."""

    clips: tuple[PackedClip, ...]
    similarity: float
    is_leak: bool
    """Whether one is a training clip and another is not."""


@dataclass(frozen=True, slots=True)
class SpeakerPlace:
    pack: str
    split: str
    speaker: str
    num_clips: int


@dataclass(frozen=True, slots=True)
class SharedName:
    """Speakers of the same name in several packs: perhaps one person."""

    name: str
    places: tuple[SpeakerPlace, ...]
    is_leak: bool
    """Whether it is in training clips and in others."""


@dataclass(frozen=True, slots=True)
class PackOverlap:
    num_clips: Mapping[str, int]
    """By pack; so is `num_not_compared`."""
    num_not_compared: Mapping[str, int]
    """Clips that are too short or show a still picture: only equal files are found among them."""
    copies: tuple[Copies, ...]
    speakers: tuple[SharedName, ...]

    @property
    def num_leaks(self) -> int:
        """Number of videos that are in training and in another split."""
        return sum(found.is_leak for found in self.copies)

    def warnings(self) -> list[str]:
        """Returns a line about leaking videos and a line about shared names, each only if there are any."""
        leaks = [found.clips for found in self.copies if found.is_leak]
        lines = []
        if leaks:
            some = " = ".join(f"{clip.pack}/{clip.clip_id} ({clip.split})" for clip in leaks[0][:2])
            lines.append(
                f"{len(leaks)} videos are in training and in another split, so the CER is too good ({some}, ...); "
                "`pipeline overlap` lists them"
            )
        if self.speakers:
            names = ", ".join(one.name for one in self.speakers[:NAMES_SHOWN])
            lines.append(
                f"{len(self.speakers)} speakers have the same name in several packs ({names}) and count as different "
                "people; `pipeline overlap` lists them"
            )
        return lines

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"num_leaks": self.num_leaks}


def _not_shown(what: str, unit: str) -> AbstractContextManager[Any]:
    return nullcontext(lambda done, total: None)


def find_overlap(
    packs: Sequence[ComparedPack], machine: MachineParams, shown: Shown = _not_shown
) -> PackOverlap:
    """Compares all clips and speakers of the packs, also the clips of one pack with each other.

    Raises TableError or ShardError that names a damaged table or shard, MachineError if a store cannot be reached,
    ConfigError if two packs have the same name.
    """
    names = [pack.name for pack in packs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two packs are named {twice[0]}; give each a name: NAME=FOLDER")
    catalogues = [read_catalogue(pack.samples) for pack in packs]
    found = []
    for pack, catalogue in zip(packs, catalogues, strict=True):
        with shown(f"fingerprints of {pack.name}", "clips") as on_progress:
            found.append(fingerprints_of(catalogue, pack.store, machine, on_progress))
    with shown("comparing clips", "blocks") as on_progress:
        copies = list(_copies(packs, catalogues, found, on_progress))
    num_empty = [int((np.diff(fingerprints.start_N) == 0).sum()) for fingerprints in found]
    return PackOverlap(
        num_clips=dict(zip(names, (len(catalogue) for catalogue in catalogues), strict=True)),
        num_not_compared=dict(zip(names, num_empty, strict=True)),
        copies=tuple(sorted(copies, key=lambda one: (not one.is_leak, one.clips))),
        speakers=tuple(sorted(_shared_names(packs, catalogues), key=lambda one: (not one.is_leak, one.name))),
    )


def _copies(
    packs: Sequence[ComparedPack],
    catalogues: Sequence[pa.Table],
    found: Sequence[Fingerprints],
    on_progress: Progress,
) -> Iterator[Copies]:
    """Yields each group of two or more clips with equal files or similar fingerprints."""
    hashes = pa.chunked_array([chunk for catalogue in catalogues for chunk in catalogue["sha256"].chunks])
    # equal files are one video, so that they are not compared with each other
    video_N = hashes.dictionary_encode().combine_chunks().indices.to_numpy()
    first_V = np.unique(video_N, return_index=True)[1]
    start_P = np.cumsum([0, *map(len, catalogues)])
    pack_N = np.repeat(np.arange(len(packs)), np.diff(start_P))
    place_V = zip(pack_N[first_V].tolist(), (first_V - start_P[pack_N[first_V]]).tolist(), strict=True)
    pairs = find_copies(Fingerprints.of([found[pack][row] for pack, row in place_V]), on_progress)
    group_V = list(range(len(first_V)))
    for pair in pairs:
        group_V[_first_of(group_V, pair.other)] = _first_of(group_V, pair.one)
    group_V = [_first_of(group_V, video) for video in group_V]
    least: dict[int, float] = {}
    for pair in pairs:
        least[group_V[pair.one]] = min(pair.similarity, least.get(group_V[pair.one], 1.0))
    group_N = np.array(group_V, np.int64)[video_N]
    in_order = np.argsort(group_N, kind="stable")
    for rows in np.split(in_order, np.flatnonzero(np.diff(group_N[in_order])) + 1):
        if len(rows) > 1:
            clips, in_training = [], set()
            for number in rows.tolist():
                pack, catalogue = packs[pack_N[number]], catalogues[pack_N[number]]
                row = number - int(start_P[pack_N[number]])
                split, clip_id = (catalogue[name][row].as_py() for name in ("split", "clip_id"))
                clips.append(PackedClip(pack.name, split, clip_id))
                in_training.add(split in pack.train_splits)
            yield Copies(tuple(clips), round(least.get(int(group_N[rows[0]]), 1.0), 4), len(in_training) > 1)


def _first_of(group_V: list[int], video: int) -> int:
    """Returns the representative of the group of `video`, and shortens the path to it."""
    while group_V[video] != video:
        group_V[video] = group_V[group_V[video]]
        video = group_V[video]
    return video


def _shared_names(packs: Sequence[ComparedPack], catalogues: Sequence[pa.Table]) -> Iterator[SharedName]:
    places_of: dict[str, list[SpeakerPlace]] = defaultdict(list)
    trains = {pack.name: pack.train_splits for pack in packs}
    for pack, catalogue in zip(packs, catalogues, strict=True):
        counts = (
            catalogue.select(["speaker", "split"])
            .group_by(["speaker", "split"])
            .aggregate([([], "count_all")])
        )
        for row in counts.to_pylist():
            if row["speaker"]:
                place = SpeakerPlace(pack.name, row["split"], row["speaker"], row["count_all"])
                places_of[one_spelling(row["speaker"])].append(place)
    for name, places in places_of.items():
        if len({place.pack for place in places}) > 1:
            in_training = {place.split in trains[place.pack] for place in places}
            yield SharedName(name, tuple(places), len(in_training) > 1)
