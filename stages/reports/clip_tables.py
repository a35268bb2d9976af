"""Reads facts and counts of clips from the tables of the packs, for a report."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.text import describe_stored_normaliser
from shards import schema
from shards.files import read_table
from shards.packs import Pack, Packs, pack_of
from stages.reports.figures import ClipFacts
from stages.statistics.quality import QUALITIES


@dataclass(frozen=True, slots=True)
class ClipTables:
    """Facts of clips, and numbers of clips by split. Both lack the packs whose tables train.data does not name."""

    facts: Mapping[str, ClipFacts]
    """By clip_id; of the reported clips."""
    rejections: Mapping[str, Mapping[str, int]]
    """Rejected clips by split and reason."""
    clip_totals: Mapping[str, int]
    """Usable clips by split."""
    rejected_by_corpus: Mapping[str, int | None]
    """Rejected clips of the reported split by pack; None: its tables are not named, or lack the clips."""

    @property
    def corpora(self) -> Mapping[str, int | None]:
        """`rejected_by_corpus` if there are several packs, else empty."""
        return self.rejected_by_corpus if len(self.rejected_by_corpus) > 1 else {}

    def warnings(self) -> list[str]:
        """Returns the warnings for the top of a report."""
        unknown = [name for name, rejected in self.rejected_by_corpus.items() if rejected is None]
        if not unknown:
            return []
        return [
            f"Rejected clips of {', '.join(unknown)} are not known, and gender, age and quality of the clips are not "
            "known either: train.data does not name clips and crops of these packs, or these tables have other clips."
        ]


def read_clip_tables(packs: Packs, split: str, clip_ids: Collection[str]) -> ClipTables:
    """Returns facts of these clips of `split`, and counts; raises TableError if a named table is missing."""
    facts: dict[str, ClipFacts] = {}
    rejections: dict[str, Counter[str]] = defaultdict(Counter)
    totals: Counter[str] = Counter()
    rejected_by_corpus: dict[str, int | None] = {}
    for pack in packs.packs:
        if pack.clips is None or pack.crops is None:
            rejected_by_corpus[pack.name] = None
            continue
        clips, crops = _tables(pack.clips, pack.crops)
        if packs.is_blend and not _lists(packs, pack, split, clips, clip_ids):
            rejected_by_corpus[pack.name] = None
            continue
        own_ids = {clip_id for clip_id in _splits(clips) if packs.name_of(pack, clip_id) in clip_ids}
        of_pack = clip_facts(clips, crops, own_ids)
        facts |= {packs.name_of(pack, clip_id): found for clip_id, found in of_pack.items()}
        rejected = _rejections(clips, crops)
        for own, num_usable in _usable_clips(clips, crops).items():
            totals.update(dict.fromkeys(pack.uses_of(own), num_usable))
        for own, reasons in rejected.items():
            for use in pack.uses_of(own):
                rejections[use].update(reasons)
        rejected_by_corpus[pack.name] = _num_rejected(pack, split, rejected)
    return ClipTables(facts, rejections, totals, rejected_by_corpus)


def rejected_clips(packs: Packs, split: str, clip_ids: Collection[str]) -> dict[str, int | None]:
    """Counts the clips of the split that crop rejected, by pack; None if a table is missing or lacks `clip_ids`."""
    found: dict[str, int | None] = {}
    for pack in packs.packs:
        found[pack.name] = None
        if pack.clips is None or pack.crops is None or not (pack.clips.exists() and pack.crops.exists()):
            continue
        clips, crops = _tables(pack.clips, pack.crops)
        if _lists(packs, pack, split, clips, clip_ids):
            found[pack.name] = _num_rejected(pack, split, _rejections(clips, crops))
    return found


def _lists(packs: Packs, pack: Pack, split: str, clips: pa.Table, clip_ids: Collection[str]) -> bool:
    """Returns whether clips.parquet has the clips of this pack, in splits that are used as `split`."""
    listed = {packs.name_of(pack, own): own_split for own, own_split in _splits(clips).items()}
    of_pack = [name for name in clip_ids if not packs.is_blend or pack_of(name)[0] == pack.name]
    return all(name in listed and split in pack.uses_of(listed[name]) for name in of_pack)


def normaliser_of(packs: Packs) -> str | None:
    """Describes the normaliser of the labels in a line, of each pack if they differ; None if no pack names it."""
    found = {
        pack.name: describe_stored_normaliser(pq.read_schema(pack.samples).metadata, pack.samples)
        for pack in packs.packs
    }
    first, *others = dict.fromkeys(found.values())
    return "; ".join(f"{name}: {one or 'not known'}" for name, one in found.items()) if others else first


def _tables(clips: Path, crops: Path) -> tuple[pa.Table, pa.Table]:
    return (
        read_table(clips, schema.CLIPS, "pipeline ingest"),
        read_table(crops, schema.CROPS, "pipeline crop"),
    )


def _splits(clips: pa.Table) -> dict[str, str]:
    return dict(zip(clips["clip_id"].to_pylist(), clips["split"].to_pylist(), strict=True))


def clip_facts(clips: pa.Table, crops: pa.Table, clip_ids: Collection[str]) -> dict[str, ClipFacts]:
    """Returns the facts of these clips of a pack, by its own clip_id."""
    rows = {row["clip_id"]: row for row in crops.to_pylist() if row["clip_id"] in clip_ids}
    facts = {}
    for clip in clips.select(["clip_id", "gender", "age"]).to_pylist():
        if (crop := rows.get(clip["clip_id"])) is not None:
            facts[clip["clip_id"]] = ClipFacts(clip["gender"], clip["age"], _qualities(crop))
    return facts


def _qualities(crop: Mapping[str, Any]) -> dict[str, float]:
    values = dict(crop)
    if crop["landmarked_frames"] is not None and crop["source_frames"]:
        values["landmarked_share"] = crop["landmarked_frames"] / crop["source_frames"]
    return {
        quality.name: values[quality.name] for quality in QUALITIES if values.get(quality.name) is not None
    }


def _num_rejected(pack: Pack, split: str, rejected: Mapping[str, Counter[str]]) -> int:
    return sum(reasons.total() for own, reasons in rejected.items() if split in pack.uses_of(own))


def _rejections(clips: pa.Table, crops: pa.Table) -> Mapping[str, Counter[str]]:
    """Counts rejected clips by the pack's own split and reason."""
    splits = _splits(clips)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for clip_id, reason in zip(crops["clip_id"].to_pylist(), crops["reason"].to_pylist(), strict=True):
        # crops.parquet may contain other clips than clips.parquet until crop runs again
        if reason is not None and clip_id in splits:
            counts[splits[clip_id]][reason] += 1
    return counts


def _usable_clips(clips: pa.Table, crops: pa.Table) -> Counter[str]:
    usable = set(crops.filter(pc.equal(crops["status"], schema.Status.OK.value))["clip_id"].to_pylist())
    return Counter(split for clip_id, split in _splits(clips).items() if clip_id in usable)
