"""Tests a limited address space (`ulimit -v`): the command ends, names memory and rejects no clip."""

import resource
import signal
import subprocess
import sys
from pathlib import Path

import av
import psutil
import pytest

from pipeline import memory_limit
from pipeline.memory_limit import is_about_memory
from shards import machine
from shards.errors import ClipRejected, TableError
from shards.machine import is_address_space_short, status_mb
from stages.settings import CropParams
from stages.videos import video
from tests.support.videos import numbered, write_video

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux")

ROOT = Path(__file__).parents[2]
MIB = 1 << 20
PATIENCE_S = 60.0
WAITS = "import time; print(1, flush=True); time.sleep(60)"

ENDS = """
import os, signal, sys
from pipeline import cli

def end(*_: object, **__: object) -> int:
    {end}

cli.app = end
cli.main()
"""


def limited(mebibytes: int, command: list[str]) -> subprocess.Popen[str]:
    limit = ["sh", "-c", 'ulimit -v "$0" && exec "$@"', str(mebibytes * 1024)]
    return subprocess.Popen(
        [*limit, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def ended(end: str, mebibytes: int = 4096) -> tuple[int, str, str]:
    """Returns exit code, stdout and stderr of a command that does `end`."""
    process = limited(mebibytes, [sys.executable, "-c", ENDS.format(end=end)])
    out, errors = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, errors


@pytest.mark.parametrize("mebibytes", [150, 300, 500, 700, 900, 1000])
def test_a_verb_under_any_limit_answers_or_says_that_memory_is_used_up(mebibytes: int) -> None:
    """It ended with SIGSEGV without a message, or with that of the loader; Python itself needs 100 MiB."""
    process = limited(
        mebibytes, [sys.executable, "-m", "pipeline", "query", "SELECT 42 AS x", "--format", "csv"]
    )
    out, errors = process.communicate(timeout=PATIENCE_S)
    if process.returncode == 0:
        assert (out, errors) == ("x\n42\n", "")
    else:
        assert process.returncode == 1
        assert "pipeline: memory is used up: " in errors and "raise the limit (ulimit -v" in errors
        assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal SIGSEGV"),
        ("os.abort()", "signal SIGABRT"),
        ("os._exit(127)", "exit code 127"),
        ("os._exit(1)", "exit code 1"),
        ("os._exit(0)", "exit code 0"),
    ],
)
def test_a_process_ended_by_a_library_is_reported(end: str, how: str) -> None:
    code, out, errors = ended(end)
    assert (code, out) == (1, "")
    assert (
        errors.startswith("pipeline: memory is used up: ")
        and f"a library ended the command ({how})" in errors
    )


@pytest.mark.parametrize(
    ("end", "code", "errors"),
    [
        ("print('done'); return 0", 0, ""),
        ("raise SystemExit(2)", 2, ""),
        (
            "from shards.errors import TableError; raise TableError('x is missing')",
            1,
            "pipeline: x is missing\n",
        ),
        ("raise MemoryError", 1, f"pipeline: {memory_limit.USED_UP}\n"),
        ('raise RuntimeError("can\'t start new thread")', 1, f"pipeline: {memory_limit.USED_UP}\n"),
    ],
)
def test_a_process_that_ends_by_itself_ends_as_without_a_limit(end: str, code: int, errors: str) -> None:
    assert ended(end) == (code, "done\n" if code == 0 else "", errors)


@pytest.mark.parametrize(("error", "is_printed"), [("MemoryError", False), ("ValueError", True)])
def test_only_a_lack_of_memory_is_not_printed_when_python_ignores_it(error: str, is_printed: bool) -> None:
    """Python 3.13 printed a bare traceback before the command's own message."""
    code, out, errors = ended(
        f"Left = type('Left', (), {{'__del__': lambda _: (_ for _ in ()).throw({error})}}); Left(); return 0"
    )
    assert (code, out) == (0, "") and (error in errors) == is_printed


@pytest.mark.parametrize("way", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signals_reach_the_command_and_no_process_is_left(way: signal.Signals) -> None:
    process = limited(4096, [sys.executable, "-c", ENDS.format(end=WAITS)])
    assert process.stdout is not None
    process.stdout.readline()
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 1
    process.send_signal(way)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def test_only_memory_errors_are_reported_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = OSError("Failed to launch worker thread: Resource temporarily unavailable")
    try:
        raise TableError("clips.parquet is not a readable Parquet file") from thread
    except TableError as error:
        caused = error
    assert not is_about_memory(caused), "no limit, so another cause"
    monkeypatch.setattr(memory_limit, "limit_bytes", lambda: 1 << 30)
    assert is_about_memory(caused) and is_about_memory(MemoryError())
    assert not is_about_memory(TableError("clips.parquet is missing"))


def test_a_video_is_not_called_damaged_if_ffmpeg_lacks_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg then says "Invalid data"; the clip would be lost forever, because the cache keeps rejections."""
    path = write_video(tmp_path / "cut.mkv", [numbered(index) for index in range(30)])
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(ClipRejected):
        list(video.decode(path, CropParams()))
    monkeypatch.setattr(video, "is_address_space_short", lambda: True)
    with pytest.raises(MemoryError):
        list(video.decode(path, CropParams()))


def test_ffmpegs_own_memory_error_is_not_a_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "whole.mkv", [numbered(0)] * 5)

    def refused(*_: object, **__: object) -> None:
        raise av.error.MemoryError(12, "Cannot allocate memory")

    monkeypatch.setattr("av.open", refused)
    with pytest.raises(MemoryError):
        list(video.decode(path, CropParams()))


def test_an_address_space_without_room_to_read_its_size_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(name: str) -> float:
        raise MemoryError

    monkeypatch.setattr(machine, "limit_bytes", lambda: 1 << 40)
    monkeypatch.setattr(machine, "status_mb", no_memory)
    assert machine.is_address_space_short()


def test_memory_is_short_only_near_a_limit() -> None:
    assert not is_address_space_short()
    former = resource.getrlimit(resource.RLIMIT_AS)
    peak = int(status_mb("VmPeak") * 1e6)
    try:
        for limit, short in ((2 * peak, False), (peak + 1, True)):
            resource.setrlimit(resource.RLIMIT_AS, (limit, former[1]))
            assert is_address_space_short() == short
    finally:
        resource.setrlimit(resource.RLIMIT_AS, former)
