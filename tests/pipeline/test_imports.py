"""Tests the imports between packages, what runs without torch or mediapipe, and a fast `--help`."""

import json
import os
import statistics
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import typer

from tests.support.in_process import pipeline

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
HELP_LIMIT_S = 0.3

PREPROCESSING = (
    "pipeline.params",
    "pipeline.console",
    "stages.ingest",
    "stages.crop",
    "stages.pack",
    "stages.qc.pages",
    "shards.remote_store",
    "shards.verify",
    "shards",
    # reading videos with an exported model
    "pipeline.inference.readers",
    "pipeline.inference.inference_run",
)
TRAINING = (
    "stages.train",
    "model.decoding.scoring",
    "model.checkpoints",
    "model.decoding.reader",
    "stages.report",
    "stages.reports.counting",
)
LIGHT = (
    "model.text",
    "model.decoding.ctc",
    "model.decoding.ctc_beam",
    "model.decoding.arpa",
    "model.decoding.registry",
    "model.exports.onnx_reader",
    "model.decoding.result",
    "model.metrics",
)


def loaded_by(*modules: str) -> set[str]:
    """Names in sys.modules after importing `modules` in a fresh interpreter."""
    source = f"import sys, {', '.join(modules)}; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


# import-linter checks the same by name (pyproject.toml); these also see what third packages import


def test_preprocessing_imports_no_torch() -> None:
    assert not {"torch", "webdataset"} & loaded_by(*PREPROCESSING)


def test_training_and_scoring_import_neither_mediapipe_nor_torchs_compiler() -> None:
    """The compiler takes as long to import as torch; only training needs it."""
    assert not {"mediapipe", "torch._dynamo"} & loaded_by(*TRAINING)


def test_text_decoding_and_metrics_import_neither() -> None:
    assert not {"torch", "mediapipe", "webdataset"} & loaded_by(*LIGHT)


def test_imports_flow_down() -> None:
    done = subprocess.run(
        [SCRIPTS / "lint-imports", "--no-cache"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_help_loads_nothing_heavy() -> None:
    loaded = loaded_by("pipeline.cli", "shards.errors")
    assert not {"torch", "mediapipe", "cv2", "numpy", "pyarrow", "duckdb", "pydantic", "av"} & loaded


def test_help_answers_at_once() -> None:
    """Median of five warm runs, in processor time, because wall time is longer on a shared machine."""
    seconds = []
    for _ in range(6):
        with Path(os.devnull).open("wb") as nowhere:
            process = subprocess.Popen([SCRIPTS / "pipeline", "--help"], stdout=nowhere)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        seconds.append(usage.ru_utime + usage.ru_stime)
    assert statistics.median(seconds[1:]) <= HELP_LIMIT_S, seconds


def verbs() -> list[str]:
    from pipeline.cli import app

    return sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("verb", verbs())
def test_every_verb_explains_itself_with_an_example(verb: str) -> None:
    done = pipeline(ROOT, [verb, "--help"])
    assert done.returncode == 0, done.stderr
    assert f"Example: pipeline {verb}" in done.stdout


def test_the_verbs_of_the_design_exist() -> None:
    stages = {"ingest", "crop", "pack", "stats", "train", "report"}
    others = {
        "init",
        "demo",
        "preprocess",
        "test",
        "inference",
        "query",
        "qc",
        "verify",
        "doctor",
        "show",
        "export",
    }
    assert stages | others <= set(verbs())


def doctor(broken: Path | None = None) -> tuple[int, dict[str, dict[str, object]]]:
    """Returns exit code and findings by name; `broken` is a folder whose modules hide the real ones."""
    environment = os.environ | ({"PYTHONPATH": str(broken)} if broken else {})
    command = [str(SCRIPTS / "pipeline"), "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.stdout, done.stderr
    return done.returncode, {finding["name"]: finding for finding in json.loads(done.stdout)}


def test_the_doctor_finds_no_fault_on_this_machine() -> None:
    code, findings = doctor()
    assert code == 0
    assert {"Python", "memory", "free disk", "face landmarker", "GPU", "OpenCV wheels"} <= findings.keys()
    assert not [name for name, finding in findings.items() if finding["is_fatal"] and finding["fix"]]


def test_a_broken_library_does_not_end_the_doctor(tmp_path: Path) -> None:
    """A library that cannot be loaded, and one that ends its process, are findings with a fix."""
    (tmp_path / "cv2.py").write_text(
        "raise ImportError('libGL.so.1: cannot open shared object file')", "utf-8"
    )
    (tmp_path / "torch.py").write_text("import os; os.abort()", "utf-8")
    code, findings = doctor(tmp_path)
    assert code == 1
    assert "libGL.so.1" in str(findings["opencv-python"]["value"])
    assert "signal 6" in str(findings["torch"]["value"])
    for name in ("opencv-python", "torch", "face landmarker"):
        assert findings[name]["is_fatal"]
        assert findings[name]["fix"]
