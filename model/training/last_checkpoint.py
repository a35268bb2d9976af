"""Where a run stands: its newest checkpoint, and the one before should the newest be damaged."""

from pathlib import Path
from typing import Any

from model.checkpoint_errors import reported_as_modified
from model.checkpoints import load_checkpoint, save_checkpoint
from model.progress import Progress
from model.runs import RunFolder, logger
from shards.errors import CheckpointError


def save_last(run: RunFolder, state: dict[str, Any]) -> None:
    """Writes last.pt; what it was stays as before_last.pt.

    Killed between the two renames a run has no last.pt, and goes on from before_last.pt.
    """

    def keep_former() -> None:
        # a damaged file never takes the place of the good one that training has gone on from
        if run.last.exists() and not run.last_is_damaged:
            run.last.replace(run.before_last)

    save_checkpoint(run.last, state, before_rename=keep_former)
    run.last_is_damaged = False


def load_last(run: RunFolder) -> tuple[dict[str, Any], Path] | None:
    """The newest whole checkpoint of a run and its file, with a warning where it is not last.pt; None: it has none.

    Raises CheckpointError where there are some, all damaged: a run never starts afresh unasked.
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
            "%s; going on from the one before it, %s: epoch %d after %d batches",
            damage,
            path,
            progress.epoch,
            progress.batches_done,
        )
    return state, path


def newest_intact(run: RunFolder, mapped: bool = False) -> tuple[dict[str, Any], Path, str] | None:
    """As `load_last`, silently: the third value says what is wrong with last.pt, empty where it was read."""
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
    wholes = sorted(run.folder.glob("checkpoint_epoch_*.pt"), key=lambda path: path.stat().st_mtime)
    afresh = f"remove {run.folder} to train afresh"
    return f"go on from a whole epoch with --resume {wholes[-1]}, or {afresh}" if wholes else afresh
