"""A pack that cannot be written costs the former one nothing, and two at once do not write over each other."""

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest

from shards import files
from shards.errors import MachineError, ShardError
from shards.files import read_table
from shards.schema import CROPS
from shards.store import FolderStore
from stages.pack import pack
from tests.support import forked
from tests.support.forked import Forked
from tests.support.packing import PARAMS, SLOW_PACK, Packing, make
from tests.support.small_disk import python_on_small_disk


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("safe"), 8).folder


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Packing:
    return Packing(Path(shutil.copytree(made, tmp_path / "own")))


class ReadOnly(FolderStore):
    """As a bucket that may be listed and read."""

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        raise MachineError(f"{self.place(name)}: access denied")
        yield


def pack_into(own: Packing, store: FolderStore, samples: str) -> None:
    """With another codec than the former pack's: what is written over differs."""
    clips, crops, tracks = own.tables
    params = own.params(codec="jpeg")
    pack(own.corpus, PARAMS, params, own.machine, clips, crops, tracks, store, own.folder / samples)


def test_a_store_that_cannot_be_written_leaves_the_former_pack_whole(own: Packing) -> None:
    own.pack("shards")
    before = own.files("shards")
    (own.folder / "file").touch()
    with pytest.raises(MachineError, match=r"file.* cannot be written"):
        pack_into(own, FolderStore(own.folder / "file"), "shards.parquet")
    with pytest.raises(MachineError, match="access denied"):
        pack_into(own, ReadOnly(own.folder / "shards"), "shards.parquet")
    assert own.files("shards") == before


def test_what_is_somebody_elses_is_not_even_tried(own: Packing) -> None:
    """Not a byte is written next to it, and nothing removed, before the error is reported."""
    store = ReadOnly(own.folder / "shards")
    (own.folder / "shards").mkdir()
    (own.folder / "shards" / "thesis.txt").touch()
    with pytest.raises(ShardError, match=r"thesis\.txt is not a file of a pack"):
        pack_into(own, store, "shards.parquet")
    assert [path.name for path in (own.folder / "shards").iterdir()] == ["thesis.txt"]


def test_a_catalogue_that_cannot_be_written_leaves_the_former_pack_whole(own: Packing) -> None:
    own.pack("shards")
    before = own.files("shards")
    with pytest.raises(MachineError, match=r"shards\.parquet/deep/x\.parquet cannot be written"):
        pack_into(own, FolderStore(own.folder / "shards"), "shards.parquet/deep/x.parquet")
    assert own.files("shards") == before


def test_a_second_pack_is_refused_until_the_first_is_dead(own: Packing) -> None:
    own.pack("whole", codec="jpeg", shard_mb=0.02)
    with Forked(own.folder, [own.folder], source=SLOW_PACK) as first:
        while not list((own.folder / "shards").rglob("train-*.tar")):
            assert first.poll() is None
            time.sleep(0.02)
        written = {path: path.stat().st_ino for path in (own.folder / "shards").rglob("train-*.tar")}
        with pytest.raises(ShardError, match=rf"another pack .*shards\.parquet \(process {first.pid} of "):
            own.pack("shards", codec="jpeg", shard_mb=0.02)
        (own.folder / "link").symlink_to(own.folder)
        for folder in (own.folder, own.folder / "link"):
            with pytest.raises(ShardError, match=rf"another pack .*shards \(process {first.pid} of "):
                pack_into(own, FolderStore(folder / "shards"), "another_catalogue.parquet")
        assert all(path.stat().st_ino == inode for path, inode in written.items())
        first.send_signal(signal.SIGKILL)
        first.wait(20)
    own.pack("shards", codec="jpeg", shard_mb=0.02)
    assert own.files("shards") == own.files("whole")


KILLED_PACK = """
import os, signal, sys
from pathlib import Path
from shards import files
from tests.stages.test_pack_safe import Packing

begin, begun = files._locked_temporary, []

def killed_at(path):
    temporary, raw = begin(path)
    begun.append(path)
    if len(begun) == int(sys.argv[2]):
        raw.write(bytes(1000))
        os.kill(os.getpid(), signal.SIGKILL)
    return temporary, raw

files._locked_temporary = killed_at
own = Packing(Path(sys.argv[1]))
own.pack("shards", shard_mb=50)
print(len(begun))
"""


