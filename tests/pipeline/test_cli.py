"""Tests the verbs from the command line, on a tiny drawn corpus and a tiny model, each in its own process."""

import atexit
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import jsonschema
import pytest
import typer
import yaml

from pipeline import cli
from pipeline.legacy_config import OLDER_NAMES
from pipeline.params import PathsParams, read_mapping
from pipeline.query import query
from tests.support.crop_runs import forked_workers
from tests.support.in_process import pipeline

ROOT = Path(__file__).parents[2]
PIPELINE = Path(sysconfig.get_path("scripts")) / "pipeline"
QUERIES = (ROOT / "docs" / "queries.md").read_text("utf-8")
READING_SCHEMA = json.loads((ROOT / "docs" / "reading.schema.json").read_text("utf-8"))
SMALL = {
    "model": {"frame_height": 24, "frame_width": 24, "sizes": {"channels": [4, 8, 8, 12], "hidden_dim": 16}},
    "train": {"warmup_epochs": 0, "batch_size": 4, "mixed_precision": False, "valid_every": 1},
    "report": {"num_examples": 1},
    "machine": {"workers": 1, "threads": 1, "device": "cpu"},
}
OLDER = "data_root: data/demo\nmax_frames: 900\nfps: 25\nframe_size: 24\nhidden_dim: 16\nscheduler: cosine annealing\n"
Done = subprocess.CompletedProcess[str]


def run(folder: Path, *arguments: str) -> Done:
    return pipeline(folder, arguments)


