"""The trackers of `machine.trackers` other than TensorBoard: Weights & Biases, MLflow and SwanLab.

Address, project, mode (online or offline) and keys come from each tracker's own environment variables. Without them,
what a tracker writes to this machine is in paths.runs. All of them are optional packages, imported when they start.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Protocol

from shards.errors import ConfigError, TrainingError

PROJECT = "lip-pipeline"
"""The project, or MLflow experiment, where the environment names none."""
MAX_ROWS = 100
"""Rows that are sent at once. MLflow takes 1,000 figures in a request, and a row has at most ten."""
MLFLOW_PARAMS = 100
"""Parameters that MLflow takes in a request."""

Row = tuple[int, Mapping[str, float]]
"""An optimiser step and its figures by name."""


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """What a tracker shows of a run in addition to its figures. With the same `id`, it continues the same run."""

    id: str
    name: str
    folder: Path
    config: Mapping[str, Mapping[str, Any]]
    """The parameters that determine the weights, by section."""


class Tracker(Protocol):
    """A started tracker. The packages have no common class of errors: each method may raise any exception."""

    package: ClassVar[str]

    def log(self, rows: Sequence[Row]) -> None:
        """Sends the rows, in the order of their steps."""

    def finish(self, is_complete: bool) -> None:
        """Ends the connection; `is_complete` is whether the training is over, or will be resumed."""


class _Wandb:
    package: ClassVar[str] = "wandb"

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # its own crash reports
        os.environ.setdefault("WANDB_CONSOLE", "off")  # our stdout and stderr stay as they are
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run.id,
            name=os.environ.get("WANDB_NAME", run.name),
            resume="allow",
            dir=os.environ.get("WANDB_DIR", str(run.folder)),
            config=dict(run.config),
        )

    def log(self, rows: Sequence[Row]) -> None:
        for step, figures in rows:
            self._run.log(dict(figures), step=step)

    def finish(self, is_complete: bool) -> None:
        self._run.finish(exit_code=0 if is_complete else 1)


class _Mlflow:
    package: ClassVar[str] = "mlflow"

    _TAG = "lip_pipeline.run"

    def __init__(self, run: TrackedRun) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        local = f"sqlite:///{run.folder.parent.absolute() / 'mlflow.db'}"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", local))
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(name)
        found = self._client.search_runs([experiment_id], f"tags.`{self._TAG}` = '{run.id}'")
        if found:
            self._id = found[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            return
        self._id = self._client.create_run(
            experiment_id, run_name=run.name, tags={self._TAG: run.id}
        ).info.run_id
        params = [
            Param(f"{section}.{key}", str(value))
            for section, values in run.config.items()
            for key, value in values.items()
        ]
        for first in range(0, len(params), MLFLOW_PARAMS):
            self._client.log_batch(self._id, params=params[first : first + MLFLOW_PARAMS])

    def log(self, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now_ms, step) for step, figures in rows for name, value in figures.items()
        ]
        self._client.log_batch(self._id, metrics=metrics)

    def finish(self, is_complete: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if is_complete else "KILLED")


class _SwanLab:
    package: ClassVar[str] = "swanlab"

    def __init__(self, run: TrackedRun) -> None:
        import swanlab

        self._swanlab = swanlab
        swanlab.init(
            project=os.environ.get("SWANLAB_PROJ_NAME", PROJECT),
            id=run.id,
            name=os.environ.get("SWANLAB_EXP_NAME", run.name),
            resume="allow",
            log_dir=os.environ.get("SWANLAB_LOGDIR", str(run.folder / "swanlab")),
            config=dict(run.config),
        )

    def log(self, rows: Sequence[Row]) -> None:
        for step, figures in rows:
            self._swanlab.log(dict(figures), step=step)

    def finish(self, is_complete: bool) -> None:
        self._swanlab.finish("success" if is_complete else "aborted")


TRACKERS: dict[str, type[Tracker]] = {"wandb": _Wandb, "mlflow": _Mlflow, "swanlab": _SwanLab}


def refuse_missing_trackers(names: Sequence[str]) -> None:
    """Raises ConfigError for a tracker that is not installed, before a training reads its data."""
    for name in names:
        if name in TRACKERS and find_spec(TRACKERS[name].package) is None:
            raise _not_installed(name, f"No module named '{name}'")


def _not_installed(name: str, reason: object) -> ConfigError:
    return ConfigError(
        f"machine.trackers: {name} is not installed ({reason}); install it: pip install 'lip-pipeline[{name}]', or "
        "remove it from machine.trackers"
    )


def start_tracker(name: str, run: TrackedRun) -> Tracker:
    """Starts the tracker, or continues its run of that id.

    Raises ConfigError, which names the extra, if it is not installed, and TrainingError if it does not start.
    """
    try:
        with redirect_stdout(sys.stderr):  # results are on stdout, messages are not
            return TRACKERS[name](run)  # type: ignore[call-arg]
    except ModuleNotFoundError as error:
        raise _not_installed(name, error) from error
    except Exception as error:  # foreign code without a common class of errors
        raise TrainingError(
            f"machine.trackers: {name} cannot start ({type(error).__name__}: {error}); set its environment variables "
            "(docs/training.md), or remove it from machine.trackers"
        ) from error
