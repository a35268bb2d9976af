"""Tests two users of one machine: files of one user stop the other only if necessary, with a message."""

import atexit
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from model.checkpoints import load_checkpoint
from pipeline import cli
from pipeline.params import PathsParams, read_mapping, recipe_text
from pipeline.query import write_answer
from shards import schema
from shards.errors import CheckpointError, ConfigError, MachineError, ShardError
from shards.files import check_table, read_table, read_table_in_pieces, table_from_rows, write_table
from shards.locks import hold_lock
from shards.settings import MachineParams
from stages.clips.cache import ClipCache
from stages.crop import crop
from stages.settings import CorpusParams, CropParams
from tests.support.other_user import NOBODY, as_nobody, open_folder
from tests.support.videos import write_mouth


@pytest.fixture
def shared() -> Iterator[Path]:
    with open_folder() as folder:
        yield folder


def crop_nothing(folder: Path, cache: Path) -> None:
    """Runs crop without clips: workers of another user would need a Python that this user can read."""
    folder.mkdir()
    write_table(folder / "clips.parquet", table_from_rows([], schema.CLIPS), schema.CLIPS)
    tables = [folder / f"{name}.parquet" for name in ("clips", "crops", "tracks")]
    crop(CorpusParams(root="nowhere"), CropParams(), MachineParams(cache_dir=str(cache), workers=1), *tables)


def test_both_crop_into_one_cache(shared: Path, caplog: pytest.LogCaptureFixture) -> None:
    (cache := shared / "cache").mkdir()
    cache.chmod(0o777)
    crop_nothing(shared / "first", cache)
    video = write_mouth(shared / "a.mp4", 12)
    keys = ClipCache(cache).keys(video, schema.MediaKind.MOUTH, CropParams())
    with as_nobody(), caplog.at_level(logging.WARNING):
        crop_nothing(shared / "second", cache)
        assert ClipCache(cache).keys(video, schema.MediaKind.MOUTH, CropParams()) == keys
    assert not caplog.messages
    names = {path.name: path.stat().st_uid for path in cache.iterdir()}
    assert names.pop("native.log") == 0 and names.pop(f"native-{NOBODY}.log") == NOBODY
    assert sorted(names.values()) == [0, NOBODY], "a memo of each"


def refusal(holder: str) -> ShardError:
    return ShardError(f"at work: {holder}")


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_a_lock_file_of_another_user_blocks_only_while_held(shared: Path, mode: int) -> None:
    shared.chmod(mode)
    lock = shared / ".lock"
    with hold_lock(lock, refusal):
        assert lock.stat().st_mode & 0o777 == 0o644
        with (
            as_nobody(),
            pytest.raises(ShardError, match=f"at work: process {os.getpid()}"),
            hold_lock(lock, refusal),
        ):
            pass
    with as_nobody(), hold_lock(lock, refusal):
        os.seteuid(0)
        with pytest.raises(ShardError, match="at work"), hold_lock(lock, refusal):
            pass


def test_a_lock_that_cannot_be_opened_is_named(shared: Path) -> None:
    lock = shared / ".lock"
    with hold_lock(lock, refusal):
        lock.chmod(0o600)
    with (
        as_nobody(),
        pytest.raises(MachineError, match=rf"the lock {lock} belongs to another user"),
        hold_lock(lock, refusal),
    ):
        pass


@pytest.fixture
def closed(shared: Path) -> Path:
    """A file of root that no other user can open."""
    file = shared / "closed"
    file.write_bytes(b"PAR1")
    file.chmod(0o600)
    return file


def test_a_table_of_another_user_is_not_called_damaged(shared: Path, closed: Path) -> None:
    message = rf"{closed} may not be opened by this user"
    paths = PathsParams(clips=str(closed), report=str(shared))
    write_answer("SELECT 1 AS x", PathsParams(report=str(shared)), "csv", shared / "imported")
    with as_nobody():
        with pytest.raises(MachineError, match=message):
            read_table(closed, schema.CLIPS, "pipeline ingest")
        with pytest.raises(MachineError, match=message):
            check_table(closed, schema.CLIPS, "pipeline ingest")
        with pytest.raises(MachineError, match=message):
            list(read_table_in_pieces(closed, schema.CLIPS, "pipeline ingest", ["clip_id"], 10))
        with pytest.raises(MachineError, match=message):
            write_answer("FROM clips", paths, "csv", shared / "out")
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(closed)
        with pytest.raises(ConfigError, match=rf"{closed} cannot be read.*Permission denied"):
            read_mapping(closed)


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        ("corpus", 1, r"pipeline: \S+/corpus/clips\.csv may not be opened by this user: .*"),
        ("corpus/clips.csv", 1, r"pipeline: \S+/corpus/clips\.csv cannot be read: Permission denied"),
        (
            "corpus/videos",
            0,
            r".*a file that cannot be read; .* videos/a\.mp4 may not be opened by this user: .*: a",
        ),
        ("corpus/videos/a.mp4", 0, r".*a file that cannot be read; .* \(Permission denied\).*: a"),
        (".", 2, r"pipeline: params\.yaml cannot be read: .*Permission denied.*"),
    ],
)
def test_a_corpus_of_another_user_is_reported(
    shared: Path,
    what: str,
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One message and exit code 1; if only videos cannot be opened, a warning that names them."""
    root = shared / "corpus"
    (root / "videos").mkdir(parents=True)
    write_mouth(root / "videos" / "a.mp4", 12)
    (root / "clips.csv").write_text("clip_id,media,text,split\na,videos/a.mp4,你好,train\n", "utf-8")
    (shared / "params.yaml").write_text(
        recipe_text("table").replace("root: data/corpus", f"root: {root}"), "utf-8"
    )
    monkeypatch.chdir(shared)
    values = ["--set", f"corpus.root={root}", "--set", "corpus.table=clips.csv"]
    monkeypatch.setattr(sys, "argv", ["pipeline", "ingest", *values])
    monkeypatch.setattr(atexit, "register", lambda *_: None)
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 0, capsys.readouterr().err
    capsys.readouterr()
    (shared / "data").chmod(0o777)
    (shared / what).chmod(0o600)
    with as_nobody(), pytest.raises(SystemExit) as done:
        cli.main()
    found = capsys.readouterr().err.splitlines()[-1]
    assert done.value.code == code and re.fullmatch(message, found), found
