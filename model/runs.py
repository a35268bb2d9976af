"""The run folder: where training stands, found by fingerprint, and its publication.

DVC deletes a stage's outs before it runs the stage. So what must survive an interruption lies outside them,
in `runs/<fingerprint>/`; a finished run is copied to `checkpoints/` and `logs/`.

Only one training at a time writes in a run folder.
"""

import csv
import io
import json
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from shards.disk import WRITE_ERRORS, disk_errors_reported
from shards.errors import CheckpointError, ConfigError, TrainingError
from shards.files import atomic_file, fingerprint, sweep_temporaries, write_json, write_text
from shards.locks import hold_lock
from shards.pipes import refuse_pipe
from shards.safe_text import LogFormatter
from shards.settings import Section

TRAIN_VERSION = 4
"""Goes up where the same parameters train differently."""
PARTIAL_FILE_AGE_S = 600.0
"""Older than any checkpoint takes to write: what a killed process left of one."""
MANIFEST = "published.json"
"""Names what a run published, so that nothing else in the folder is ever removed."""
LOG_FORMAT = "%(asctime)s - %(levelname)s - %(message)s"
LOG_DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
logger = logging.getLogger("pipeline.train")

Curve = dict[str, float | int | None]


def run_fingerprint(
    *, sections: Sequence[Section], plan_hash: str, valid_hash: str, init_hash: str = ""
) -> str:
    """Equal where training would do, and choose, the same from the first step to the last.

    `sections` are the parameters that decide it; `valid_hash` is of the clips that the best model is chosen by,
    `init_hash` of the file that training starts from.
    """
    values = [section.model_dump(mode="json") for section in sections]
    return fingerprint(TRAIN_VERSION, values, plan_hash, valid_hash, init_hash)[:16]


class RunFolder:
    """Files of one run."""

    def __init__(self, runs_folder: Path, run_id: str) -> None:
        self.folder = runs_folder / run_id
        self.last = self.folder / "last.pt"
        self.before_last = self.folder / "before_last.pt"
        """The one that last.pt took the place of (model/training/last_checkpoint.py)."""
        self.last_is_damaged = False
        self.best = self.folder / "best_model.pt"
        self.weights = self.folder / "model.safetensors"
        self.reader_config = self.folder / "config.json"
        self.log = self.folder / "training.log"
        self.quarantine = self.folder / "quarantine.jsonl"

    def epoch_checkpoint(self, epoch: int) -> Path:
        return self.folder / f"checkpoint_epoch_{epoch}.pt"

    def start(self, config_text: str, tokenizer_json: Mapping[str, Any]) -> None:
        """Writes what a run is known by: the effective configuration and the character table.

        Torsos that killed processes left are removed: a few of a large network's would fill a disk.
        """
        sweep_temporaries(self.folder, PARTIAL_FILE_AGE_S)
        write_text(self.folder / "config.yaml", config_text)
        write_json(self.folder / "tokenizer.json", tokenizer_json)

    def write_curves(self, curves: Sequence[Curve], logs_folder: Path) -> None:
        """Writes curves.csv (a row an epoch) and metrics.json (the last row, the best CER), for DVC and the report."""
        text = io.StringIO()
        if curves:
            writer = csv.DictWriter(text, fieldnames=list(curves[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: "" if v is None else v for k, v in curve.items()} for curve in curves)
        write_text(logs_folder / "curves.csv", text.getvalue())
        validated = [cer for curve in curves if (cer := curve["val_cer"]) is not None]
        metrics = {**(curves[-1] if curves else {}), "best_val_cer": min(validated, default=None)}
        write_json(logs_folder / "metrics.json", metrics)

    def publish(self, checkpoints_folder: Path) -> None:
        """Copies the finished run to `checkpoints_folder`; what another run of ours published there is removed."""
        refuse_foreign_checkpoints(checkpoints_folder)
        ours = [
            self.folder / "config.yaml",
            self.folder / "tokenizer.json",
            self.best,
            *(path for path in (self.weights, self.reader_config) if path.exists()),
            *sorted(self.folder.glob("checkpoint_epoch_*.pt")),
        ]
        names = [source.name for source in ours]
        manifest = checkpoints_folder / MANIFEST
        if manifest.exists():
            for stale in published_files(manifest) - set(names):
                (checkpoints_folder / stale).unlink(missing_ok=True)
        write_json(manifest, {"run": self.folder.name, "files": names})
        for source in ours:
            target = checkpoints_folder / source.name
            with source.open("rb") as file, atomic_file(target, source.stat().st_size) as copy:
                shutil.copyfileobj(file, copy)


def published_files(manifest: Path) -> set[str]:
    """The names in `published.json`. Raises CheckpointError where it is damaged."""
    try:
        names = json.loads(manifest.read_text("utf-8"))["files"]
        return {Path(name).name for name in names}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{manifest} is damaged ({error!r}): remove it, and move the checkpoints beside it away"
        ) from error


