"""The run folder: where training stands, found by fingerprint, and its publication.

DVC deletes a stage's outs before it runs the stage. So what must survive an interruption lies outside them,
in `runs/<fingerprint>/`; a finished run is copied to `checkpoints/` and `logs/`.
"""

import csv
import io
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model.settings import ModelParams, TextParams, TrainParams
from shards.files import atomic_file, fingerprint, write_json, write_text

TRAIN_VERSION = 1
LOG_FORMAT = "%(asctime)s - %(levelname)s - %(message)s"
LOG_DATE_FORMAT = "%Y-%m-%d %H:%M:%S"
logger = logging.getLogger("pipeline.train")

Curve = dict[str, float | int | None]


def run_fingerprint(model: ModelParams, text: TextParams, train: TrainParams, plan_hash: str) -> str:
    """Equal where training would do the same from the first step to the last."""
    return fingerprint(
        TRAIN_VERSION,
        model.model_dump(mode="json"),
        text.model_dump(mode="json"),
        train.model_dump(mode="json"),
        plan_hash,
    )[:16]


class RunFolder:
    """Files of one run."""

    def __init__(self, runs_folder: Path, run_id: str) -> None:
        self.folder = runs_folder / run_id
        self.last = self.folder / "last.pt"
        self.best = self.folder / "best_model.pt"
        self.log = self.folder / "training.log"

    def epoch_checkpoint(self, epoch: int) -> Path:
        return self.folder / f"checkpoint_epoch_{epoch}.pt"

    def start(self, config_text: str, tokenizer_json: Mapping[str, Any]) -> None:
        """Writes what a run is known by: the effective configuration and the character table."""
        write_text(self.folder / "config.yaml", config_text)
        write_json(self.folder / "tokenizer.json", tokenizer_json)

    def write_curves(self, curves: Sequence[Curve], logs_folder: Path) -> None:
        """One row an epoch, for `dvc plots` and the report."""
        text = io.StringIO()
        if curves:
            writer = csv.DictWriter(text, fieldnames=list(curves[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows({k: "" if v is None else v for k, v in curve.items()} for curve in curves)
        write_text(logs_folder / "curves.csv", text.getvalue())

    def publish(self, checkpoints_folder: Path) -> None:
        """Copies the finished run to `checkpoints_folder`; checkpoints of another run there are removed."""
        ours = [
            self.folder / "config.yaml",
            self.folder / "tokenizer.json",
            self.best,
            *sorted(self.folder.glob("checkpoint_epoch_*.pt")),
        ]
        for source in ours:
            with source.open("rb") as file, atomic_file(checkpoints_folder / source.name) as target:
                shutil.copyfileobj(file, target)
        names = {source.name for source in ours}
        for stale in checkpoints_folder.glob("checkpoint_epoch_*.pt"):
            if stale.name not in names:
                stale.unlink()


@contextmanager
def training_log(run: RunFolder, logs_folder: Path) -> Iterator[None]:
    """Timestamped lines go to the run's log, which survives, and to `logs/training.log`, which is published."""
    run.folder.mkdir(parents=True, exist_ok=True)
    logs_folder.mkdir(parents=True, exist_ok=True)
    published = logs_folder / "training.log"
    if run.log.exists():
        shutil.copyfile(run.log, published)
    else:
        published.unlink(missing_ok=True)
    handlers = [logging.FileHandler(path, encoding="utf-8") for path in (run.log, published)]
    for handler in handlers:
        handler.setFormatter(logging.Formatter(LOG_FORMAT, LOG_DATE_FORMAT))
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
