"""The newest checkpoint of a run, `last.pt`, and the previous one, in case `last.pt` is damaged."""

from pathlib import Path
from typing import Any

from model.checkpoints import load_checkpoint, reported_as_modified, save_checkpoint
from model.progress import Progress
from model.runs import RunFolder, logger
from shards.errors import CheckpointError


def save_last(run: RunFolder, state: dict[str, Any]) -> None:
    """Writes last.pt and keeps the previous one as before_last.pt.

    A run that is killed between the two renames has no last.pt, and resumes from before_last.pt.
    """

    def keep_previous() -> None:
        # a damaged last.pt must not replace the intact file from which training has resumed
        if run.last.exists() and not run.last_is_damaged:
            run.last.replace(run.before_last)

    save_checkpoint(run.last, state, before_rename=keep_previous)
    run.last_is_damaged = False


def load_last(run: RunFolder) -> tuple[dict[str, Any], Path] | None:
    """Returns the newest intact checkpoint of a run and its file; None if the run has no checkpoint.

    Logs a warning if the file is not last.pt. Raises CheckpointError if all checkpoints are damaged: a run never
    starts from scratch on its own.
    """
    found = newest_intact(run)
    if found is None:
        return None
    state, path, damage = found
    if damage:
        run.last_is_damaged = run.last.exists()
        with reported_as_modified(path):
            progress = Progress.of(state["progress"])
        logger.warning(
            "%s; resuming from the previous checkpoint %s: epoch %d after %d batches",
            damage,
            path,
            progress.epoch,
            progress.batches_done,
        )
    return state, path


def newest_intact(run: RunFolder, mapped: bool = False) -> tuple[dict[str, Any], Path, str] | None:
    """Works like `load_last`, without a warning. The third value is the damage of last.pt, empty if it is intact."""
    if not run.last.exists() and not run.before_last.exists():
        return None
    try:
        return load_checkpoint(run.last, mapped), run.last, ""
    except CheckpointError as newest:
        damage = str(newest) if run.last.exists() else f"{run.last} is missing"
        try:
            return load_checkpoint(run.before_last, mapped), run.before_last, damage
        except CheckpointError as before:
            raise CheckpointError(f"{damage}\n  {before}\n  {_what_to_do(run)}") from before


def _what_to_do(run: RunFolder) -> str:
    epochs = sorted(run.folder.glob("checkpoint_epoch_*.pt"), key=lambda path: path.stat().st_mtime)
    restart = f"remove {run.folder} to train from scratch"
    return f"resume from the end of an epoch with --resume {epochs[-1]}, or {restart}" if epochs else restart
