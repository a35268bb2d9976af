"""The bad samples that training left out: counted, told, and never more than `loader.max_bad_fraction` of an epoch."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from model.runs import logger
from shards.errors import TrainingError
from shards.files import atomic_file, write_bytes
from shards.stream import BadSample


class Quarantine:
    """`quarantine.jsonl` of a run: one line a bad sample, with the epoch and batch that lack it."""

    def __init__(self, file: Path, max_fraction: float) -> None:
        self.file, self.max_fraction = file, max_fraction

    def go_on_from(self, epoch: int, batches_done: int) -> None:
        """Forgets the samples of batches from this position on: they are read again."""
        if not self.file.exists():
            return
        kept = []
        for line in self.file.read_bytes().splitlines(keepends=True):
            try:
                entry = json.loads(line)
            except ValueError:
                break  # a kill tore the last line, of a batch that is read again
            if (entry["epoch"], entry["batch"]) < (epoch, batches_done):
                kept.append(line)
        if kept:
            write_bytes(self.file, b"".join(kept))
        else:
            self.file.unlink()

    def add(self, epoch: int, batch: int, bad: Sequence[BadSample]) -> None:
        if not bad:
            return
        lines = [
            json.dumps({"epoch": epoch, "batch": batch, **asdict(sample)}, ensure_ascii=False)
            for sample in bad
        ]
        with self.file.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")

    def refuse_too_many(self, num_bad: int, num_clips: int, epoch: int) -> None:
        """TrainingError where more than the allowed share of an epoch's clips is bad."""
        if num_bad > self.max_fraction * num_clips:
            raise TrainingError(
                f"{num_bad} of the {num_clips} clips of epoch {epoch} are bad, more than loader.max_bad_fraction "
                f"{self.max_fraction:g} allows; {self.file} names them, `pipeline verify` looks at all shards, and "
                "the same command goes on where a higher fraction or mended shards let it"
            )

    def tell(self, num_bad: int, num_clips: int, epoch: int) -> None:
        """One line of the log for an epoch that lacks clips."""
        if num_bad:
            logger.warning(
                "Epoch %d: %d of %d clips (%.2f %%) were bad and left out; %s names them",
                epoch,
                num_bad,
                num_clips,
                100 * num_bad / num_clips,
                self.file,
            )

    def publish(self, logs_folder: Path) -> None:
        """Copies the file beside the published log; removes what another run left there."""
        published = logs_folder / self.file.name
        if not self.file.exists():
            published.unlink(missing_ok=True)
            return
        with self.file.open("rb") as file, atomic_file(published) as target:
            shutil.copyfileobj(file, target)
