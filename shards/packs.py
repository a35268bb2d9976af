"""The packs that one training or report reads: the pack of `paths`, or several packs (`train.data`).

Tables of several packs are one table: the rows of pack after pack, with a column `corpus`. Clips, speakers and shards
are named `<pack>/<name>`, since two packs may use the same name. So all other code works as for one pack.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shards import schema
from shards.blend import IS_LABELLED
from shards.enums import TEST_SPLIT, TRAIN_SPLIT, UNLABELLED_SPLIT, VALID_SPLIT
from shards.errors import ConfigError, ShardError, TableError
from shards.files import fingerprint
from shards.folds import Fold
from shards.open_store import open_store
from shards.plan import plan_identity
from shards.plan_identity import PlanIdentity
from shards.samples import HASHED_COLUMNS, PLAN_COLUMNS, sample_pieces, samples_hash, splits_of
from shards.settings import DataPack, LoaderParams, MachineParams
from shards.store import ShardStore

NAMES = {"clip_id", "speaker", "shard"}
"""Columns whose values get the name of the pack as a prefix if there are several packs."""
CORPUS = pa.field("corpus", pa.dictionary(pa.int32(), pa.string()), nullable=False)


def pack_of(name: str) -> tuple[str, str]:
    """Splits the name of a clip, speaker or shard into its pack ("" for a single pack) and its own name."""
    pack, slash, own = name.partition("/")
    return (pack, own) if slash else ("", name)


@dataclass(frozen=True)
class Pack:
    """One pack: its catalogue, its shards, and which of its splits are used for what."""

    name: str
    samples: Path
    store: ShardStore
    clips: Path | None = None
    crops: Path | None = None
    further: Mapping[str, Path] = field(default_factory=dict)
    """Name → path of tables that need not exist (`schema.FURTHER_TABLES`)."""
    weight: float = 0.0
    """0: none was given."""
    splits: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """train, valid, test, unlabelled → the splits of this pack; others mean the split of that name."""

    def splits_for(self, split: str) -> tuple[str, ...]:
        return self.splits.get(split, (split,))

    def uses_of(self, own_split: str) -> tuple[str, ...]:
        """Returns the splits that a split of this pack is used for; the inverse of `splits_for`."""
        uses = tuple(split for split, own in self.splits.items() if own_split in own)
        return uses if uses or own_split in self.splits else (own_split,)


class Packs:
    """One or several packs as one data set.

    `where` is a DuckDB condition on the clips of train (`train.where`); `fold` selects a part of them.
    """

    def __init__(self, packs: Sequence[Pack], where: str = "", fold: Fold | None = None) -> None:
        self.packs, self.where, self.fold = tuple(packs), where, fold
        names = [pack.name for pack in self.packs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"train.data has two packs of the name {twice[0]}; give each pack another name")
        self.is_blend = len(self.packs) > 1
        self.store: ShardStore = BlendedStores(self.packs) if self.is_blend else self.packs[0].store
        self._kept_rows: dict[tuple[str, str], pa.BooleanArray] = {}

    @classmethod
    def single(cls, samples: Path, store: ShardStore) -> "Packs":
        """Returns one pack with its own split names."""
        return cls([Pack("", samples, store)])

    @classmethod
    def of(cls, data: Sequence[DataPack], default: Pack, machine: MachineParams, where: str = "") -> "Packs":
        """Returns the packs of `train.data`; `default`, the pack of `paths`, if it is empty."""
        packs = [
            Pack(
                entry.name,
                Path(entry.samples),
                open_store(entry.shards, machine, f"shards of pack {entry.name} in train.data"),
                Path(entry.clips) if entry.clips else None,
                Path(entry.crops) if entry.crops else None,
                {name: Path(path) for name in schema.FURTHER_TABLES if (path := getattr(entry, name))},
                entry.weight,
                {
                    TRAIN_SPLIT: entry.train,
                    VALID_SPLIT: entry.valid,
                    TEST_SPLIT: entry.test,
                    UNLABELLED_SPLIT: entry.unlabelled,
                },
            )
            for entry in data
        ]
        return cls(packs or [default], where)

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each pack that has training clips; empty if none has a weight.

        Raises ConfigError if only some of them have a weight.
        """
        weights = {pack.name: pack.weight for pack in self.packs if pack.splits_for(TRAIN_SPLIT)}
        without = [name for name, weight in weights.items() if not weight]
        if without and len(without) < len(weights):
            raise ConfigError(
                f"train.data: pack {without[0]} has no weight, but others have; give every pack a weight, or none "
                "(then loader.temperature decides)"
            )
        return {} if without else weights

    @property
    def splits(self) -> set[str]:
        """The splits that have samples."""
        found = set()
        for pack in self.packs:
            own = splits_of(pack.samples)
            found |= own - {name for names in pack.splits.values() for name in names}
            found |= {split for split, names in pack.splits.items() if own & set(names)}
        return found

    def read(self, split: str, columns: Sequence[str] = schema.SAMPLES.names) -> pa.Table:
        """Returns the rows of a split of all packs, in the order of the packs; raises ConfigError if there are none."""
        fields = [schema.SAMPLES.field(name) for name in columns] + ([CORPUS] if self.is_blend else [])
        pieces = list(self.pieces(split, columns))
        return pa.Table.from_batches(pieces, pa.schema(fields, schema.SAMPLES.metadata))

    def read_training(self, columns: Sequence[str], params: LoaderParams) -> pa.Table:
        """Returns the clips that training visits: `read` of train, with `loader.unlabelled_share` also of unlabelled.

        Then the table has the column `is_labelled`. The labels of unlabelled clips are hidden: never learn them.
        Raises ConfigError if there is no clip of one of the two.
        """
        labelled = self.read(TRAIN_SPLIT, columns)
        if not params.unlabelled_share:
            return labelled
        if UNLABELLED_SPLIT not in self.splits:
            raise ConfigError(
                f"loader.unlabelled_share is {params.unlabelled_share:g}, but no clip is packed in split "
                f"{UNLABELLED_SPLIT}; set the share to 0, or set corpus.unlabelled to keep and pack again"
            )
        unlabelled = self.read(UNLABELLED_SPLIT, columns)
        is_labelled_N = pa.chunked_array(
            [pa.repeat(value, len(table)) for value, table in ((True, labelled), (False, unlabelled))]
        )
        return pa.concat_tables([labelled, unlabelled]).append_column(IS_LABELLED, is_labelled_N)

    def read_plan_columns(self, split: str) -> pa.Table:
        """Returns `PLAN_COLUMNS` of `read`, the same rows, with dictionary-encoded shards: a sixth of the memory.

        Sufficient for epoch plans of millions of clips (`python -m benchmarks.plan`). Training reads
        `STREAM_COLUMNS`, because it also needs labels and offsets.
        """
        fields = [schema.SAMPLES.field(name) for name in PLAN_COLUMNS] + ([CORPUS] if self.is_blend else [])
        shard = PLAN_COLUMNS.index("shard")
        fields[shard] = fields[shard].with_type(pa.dictionary(pa.int32(), pa.string()))
        columns: list[list[pa.Array]] = [[] for _ in fields]
        for piece in self.pieces(split, PLAN_COLUMNS):
            for number, column in enumerate(piece.columns):
                columns[number].append(column.dictionary_encode() if number == shard else column)
        chunked = [
            pa.chunked_array(column, field.type) for column, field in zip(columns, fields, strict=True)
        ]
        return pa.table(chunked, pa.schema(fields)).unify_dictionaries()

    def pieces(self, split: str, columns: Sequence[str] = HASHED_COLUMNS) -> Iterator[pa.RecordBatch]:
        """Yields the rows of `read`, some ten thousand at a time."""
        num_rows = 0
        for number, pack in enumerate(self.packs):
            for piece in self._pieces_of(pack, split, columns):
                num_rows += piece.num_rows
                if "split" in piece.schema.names:
                    piece = _used_as(piece, split)
                yield self._named(piece, number) if self.is_blend else piece
        if not num_rows:
            raise ConfigError(
                f"none of the packs {', '.join(pack.name for pack in self.packs)} has a split '{split}'"
            )

    def name_of(self, pack: Pack, clip_id: str) -> str:
        """Returns the name of a clip of `pack` in the rows of `read`."""
        return f"{pack.name}/{clip_id}" if self.is_blend else clip_id

    def plan_identity(self, params: LoaderParams, batch_size: int, world_size: int = 1) -> PlanIdentity:
        """Returns everything that the epoch plans of the training split depend on."""
        return plan_identity(self.training_hash, params, batch_size, world_size, self.blend_of(params))

    def blend_of(self, params: LoaderParams) -> dict[str, Any] | None:
        """Returns `blend`, with the hash of the unlabelled clips if training visits them."""
        if not params.unlabelled_share:
            return self.blend
        return (self.blend or {}) | {"unlabelled": samples_hash(self.pieces(UNLABELLED_SPLIT))}

    @cached_property
    def training_hash(self) -> str:
        """Hash of the training clips; of several packs, of the hashes in `blend`."""
        return fingerprint(self.blend) if self.is_blend else samples_hash(self.pieces(TRAIN_SPLIT))

    @cached_property
    def blend(self) -> dict[str, Any] | None:
        """What decides the plan in addition to one pack's rows: packs, weights and condition; None if nothing does."""
        if not self.is_blend:
            return {"where": self.where} if self.where else None
        packs = {
            pack.name: {
                "samples": samples_hash(self._pieces_of(pack, TRAIN_SPLIT, HASHED_COLUMNS)),
                "weight": self.weights.get(pack.name, 0.0),
            }
            for pack in self.packs
            if pack.splits_for(TRAIN_SPLIT)
        }
        return {"packs": packs} | ({"where": self.where} if self.where else {})

    @property
    def left_out(self) -> Mapping[str, tuple[int, int]]:
        """Pack → labelled clips of train that `where` leaves out, and all of them. Empty without a condition.

        Empty for a fold too, of which other clips are left out as well.
        """
        if not self.where or self.fold:
            return {}
        kept = {
            pack.name: self._kept(pack, TRAIN_SPLIT) for pack in self.packs if pack.splits_for(TRAIN_SPLIT)
        }
        return {name: (kept_N.false_count, len(kept_N)) for name, kept_N in kept.items()}

    def _pieces_of(self, pack: Pack, split: str, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        splits = pack.splits_for(split)
        # a pack need not have valid and test, but a split that train.data names must exist
        is_default = self.is_blend and split != TRAIN_SPLIT and splits == (split,)
        if not splits or (is_default and split not in splits_of(pack.samples)):
            return
        is_chosen = (self.where and split in (TRAIN_SPLIT, UNLABELLED_SPLIT)) or (
            self.fold and split == TRAIN_SPLIT
        )
        if not is_chosen:
            yield from _rows_of(pack, splits, columns)
            return
        kept_N, start = self._kept(pack, split), 0
        for piece in _rows_of(pack, splits, columns):
            kept = piece.filter(kept_N.slice(start, piece.num_rows))
            start += piece.num_rows
            if kept.num_rows:
                yield kept

    def _kept(self, pack: Pack, split: str) -> pa.BooleanArray:
        """Returns whether training uses each clip of train or unlabelled of `pack`, in the order of its rows.

        Both obey `where`; `fold` chooses clips of train only.

        Raises ConfigError if they keep none.
        """
        if (pack.name, split) not in self._kept_rows:
            pieces = [piece["clip_id"] for piece in _rows_of(pack, pack.splits_for(split), ["clip_id"])]
            clip_ids = pa.chunked_array(pieces)
            kept_N = pa.repeat(pa.scalar(True), len(clip_ids))
            if self.where:
                from shards.clip_condition import clips_where  # imports duckdb

                with _named_errors(pack):
                    chosen = clips_where(self.where, pack.samples, pack.clips, pack.crops, pack.further)
                # one call: each call makes a hash table of all chosen clips
                kept_N = pc.is_in(clip_ids, chosen).combine_chunks()
            if self.fold and split == TRAIN_SPLIT:
                in_fold_N = self.fold.keeps(clip_ids.to_pylist(), pack.name or str(pack.samples))
                kept_N = pc.and_(kept_N, in_fold_N)
            if not kept_N.true_count:
                raise ConfigError(
                    f"train.where leaves no clip of {pack.name or pack.samples}, split {split}: {self.where}; change "
                    "the condition, or remove the pack from train.data"
                )
            self._kept_rows[pack.name, split] = kept_N
        return self._kept_rows[pack.name, split]

    def _named(self, piece: pa.RecordBatch, number: int) -> pa.RecordBatch:
        """Adds the pack's name to names, and as column `corpus`, whose dictionary has the names of all packs."""
        name, columns = self.packs[number].name, dict(zip(piece.schema.names, piece.columns, strict=True))
        for column in NAMES & columns.keys():
            columns[column] = pc.binary_join_element_wise(name, columns[column], "/")
        fields = [schema.SAMPLES.field(column) for column in columns] + [CORPUS]
        codes = pa.array([number], pa.int32()).take(pa.nulls(piece.num_rows, pa.int32()).fill_null(0))
        corpus = pa.DictionaryArray.from_arrays(codes, [pack.name for pack in self.packs])
        return pa.RecordBatch.from_arrays([*columns.values(), corpus], schema=pa.schema(fields))


def _used_as(piece: pa.RecordBatch, split: str) -> pa.RecordBatch:
    """Returns the rows with the split that they are used for: a pack may call it by another name."""
    place = piece.schema.get_field_index("split")
    splits = pa.repeat(pa.scalar(split, piece.schema.field(place).type), piece.num_rows)
    return piece.set_column(place, piece.schema.field(place), splits)


def _rows_of(pack: Pack, splits: Sequence[str], columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    with _named_errors(pack):
        for split in splits:
            yield from sample_pieces(pack.samples, split, columns)


@contextmanager
def _named_errors(pack: Pack) -> Iterator[None]:
    """Names the pack in an error about its tables."""
    try:
        yield
    except (ConfigError, TableError) as error:
        if not pack.name:
            raise
        raise type(error)(f"train.data, pack {pack.name}: {error}") from error


class BlendedStores(ShardStore):
    """The shards of several packs, named `<pack>/<shard>`."""

    def __init__(self, packs: Sequence[Pack]) -> None:
        self._stores = {pack.name: pack.store for pack in packs}
        self.is_remote = any(store.is_remote for store in self._stores.values())

    def _of(self, name: str) -> tuple[ShardStore, str]:
        pack, _, shard = name.partition("/")
        if pack not in self._stores:
            raise ShardError(f"'{name}' is not a shard of the packs {', '.join(self._stores)}")
        return self._stores[pack], shard

    def place(self, name: str) -> str:
        store, shard = self._of(name)
        return store.place(shard)

    def names(self) -> list[str]:
        return sorted(f"{pack}/{name}" for pack, store in self._stores.items() for name in store.names())

    def local(self, name: str) -> Path:
        store, shard = self._of(name)
        try:
            return store.local(shard)
        except ShardError as error:
            raise ShardError(f"train.data, pack {pack_of(name)[0]}: {error}") from error

    def renew(self, name: str) -> bool:
        store, shard = self._of(name)
        return store.renew(shard)

    def expect(self, names: Sequence[str]) -> None:
        for pack, store in self._stores.items():
            if own := [name.partition("/")[2] for name in names if name.startswith(f"{pack}/")]:
                store.expect(own)
