"""Packing with threads, again, and after a kill: the bytes do not tell."""

import shutil
import signal
import time
from pathlib import Path

import pytest

import shards.codec
from shards.errors import ShardError
from shards.settings import MachineParams
from shards.store import FolderStore
from shards.tar import shard_writer
from stages.pack import pack
from tests.support.forked import Forked
from tests.support.packing import PARAMS, SLOW_PACK, Packing, make

CODECS = ("raw", "jpeg", "h264", "ffv1")


@pytest.fixture(scope="module")
def packing(tmp_path_factory: pytest.TempPathFactory) -> Packing:
    return make(tmp_path_factory.mktemp("threads"), 8)


@pytest.mark.parametrize("codec", CODECS)
def test_any_number_of_threads_gives_the_same_bytes(packing: Packing, codec: str) -> None:
    made = []
    for workers in (1, 3):
        packing.machine = packing.machine.model_copy(update={"workers": workers})
        packing.pack(f"{codec}{workers}", codec=codec)
        made.append(packing.files(f"{codec}{workers}"))
    assert made[0] == made[1]
    assert packing.progress == [(i + 1, 10) for i in range(10)]


def test_clips_that_the_cache_lost_are_cut_by_threads_too(packing: Packing, tmp_path: Path) -> None:
    own = Packing(Path(shutil.copytree(packing.folder, tmp_path / "own")))
    own.pack("shards")
    for path in (own.folder / "cache").rglob("*.npz"):
        path.unlink()
    own.machine = MachineParams(workers=4, cache_dir=own.machine.cache_dir)
    assert own.pack("again").num_rendered == 10
    assert own.files("again") == own.files("shards")


class Unread(FolderStore):
    """A store whose shards cost a download to look at."""

    def local(self, name: str) -> Path:
        assert not name.endswith(".tar"), "what was written is not fetched again"
        return super().local(name)


def test_what_was_written_is_not_read_again(packing: Packing) -> None:
    packing.pack("plain")
    for _ in range(2):  # the second over the first
        pack(
            packing.corpus,
            PARAMS,
            packing.params(),
            packing.machine,
            *packing.tables,
            Unread(packing.folder / "unread"),
            packing.folder / "unread.parquet",
        )
    assert packing.files("unread") == packing.files("plain")


def test_a_clip_that_the_codec_cannot_take_is_named(
    packing: Packing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards.codec, "MAX_CLIP_BYTES", 15 * 96 * 96)
    with pytest.raises(ShardError, match=r"clip (m\d|face) cannot be packed with pack\.codec jpeg"):
        packing.pack("refused", codec="jpeg")
    assert not list((packing.folder / "refused").rglob("*.tar"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_pack_that_is_killed_starts_afresh(
    packing: Packing, tmp_path: Path, number: signal.Signals
) -> None:
    own = Packing(Path(shutil.copytree(packing.folder, tmp_path / "own")))
    own.pack("whole", codec="jpeg", shard_mb=0.02)
    folder = own.folder / "shards"
    with Forked(own.folder, [own.folder], source=SLOW_PACK) as process:
        while not (list(folder.rglob("train-*.tar")) and list(folder.rglob("*.tar.*.tmp"))):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        process.wait(20)
    left = sorted(path.name for path in folder.rglob("*") if path.is_file())
    assert [name for name in left if name.endswith(".tar")]
    assert "index.json" not in left and "README.md" not in left
    assert bool([name for name in left if name.endswith(".tmp")]) == (number == signal.SIGKILL)
    assert not (own.folder / "shards.parquet").exists()
    own.pack("shards", codec="jpeg", shard_mb=0.02)
    assert own.files("shards") == own.files("whole")


def test_an_interrupted_shard_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "train" / "train-000000.tar"
    with (
        pytest.raises(KeyboardInterrupt),
        FolderStore(tmp_path).writing("train/train-000000.tar") as file,
        shard_writer(file) as shard,
    ):
        shard.add("a", ("npy", b"x" * 10_000), ("json", b"{}"))
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []
