"""Stage pack: writes the mouth clips to tar shards, and their catalogue, samples.parquet."""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import zlib
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from model.text import copied_normaliser_metadata
from shards import schema
from shards.codec import clip_extension, encode_clip
from shards.disk import KEPT, disk_errors_reported, unwritable
from shards.errors import DiskError, ShardError
from shards.files import (
    Progress,
    json_bytes,
    read_table,
    sync_folder,
    table_from_rows,
    write_table,
)
from shards.locks import hold_lock
from shards.machine import usable_cores
from shards.samples import without_null
from shards.schema import Status
from shards.settings import MachineParams, PackParams
from shards.sound import EXTENSION, encode_sound
from shards.store import OWNER, PARTIAL_FILE_NAMES, ShardStore, WritableStore
from shards.tar import INDEX, IndexedShard, shard_writer
from stages.cards.card import CARD, MARK, METADATA, card_files
from stages.cards.licences import refuse_unlicensed
from stages.cards.pack_facts import facts_of
from stages.clips.clip_source import ClipSource
from stages.clips.ledger import refuse_other_ledger
from stages.corpora.transcript import NAMES_SHOWN, split_rank
from stages.settings import CorpusParams, CropParams
from stages.videos.sound import NoSound, silence

_log = logging.getLogger(__name__)

# a copy of a remote pack contains the owner's mark
_OURS = re.compile(
    rf"{PARTIAL_FILE_NAMES.pattern}|[A-Za-z0-9_-]+/([A-Za-z0-9_-]+-\d{{6}}\.tar|index\.json)|{re.escape(OWNER)}"
)

PACK_VERSION = 2
"""Increase it when the same clips give different bytes. It is a DVC parameter: DVC then runs the stage again."""

AHEAD = 2
"""Encoded clips for each thread that may wait to be written: so a slow clip does not stop the other threads."""


@dataclass(frozen=True, slots=True)
class PackSummary:
    """What was packed; `num_rendered` clips were no longer in the cache and were cropped again.

    With pack.audio, `num_silent` clips have no usable sound; else it is None.
    """

    samples_by_split: Mapping[str, int]
    num_shards: int
    num_bytes: int
    num_rendered: int
    num_silent: int | None = None

    def __str__(self) -> str:
        counts = ", ".join(f"{split} {count}" for split, count in self.samples_by_split.items())
        rendered = f", {self.num_rendered} cropped again" if self.num_rendered else ""
        silent = "" if self.num_silent is None else f", {self.num_silent} without sound"
        return (
            f"{counts} samples in {self.num_shards} shards, {self.num_bytes / 1e6:.0f} MB{rendered}{silent}"
        )


def pack(
    corpus: CorpusParams,
    crop: CropParams,
    pack: PackParams,
    machine: MachineParams,
    clips_path: Path,
    crops_path: Path,
    tracks_path: Path,
    store: WritableStore,
    samples_path: Path,
    on_progress: Progress | None = None,
    has_rights: bool = False,
) -> PackSummary:
    """Writes `<split>/<split>-000000.tar`…, the card, `<split>/index.json` and samples.parquet: same input, same bytes.

    Clips of a split are shuffled by `pack.seed`, so that a shard mixes speakers; `machine.workers` threads encode
    them. Shards of the previous pack are removed. Raises ShardError where the store holds other files, another pack
    of this catalogue is running, or a remote store holds the pack of another catalogue, MachineError where nothing
    can be written, TableError where the tables do not match, and ConfigError, before anything is changed, where the
    store is remote and the licence does not allow it, unless the caller `has_rights`.
    """
    refuse_unlicensed(corpus.license, store, has_rights)
    clips_table = read_table(clips_path, schema.CLIPS, "pipeline ingest")
    clips = {row["clip_id"]: row for row in clips_table.to_pylist()}
    ledger = read_table(crops_path, schema.CROPS, "pipeline crop")
    tracks = read_table(tracks_path, schema.TRACKS, "pipeline crop")
    refuse_other_ledger(ledger.schema.metadata, clips.values(), crop, clips_path, crops_path)
    source = ClipSource(corpus, crop, machine, clips, lambda: tracks)
    usable = [row for row in ledger.to_pylist() if row["status"] == Status.OK]
    least_bytes = sum(row["num_frames"] for row in usable) * crop.size_px**2 if pack.codec == "raw" else 0
    with _locked(store, samples_path), _cleared(store, samples_path, least_bytes):
        rows: list[dict[str, Any]] = []
        silent: list[tuple[str, str]] = []
        splits = sorted({clip["split"] for clip in clips.values()}, key=split_rank)
        shards: dict[str, list[IndexedShard]] = {split: [] for split in splits}
        for split in splits:
            of_split = _shuffled(
                [row for row in usable if clips[row["clip_id"]]["split"] == split], split, pack.seed
            )
            with _encoded(of_split, source, pack, machine.workers or usable_cores()) as encoded:
                for row in _write_split(encoded, split, source, crop, pack, store, shards[split], silent):
                    rows.append(row)
                    if on_progress:
                        on_progress(len(rows), len(usable))
        assert len(rows) == len(usable), f"{len(usable)} clips in, {len(rows)} samples out"
        _log_silent(silent, len(rows))
        facts = facts_of(
            rows,
            splits,
            kind=corpus.kind,
            license=corpus.license,
            codec=pack.codec,
            size_px=crop.size_px,
            fps=crop.target_fps,
            has_sound=pack.audio,
        )
        for name, content in card_files(facts).items():
            _write(store, name, content)
        for split in splits:
            _write_index(store, split, shards[split])
        marked = schema.SAMPLES.with_metadata(
            schema.SAMPLES.metadata | copied_normaliser_metadata(clips_table.schema.metadata)
        )
        write_table(samples_path, table_from_rows(rows, schema.SAMPLES), marked)
    by_split = {split: sum(shard.num_samples for shard in shards[split]) for split in splits}
    made = [shard for of_split in shards.values() for shard in of_split]
    return PackSummary(
        by_split,
        len(made),
        sum(shard.num_bytes for shard in made),
        source.num_rendered,
        len(silent) if pack.audio else None,
    )


