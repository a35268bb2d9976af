"""Tests a stdout that is full, closed or not read further: at most one message, an exit code and no traceback."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import forked
from tests.support.forked import Forked
from tests.support.special_files import FULL, device

ROOT = Path(__file__).parents[2]
MANY = "FROM range(100000)"
TO_STDOUT = {
    "table": ("query", "SELECT 1"),
    "csv": ("query", MANY, "--format", "csv"),
    "json": ("query", MANY, "--format", "json"),
    "parquet": ("query", f"SELECT hash(range) {MANY}", "--format", "parquet"),
    "help": ("--help",),
}


REDIRECTED = """
import os, sys
number, file = int(sys.argv.pop(1)), sys.argv.pop(1)
os.dup2(os.open(file, os.O_WRONLY), number)
from pipeline.cli import main
main()
"""


def run_forked(arguments: tuple[str, ...], number: int, file: Path) -> Forked:
    """Starts the command in a forked process, with this descriptor redirected to the file after its start."""
    return Forked(ROOT, [str(number), file, *arguments], source=REDIRECTED)


def run(arguments: tuple[str, ...], redirected: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command in a fresh process that is redirected before its start."""
    command = ["bash", "-c", f'"$0" -m pipeline "$@" {redirected}', sys.executable, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("kind", TO_STDOUT)
def test_a_full_stdout_is_one_message(tmp_path: Path, kind: str) -> None:
    full = device(tmp_path / "full", FULL)
    fresh = kind in ("csv", "help")
    done = run(TO_STDOUT[kind], f"> {full}") if fresh else run_forked(TO_STDOUT[kind], 1, full).wait()
    assert done.returncode == 1
    message = "pipeline: the disk is full: stdout cannot be written; files saved earlier are kept. Free some space, "
    assert done.stderr == f"{message}then run the same command again\n"


CLOSED = (
    "cannot be written (Bad file descriptor); it is closed (>&-) or open only for reading (<): redirect it to a file "
    "or a pipe, or name a file"
)


@pytest.mark.parametrize("kind", ["table", "csv", "help"])
def test_a_closed_stdout_is_one_message_and_no_other_file_takes_its_place(kind: str) -> None:
    done = run(TO_STDOUT[kind], ">&-")
    assert (done.returncode, done.stderr) == (1, f"pipeline: stdout {CLOSED}\n")


@pytest.mark.parametrize(
    ("out", "redirected"), [("/dev/stdout", ">&-"), ("/dev/fd/1", ">&-"), ("/dev/fd/99", "")]
)
def test_a_closed_stdout_that_is_named_is_one_message(out: str, redirected: str) -> None:
    arguments = ("query", "SELECT 1", "--out", out)
    done = run(arguments, redirected) if redirected else forked.pipeline(ROOT, arguments)
    assert (done.returncode, done.stderr) == (1, f"pipeline: {out} {CLOSED}\n")


def test_a_verb_that_prints_nothing_needs_no_stdout_and_no_stderr(tmp_path: Path) -> None:
    out = tmp_path / "many.csv"
    done = run((*TO_STDOUT["csv"], "--out", str(out)), ">&- 2>&-")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(out.read_text().splitlines()) == 100_001


def test_processes_start_if_stderr_is_closed() -> None:
    child = "[sys.executable, '-c', 'import os; os.fstat(2)']"
    program = (
        "import subprocess, sys; from pipeline import cli; cli._watched_stdout(); "
        f"raise SystemExit(subprocess.run({child}).returncode)"
    )
    done = subprocess.run(["bash", "-c", f'{sys.executable} -c "{program}" 2>&-'], check=False, cwd=ROOT)
    assert done.returncode == 0


def test_a_pipe_closed_by_its_reader_is_not_an_error() -> None:
    done = run(TO_STDOUT["csv"], "| head -c 20 > /dev/null; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("kind", ["json", "parquet"])
def test_a_pipe_closed_by_its_reader_is_not_an_error_in_other_formats(kind: str) -> None:
    reader, writer = os.pipe()
    with run_forked(TO_STDOUT[kind], 1, Path(f"/proc/{os.getpid()}/fd/{writer}")) as command:
        assert select.select([reader], [], [], 60)[0], "it writes nothing"
        assert os.read(reader, 20)
        os.close(reader)
        done = command.wait()
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_full_stderr_hides_no_exit_code(tmp_path: Path) -> None:
    full = device(tmp_path / "full", FULL)
    assert run(("query", "SELEC 1"), f"2> {full}").returncode == 2
    assert run_forked(("query", "SELECT 1"), 2, full).wait().returncode == 0