def refuse_foreign_checkpoints(checkpoints_folder: Path) -> None:
    """Raises CheckpointError where the folder holds checkpoints that no run of this program published."""
    if (checkpoints_folder / MANIFEST).exists():
        published_files(checkpoints_folder / MANIFEST)
        return
    found = sorted(
        [*checkpoints_folder.glob("checkpoint_epoch_*.pt"), *checkpoints_folder.glob("best_model.pt")]
    )
    if found:
        raise CheckpointError(
            f"{found[0]} was not published by this program, and would be overwritten; move it away, or choose "
            "another folder with --checkpoint-dir"
        )


class _LogFile(logging.Handler):
    """Appends lines to a file. A full disk costs the line, not the run: the next checkpoint tells of it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        # logging.FileHandler keeps what it could not write, and raises once more when it is closed
        self._file = path.open("ab", buffering=0)
        self.setFormatter(LogFormatter(LOG_FORMAT, LOG_DATE_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            # a path that is no UTF-8 has lone surrogates
            self._file.write(f"{self.format(record)}\n".encode(errors="backslashreplace"))

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def training_log(run: RunFolder, logs_folder: Path) -> Iterator[None]:
    """Timestamped lines go to the run's log, which survives, and to `logs/training.log`, which is published.

    Raises MachineError where anything inside meets a full disk.
    """
    # TensorBoard writes there too, in its own way
    with disk_errors_reported(f"{run.folder} or {logs_folder}", among=WRITE_ERRORS):
        run.folder.mkdir(parents=True, exist_ok=True)
        logs_folder.mkdir(parents=True, exist_ok=True)
        published = logs_folder / "training.log"
        if published.is_symlink() or (published.exists() and not published.is_file()):
            raise ConfigError(
                f"{published} is a link, device or pipe: remove it, or choose another paths.logs"
            )
        refuse_pipe(run.log)
        if run.log.exists():
            shutil.copyfile(run.log, published)
        else:
            published.unlink(missing_ok=True)
        handlers = [_LogFile(path) for path in (run.log, published)]
        for handler in handlers:
            logger.addHandler(handler)
        level = logger.level
        logger.setLevel(logging.INFO)
        try:
            yield
        finally:
            logger.setLevel(level)
            for handler in handlers:
                logger.removeHandler(handler)
                handler.close()


LOCK = ".lock"


@contextmanager
def locked_run_folder(folder: Path) -> Iterator[None]:
    """Keeps other trainings out of `folder`, as `shards.locks.hold_lock`. TrainingError where one is at work there."""

    def refusal(holder: str) -> TrainingError:
        return TrainingError(
            f"another training of the same parameters is at work in {folder} ({holder}): wait until "
            "it has ended, or end it, and the same command goes on from there; to train both, change a parameter "
            "(train.seed), or give this one paths.runs, paths.checkpoints and paths.logs of its own"
        )

    with ExitStack() as lock:
        with disk_errors_reported(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock.enter_context(hold_lock(folder / LOCK, refusal))
        yield
