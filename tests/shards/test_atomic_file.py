"""Atomic writes: links are followed, errors reported, partial files of killed processes removed."""

import os
import resource
import signal
import stat
import subprocess
import sys
import tarfile
import threading
import wave
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import torch
from matplotlib.figure import Figure

from shards import files
from shards.errors import DiskError, MachineError
from shards.files import atomic_file, write_bytes
from tests.support.other_user import NOBODY, as_nobody, open_folder
from tests.support.special_files import FULL, device, names

MANY = np.arange(200_000)


def test_a_file_above_the_size_limit_of_the_user_is_reported(tmp_path: Path) -> None:
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Python ignores SIGXFSZ
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, former[1]))
    try:
        with pytest.raises(
            DiskError, match=r"a cannot be written \(File too large\); raise the limit \(`ulimit -f`"
        ):
            write_bytes(tmp_path / "a", bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert names(tmp_path) == []


def test_an_impossible_file_name_is_reported(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    for name, fix in {
        "folder": "a folder has this name",
        "file/a": "a file exists where a folder is needed",
        "file/a/b": "a file exists where a folder is needed",
        "a" * 256: "give a shorter name",
    }.items():
        with pytest.raises(DiskError, match=rf"{name} cannot be written \([A-Z].*\); {fix}"):
            write_bytes(tmp_path / name, b"x")
    assert names(tmp_path) == ["file", "folder"]


def _arrow(file: BinaryIO) -> None:
    pq.write_table(pa.table({"a": MANY}), file)


def _plot(file: BinaryIO) -> None:
    figure = Figure()
    figure.subplots().plot(MANY[:9000], MANY[:9000] ** 0.5)
    figure.savefig(file, format="svg")


def _tar(file: BinaryIO) -> None:
    with tarfile.open(fileobj=file, mode="w") as tar:
        member = tarfile.TarInfo("a")
        member.size = MANY.nbytes
        tar.addfile(member, BytesIO(MANY.tobytes()))


def _zip(file: BinaryIO) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a", MANY.tobytes())


def _video(file: BinaryIO) -> None:
    with av.open(file, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(12):
            noise = np.random.default_rng(number).integers(0, 256, (240, 320, 3), np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(noise, format="rgb24")))
        out.mux(stream.encode(None))


def _sound(file: BinaryIO) -> None:
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(MANY.tobytes())


def _hides_errors(file: BinaryIO) -> None:
    """Writes like a library that hides errors."""
    try:
        file.write(MANY.tobytes())
        file.flush()
    except OSError:
        file.seek(0)


WRITERS: dict[str, Callable[[BinaryIO], object]] = {
    "Arrow": _arrow,
    "torch": lambda file: torch.save({"a": torch.from_numpy(MANY)}, file),
    "numpy": lambda file: np.savez(file, a=MANY),
    "matplotlib": _plot,
    "safetensors": lambda file: file.write(safetensors.numpy.save({"a": MANY})),
    "tarfile": _tar,
    "zipfile": _zip,
    "PyAV": _video,
    "wave": _sound,
    "hides errors": _hides_errors,
    "at the end": lambda file: file.write(b"x"),
}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_every_writer_reports_a_full_disk_with_the_same_message(
    tmp_path: Path, write: Callable[[BinaryIO], object]
) -> None:
    """Each library raises its own errors, or none."""
    full = device(tmp_path / "full", FULL)
    with (
        pytest.raises(DiskError, match=r"the disk is full: \S*/full cannot be written"),
        atomic_file(full) as file,
    ):
        write(file)
    assert stat.S_ISCHR(full.stat().st_mode)


# -- links ---------------------------------------------------------------------------------------------------


def test_a_link_is_followed_to_its_target(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target, link, second = tmp_path / "far" / "target", tmp_path / "link", tmp_path / "second"
    target.write_bytes(b"old")
    link.symlink_to("far/target")
    second.symlink_to(link)
    for path, content in ((link, b"one"), (second, b"two"), (tmp_path / "dangling", b"three")):
        if path.name == "dangling":
            path.symlink_to("far/new")
        write_bytes(path, content)
        assert path.is_symlink() and path.read_bytes() == content
    assert target.read_bytes() == b"two" and not target.is_symlink()
    assert (tmp_path / "far" / "new").read_bytes() == b"three"
    assert names(tmp_path / "far") == ["new", "target"]


def test_a_broken_link_or_a_link_to_a_protected_file_is_reported(tmp_path: Path) -> None:
    """DVC makes files of its cache read-only and links to them; root could still write them."""
    kept = tmp_path / "kept"
    kept.write_bytes(b"of a cache")
    kept.chmod(0o444)
    for name, target in (("protected", "kept"), ("loop", "loop"), ("lost", "gone/file")):
        (tmp_path / name).symlink_to(target)
    with pytest.raises(
        MachineError, match=r"protected is a link to \S*/kept, which is write-protected .*dvc unpr"
    ):
        write_bytes(tmp_path / "protected", b"x")
    with pytest.raises(DiskError, match=r"loop cannot be written \(Too many levels of symbolic links\)"):
        write_bytes(tmp_path / "loop", b"x")
    with pytest.raises(DiskError, match=r"lost cannot be written \(No such file or directory\)"):
        write_bytes(tmp_path / "lost", b"x")
    assert kept.read_bytes() == b"of a cache"
    assert names(tmp_path) == ["kept", "loop", "lost", "protected"]


# -- owner and mode -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755, 0o444])
def test_a_file_that_is_replaced_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    """Also for a read-only file, such as a hard link to the DVC cache: the other name keeps its content."""
    file, cache, link = tmp_path / "file", tmp_path / "cache", tmp_path / "link"
    file.write_bytes(b"old")
    cache.hardlink_to(file)
    file.chmod(mode)
    write_bytes(file, b"new")
    assert (file.read_bytes(), cache.read_bytes()) == (b"new", b"old")
    assert file.stat().st_mode & 0o7777 == mode
    if mode & 0o222:
        link.symlink_to(file)
        write_bytes(link, b"newer")
        assert (file.read_bytes(), file.stat().st_mode & 0o7777) == (b"newer", mode)


def test_a_new_file_has_the_default_mode(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", b"x")
    (tmp_path / "b").write_bytes(b"x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_root_keeps_the_owner_of_a_replaced_file_and_another_user_becomes_its_owner() -> None:
    with open_folder() as folder:
        file = folder / "file"
        file.write_bytes(b"old")
        os.chown(file, NOBODY, NOBODY)
        file.chmod(0o600)
        write_bytes(file, b"new")
        assert (file.stat().st_uid, file.stat().st_gid, file.stat().st_mode & 0o777) == (
            NOBODY,
            NOBODY,
            0o600,
        )
        os.chown(file, 0, 0)
        with as_nobody():
            write_bytes(file, b"his")
        assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (NOBODY, 0o600)


# -- what killed processes leave -----------------------------------------------------------------------------

WRITING = """
import os, sys
from pathlib import Path
from shards.files import atomic_file
with atomic_file(Path(sys.argv[1])) as file:
    file.write(bytes(100_000))
    file.flush()
    print("begun", flush=True)
    sys.stdin.read()
"""


def begun(path: Path) -> "subprocess.Popen[str]":
    """Starts a process that is writing `path`; it completes the file when its stdin is closed."""
    command = [sys.executable, "-c", WRITING, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


def test_the_next_run_removes_what_a_killed_process_left_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed, alive = begun(tmp_path / "stats.svg"), begun(tmp_path / "best_model.pt")
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=10)
    # files of other programs with similar names, and of another machine, whose locks may be invisible here
    others = {".stats.svg.abc.tmp", ".notes.tmp", ".a.pipeline-00000000-abcdefgh.tmp", "a.pipeline-x.tmp"}
    for name in others:
        (tmp_path / name).write_bytes(b"theirs")
    partial_files = {
        name for name in names(tmp_path) if name.startswith((".stats.svg.p", ".best_model.pt.p"))
    }
    assert len(partial_files) == 2 and all(
        (tmp_path / name).stat().st_size == 100_000 for name in partial_files
    )
    monkeypatch.setattr(files, "_swept", set())
    write_bytes(tmp_path / "splits.json", b"{}")
    (left,) = partial_files & set(names(tmp_path))
    assert left.startswith(".best_model.pt.")
    assert set(names(tmp_path)) == {*others, left, "splits.json"}
    alive.communicate(timeout=10)
    assert alive.returncode == 0
    assert (tmp_path / "best_model.pt").read_bytes() == bytes(100_000)
    assert set(names(tmp_path)) == {*others, "splits.json", "best_model.pt"}


def test_a_sweep_during_the_start_of_writes_loses_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may sweep between the creation of a temporary file and its lock; no file is lost."""

    class Never(set):  # type: ignore[type-arg]
        def __contains__(self, _: object) -> bool:
            return False

    monkeypatch.setattr(files, "_swept", Never())
    faults: list[Exception] = []

    def write(number: int) -> None:
        try:
            for time in range(40):
                write_bytes(tmp_path / f"{number}-{time}", bytes(10))
        except (OSError, MachineError) as error:
            faults.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not faults
    assert len(names(tmp_path)) == 240
