"""`pipeline adapt`: finds the clips of one person in tables, videos or packs, and writes the adapter for them."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc
import torch
import typer

from model.adapters import Changes, save_adapter
from model.checkpoints import load_checkpoint, reported_as_modified
from model.decoding.reader import LipReader
from model.decoding.scoring import refuse_other_pack
from model.device import choose_device
from model.losses import is_spellable
from model.settings import TrainParams
from model.text import normalise
from model.training.adaptation import MAX_CLIPS, MIN_CLIPS, PersonClip, adapt, adapt_statistics
from pipeline.command import check_writable
from pipeline.inference.found_videos import videos_to_read
from pipeline.inference.readers import refuse_other_crops
from pipeline.params import Params
from pipeline.training_job import packs_of
from shards.clip_condition import clips_where
from shards.enums import UNLABELLED_SPLIT
from shards.errors import ClipRejected, ConfigError, MachineError
from shards.files import Progress
from shards.safe_text import one_line
from shards.sample_reader import read_sample
from shards.schema import Status
from stages.clips.cache import ClipCache
from stages.clips.clip_work import Clip, CropWork
from stages.clips.executors import run_clips
from stages.corpora.table import read_transcript_table
from stages.mouths.landmarker import NATIVE_LOG, native_stderr_to
from stages.mouths.long_video import mouth_pieces
from stages.videos.media import Source
from stages.videos.video import read_header

TABLES = (".csv", ".parquet")


@dataclass(frozen=True, slots=True)
class AdaptSummary:
    """What `pipeline adapt` wrote, and what cross-validation within the clips found."""

    adapter: Path
    num_clips: int
    video_s: float
    steps: int | None
    """Optimiser steps; 0: only the statistics were changed; None: the model was left as it is."""
    cer_before: float | None
    """Of the model as it is; None without labels."""
    cer_after: float | None
    """Of clips that the adaptation did not see."""
    num_bytes: int
    seconds: float

    def __str__(self) -> str:
        clips = f"{self.num_clips} clips, {self.video_s:.0f} s of video"
        size = f"{self.num_bytes / 1e6:.2f} MB, made in {self.seconds:.0f} s"
        if self.cer_before is None or self.cer_after is None:
            return f"{clips} without labels: changed the statistics of normalisations only; {size}"
        if self.steps is None:
            return (
                f"{clips}: no adaptation reads clips that it has not seen better than the model does (CER "
                f"{self.cer_before:.1%}), so the model is left as it is: this adapter changes nothing; {size}"
            )
        return (
            f"{clips}: CER {self.cer_before:.1%} before, {self.cer_after:.1%} after, by cross-validation "
            f"({self.steps} steps); {size}"
        )


@dataclass(frozen=True, slots=True)
class PersonSource:
    """Where the clips are: tables and videos, or a split of the packs, with a condition."""

    names: Sequence[str]
    """Tables (.csv, .parquet), and, without labels, videos. Empty: the packs."""
    root: Path | None
    """Folder of the tables' videos; None: that of the table."""
    split: str
    where: str
    is_labelled: bool


def adapt_person(
    checkpoint: Path, out: Path, source: PersonSource, values: Params, seed: int, on_progress: Progress
) -> AdaptSummary:
    """Writes the adapter `out` of a checkpoint. Prints why clips cannot be used.

    Raises ConfigError for too few or too many clips, and what reading checkpoint, tables and packs raises.
    """
    start = time.monotonic()
    if out.resolve() == checkpoint.resolve():
        raise ConfigError(f"--out {out} is the model itself; choose another file")
    check_writable(out.parent)
    reader = LipReader.from_checkpoint(checkpoint, choose_device(values.machine.device))
    found = clips_of_person(reader, checkpoint, source, values)
    least = MIN_CLIPS if source.is_labelled else 1
    if not least <= len(found) <= MAX_CLIPS:
        raise ConfigError(
            f"{len(found)} clips can be used, {least} to {MAX_CLIPS} are needed; "
            + (
                "give more"
                if len(found) < least
                else "choose some with --where, or train with train.init_from"
            )
        )
    steps: int | None = 0
    before = after = None
    weights = reader.network.state_dict()
    if source.is_labelled:
        result = adapt(
            reader,
            found,
            train_params(checkpoint),
            values.decode.for_validation(),
            seed,
            on_progress,
            values.machine.threads,
        )
        changes, steps = result.changes, result.best.steps
        before, after = result.lengths[0].cer, result.best.cer
    else:
        changes = adapt_statistics(reader, found)
    facts = {"checkpoint": checkpoint.name, "num_clips": len(found), "steps": steps}
    num_bytes = save_adapter(
        out,
        weights,
        changes or Changes.none_of(weights, torch.Generator(), rank=0),
        facts | {"cer_before": before, "cer_after": after},
    )
    video_s = sum(len(clip.clip_THW) for clip in found) / reader.fps
    return AdaptSummary(out, len(found), video_s, steps, before, after, num_bytes, time.monotonic() - start)


def train_params(checkpoint: Path) -> TrainParams:
    """Returns how the model was trained."""
    with reported_as_modified(checkpoint):
        return TrainParams.model_validate(load_checkpoint(checkpoint, mapped=True)["train_params"])


