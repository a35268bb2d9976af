"""The dvc program on dvc.yaml: it reads the file, runs experiments, shows and compares them."""

import json
import subprocess
from pathlib import Path

import yaml

from tests.dvc_stages import DECLARED, ROOT, SMALL, STAGES, dvc, params_of


def test_dvc_itself_reads_the_file_and_the_committed_lock(tmp_path: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n", "utf-8")
    for stage in DECLARED.values():
        for file, _ in stage.constants:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    dvc(tmp_path, "init", "--no-scm")
    assert tuple(dvc(tmp_path, "stage", "list", "--name-only").split()) == STAGES
    # status looks every parameter up; one that is not there would be told as deleted
    status = json.loads(dvc(tmp_path, "status", "--json"))
    changes = [
        change
        for told in status.values()
        for item in told
        if isinstance(item, dict)
        for change in item.values()
    ]
    states = {name: state for change in changes for name, state in change.items()}
    assert states["params.yaml"] == "new"
    for stage in DECLARED.values():
        for file, _ in stage.constants:
            assert states[file] == "new"


def test_experiments_are_run_shown_and_compared(tmp_path: Path) -> None:
    """`dvc exp run -S`, `dvc exp show` and `dvc plots diff` in a git repository with packed clips of its own."""
    from tests.packed import pack_clips, toy_clips

    params = params_of(ROOT / "params.yaml")
    for section, values in SMALL.items():
        params[section] |= values
    params["train"]["num_epochs"] = 2
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    whole = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))
    logs = [plot for plot in whole["plots"] if next(iter(plot)).startswith("${paths.logs}")]
    of_train = {"stages": {"train": whole["stages"]["train"]}, "metrics": whole["metrics"], "plots": logs}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(of_train), "utf-8")
    for name in [".gitignore", *(file for file, _ in DECLARED["train"].constants)]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    pack_clips(tmp_path / "data", toy_clips(8, 4))
    for command in ("init -q", "config user.name a", "config user.email a@example.org"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    dvc(tmp_path, "init", "-q")
    for command in ("add -A", "commit -qm base"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    rates = {"high": 1e-2, "low": 2e-4}
    for name, rate in rates.items():
        dvc(tmp_path, "exp", "run", "-n", name, "-S", f"train.learning_rate={rate:g}")
    told = json.loads(dvc(tmp_path, "exp", "show", "--json", "--no-pager"))
    (base,) = [entry for entry in told if entry["rev"] != "workspace"]
    shown = {entry["name"]: entry["revs"][0]["data"] for entry in base["experiments"]}
    assert shown.keys() == rates.keys()
    for name, data in shown.items():
        assert data["params"]["params.yaml"]["data"]["train"]["learning_rate"] == rates[name]
        metrics = data["metrics"]["logs/dvclive/metrics.json"]["data"]
        assert metrics["step"] == 1 and 0 < metrics["best_val_cer"] <= metrics["val_cer"]
    plots = json.loads(dvc(tmp_path, "plots", "diff", "high", "low", "--json"))
    assert "errors" not in plots
    drawn = {Path(name).name: plot for name, plot in plots["data"].items()}
    for table in ("train_loss.tsv", "val_cer.tsv", "gradient_norm.tsv"):
        (plot,) = drawn[table]
        points = plot["content"]["data"]["values"]
        assert {(point["rev"], point["step"]) for point in points} == {
            (name, step) for name in rates for step in ("0", "1")
        }
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert {line[3:] for line in status.stdout.splitlines()} <= {"dvc.lock", "params.yaml"}
