"""Records the bad samples that training skips: at most `loader.max_bad_fraction` of an epoch."""

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
    """`quarantine.jsonl` of a run: one line per bad sample, with its epoch and batch. The first rank writes it."""

    def __init__(self, file: Path, max_fraction: float, ranks: Ranks = SINGLE_PROCESS) -> None:
        self.file, self.max_fraction, self.ranks = file, max_fraction, ranks

    def copy_from(self, checkpoint: Path) -> None:
        """Replaces the file with that of the run which `checkpoint` belongs to."""
        theirs = checkpoint.parent / self.file.name
        if theirs.resolve() == self.file.resolve():
            return
        if theirs.exists():
            write_bytes(self.file, theirs.read_bytes())
        else:
            self.file.unlink(missing_ok=True)

    def rewind_to(self, epoch: int, batches_done: int) -> None:
        """Removes the lines of batches from this position on: they are read again."""
        if not self.file.exists():
            return
        kept = [
            line for line, entry in self._lines() if (entry["epoch"], entry["batch"]) < (epoch, batches_done)
        ]
        if kept:
            write_bytes(self.file, b"".join(kept))
        else:
            self.file.unlink()

    def add(self, epoch: int, bad: Sequence[tuple[int, Sequence[BadSample]]]) -> int:
        """Records the bad samples of batches, each with its number in the plan, of all ranks; returns their number."""
        lines = self.ranks.lines(
            [
                json.dumps({"epoch": epoch, "batch": batch, **asdict(sample)}, ensure_ascii=False)
                for batch, samples in bad
                for sample in samples
            ]
        )
        if lines and self.ranks.is_first:
            # a path in a reason may have lone surrogates (not UTF-8): escaped, as JSON escapes them
            with self.file.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.write("".join(f"{line}\n" for line in lines))
        return len(lines)

    def refuse_too_many(self, num_bad: int, num_clips: int, epoch: int) -> None:
        """Raises TrainingError if more than the allowed share of an epoch's clips is bad.

        Call it only after new bad samples: a run must resume with repaired shards, however many it skipped before.
        """
        if num_bad > self.max_fraction * num_clips:
            raise TrainingError(
                f"{num_bad} of the {num_clips} clips of epoch {epoch} are bad, more than loader.max_bad_fraction "
                f"{self.max_fraction:g} allows; {self._names(num_bad, epoch)}, `pipeline verify` checks all shards. "
                "Repair the shards or raise the fraction, then run the same command to resume; clips that were "
                "skipped before are not read again"
            )

    def log_epoch(self, num_bad: int, num_clips: int, epoch: int) -> None:
        """Logs how many clips an epoch has skipped."""
        if num_bad:
            logger.warning(
                "Epoch %d: skipped %d of %d clips (%.2f %%) because they are bad; %s",
                epoch,
                num_bad,
                num_clips,
                100 * num_bad / num_clips,
                self._names(num_bad, epoch),
            )

    def log_damaged_share(self, num_bad: int, num_epochs: int) -> None:
        """Logs how many clips a finished run has skipped: repairing the shards does not train it again."""
        if num_bad:
            logger.warning(
                "this run skipped bad clips %d times in its %d epochs; %s. To train with them, repair the shards, "
                "remove %s and train again",
                num_bad,
                num_epochs,
                self._names(num_bad),
                self.file.parent,
            )

    def publish(self, logs_folder: Path) -> None:
        """Copies the file next to the published log. Without a file, removes the copy of another run."""
        published = logs_folder / self.file.name
        if not self.file.exists():
            published.unlink(missing_ok=True)
            return
        with self.file.open("rb") as file, atomic_file(published) as target:
            shutil.copyfileobj(file, target)

    def _names(self, num_bad: int, epoch: int | None = None) -> str:
        """Returns whether the file lists all of `num_bad` (of one epoch): a checkpoint may be copied without it."""
        lines = self._lines() if self.file.exists() else []
        num_named = sum(epoch in (None, entry["epoch"]) for _, entry in lines)
        if num_named >= num_bad:
            return f"{self.file} lists them"
        return (
            f"{self.file} lists {num_named} of them, the others were skipped by another run, before --resume"
        )

    def _lines(self) -> list[tuple[bytes, dict[str, Any]]]:
        """Returns the lines and their content, without an incomplete last line: its batch is read again."""
        found = []
        for line in self.file.read_bytes().splitlines(keepends=True):
            try:
                found.append((line, json.loads(line)))
            except ValueError:
                break
        return found