def clips_of_person(
    reader: LipReader, checkpoint: Path, source: PersonSource, values: Params
) -> list[PersonClip]:
    """Returns the clips that can be used, in their order; prints the reasons for the others."""
    tables = [Path(name) for name in source.names if name.lower().endswith(TABLES)]
    videos = [name for name in source.names if not name.lower().endswith(TABLES)]
    if videos and source.is_labelled:
        raise ConfigError(
            f"{videos[0]}: a video has no labels; write a table with `pipeline label`, correct its texts and give the "
            "table, or add --unlabelled"
        )
    if source.names:
        refuse_other_crops(reader, values, checkpoint)
        if source.where:
            raise ConfigError("--where chooses clips of packs; remove it, or remove the tables and videos")
        found = [clip for table in tables for clip in _clips_of_table(table, source, reader, values)]
        found += _clips_of_videos(videos, values) if videos else []
    else:
        found = _clips_of_packs(source, reader, values)
    if twice := [name for name, count in Counter(clip.clip_id for clip in found).items() if count > 1]:
        raise ConfigError(f"clip {twice[0]} is given twice; name every clip once")
    return [clip for clip in found if not source.is_labelled or _can_be_learnt(clip, reader)]


def _can_be_learnt(clip: PersonClip, reader: LipReader) -> bool:
    """Returns whether the model can write the label; prints why not."""
    if unknown := reader.vocabulary.characters.unknown_units(clip.label):
        return _skip(clip.clip_id, f"the model cannot write {''.join(dict.fromkeys(unknown))}")
    if not is_spellable(clip.label, len(clip.clip_THW), reader.vocabulary, reader.model.temporal_stride):
        return _skip(clip.clip_id, f"{len(clip.clip_THW)} frames are too few for its label")
    return bool(clip.label) or _skip(clip.clip_id, "it has no text")


def _skip(name: str, why: str) -> bool:
    typer.echo(one_line(f"clip {name} is not used: {why}"), err=True)
    return False


def _clips_of_table(table: Path, source: PersonSource, reader: LipReader, values: Params) -> list[PersonClip]:
    """Crops the clips of a table as `pipeline crop` does, with its cache."""
    root, cache_folder = str(source.root or table.parent), Path(values.machine.cache_dir)
    # without a column split, all clips are of split train
    changes = {"table": str(table.absolute()), "root": root, "valid_fraction": 0.0, "test_fraction": 0.0}
    corpus = values.corpus.model_copy(update=changes)
    clips = [
        Clip(
            *(row.clip_id, root, row.media, None, label, len(label), row.start_s, row.end_s),
            corpus.media_kind,
            corpus.follow_links,
            row.split if source.is_labelled else UNLABELLED_SPLIT,
        )
        for row in read_transcript_table(corpus)
        if row.split == source.split
        for label in [normalise(row.text, reader.text)]
    ]
    work = CropWork(values.crop, cache_folder, values.machine.share)
    done = run_clips(work, clips, values.machine, values.crop.timeout_s, cache_folder / NATIVE_LOG, None)
    found = []
    for clip in clips:
        row, size_px = done[clip.clip_id].crop_row, values.crop.size_px
        if row["status"] != Status.OK:
            _skip(clip.clip_id, f"{row['reason']}: {row['detail']}")
            continue
        clip_THW = ClipCache(cache_folder).read_clip(row["clip_key"], (row["num_frames"], size_px, size_px))
        if clip_THW is None:
            raise MachineError(f"clip {clip.clip_id} is gone from {cache_folder}; run the same command again")
        found.append(PersonClip(clip.clip_id, clip.label, clip_THW))
    return found


def _clips_of_videos(names: Sequence[str], values: Params) -> list[PersonClip]:
    """Crops all parts of videos as `pipeline inference` does."""
    native_stderr_to(Path(values.machine.cache_dir) / NATIVE_LOG)
    found = []
    for path in videos_to_read(names):
        try:
            for piece in mouth_pieces(
                Source(path), read_header(path), values.crop, values.inference, values.corpus.media_kind
            ):
                name = f"{path} from {piece.start_s:.2f} s"
                if piece.mouth is None:
                    _skip(name, str(piece.rejected))
                else:
                    found.append(PersonClip(name, "", piece.mouth.clip_THW))
        except ClipRejected as error:
            _skip(str(path), str(error))
    return found


def _clips_of_packs(source: PersonSource, reader: LipReader, values: Params) -> list[PersonClip]:
    packs = packs_of(values)
    samples = packs.read(source.split)
    if source.where:
        chosen: set[str] = set()
        for pack in packs.packs:
            clips, crops = (path if path and path.exists() else None for path in (pack.clips, pack.crops))
            ids = clips_where(source.where, pack.samples, clips, crops, pack.further, "--where")
            chosen |= {packs.name_of(pack, clip_id) for clip_id in ids.to_pylist()}
        samples = samples.filter(pc.is_in(samples["clip_id"], pc.cast(sorted(chosen), "string")))
    if not samples.num_rows or samples.num_rows > MAX_CLIPS:
        raise ConfigError(
            f"split {source.split} has {samples.num_rows} clips of this person, at most {MAX_CLIPS} are used; choose "
            """them with --split and --where, as --where "speaker = 's26'\""""
        )
    refuse_other_pack(reader, samples, packs.store)
    return [
        PersonClip(row["clip_id"], row["label"], read_sample(packs.store, row)[0])
        for row in samples.to_pylist()
    ]
