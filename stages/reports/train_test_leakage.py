"""Who and what of a split was trained on too: a score on them flatters, or says nothing."""

import logging
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from shards import schema
from shards.enums import TRAIN_SPLIT
from shards.files import read_table

_log = logging.getLogger(__name__)

NAMES_SHOWN = 5


@dataclass(frozen=True, slots=True)
class SeenInTraining:
    """Speakers of a split, by name, and clips of it, by id, that were packed for training too.

    `speakers` is None where the split or the training clips name nobody. A clip is seen where a training clip has
    the same pictures, whatever its id; of the training split itself none are told.
    """

    split: str
    num_clips: int
    speakers: tuple[str, ...] | None
    clips: tuple[str, ...]

    @property
    def num_speakers(self) -> int | None:
        return None if self.speakers is None else len(self.speakers)

    def of_clips(self) -> str | None:
        if not self.clips:
            return None
        return (
            f"Learnt by heart: {len(self.clips)} of the {self.num_clips} clips of split {self.split} were "
            f"trained on too, the same pictures ({_some(self.clips)}). Their CER says nothing of other videos."
        )

    def warnings(self) -> list[str]:
        """For the head of a report."""
        told = [of_clips] if (of_clips := self.of_clips()) else []
        if self.speakers is None:
            told.append(
                f"No speakers are named: whether split {self.split} and the training clips share people cannot be "
                "told. The CER on people the model has never seen may be higher."
            )
        elif self.speakers:
            told.append(
                f"Seen in training too: {len(self.speakers)} of the speakers of split {self.split} "
                f"({_some(self.speakers)}). The CER on people the model has never seen will be higher."
            )
        return told


def seen_in_training(samples_path: Path, split: str) -> SeenInTraining:
    """What of `split` stands in the training split of samples.parquet too; logs a warning where clips do.

    Raises TableError where the table is missing or damaged.
    """
    table = read_table(samples_path, schema.SAMPLES, "pipeline pack")
    ours, learnt = (table.filter(pc.equal(table["split"], name)) for name in (split, TRAIN_SPLIT))
    speakers, known = (set(one["speaker"].drop_null().to_pylist()) for one in (ours, learnt))
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
    if told := seen.of_clips():
        _log.warning(told)
    return seen


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", …" if len(names) > NAMES_SHOWN else "")
