"""Named pipes instead of files: refused for reading, written directly; a pipe that is already open is read."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from model.checkpoints import load_checkpoint
from model.decoding.arpa import arpa_metadata, read_arpa
from model.exports.onnx_reader import OnnxReader
from model.pretrained.files import open_weights
from model.pretrained.table import read_table as read_public_table
from model.runs import RunFolder, training_log
from model.settings import TextParams
from pipeline.params import PathsParams, read_mapping
from pipeline.query import query
from shards import pipes
from shards.errors import DiskError, MachineError
from shards.files import check_table, read_table, read_table_in_pieces, sha256_of, write_text
from shards.pipes import refuse_pipe
from shards.schema import CLIPS
from stages.corpora.csv_rows import read_text
from stages.mouths.landmarker import native_stderr_to
from stages.reports.compare import compare

ROOT = Path(__file__).parents[2]
MAX_WAIT_S = 10.0


def logged(pipe: Path) -> None:
    run = RunFolder(pipe.parent, pipe.parent.name)
    run.folder.mkdir()
    pipe.rename(run.log)
    with training_log(run, pipe.parent / "logs"):
        pass


READERS: dict[str, Callable[[Path], object]] = {
    "params": read_mapping,
    "table": lambda pipe: read_table(pipe, CLIPS, "pipeline ingest"),
    "table's pieces": lambda pipe: list(read_table_in_pieces(pipe, CLIPS, "pipeline ingest", ["clip_id"], 9)),
    "table's end": lambda pipe: check_table(pipe, CLIPS, "pipeline ingest"),
    "query's table": lambda pipe: query("FROM clips", PathsParams(clips=str(pipe)), lambda _: None),
    "content": sha256_of,
    "transcripts": read_text,
    "checkpoint": load_checkpoint,
    "mapped checkpoint": lambda pipe: load_checkpoint(pipe, mapped=True),
    "ONNX model": OnnxReader.open,
    "public weights": lambda pipe: open_weights(pipe, "auto_avsr"),
    "public table": lambda pipe: read_public_table(pipe, TextParams()),
    "language model": read_arpa,
    "language model's origin": arpa_metadata,
    "predictions": lambda pipe: compare(pipe, pipe, 10, 0),
    "native log": native_stderr_to,
    "training log": logged,
}


def raised_by(call: Callable[[], object], pipe: Path) -> Exception | None:
    """Returns the exception of `call`; AssertionError if it does not end in time, after unblocking it."""
    raised: list[Exception] = []

    def caught() -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  (the test checks it)
            raised.append(error)

    thread = threading.Thread(target=caught, daemon=True)
    thread.start()
    thread.join(MAX_WAIT_S)
    is_late = thread.is_alive()
    for path in pipe.parent.rglob("*"):
        if is_late and path.is_fifo():
            os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    assert not is_late, "it waits for the other end of the pipe"
    return raised[0] if raised else None


@pytest.mark.parametrize("kind", READERS)
def test_every_reader_refuses_a_named_pipe(tmp_path: Path, kind: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    error = raised_by(lambda: READERS[kind](pipe), pipe)
    assert isinstance(error, MachineError), error
    assert " is a named pipe, and opening it could block forever; give a file" in str(error)
    assert str(tmp_path) in str(error)


def test_writing_a_pipe_without_a_reader_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipes, "READER_WAIT_S", 0.2)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    error = raised_by(lambda: write_text(pipe, "text"), pipe)
    assert isinstance(error, DiskError)
    assert str(error).startswith(
        f"{pipe} cannot be written (No such device or address); no program reads this"
    )


def test_a_reader_that_comes_later_gets_all(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[str] = []

    def read_later() -> None:
        time.sleep(0.3)
        received.append(pipe.read_text())

    reader = threading.Thread(target=read_later)
    reader.start()
    write_text(pipe, "text" * 100_000)
    reader.join(MAX_WAIT_S)
    assert received == ["text" * 100_000]


def test_a_pipe_that_is_open_already_is_read(tmp_path: Path) -> None:
    """As opened by a shell: /dev/stdin, and /dev/fd/63 for <(command)."""
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as sender:
        sender.write("clip_id,media\n")
    with os.fdopen(read_end):
        assert read_text(Path(f"/dev/fd/{read_end}")) == "clip_id,media\n"
    params = (ROOT / "params.yaml").read_text("utf-8")
    command = [sys.executable, "-m", "pipeline", "query", "SELECT 42 AS x", "--format", "csv"]
    for source in ("/dev/stdin", "/proc/self/fd/0"):
        done = subprocess.run(
            [*command, "--params", source],
            input=params,
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "x\n42\n", "")


def test_files_devices_and_missing_paths_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "missing", tmp_path, Path("/dev/null")):
        refuse_pipe(path)
