"""The mirror of the cache: what one machine has made, another need not."""

import hashlib
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from shards.errors import ConfigError, MachineError
from shards.settings import MachineParams, PackParams
from shards.store import FolderStore
from stages.clips.cache import Keys
from stages.clips.shared_cache import SharedCache
from stages.pack import pack
from stages.settings import CorpusParams, CropParams
from tests.support.crop_runs import Run, clip_row, write_clips
from tests.support.s3_server import BUCKET, faulty_proxy, s3_client, s3_server
from tests.support.videos import write_face, write_mouth


@pytest.fixture
def run(tmp_path: Path, forked_workers: None) -> Run:
    run = Run(tmp_path)
    write_face(run.root / "face.mp4", 12)
    write_mouth(run.root / "mouth.mp4", 12)
    write_mouth(run.root / "texture.mp4", 12, seed=1, size=140)
    rows = [clip_row("face", "face.mp4"), clip_row("mouth", "mouth.mp4", media_kind="mouth")]
    write_clips(tmp_path / "clips.parquet", [*rows, clip_row("no_face", "texture.mp4")])
    return run


def machine(run: Run, number: int) -> MachineParams:
    return MachineParams(workers=1, cache_dir=str(run.folder / f"cache{number}"), share=share(run).as_uri())


def share(run: Run) -> Path:
    return run.folder / "mnt" / "share"


def entries(folder: Path) -> dict[str, bytes]:
    found = folder.rglob("*") if folder.exists() else ()
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in found
        if path.is_file() and path.suffix not in (".sqlite", ".log")
    }


def test_another_machine_finds_what_one_has_made(run: Run) -> None:
    assert run(machine=machine(run, 1)).num_from_cache == 0
    tables = run.tables()
    assert entries(share(run)) == entries(run.folder / "cache1")
    assert len(entries(share(run))) == 3 + 2
    again = run(machine=machine(run, 2))
    assert (again.num_from_cache, run.tables()) == (3, tables)
    assert entries(run.folder / "cache2") == entries(share(run))


def test_pack_takes_clips_from_the_mirror(run: Run) -> None:
    """The machine that packs need not have cropped."""
    here = machine(run, 1)
    run(machine=here)
    tables = [run.folder / f"{name}.parquet" for name in ("clips", "crops", "tracks")]
    to = (FolderStore(run.folder / "shards"), run.folder / "samples.parquet")
    shutil.rmtree(here.cache_dir)
    shutil.rmtree(run.root)
    summary = pack(CorpusParams(root=str(run.root)), CropParams(), PackParams(), here, *tables, *to)
    assert (summary.samples_by_split, summary.num_rendered) == ({"train": 2}, 0)


def test_a_mirror_that_cannot_be_written_is_reported(run: Run) -> None:
    (run.folder / "mnt").mkdir()
    share(run).symlink_to(run.folder / "nowhere" / "x")
    with pytest.raises(MachineError, match=r"machine\.share: .* cannot be written"):
        run(machine=machine(run, 1))


def test_landmarks_alone_are_found_too(run: Run) -> None:
    run(machine=machine(run, 1))
    shutil.rmtree(share(run) / "clips")
    (tracks := run.folder / "cache2" / "tracks").parent.mkdir()
    assert run(machine=machine(run, 2)).num_from_cache == 0
    one, two = (entries(run.folder / f"cache{number}" / "tracks") for number in (1, 2))
    assert tracks.exists()
    assert one == two == entries(share(run) / "tracks")
    assert len(entries(share(run) / "clips")) == 3


def test_what_the_mirror_lost_is_stored_again(run: Run) -> None:
    run(machine=machine(run, 1))
    before = entries(share(run))
    shutil.rmtree(share(run))
    assert run(machine=machine(run, 1)).num_from_cache == 3
    assert entries(share(run)) == before


def test_a_file_of_others_in_the_mirror_is_left_alone(run: Run) -> None:
    run(machine=machine(run, 1))
    for folder in {entry.parent for entry in share(run).rglob("*.npz")}:
        (folder / "a holiday.npz").touch()
    assert run(machine=machine(run, 2)).num_from_cache == 3


def test_a_damaged_entry_of_the_mirror_is_made_anew_and_replaced(run: Run) -> None:
    run(machine=machine(run, 1))
    tables, before = run.tables(), entries(share(run))
    for path in share(run).rglob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    assert run(machine=machine(run, 2)).num_from_cache == 0
    assert run.tables() == tables
    assert entries(share(run)).keys() == before.keys()
    assert run(machine=machine(run, 3)).num_from_cache == 3


def test_an_entry_that_would_fill_the_disk_is_cut_off_and_made_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(machine=machine(run, 1))
    tables = run.tables()
    (entry, *_) = sorted(share(run).glob("clips/*/*.npz"))
    with entry.open("r+b") as file:
        file.truncate(1 << 26)  # a hole
    monkeypatch.setattr("stages.clips.shared_cache.MAX_MEMBER_BYTES", 1 << 23)
    here = SharedCache(share(run).as_uri(), run.folder / "cache2")
    monkeypatch.setattr("stages.clips.shared_cache.BLOCK_BYTES", 1 << 22)
    here.fetch_clip(entry.stem)
    fetched = here.folder / entry.relative_to(share(run))
    assert fetched.stat().st_size == 1 << 23
    assert (run(machine=machine(run, 2)).num_damaged, run.tables()) == (1, tables)
    assert entry.stat().st_size < 1 << 23


@pytest.mark.parametrize("url", ["nosuch://bucket/cache", "git+nosuch://x"])
def test_a_url_that_no_file_system_knows(run: Run, url: str) -> None:
    with pytest.raises(ConfigError, match=r"machine\.share"):
        run(machine=MachineParams(cache_dir=str(run.folder / "cache"), share=url))


def key_of(number: int) -> str:
    """In one of three folders."""
    return f"{number % 3:02x}" + hashlib.sha256(bytes([number])).hexdigest()[2:]


KEYS = [key_of(number) for number in range(30)]


def made(folder: Path, key: str) -> None:
    path = folder / "clips" / key[:2] / f"{key}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(key.encode())


def test_what_is_here_already_costs_a_list_of_each_folder_and_no_request_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted where an S3 server is asked; and what another machine stores afterwards is still found."""
    with s3_server() as server, faulty_proxy(server, monkeypatch) as proxy:
        here = SharedCache(f"s3://{BUCKET}/mirror", tmp_path)
        for key in KEYS:
            with here.mirrored(Keys(key, None)):
                made(here.folder, key)
        proxy.requests.clear()
        for key in KEYS:
            with here.mirrored(Keys(key, None)):
                pass
        assert len(proxy.requests) == 3
        late = key_of(99)
        place = f"mirror/clips/{late[:2]}/{late}.npz"
        with closing(s3_client(server)) as another:
            another.put_object(Bucket=BUCKET, Key=place, Body=late.encode())
        here.fetch_clip(late)
        assert (tmp_path / "clips" / late[:2] / f"{late}.npz").read_bytes() == late.encode()
        proxy.requests.clear()
        with here.mirrored(Keys(late, None)):  # not on the list: asked for, and not stored a second time
            pass
        assert [request.split()[0] for request in proxy.requests] == ["HEAD"]