def run_process(folder: Path, *arguments: str) -> Done:
    """Runs the installed command: `main` with its exit code."""
    return subprocess.run(
        [PIPELINE, *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture(scope="module")
def done() -> dict[str, Done]:
    """The output of the verbs of `workspace`."""
    return {}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, demo_corpus: Path, done: dict[str, Done]) -> Path:
    """A working directory where preprocess, train and report have run."""
    folder = tmp_path_factory.mktemp("workspace")
    params = read_mapping(ROOT / "params.yaml")
    for section, values in SMALL.items():
        params[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    (folder / "older.yaml").write_text(OLDER, "utf-8")
    shutil.copytree(demo_corpus, folder / "data" / "demo")
    for name, arguments in {
        "preprocess": ["--config", "older.yaml", "--data_root=data/demo"],
        "train": ["--config", "older.yaml", "--num_epochs", "1", "--learning-rate", "1e-3", "--dropout=0.1"],
        "report": [],
    }.items():
        with forked_workers():
            done[name] = run(folder, name, *arguments)
        assert done[name].returncode == 0, done[name].stderr
    return folder


def video_of(workspace: Path) -> tuple[str, str]:
    """A test clip's file and text."""
    ((media, text),) = duckdb.sql(
        f"SELECT media, text FROM '{workspace}/data/clips.parquet' WHERE split = 'test' ORDER BY clip_id LIMIT 1"
    ).fetchall()
    return str(Path("data/demo") / media), text


def test_preprocess_train_and_report_print_their_results(workspace: Path, done: dict[str, Done]) -> None:
    assert "6 clips (train 3, valid 1, test 2)" in done["preprocess"].stdout
    assert "6 of 6 clips ok" in done["preprocess"].stdout
    assert "parameters, 1 epochs" in done["train"].stdout
    assert str(Path("report") / "report.html") in done["report"].stdout
    saved = yaml.safe_load((workspace / "checkpoints" / "config.yaml").read_text("utf-8"))
    assert (saved["train"]["num_epochs"], saved["train"]["learning_rate"], saved["model"]["dropout"]) == (
        1,
        1e-3,
        0.1,
    )
    assert saved["crop"]["max_frames"] == 900


def test_train_warns_of_values_that_only_preprocessing_uses(workspace: Path, done: dict[str, Done]) -> None:
    message = [line for line in done["train"].stderr.splitlines() if "pipeline preprocess" in line]
    assert len(message) == 1
    assert message[0].startswith("crop.max_frames (900): differs from params.yaml")
    assert message[0].endswith("pipeline preprocess --config older.yaml")
    # the warning comes before the error of the missing checkpoint
    flags = ["--data_root", "my corpus", "--fps", "30", "--max-frames", "900", "--resume", "nowhere.pt"]
    again = run(workspace, "train", *flags)
    assert again.returncode == 1
    for part in ("--data-root 'my corpus'", "--set crop.target_fps=30.0", "--set crop.max_frames=900"):
        assert part in again.stderr


def test_show_and_test_print_the_figures_of_the_report(workspace: Path) -> None:
    metrics = json.loads((workspace / "report" / "metrics.json").read_text("utf-8"))
    assert metrics["speaker_overlap"] == 0
    shown = run(workspace, "show")
    assert shown.returncode == 0, shown.stderr
    assert f"{100 * metrics['cer']:.1f} %" in shown.stdout and "in the training clips too" not in shown.stdout
    assert json.loads(run(workspace, "show", "--json").stdout) == metrics
    checkpoint = ["--checkpoint", "checkpoints/best_model.pt"]
    tested = run(workspace, "test", *checkpoint, "--json")
    assert tested.returncode == 0, tested.stderr
    assert json.loads(tested.stdout) == metrics
    flattered = run(workspace, "test", *checkpoint, "--split", "train")
    assert flattered.returncode == 0, flattered.stderr
    assert "1 of the speakers of split train are in the training clips too" in " ".join(
        flattered.stdout.split()
    )


def test_inference_reads_videos_and_names_reasons_for_failures(workspace: Path) -> None:
    video, text = video_of(workspace)
    garbage = workspace / "garbage.mp4"
    garbage.write_bytes(bytes(range(256)) * 40)
    # one process for both: a verb that reads several files fails if one of them fails
    found = run(workspace, "inference", "--json", video, "--video_path", "garbage.mp4")
    assert found.returncode == 1
    good, bad = json.loads(found.stdout)
    for reading in (good, bad):
        jsonschema.validate(reading, READING_SCHEMA)
    assert "".join(one["text"] for one in good["segments"][0]["characters"]) == good["text"] != ""
    assert good["path"] == video and good["reason"] is None and good["num_frames"] > 10
    assert bad["path"] == "garbage.mp4" and "unreadable" in bad["reason"] and bad["text"] == ""
    read = run(workspace, "inference", "--video_path", video, "--ground-truth", text)
    assert read.returncode == 0, read.stderr
    first, second = read.stdout.splitlines()
    assert first == good["text"]
    assert re.fullmatch(r"CER \d\.\d{4} \(accuracy -?\d+\.\d\d%\)", second)
    unread = run(workspace, "inference", "garbage.mp4")
    assert unread.returncode == 1
    assert unread.stdout == "" and unread.stderr.strip().startswith("garbage.mp4: unreadable: ")


def documented_queries() -> list[tuple[str, str]]:
    """(for `pipeline query`, for plain duckdb), in the order of docs/queries.md."""
    ours = re.findall(r'^pipeline query "(SELECT .*)"$', QUERIES, re.MULTILINE)
    (block,) = re.findall(r"```sql\n(.*?)```", QUERIES, re.DOTALL)
    plain = [part.strip() for part in re.sub(r"--.*", "", block).split(";") if part.strip()]
    assert len(ours) == len(plain) == 5
    return list(zip(ours, plain, strict=True))


def test_the_five_documented_queries_give_the_same_in_plain_duckdb(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace)
    for ours, plain in documented_queries():
        found = run(workspace, "query", ours, "--format", "json")
        assert found.returncode == 0, found.stderr
        relation = duckdb.sql(plain)
        rows = [dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall()]
        # equal rows may be in any order
        assert Counter(map(str, json.loads(found.stdout))) == Counter(map(str, rows)), ours
        assert rows or "rejected" in plain


def test_the_other_documented_queries_run(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process; the test above runs the command."""
    monkeypatch.chdir(workspace)
    texts = [path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md")]
    found = {sql for text in texts for sql in re.findall(r'^pipeline query "(.*?)"', text, re.MULTILINE)}
    others = found - {ours for ours, _ in documented_queries()}
    assert len(others) >= 4
    beam = ["--set", "decode.decoder=ctc_beam", "--set", "paths.report=by_beam"]
    assert run(workspace, "report", *beam).returncode == 0
    for sql in others:
        # only beam searches have candidates
        paths = PathsParams(report="by_beam" if "candidates" in sql else "report")
        assert query(sql, paths, lambda answer: answer.columns)


def test_stats_of_another_corpus_ignore_older_tables(workspace: Path, tmp_path: Path) -> None:
    table = "clip_id,media,text,split\na,a.mp4,你好,train\n"
    (tmp_path / "clips.csv").write_text(table, "utf-8")
    other = ["--set", "corpus.kind=table", "--data-root", str(tmp_path), "--set", "paths.clips=other.parquet"]
    assert run(workspace, "ingest", *other).returncode == 0
    found = run(
        workspace, "stats", "--json", "--set", "paths.clips=other.parquet", "--set", "paths.stats=other"
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["splits"]["total"]["clips"] == 1
    assert json.loads(found.stdout)["splits"]["total"]["ok"] is None
    message = [line for line in found.stderr.splitlines() if "does not match the clips" in line]
    assert len(message) == len(found.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["train", "--batch-size", "0"], 2, "train.batch_size: 0 is not allowed"),
        (["stats", "--config", "nowhere.yaml"], 2, "nowhere.yaml is missing"),
        (["query", "DROP TABLE clips"], 2, "one SELECT statement"),
        (["inference"], 2, "pipeline inference VIDEO"),
        (["inference", "x.mp4", "--format", "pdf"], 2, "'pdf'"),
        (["crop", "--job-index", "3"], 2, "--job-index and --num-jobs must be given together"),
        (["crop", "--no-such"], 2, "`pipeline crop --help`"),
        (["cropp"], 2, "`pipeline --help`"),
        (["train", "--scheduler", "step"], 2, "train.scheduler: 'step' is not allowed"),
        (["ingest", "--data_root=not_there"], 1, "not_there"),
        (["test", "--checkpoint", "nowhere.pt"], 1, "nowhere.pt"),
    ],
)
def test_an_error_is_a_message_and_an_exit_code(
    arguments: list[str], code: int, message: str, workspace: Path
) -> None:
    found = run(workspace, *arguments)
    assert found.returncode == code, found.stderr
    assert found.stdout == ""
    (line,) = found.stderr.splitlines()
    assert line.startswith("pipeline: ") and message in line


def test_every_name_of_the_older_trainer_is_a_flag_of_train() -> None:
    from pipeline.cli import app

    train = typer.main.get_command(app).commands["train"]  # type: ignore[attr-defined]
    flags = {option for parameter in train.params for option in parameter.opts}
    assert {"--" + name.replace("_", "-") for name in OLDER_NAMES} <= flags


def test_flags_of_the_older_trainer_reach_their_owners() -> None:
    from pipeline.legacy_config import keys_of_flags

    given = {"frame_height": 48, "frame_size": 64, "dropout": None}
    assert keys_of_flags(given) == {"model.frame_height": 48, "model.frame_width": 64}
    assert keys_of_flags({"scheduler": "cosine annealing"}) == {"train.scheduler": "cosine"}
    assert keys_of_flags({"mixed_precision": False}) == {"train.mixed_precision": False}


def test_the_installed_command_reports_errors_by_its_exit_code(tmp_path: Path) -> None:
    for arguments, code in ((("cropp",), 2), (("pack",), 2), (("compare", "a", "b"), 1)):
        found = run_process(tmp_path, *arguments)
        in_process = run(tmp_path, *arguments)
        assert (found.returncode, found.stdout) == (code, "")
        assert (found.returncode, found.stderr) == (in_process.returncode, in_process.stderr)


def test_without_arguments_the_help_is_printed(tmp_path: Path) -> None:
    without_arguments = run_process(tmp_path)
    assert (without_arguments.returncode, without_arguments.stderr) == (0, "")
    help_text = run_process(tmp_path, "--help").stdout
    assert without_arguments.stdout == help_text and "ingest" in help_text


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda *_: bytearray(1 << 60), "memory is used up: lower machine.workers"),
        (lambda *_: signal.raise_signal(signal.SIGINT), "stopped"),
        (lambda *_: os.open("/nowhere", os.O_RDONLY), None),
    ],
)
def test_a_machine_error_in_a_verb_is_one_message(
    fault: Callable[..., Any],
    message: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("pipeline.query.write_answer", fault)
    monkeypatch.setattr(sys, "argv", ["pipeline", "query", "SELECT 1", "--params", str(ROOT / "params.yaml")])
    monkeypatch.setattr(atexit, "register", lambda *_: None)
    if message is None:
        with pytest.raises(FileNotFoundError):  # a bug keeps its traceback
            cli.main()
        return
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert (done.value.code, capsys.readouterr().err.strip().startswith(f"pipeline: {message}")) == (1, True)
