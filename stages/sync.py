"""`pipeline sync`: measures the offset between sound and picture of packed clips, by a model that learnt from sound."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from model.decoding.sound_offset import SoundReferee
from model.device import choose_device
from shards.errors import ConfigError
from shards.files import Progress, table_from_rows, write_table
from shards.packs import Pack, Packs
from shards.samples import read_samples, splits_of
from shards.schema import SOUND
from shards.settings import LoaderParams, MachineParams

BATCH = 32
OUT_OF_STEP_FRAMES = 2
"""A larger offset is out of step: the measurement is within one frame (docs/benchmarks.md)."""


@dataclass(frozen=True)
class SyncSummary:
    num_clips: int
    num_silent: int
    num_out_of_step: int
    """Clips whose sound is off by more than OUT_OF_STEP_FRAMES."""
    median_agreement: float | None
    """Nats by frame; None if no clip has sound."""
    worst: Sequence[Mapping[str, Any]]
    """The first rows of the table."""


def sync(
    packs: Packs,
    checkpoint: Path,
    *,
    loader: LoaderParams,
    machine: MachineParams,
    num_shown: int = 0,
    on_progress: Progress | None = None,
) -> SyncSummary:
    """Writes the table `sound` of each pack, worst clips first, over the clips of all splits.

    Raises CheckpointError if the model was trained without sound, ConfigError if a pack has no sound or names no
    table for it, and the errors of reading shards.
    """
    samples = {pack.name: _samples_of(pack) for pack in packs.packs}
    referee = SoundReferee.from_checkpoint(checkpoint, choose_device(machine.device))
    num_clips, num_done = sum(map(len, samples.values())), 0
    rows: list[dict[str, Any]] = []
    for pack in packs.packs:

        def show(done: int, _: int, before: int = num_done) -> None:
            if on_progress:
                on_progress(before + done, num_clips)

        table = samples[pack.name]
        found = referee.offsets(
            table, pack.store, batch_size=BATCH, loader=loader, machine=machine, on_progress=show
        )
        own = [
            {
                "clip_id": clip_id,
                "has_audio": offset.offset_frames is not None,
                "offset_frames": offset.offset_frames,
                "offset_s": None
                if offset.offset_frames is None
                else offset.offset_frames / referee.reader.fps,
                "agreement": offset.agreement,
            }
            for clip_id, offset in zip(table["clip_id"].to_pylist(), found, strict=True)
        ]
        own.sort(key=_worst_first)
        write_table(pack.further["sound"], table_from_rows(own, SOUND), SOUND)
        rows += [row | {"clip_id": packs.name_of(pack, row["clip_id"])} for row in own]
        num_done += len(table)
    rows.sort(key=_worst_first)
    heard = sorted(row["agreement"] for row in rows if row["has_audio"])
    return SyncSummary(
        len(rows),
        len(rows) - len(heard),
        sum(abs(row["offset_frames"] or 0) > OUT_OF_STEP_FRAMES for row in rows),
        heard[len(heard) // 2] if heard else None,
        rows[:num_shown],
    )


def _worst_first(row: Mapping[str, Any]) -> tuple[bool, int, float, str]:
    """Orders by offset, then by agreement; silent clips are the last."""
    return not row["has_audio"], -abs(row["offset_frames"] or 0), row["agreement"] or 0.0, row["clip_id"]


def _samples_of(pack: Pack) -> pa.Table:
    """Returns the rows of all splits of a pack."""
    name = pack.name or str(pack.samples)
    if "sound" not in pack.further:
        raise ConfigError(
            f"train.data, pack {name}: names no table for the sound; add `sound: {pack.samples.parent}/sound.parquet`"
        )
    table = pa.concat_tables(read_samples(pack.samples, split) for split in sorted(splits_of(pack.samples)))
    if table["audio_sha256"].null_count == len(table):
        raise ConfigError(f"no clip of {name} has sound; set pack.audio to true and run `pipeline pack`")
    return table
