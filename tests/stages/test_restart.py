"""Runs that are killed, interrupted or out of disk: the next does only the rest, and no byte comes out differently.

Every run is the real command in a process of its own, with clips slow enough to be caught in their midst.
"""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.support.forked import Forked
from tests.support.restarts import NUM_FACES, NUM_MOUTHS, ONE_WORKER, SOME, Corpus, disturbed, workers_of
from tests.support.small_disk import python_on_small_disk


def check_the_rest(corpus: Corpus) -> None:
    """A rerun does only the rest; pack comes to the same bytes as ever."""
    num_cached = corpus.num_cached()
    assert SOME <= num_cached < NUM_FACES + NUM_MOUTHS, "disturbed in its midst"
    output = corpus.pipeline("crop", *ONE_WORKER)
    assert f"; {num_cached} from the cache" in output
    corpus.pipeline("pack")
    assert corpus.made() == corpus.undisturbed


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("restart"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_command_is_killed(corpus: Corpus, number: signal.Signals) -> None:
    code, output = disturbed(corpus, lambda process: process.send_signal(number))
    if number == signal.SIGTERM:
        assert (code, "Finished work is kept" in output) == (1, True), output
    assert not (corpus.folder / "data" / "crops.parquet").exists()
    check_the_rest(corpus)


def test_ctrl_c_goes_to_the_whole_group(corpus: Corpus) -> None:
    start = 0.0

    def press(process: Forked) -> None:
        nonlocal start
        start = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)

    code, output = disturbed(corpus, press)
    assert time.monotonic() - start < 5
    assert (code, "cropping mouths: stopped. Finished work is kept" in output) == (1, True), output
    assert "Traceback" not in output
    check_the_rest(corpus)


def test_a_worker_is_killed_and_the_run_goes_on(corpus: Corpus) -> None:
    code, output = disturbed(corpus, lambda process: workers_of(process)[0].kill())
    assert (code, f"{NUM_FACES + NUM_MOUTHS} of" in output) == (0, True), output
    corpus.pipeline("pack")
    assert corpus.made() == corpus.undisturbed


def test_partial_files_of_killed_processes_are_removed_when_old(corpus: Corpus) -> None:
    old, young = (corpus.cache / "clips" / "ab" / f".{name}.npz.x.tmp" for name in ("old", "young"))
    old.parent.mkdir(parents=True, exist_ok=True)
    old.write_bytes(b"partial")
    young.write_bytes(b"another run writes it")
    os.utime(old, (time.time() - 2 * 86_400,) * 2)
    corpus.pipeline("crop", *ONE_WORKER)
    assert (old.exists(), young.exists()) == (False, True)
    young.unlink()


FULL = """
import os, shutil, subprocess, sys
from pipeline import cli

def verb(*arguments):
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    sys.argv, code = ["pipeline", *arguments], 0
    try:
        cli.main()
    except SystemExit as ended:
        code = ended.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

place, kept = sys.argv[1:]
assert verb("crop", "--set", "machine.workers=1") == 1
subprocess.run(["mount", "-o", "remount,size=64m", place], check=True)
assert verb("crop", "--set", "machine.workers=1") == 0
assert verb("pack") == 0
shutil.copytree(place, kept, dirs_exist_ok=True)
"""


def on_a_full_disk(corpus: Corpus, place: str, small: str, kept: Path) -> str:
    """Crop, with a real small file system at `place`; then again with more room. Gives what was said."""
    done = python_on_small_disk(corpus.folder / place, small, FULL, place, kept, folder=corpus.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pipeline: the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.usefixtures("on_small_disk")
def test_the_disk_of_the_cache_is_full(corpus: Corpus, tmp_path: Path) -> None:
    shutil.rmtree(corpus.cache, ignore_errors=True)
    corpus.cache.mkdir()
    output = on_a_full_disk(corpus, "cache", "1m", tmp_path)
    num_cached = int(output.split(" from the cache")[0].rpartition(" ")[2])
    assert 3 <= num_cached < NUM_MOUTHS
    assert corpus.made() == corpus.undisturbed
    assert not [*tmp_path.rglob("*.tmp")]


@pytest.mark.usefixtures("on_small_disk")
def test_the_disk_of_the_tables_is_full(corpus: Corpus, tmp_path: Path) -> None:
    clips = corpus.folder / "data" / "clips.parquet"
    before = corpus.made()
    text = (corpus.folder / "params.yaml").read_text("utf-8")
    try:
        there = text.replace("data/crops", "small/crops").replace("data/tracks", "small/tracks")
        (corpus.folder / "params.yaml").write_text(there, "utf-8")
        on_a_full_disk(corpus, "small", "8k", tmp_path)
    finally:
        (corpus.folder / "params.yaml").write_text(text, "utf-8")
    assert clips.exists()
    for name in ("crops", "tracks"):
        assert (tmp_path / f"{name}.parquet").read_bytes() == before[f"data/{name}.parquet"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crops.parquet", "tracks.parquet"]
