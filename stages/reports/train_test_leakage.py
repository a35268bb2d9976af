"""Finds speakers and clips of a split that are in the training split too, which makes a score too good."""

import logging
from dataclasses import dataclass

import pyarrow.compute as pc

from shards.enums import TRAIN_SPLIT
from shards.packs import Packs
from shards.settings import LoaderParams

_log = logging.getLogger(__name__)

NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class SeenInTraining:
    """Names of speakers and ids of clips of a split that are in the training split too.

    `speakers` is None if the split or the training clips name no speaker. `clips` are those whose pictures equal those
    of a training clip, whatever its id; empty for the training split itself.
    """

    split: str
    num_clips: int
    speakers: tuple[str, ...] | None
    clips: tuple[str, ...]

    @property
    def num_speakers(self) -> int | None:
        return None if self.speakers is None else len(self.speakers)

    def clip_warning(self) -> str | None:
        if not self.clips:
            return None
        return (
            f"Clips in training: {len(self.clips)} of the {self.num_clips} clips of split {self.split} have the "
            f"same pictures as training clips ({_some(self.clips)}). Their CER says nothing about other videos."
        )

    def warnings(self) -> list[str]:
        """Returns the warnings for the top of a report."""
        warnings = [warning] if (warning := self.clip_warning()) else []
        if self.speakers is None:
            warnings.append(
                f"No speakers are named: the training clips may show people of split {self.split}. "
                "The CER on people the model has never seen may be higher."
            )
        elif self.speakers:
            warnings.append(
                f"Speakers in training: {len(self.speakers)} of the speakers of split {self.split} "
                f"({_some(self.speakers)}) are in the training clips too. The CER on people "
                "the model has never seen will be higher."
            )
        return warnings


def seen_in_training(packs: Packs, split: str, loader: LoaderParams) -> SeenInTraining:
    """Finds speakers and clips of `split` in the clips to train on, also in unlabelled ones; logs a warning for clips.

    Clips are compared over all packs, speakers within each pack. Raises ConfigError if there is no such split,
    TableError if a table is missing or damaged.
    """
    columns = ("clip_id", "speaker", "sha256")
    ours = packs.read(split, columns)
    learnt = ours.slice(0, 0)
    if TRAIN_SPLIT in packs.splits:
        learnt = packs.read_training(columns, loader)
    speakers, known = (set(rows["speaker"].drop_null().to_pylist()) for rows in (ours, learnt))
    clips: list[str] = []
    if split != TRAIN_SPLIT:
        clips = ours.filter(pc.is_in(ours["sha256"], learnt["sha256"].combine_chunks()))[
            "clip_id"
        ].to_pylist()
    seen = SeenInTraining(
        split=split,
        num_clips=ours.num_rows,
        speakers=tuple(sorted(speakers & known)) if speakers and known else None,
        clips=tuple(sorted(clips)),
    )
    if warning := seen.clip_warning():
        _log.warning(warning)
    return seen


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
