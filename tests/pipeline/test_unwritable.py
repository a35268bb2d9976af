"""Tests that an unwritable output is one message, before the work that would be lost."""

import errno
import os
import sys
from pathlib import Path

import pytest

from pipeline import cli
from pipeline.cli import app
from pipeline.params import load_params
from shards.errors import ConfigError, MachineError
from shards.files import write_text
from shards.settings import MachineParams
from stages.crop import crop
from stages.settings import CorpusParams, CropParams
from tests.support.crop_runs import clip_row, write_clips

ROOT = Path(__file__).parents[2]


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match=r"file/deep/x\.json cannot be written \(Not a directory\)"):
        write_text(tmp_path / "file" / "deep" / "x.json", "{}")


def test_a_folder_in_place_of_the_file_is_named_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "x.json").mkdir()
    with pytest.raises(MachineError, match=r"x\.json cannot be written \(Is a directory\)"):
        write_text(tmp_path / "x.json", "{}")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize(
    ("verb", "key"),
    [
        ("ingest", "paths.clips"),
        ("crop", "paths.crops"),
        ("crop", "paths.tracks"),
        ("pack", "paths.samples"),
        ("pack", "paths.shards"),
        ("preprocess", "paths.shards"),
        ("stats", "paths.stats"),
        ("qc", "paths.stats"),
        ("report", "paths.report"),
        ("train", "paths.runs"),
        ("train", "paths.checkpoints"),
        ("train", "paths.logs"),
    ],
)
def test_verbs_check_their_outputs_before_they_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, key: str
) -> None:
    """Their inputs are missing too, but the unwritable output is reported first."""
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text("utf-8"), "utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_params(Path("params.yaml"))
    with pytest.raises(ConfigError, match=rf"{key} .*params\.yaml.* cannot write to this folder \(Not a dir"):
        app([verb, "--set", f"{key}=params.yaml/x/y"], standalone_mode=False)
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.parametrize("place", ["file/cache", "file"])
def test_an_unwritable_cache_is_reported_before_any_worker_starts(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    clips, crops, tracks = (tmp_path / f"{name}.parquet" for name in ("clips", "crops", "tracks"))
    write_clips(clips, [clip_row("a", "nowhere.mp4")])
    machine = MachineParams(workers=1, cache_dir=str(tmp_path / place))
    with pytest.raises(MachineError, match=r"machine\.cache_dir: .*/file.* cannot be written \("):
        crop(CorpusParams(root=str(tmp_path)), CropParams(), machine, clips, crops, tracks)


def test_an_unexpected_full_disk_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files that are not written by `atomic_file`: a lock, a folder, the file of a library."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "cache/some/file")

    monkeypatch.setattr(cli, "app", full)
    monkeypatch.setattr(cli.atexit, "register", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["pipeline", "crop"])
    with pytest.raises(SystemExit) as done:
        cli.main()
    assert done.value.code == 1
    assert capsys.readouterr().err.startswith(
        "pipeline: the disk is full: cache/some/file cannot be written; files saved earlier are kept"
    )
