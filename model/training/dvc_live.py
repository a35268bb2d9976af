"""The figures of each epoch as DVCLive writes them: `dvc exp show` and `dvc plots diff` read its files."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from model.runs import Curve

if TYPE_CHECKING:
    from dvclive import Live


class EpochTables:
    """`dvclive/metrics.json` and a table for each figure below the published logs; their step is the epoch.

    DVC deletes them before it runs the stage, so they are written anew from the epochs that a run remembers.
    Outside a DVC project, where nothing reads them, there are none: DVCLive would make one of any git repository.
    """

    def __init__(self, logs_folder: Path, curves: Sequence[Curve]) -> None:
        self._best_val_cer = float("inf")
        self._live = _live_in(logs_folder / "dvclive") if _in_dvc_project(Path.cwd()) else None
        if self._live is not None and curves:
            for curve in curves:
                self._log(self._live, curve)
            self._live.make_summary()

    def add(self, curve: Curve) -> None:
        """The row of the epoch that has ended."""
        if self._live is not None:
            self._log(self._live, curve)
            self._live.next_step()

    def close(self) -> None:
        if self._live is not None:
            self._live.end()

    def _log(self, live: "Live", curve: Curve) -> None:
        assert curve["epoch"] is not None
        live.step = int(curve["epoch"])
        for name, value in curve.items():
            if name != "epoch" and value is not None:
                live.log_metric(name, value)
        if (cer := curve["val_cer"]) is not None and cer <= self._best_val_cer:
            self._best_val_cer = cer
            live.log_metric("best_val_cer", cer, plot=False)


def _in_dvc_project(folder: Path) -> bool:
    return any((place / ".dvc").is_dir() for place in (folder, *folder.parents))


def _live_in(folder: Path) -> "Live":
    from dvclive import Live  # it loads DVC

    return Live(str(folder), save_dvc_exp=False, dvcyaml=None)
