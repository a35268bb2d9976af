"""The facts of a pack: its clips by split, its licence and language, its encoding."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

LANGUAGES = {
    "chinese_lips": ("zh", "Mandarin"),
    "grid": ("en", "English, GRID's six-word commands"),
    "cmlr": ("zh", "Mandarin, newsreaders"),
    "cnvsrc": ("zh", "Mandarin"),
    "lrs2": ("en", "English, BBC television"),
    "lrs3": ("en", "English, TED talks"),
}
"""Language code and name of each corpus.kind; a table, a manifest and a Kaldi folder have none."""


@dataclass(frozen=True, slots=True)
class SplitFacts:
    """The facts of one split; `num_speakers` is None where no clip names one."""

    name: str
    num_clips: int
    hours: float
    num_chars: int
    num_speakers: int | None


@dataclass(frozen=True, slots=True)
class PackFacts:
    """The facts in the card of a pack; `language` is empty where unknown."""

    license: str
    language: str
    codec: str
    size_px: int
    fps: float
    splits: tuple[SplitFacts, ...]
    has_sound: bool = False
    """Whether each sample also has log-mel vectors of its sound."""


def facts_of(
    rows: Iterable[Mapping[str, Any]],
    splits: Sequence[str],
    *,
    kind: str,
    license: str,
    codec: str,
    size_px: int,
    fps: float,
    has_sound: bool = False,
) -> PackFacts:
    """Returns the facts of rows of samples.parquet; `kind` is the corpus's, and gives its language."""
    by_split: dict[str, list[Mapping[str, Any]]] = {split: [] for split in splits}
    for row in rows:
        by_split[row["split"]].append(row)
    return PackFacts(
        license.strip(),
        LANGUAGES[kind][0] if kind in LANGUAGES else "",
        codec,
        size_px,
        fps,
        tuple(_split_facts(split, of_split, fps) for split, of_split in by_split.items()),
        has_sound,
    )


def _split_facts(split: str, rows: Sequence[Mapping[str, Any]], fps: float) -> SplitFacts:
    speakers = {row["speaker"] for row in rows} - {None}
    hours = round(sum(row["num_frames"] for row in rows) / fps / 3600, 4)
    return SplitFacts(split, len(rows), hours, sum(row["num_chars"] for row in rows), len(speakers) or None)