def killed_pack(folder: Path, at: int) -> "subprocess.CompletedProcess[str]":
    """A pack whose process is killed while it writes its `at`th file."""
    return forked.python(KILLED_PACK, folder, str(at))


@pytest.mark.parametrize("at", [1, 3, 5])
def test_the_pack_after_a_killed_one_is_whole_whatever_was_being_written(
    own: Packing, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trial, a shard, the card."""
    own.pack("shards", shard_mb=50)
    whole = own.files("shards")
    assert killed_pack(own.folder, at).returncode == -signal.SIGKILL
    assert list(own.folder.rglob(".*.tmp")), "nothing was left behind"
    monkeypatch.setattr(files, "_swept", set())
    own.pack("shards", shard_mb=50)
    assert own.files("shards") == whole
    assert not list(own.folder.rglob(".*.tmp"))


def test_a_left_file_of_any_name_that_this_program_gives_is_swept_and_no_other(own: Packing) -> None:
    own.pack("shards")
    whole = own.files("shards")
    left = files._locked_temporary(own.folder / "shards" / ("x" * 60 + "-000000.tar"))
    left[1].close()
    (own.folder / "shards" / "..README.md.tried.tmp.0123456789abcdef.tmp").touch()  # as in a remote folder
    own.pack("shards")
    assert own.files("shards") == whole
    (own.folder / "shards" / ".notes.tmp").touch()
    with pytest.raises(ShardError, match=r"\.notes\.tmp is not a file of a pack"):
        own.pack("shards")


FULL_DISK = """
import json, os, sys
from pathlib import Path
from shards.errors import DiskError
from tests.stages.test_pack_safe import Packing

own = Packing(Path(sys.argv[1]))
small = own.folder / "small"
answers = []
for codec, room in ("raw", 300_000), ("ffv1", 50_000):
    own.pack("small/shards", codec="jpeg", shard_mb=0.05)
    before = own.files("small/shards")
    space = os.statvfs(small)
    (small / "filler").write_bytes(bytes(space.f_bavail * space.f_frsize - room))
    try:
        own.pack("small/shards", codec=codec, shard_mb=0.05)
        message = "packed"
    except DiskError as error:
        message = str(error)
    rest = (small / "shards.parquet").exists() and own.files("small/shards") == before
    answers.append({"message": message, "is_whole": rest})
    (small / "filler").unlink()
own.pack("small/shards", codec="jpeg", shard_mb=0.05)
answers.append({"message": "", "is_whole": own.files("small/shards") == before})
print(json.dumps(answers))
"""


@pytest.mark.usefixtures("on_small_disk")
def test_a_full_disk_is_reported_before_the_former_pack_goes_or_as_what_it_cost(own: Packing) -> None:
    """Raw clips have a known size; how large others become turns out when there is no room any more."""
    done = python_on_small_disk(own.folder / "small", "24m", FULL_DISK, own.folder)
    assert done.returncode == 0, done.stderr
    beforehand, midway, again = json.loads(done.stdout.splitlines()[-1])
    needed = re.fullmatch(
        r"the disk is full: \S*/small/shards cannot be written \((\d\.\d) MB needed\); files saved earlier "
        r"are kept\. Free some space, .*",
        beforehand["message"],
    )
    assert needed, beforehand
    frames = sum(
        row["num_frames"] for row in read_table(own.tables[1], CROPS, "").to_pylist() if row["status"] == "ok"
    )
    assert float(needed[1]) == round(frames * PARAMS.size_px**2 / 1e6, 1)
    assert beforehand["is_whole"]
    assert re.fullmatch(
        r"the disk is full: \S*/small/shards/\S+ cannot be written.*; the previous pack was removed to make room\. "
        "Free some space, then run the same command again",
        midway["message"],
    ), midway
    assert not midway["is_whole"] and again["is_whole"]
