"""The bad samples that training left out: counted, told, and never more than `loader.max_bad_fraction` of an epoch."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from model.runs import logger
from model.training.ranks import SINGLE_PROCESS, Ranks
from shards.errors import TrainingError
from shards.files import atomic_file, write_bytes
from shards.stream import BadSample


class Quarantine:
    """`quarantine.jsonl` of a run: one line a bad sample, with the epoch and batch that lack it.

    The first rank writes it.
    """

    def __init__(self, file: Path, max_fraction: float, ranks: Ranks = SINGLE_PROCESS) -> None:
        self.file, self.max_fraction, self.ranks = file, max_fraction, ranks

    def copy_from(self, checkpoint: Path) -> None:
        """Takes the file of the run that is gone on with from `checkpoint`, in place of what stood here."""
        theirs = checkpoint.parent / self.file.name
        if theirs.resolve() == self.file.resolve():
            return
        if theirs.exists():
            write_bytes(self.file, theirs.read_bytes())
        else:
            self.file.unlink(missing_ok=True)

    def rewind_to(self, epoch: int, batches_done: int) -> None:
        """Forgets the samples of batches from this position on: they are read again."""
        if not self.file.exists():
            return
        kept = [
            line for line, entry in self._lines() if (entry["epoch"], entry["batch"]) < (epoch, batches_done)
        ]
        if kept:
            write_bytes(self.file, b"".join(kept))
        else:
            self.file.unlink()

    def add(self, epoch: int, first_batch: int, bad: Sequence[Sequence[BadSample]]) -> int:
        """Sets aside the bad samples of each batch from `first_batch` on; how many these are over all ranks.

        The file names those of all ranks.
        """
        lines = self.ranks.lines(
            [
                json.dumps({"epoch": epoch, "batch": batch, **asdict(sample)}, ensure_ascii=False)
                for batch, samples in enumerate(bad, first_batch)
                for sample in samples
            ]
        )
        if lines and self.ranks.is_first:
            # a path in a reason that is no UTF-8 has lone surrogates: escaped, as JSON escapes them
            with self.file.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write("".join(f"{line}\n" for line in lines))
        return len(lines)

    def refuse_too_many(self, num_bad: int, num_clips: int, epoch: int) -> None:
        """TrainingError where more than the allowed share of an epoch's clips is bad.

        To be asked when more have come, so that a run goes on over mended shards whatever it left out before.
        """
        if num_bad > self.max_fraction * num_clips:
            raise TrainingError(
                f"{num_bad} of the {num_clips} clips of epoch {epoch} are bad, more than loader.max_bad_fraction "
                f"{self.max_fraction:g} allows; {self._names(num_bad, epoch)}, `pipeline verify` looks at all shards. "
                "Mend them or raise the fraction, and the same command goes on; what the run has left out "
                "until then stays left out"
            )

    def log_epoch(self, num_bad: int, num_clips: int, epoch: int) -> None:
        """One line of the log for an epoch that lacks clips."""
        if num_bad:
            logger.warning(
                "Epoch %d: %d of %d clips (%.2f %%) were bad and left out; %s",
                epoch,
                num_bad,
                num_clips,
                100 * num_bad / num_clips,
                self._names(num_bad, epoch),
            )

    def log_damaged_share(self, num_bad: int, num_epochs: int) -> None:
        """One line for a finished run that lacks clips: mended shards alone do not make it train again."""
        if num_bad:
            logger.warning(
                "this run has left out clips as bad %d times in its %d epochs; %s. It stays without them; once "
                "the shards are mended, remove %s and train again",
                num_bad,
                num_epochs,
                self._names(num_bad),
                self.file.parent,
            )

    def publish(self, logs_folder: Path) -> None:
        """Copies the file beside the published log; removes what another run left there."""
        published = logs_folder / self.file.name
        if not self.file.exists():
            published.unlink(missing_ok=True)
            return
        with self.file.open("rb") as file, atomic_file(published) as target:
            shutil.copyfileobj(file, target)

    def _names(self, num_bad: int, epoch: int | None = None) -> str:
        """Whether the file names all of `num_bad` (of one epoch): a checkpoint may have come without it."""
        lines = self._lines() if self.file.exists() else []
        num_named = sum(epoch in (None, entry["epoch"]) for _, entry in lines)
        if num_named >= num_bad:
            return f"{self.file} names them"
        return (
            f"{self.file} names {num_named} of them, the others were left out before --resume, by another run"
        )

    def _lines(self) -> list[tuple[bytes, dict[str, Any]]]:
        """The file's lines, each with what it says; without what a kill tore, of a batch that is read again."""
        found = []
        for line in self.file.read_bytes().splitlines(keepends=True):
            try:
                found.append((line, json.loads(line)))
            except ValueError:
                break
        return found
