"""The run folder `runs/<fingerprint>/`, which holds the state of a training, and the publication of a finished run.

DVC deletes the outputs of a stage before it runs the stage. So files that must survive an interruption are not outputs:
they are in the run folder, and a finished run is copied to `checkpoints/` and `logs/`.

Only one training at a time writes to a run folder.
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

TRAIN_VERSION = 5
"""Increases if the same parameters train differently."""
PARTIAL_FILE_AGE_S = 600.0
"""No checkpoint takes so long to write: an older partial file is from a killed process."""
MANIFEST = "published.json"
"""Lists the files that a run published, so that no other file in the folder is ever removed."""
LOG_FORMAT = "%(asctime)s - %(levelname)s - %(message)s"
LOG_DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
logger = logging.getLogger("pipeline.train")

Curve = dict[str, float | int | None]


def run_fingerprint(
    *, sections: Sequence[Section], plan_hash: str, valid_hash: str, init_hash: str = ""
) -> str:
    """Returns a fingerprint that is equal if every training step and the choice of the best model would be the same.

    `sections` are the parameters that matter, `valid_hash` is the hash of the clips that choose the best model, and
    `init_hash` is the hash of the file whose weights training starts with.
    """
    values = [section.recorded() for section in sections]
    return fingerprint(TRAIN_VERSION, values, plan_hash, valid_hash, init_hash)[:16]


class RunFolder:
    """The files of one run."""

    def __init__(self, runs_folder: Path, run_id: str) -> None:
        self.folder = runs_folder / run_id
        self.last = self.folder / "last.pt"
        self.before_last = self.folder / "before_last.pt"
        """The previous checkpoint, kept in case last.pt is damaged (model/training/last_checkpoint.py)."""
        self.last_is_damaged = False
        self.best = self.folder / "best_model.pt"
        self.weights = self.folder / "model.safetensors"
        self.reader_config = self.folder / "config.json"
        self.log = self.folder / "training.log"
        self.quarantine = self.folder / "quarantine.jsonl"
        self.metrics = self.folder / "metrics.jsonl"
        self.trackers = self.folder / "trackers.json"
        self.commands = self.folder / "commands.json"
        """The commands that have trained here (model/training/run_choice.py)."""

    def epoch_checkpoint(self, epoch: int) -> Path:
        return self.folder / f"checkpoint_epoch_{epoch}.pt"

    def start(self, config_text: str, tokenizer_json: Mapping[str, Any]) -> None:
        """Writes the effective configuration and the character table of the run.

        Removes partial files of killed processes: a few checkpoints of a large network would fill a disk.
        """
        sweep_temporaries(self.folder, PARTIAL_FILE_AGE_S)
        write_text(self.folder / "config.yaml", config_text)
        write_json(self.folder / "tokenizer.json", tokenizer_json)

    def write_curves(self, curves: Sequence[Curve], logs_folder: Path) -> None:
        """Writes curves.csv (one row per epoch) and metrics.json (the last row and the best CER)."""
        text = io.StringIO()
        if curves:
            # epochs without validation lack the columns of packs
            columns = list(dict.fromkeys(name for curve in curves for name in curve))
            writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: "" if v is None else v for k, v in curve.items()} for curve in curves)
        write_text(logs_folder / "curves.csv", text.getvalue())
        validated = [cer for curve in curves if (cer := curve["val_cer"]) is not None]
        metrics = {**(curves[-1] if curves else {}), "best_val_cer": min(validated, default=None)}
        write_json(logs_folder / "metrics.json", metrics)

    def publish(self, checkpoints_folder: Path) -> None:
        """Copies the finished run to `checkpoints_folder`; removes the files that another run published there."""
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
    """Returns the file names in `published.json`. Raises CheckpointError if it is damaged."""
    try:
        names = json.loads(manifest.read_text("utf-8"))["files"]
        return {Path(name).name for name in names}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{manifest} is damaged ({error!r}): remove it, and move the checkpoints out of its folder"
        ) from error


def refuse_foreign_checkpoints(checkpoints_folder: Path) -> None:
    """Raises CheckpointError if the folder holds checkpoints that no run of this program published."""
    if (checkpoints_folder / MANIFEST).exists():
        published_files(checkpoints_folder / MANIFEST)
        return
    found = sorted(
        [*checkpoints_folder.glob("checkpoint_epoch_*.pt"), *checkpoints_folder.glob("best_model.pt")]
    )
    if found:
        raise CheckpointError(
            f"{found[0]} was not published by this program, and would be overwritten; move it to another folder, or "
            "choose another folder with --checkpoint-dir"
        )


class _LogFile(logging.Handler):
    """Appends lines to a file. A full disk loses the line but does not end the run: the next checkpoint reports it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        # logging.FileHandler keeps text that it could not write, and raises again when it is closed
        self._file = path.open("ab", buffering=0)
        self.setFormatter(LogFormatter(LOG_FORMAT, LOG_DATE_FORMAT))

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            # a path that is not UTF-8 has lone surrogates
            self._file.write(f"{self.format(record)}\n".encode(errors="backslashreplace"))

    def close(self) -> None:
        self._file.close()
        super().close()


@contextmanager
def training_log(run: RunFolder, logs_folder: Path) -> Iterator[None]:
    """Logs timestamped lines to the run's log, which survives, and to `logs/training.log`, which is published.

    Raises MachineError if the disk is full, for anything inside the block.
    """
    # TensorBoard writes there too, with its own errors
    with disk_errors_reported(f"{run.folder} or {logs_folder}", among=WRITE_ERRORS):
        run.folder.mkdir(parents=True, exist_ok=True)
        logs_folder.mkdir(parents=True, exist_ok=True)
        published = logs_folder / "training.log"
        if published.is_symlink() or (published.exists() and not published.is_file()):
            raise ConfigError(
                f"{published} is a link, device or pipe: remove it, or set paths.logs to another folder"
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
    """Locks `folder` with `shards.locks.hold_lock`. Raises TrainingError if another training is running there."""

    def refusal(holder: str) -> TrainingError:
        return TrainingError(
            f"another training with the same parameters is running in {folder} ({holder}): wait until it ends or stop "
            "it, then the same command resumes from there; to train both, change a parameter (train.seed), or "
            "set other paths.runs, paths.checkpoints and paths.logs for this training"
        )

    with ExitStack() as lock:
        with disk_errors_reported(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock.enter_context(hold_lock(folder / LOCK, refusal))
        yield