@contextmanager
def _locked(store: WritableStore, samples_path: Path) -> Iterator[None]:
    """Holds the locks of the catalogue and the shards folder: two packs at once would remove each other's files.

    A remote store has no locks, but an owner (`WritableStore.claim`).
    """

    def refusal(holder: str) -> ShardError:
        return ShardError(
            f"another pack is writing {written} ({holder}): wait until it ends, or stop it; to keep both "
            "packs, set other paths.shards and paths.samples for this one"
        )

    with ExitStack() as lock:
        # always in this order; resolved, since several links may lead to one place
        for written in (samples_path, *([] if store.is_remote else [Path(store.place(""))])):
            place = written.resolve()
            with disk_errors_reported(written):
                place.parent.mkdir(parents=True, exist_ok=True)
                lock.enter_context(hold_lock(place.with_name(f".{place.name}.lock"), refusal))
        yield


def _try_writing(store: WritableStore) -> None:
    """Raises where nothing can be written, before the previous pack is removed."""
    # if this file is left behind, the next pack recognises and removes it
    tried = f".{CARD}.tried.tmp"
    _write(store, tried, b"tried")
    store.remove(tried)


def _shuffled(rows: Sequence[dict[str, Any]], split: str, seed: int) -> list[dict[str, Any]]:
    """Returns the rows in a seeded order that does not depend on their order in the table."""
    ordered = sorted(rows, key=lambda row: str(row["clip_id"]))
    rng = np.random.default_rng([seed, zlib.crc32(split.encode())])
    return [ordered[i] for i in rng.permutation(len(ordered))]


@dataclass(frozen=True, slots=True)
class _Encoded:
    crop_row: dict[str, Any]
    payload: bytes
    sha256: str
    sound: bytes | None = None
    """With pack.audio. The sound of a clip without usable sound is that of silence."""
    no_sound: str = ""
    """Why the clip has no usable sound."""


@contextmanager
def _encoded(
    crop_rows: Sequence[dict[str, Any]], source: ClipSource, pack: PackParams, num_threads: int
) -> Iterator[Iterator[_Encoded]]:
    """Yields the clips of `crop_rows`, in this order; threads encode them, and only a few are in memory at once."""

    def encode(crop_row: dict[str, Any]) -> _Encoded:
        clip_THW = source.read(crop_row)
        try:
            payload = encode_clip(clip_THW, pack)
        except ValueError as error:
            raise ShardError(
                f"clip {crop_row['clip_id']} cannot be packed with pack.codec {pack.codec} ({error}); "
                "lower crop.max_frames or crop.size_px, then run `pipeline crop` again"
            ) from error
        encoded = _Encoded(crop_row, payload, hashlib.sha256(payload).hexdigest())
        if not pack.audio:
            return encoded
        try:
            return replace(encoded, sound=encode_sound(source.read_sound(crop_row)))
        except NoSound as why:
            return replace(encoded, sound=encode_sound(silence(crop_row["num_frames"])), no_sound=str(why))

    def in_order() -> Iterator[_Encoded]:
        begun: deque[Future[_Encoded]] = deque()
        for crop_row in crop_rows:
            begun.append(pool.submit(encode, crop_row))
            if len(begun) > AHEAD * num_threads:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()

    pool = ThreadPoolExecutor(num_threads, "encode")
    try:
        yield in_order()
    finally:
        # after an error, no further clip is started
        pool.shutdown(cancel_futures=True)


