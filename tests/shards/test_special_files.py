"""Atomic writes to devices, pipes, sockets and files that are open already."""

import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline.cli import app
from shards.errors import DiskError, MachineError
from shards.files import atomic_file, write_bytes, write_text
from tests.support.special_files import NULL, device, names

# -- devices and pipes ---------------------------------------------------------------------------------------


def test_a_device_is_written_and_not_replaced(tmp_path: Path) -> None:
    null = device(tmp_path / "null", NULL)
    write_text(null, "x" * 100_000)
    app(["query", "SELECT 1", "--out", str(null), "--params", "params.yaml"], standalone_mode=False)
    assert stat.S_ISCHR(null.stat().st_mode) and names(tmp_path) == ["null"]


def test_a_pipe_is_written_directly_and_not_replaced(tmp_path: Path) -> None:
    pipe, link, came = tmp_path / "pipe", tmp_path / "link", []
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        reader = threading.Thread(target=lambda: came.append(pipe.read_bytes()))
        reader.start()
        write_bytes(path, b"abc" * 50_000)
        reader.join(10)
    assert came == [b"abc" * 50_000] * 2
    assert pipe.is_fifo() and link.is_symlink() and names(tmp_path) == ["link", "pipe"]


BROKEN = (
    r"pipe cannot be written \(Broken pipe\); the program that reads the pipe ended too early: .*name a file$"
)


def test_a_pipe_whose_reader_has_ended_is_reported(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: pipe.open("rb").close())
    reader.start()
    with pytest.raises(DiskError, match=BROKEN), atomic_file(pipe) as file:
        reader.join(10)
        file.write(bytes(1_000_000))


def test_disks_and_sockets_are_refused(tmp_path: Path) -> None:
    # a device number without a disk, in case it is opened by mistake
    disk = device(tmp_path / "disk", (240, 250), stat.S_IFBLK)
    with pytest.raises(MachineError, match=r"disk is a disk; name a file"):
        write_bytes(disk, b"x")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "sock"))
        with pytest.raises(MachineError, match=r"sock is a socket; name a file"):
            write_bytes(tmp_path / "sock", b"x")
    assert stat.S_ISBLK(disk.stat().st_mode) and (tmp_path / "sock").is_socket()


# -- files that are open already -----------------------------------------------------------------------------

WRITES = """
import sys
from pathlib import Path
from shards.errors import PipelineError
from shards.files import write_bytes
try:
    write_bytes(Path(sys.argv[1]), b"answer")
except PipelineError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize(
    ("path", "shell", "left"),
    [
        ("/dev/stdout", ">> log", b"precious\nanswer"),
        ("/proc/self/fd/1", ">> log", b"precious\nanswer"),
        ("/proc/thread-self/fd/1", ">> log", b"precious\nanswer"),
        ("link", ">> log", b"precious\nanswer"),
        ("/dev/fd/6", "6> gone; rm gone", b"precious\n"),
        ("/dev/fd/6", "6<> log; read -u 6", b"precious\nanswer"),
        ("/dev/stdout", "| cat > log", b"answer"),
    ],
)
def test_a_path_of_an_open_descriptor_is_written_at_its_offset(
    tmp_path: Path, path: str, shell: str, left: bytes
) -> None:
    """Appends, writes at the current offset, or writes to a removed file, as the shell opened it."""
    (tmp_path / "log").write_bytes(b"precious\n")
    (tmp_path / "link").symlink_to("/dev/stdout")
    opened, _, then = shell.partition("; ")
    command = '"$@"'
    script = f"exec {opened}\n{then}\n{command}" if then else f"{command} {opened}"
    done = written_by(script, path, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(tmp_path) == ["link", "log"] and (tmp_path / "link").is_symlink()
    assert (tmp_path / "log").read_bytes() == left


def written_by(script: str, path: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = ["bash", "-c", script, "bash", sys.executable, "-c", WRITES, path]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=60
    )


def test_an_open_file_of_another_process_or_a_read_only_descriptor_is_reported(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"precious\n")
    done = written_by('exec 6>> log; "${@:1:3}" /proc/$$/fd/6 6>&-', "", tmp_path)
    assert "is an open file of another process; give the path of the file itself" in done.stderr
    done = written_by('"$@" 6< log', "/dev/fd/6", tmp_path)
    assert "/dev/fd/6 cannot be written (Bad file descriptor)" in done.stderr
    assert names(tmp_path) == ["log"] and (tmp_path / "log").read_bytes() == b"precious\n"
