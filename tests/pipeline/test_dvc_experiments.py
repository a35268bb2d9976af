"""Tests dvc on dvc.yaml: it reads the file, runs experiments, shows and compares them."""

import json
import subprocess
from pathlib import Path
from typing import Any

import yaml

from pipeline.command import STAGES
from stages.report import write_report
from tests.support.dvc_stages import DECLARED, ROOT, SMALL, dvc, params_of
from tests.support.reports import READ, made_clips, made_context


def test_dvc_itself_reads_the_file_and_the_committed_lock(tmp_path: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n", "utf-8")
    for stage in DECLARED.values():
        for file, _ in stage.constants:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    dvc(tmp_path, "init", "--no-scm")
    assert tuple(dvc(tmp_path, "stage", "list", "--name-only").split()) == STAGES
    # status reads every parameter and reports a missing one as deleted
    status = json.loads(dvc(tmp_path, "status", "--json"))
    changes = [
        change
        for changes in status.values()
        for item in changes
        if isinstance(item, dict)
        for change in item.values()
    ]
    states = {name: state for change in changes for name, state in change.items()}
    assert states["params.yaml"] == "new"
    for stage in DECLARED.values():
        for file, _ in stage.constants:
            assert states[file] == "new"


def git(folder: Path, *commands: str) -> None:
    for command in commands:
        subprocess.run(["git", *command.split()], cwd=folder, check=True)


def start_repository(folder: Path) -> None:
    git(folder, "init -q", "config user.name a", "config user.email a@example.org")
    dvc(folder, "init", "-q")


def test_experiments_are_run_shown_and_compared(tmp_path: Path) -> None:
    """`dvc exp run -S`, `dvc exp show` and `dvc plots diff` in a git repository with its own packed clips."""
    from tests.support.packed import pack_clips, toy_clips

    params = params_of(ROOT / "params.yaml")
    for section, values in SMALL.items():
        params[section] |= values
    params["train"]["num_epochs"] = 2
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    whole = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))
    logs = [plot for plot in whole["plots"] if "logs/" in str(next(iter(plot.values())).get("y"))]
    of_train = {"stages": {"train": whole["stages"]["train"]}, "metrics": whole["metrics"], "plots": logs}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(of_train), "utf-8")
    for name in [".gitignore", *(file for file, _ in DECLARED["train"].constants)]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    pack_clips(tmp_path / "data", toy_clips(8, 4))
    start_repository(tmp_path)
    git(tmp_path, "add -A", "commit -qm base")
    rates = {"high": 1e-2, "low": 2e-4}
    for name, rate in rates.items():
        dvc(tmp_path, "exp", "run", "-n", name, "-S", f"train.learning_rate={rate:g}")
    entries = json.loads(dvc(tmp_path, "exp", "show", "--json", "--no-pager"))
    (base,) = [entry for entry in entries if entry["rev"] != "workspace"]
    shown = {entry["name"]: entry["revs"][0]["data"] for entry in base["experiments"]}
    assert shown.keys() == rates.keys()
    for name, data in shown.items():
        assert data["params"]["params.yaml"]["data"]["train"]["learning_rate"] == rates[name]
        metrics = data["metrics"]["logs/metrics.json"]["data"]
        assert metrics["epoch"] == 1 and 0 < metrics["best_val_cer"] <= metrics["val_cer"]
    plots = json.loads(dvc(tmp_path, "plots", "diff", "high", "low", "--json"))
    assert "errors" not in plots
    for figure, column in (("loss", "train_loss"), ("cer", "val_cer"), ("gradient norm", "gradient_norm")):
        ((plot,),) = [plot for name, plot in plots["data"].items() if Path(name).name == figure]
        points = [point for point in plot["content"]["data"]["values"] if column in point]
        assert {(point["rev"], point["epoch"]) for point in points} == {
            (name, epoch) for name in rates for epoch in ("0", "1")
        }
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert {line[3:] for line in status.stdout.splitlines()} <= {"dvc.lock", "params.yaml"}


def test_two_reports_are_compared_by_their_metrics_and_plots(tmp_path: Path) -> None:
    """`dvc metrics diff` and `dvc plots diff` between a commit and the report of a newer checkpoint."""
    whole = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))
    stage = {"cmd": "true", **{key: whole["stages"]["report"][key] for key in ("outs", "metrics")}}
    drawn = [plot for plot in whole["plots"] if "report/" in str(next(iter(plot.values())).get("y"))]
    of_report = {"stages": {"report": stage}, "plots": drawn}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(of_report, sort_keys=False), "utf-8")
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    start_repository(tmp_path)

    def reported(read: list[tuple[str, str]], num_rejected: int) -> dict[str, Any]:
        context = made_context(rejections={"test": {"no_face": num_rejected}})
        return write_report(made_clips(read), [], context, tmp_path / "report")

    before = reported(READ, 1)
    dvc(tmp_path, "commit", "-f", "report")
    git(tmp_path, "add -A", "commit -qm before")
    after = reported([(said, said) for said, _ in READ], 4)
    changes = json.loads(dvc(tmp_path, "metrics", "diff", "--json"))["report/metrics.json"]
    numbers = {name for name, value in before.items() if isinstance(value, int | float)}
    assert {"cer", "num_rejected", "substitutions", "chance_cer"} <= numbers & changes.keys()
    for name in numbers & changes.keys():
        assert (changes[name]["old"], changes[name]["new"]) == (before[name], after[name])
    assert {name for name in numbers if before[name] != after[name]} <= changes.keys()
    plots = json.loads(dvc(tmp_path, "plots", "diff", "HEAD", "--json"))
    assert "errors" not in plots
    assert {Path(name).name for name in plots["data"]} == {next(iter(plot)) for plot in drawn}
    for name, (plot,) in plots["data"].items():
        points = plot["content"]["data"]["values"]
        assert {point["rev"] for point in points} == {"HEAD", "workspace"}, name