def _write_split(
    encoded: Iterator[_Encoded],
    split: str,
    source: ClipSource,
    crop: CropParams,
    pack: PackParams,
    store: WritableStore,
    shards: list[IndexedShard],
    silent: list[tuple[str, str]],
) -> Iterator[dict[str, Any]]:
    """Writes the shards of a split and adds them to `shards`; yields the row of each sample after writing it.

    Adds each clip without usable sound to `silent`, with the cause.
    """
    waiting = next(encoded, None)
    while waiting is not None:
        name = f"{split}/{split}-{len(shards):06d}.tar"
        with store.writing(name) as file, shard_writer(file) as shard:
            while waiting is not None and shard.num_bytes < pack.shard_mb * 1e6:
                clip = source.clips[waiting.crop_row["clip_id"]]
                # fields of both the sample itself and samples.parquet
                shared = {field: clip[field] for field in ("clip_id", "label", "speaker", "topic")} | {
                    "split": split,
                    "num_frames": waiting.crop_row["num_frames"],
                    "codec": pack.codec,
                }
                filled = {field: without_null(value) for field, value in shared.items()}
                sound: list[tuple[str, bytes]] = []
                if waiting.sound is not None:
                    filled["audio"] = "silent" if waiting.no_sound else "present"
                    sound = [(EXTENSION, waiting.sound)]
                if waiting.no_sound:
                    silent.append((clip["clip_id"], waiting.no_sound))
                described = json.dumps(
                    filled | {"fps": crop.target_fps}, ensure_ascii=False, sort_keys=True
                ).encode()
                place = shard.add(
                    clip["clip_id"],
                    (clip_extension(pack.codec), waiting.payload),
                    ("json", described),
                    *sound,
                )
                has_sound = waiting.sound is not None and not waiting.no_sound
                yield (
                    shared
                    | asdict(place)
                    | {"shard": name, "sha256": waiting.sha256, "num_chars": clip["num_chars"]}
                    | {"audio_sha256": hashlib.sha256(sound[0][1]).hexdigest() if has_sound else None}
                    | {"confidence": clip["confidence"]}
                )
                waiting = next(encoded, None)
        shards.append(IndexedShard(name, shard.num_samples, shard.num_bytes, shard.sha256))


def _log_silent(silent: Sequence[tuple[str, str]], num_clips: int) -> None:
    if silent:
        shown = "; ".join(f"{clip_id}: {why}" for clip_id, why in silent[:NAMES_SHOWN])
        _log.warning(
            "pack.audio: %d of %d clips have no usable sound and count as silent (%s%s)",
            *(len(silent), num_clips, shown, "; …" if len(silent) > NAMES_SHOWN else ""),
        )


def _write_index(store: WritableStore, split: str, shards: Sequence[IndexedShard]) -> None:
    """Is called last: a store without an index is not a complete pack."""
    index = {
        "split": split,
        "num_samples": sum(shard.num_samples for shard in shards),
        "shards": [
            {
                "name": Path(shard.name).name,
                "num_samples": shard.num_samples,
                "bytes": shard.num_bytes,
                "sha256": shard.sha256,
            }
            for shard in shards
        ],
    }
    _write(store, f"{split}/{INDEX}", json_bytes(index))


def _write(store: WritableStore, name: str, content: bytes) -> None:
    with store.writing(name) as file:
        file.write(content)


@contextmanager
def _cleared(store: WritableStore, samples_path: Path, least_bytes: int) -> Iterator[None]:
    """Removes the previous pack and its catalogue, since there may be no room for two.

    Raises ShardError, and removes nothing, where the store holds other files. Raises DiskError, and removes nothing,
    where `least_bytes` of new shards do not fit even then.
    """
    names = store.names()
    foreign = [name for name in names if not (_OURS.fullmatch(name) or _is_card_of_ours(store, name))]
    if foreign:
        raise ShardError(
            f"{store.place(foreign[0])} is not a file of a pack; move it out of {store.place('')}"
        )
    store.claim(samples_path)
    if names or samples_path.exists():
        _try_writing(store)
        # writing has removed what a killed pack left
        names = sorted(set(names).intersection(store.names()))
    if names and not store.is_remote:
        folder = Path(store.place(""))
        room_bytes = shutil.disk_usage(folder if folder.exists() else folder.resolve().parent).free
        if room_bytes + sum((folder / name).stat().st_size for name in names) < least_bytes:
            raise unwritable(folder, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), least_bytes)
    # the catalogue and the index first: new shards under an old catalogue would be read without an error
    if samples_path.exists():
        samples_path.unlink()
        sync_folder(samples_path.parent)
    for name in sorted(names, key=lambda name: not name.endswith(f"/{INDEX}")):
        store.remove(name)
    try:
        yield
    except DiskError as error:
        cause, is_full, _ = str(error).partition(KEPT)
        if not (names and is_full):
            raise
        raise DiskError(
            f"{cause}the previous pack was removed to make room. Free some space, then run the same command again"
        ) from error


def _is_card_of_ours(store: ShardStore, name: str) -> bool:
    """Returns whether `pack` wrote this file: other people write a README too."""
    return name in (CARD, METADATA) and MARK.encode() in store.local(name).read_bytes()
