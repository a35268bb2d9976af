"""Runs that are killed, interrupted or out of disk: the next does only the rest, and no byte comes out differently.

Every run is the real command in a process of its own, with clips slow enough to be caught in their midst.
"""

import os
import shutil
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pipeline.params import load_params, params_text, recipe_text
from tests.conftest import OnSmallDisk
from tests.videos import write_face, write_mouth

ROOT = Path(__file__).parent.parent
PIPELINE = str(Path(sysconfig.get_path("scripts")) / "pipeline")
NUM_FACES, NUM_MOUTHS = 2, 14
SOME = 4

SLOW = """
import os, sys, time
if "spawn_main" in " ".join(sys.orig_argv):
    def trap(event, args):
        if event == "open" and isinstance(args[0], str) and args[0].endswith(".mp4"):
            time.sleep(0.25)
    sys.addaudithook(trap)
"""
"""A sitecustomize.py that makes workers linger at each video."""


class Corpus:
    """Videos, and what `pipeline preprocess` makes of them when nobody disturbs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "corpus").mkdir()
        (folder / "slow").mkdir()
        (folder / "slow" / "sitecustomize.py").write_text(SLOW)
        for number in range(NUM_FACES):
            write_face(folder / "corpus" / f"face{number}.mp4", 12 + number)
        for number in range(NUM_MOUTHS):
            write_mouth(folder / "corpus" / f"mouth{number}.mp4", 12, number)
        (folder / "corpus" / "garbage.mp4").write_bytes(b"garbage" * 999)
        names = sorted(path.stem for path in (folder / "corpus").glob("*.mp4"))
        lines = ["clip_id,split,media,text", *(f"{name},train,{name}.mp4,你好" for name in names)]
        (folder / "corpus" / "clips.csv").write_text("\n".join(lines) + "\n", "utf-8")
        changes = {"corpus.kind": "table", "corpus.root": "corpus", "machine.cache_dir": "cache"}
        changes |= {"machine.workers": 2, "crop.min_mouth_width_px": 1.0}
        (folder / "params.yaml").write_text(recipe_text("demo"), "utf-8")
        params = load_params(folder / "params.yaml", flags=changes)
        (folder / "params.yaml").write_text(params_text(params), "utf-8")
        self.pipeline("preprocess")
        self.undisturbed = self.made()
        assert len(self.undisturbed) == 7, sorted(self.undisturbed)

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def made(self) -> dict[str, bytes]:
        """Tables and shards."""
        files = (
            path for path in (self.folder / "data").rglob("*") if path.suffix in (".parquet", ".tar", ".json")
        )
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}

    def command(self, verb: str, *arguments: str, slow: bool = False) -> subprocess.Popen[str]:
        """Starts it, in a session and process group of its own."""
        paths = [str(self.folder / "slow")] if slow else []
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([*paths, str(ROOT)])}
        return subprocess.Popen(
            [PIPELINE, verb, *arguments],
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def pipeline(self, verb: str, *arguments: str) -> str:
        process = self.command(verb, *arguments)
        told, _ = process.communicate(timeout=120)
        assert process.returncode == 0, told
        return told

    def num_cached(self) -> int:
        return len(list(self.cache.glob("clips/*/*.npz")))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("restart"))


def workers_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "spawn_main" in " ".join(child.cmdline())
    ]


def disturbed(
    corpus: Corpus, disturb: Callable[[subprocess.Popen[str]], None], *arguments: str
) -> tuple[int, str]:
    """Runs crop from nothing, disturbs it in its midst; gives exit code and output. No process is left."""
    shutil.rmtree(corpus.cache, ignore_errors=True)
    for name in ("crops", "tracks"):
        (corpus.folder / "data" / f"{name}.parquet").unlink(missing_ok=True)
    process = corpus.command("crop", *arguments, slow=True)
    workers: list[psutil.Process] = []
    try:
        while corpus.num_cached() < SOME:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        workers = workers_of(process)
        assert len(workers) == 2
        disturb(process)
        told, _ = process.communicate(timeout=60)
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive
    finally:
        for left in (process, *workers):
            if left.poll() is None if isinstance(left, subprocess.Popen) else left.is_running():
                left.kill()
    return process.returncode, told


def check_the_rest(corpus: Corpus) -> None:
    """A rerun does only the rest; pack comes to the same bytes as ever."""
    num_cached = corpus.num_cached()
    assert SOME <= num_cached < NUM_FACES + NUM_MOUTHS, "disturbed in its midst"
    told = corpus.pipeline("crop")
    assert f"; {num_cached} from the cache" in told
    corpus.pipeline("pack")
    assert corpus.made() == corpus.undisturbed


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_command_is_killed(corpus: Corpus, number: signal.Signals) -> None:
    code, told = disturbed(corpus, lambda process: process.send_signal(number))
    if number == signal.SIGTERM:
        assert (code, "What is done is kept" in told) == (1, True), told
    assert not (corpus.folder / "data" / "crops.parquet").exists()
    check_the_rest(corpus)


def test_ctrl_c_goes_to_the_whole_group(corpus: Corpus) -> None:
    start = 0.0

    def press(process: subprocess.Popen[str]) -> None:
        nonlocal start
        start = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)

    code, told = disturbed(corpus, press)
    assert time.monotonic() - start < 5
    assert (code, "cropping mouths: stopped. What is done is kept" in told) == (1, True), told
    assert "Traceback" not in told
    check_the_rest(corpus)


def test_a_worker_is_killed_and_the_run_goes_on(corpus: Corpus) -> None:
    code, told = disturbed(corpus, lambda process: workers_of(process)[0].kill())
    assert (code, f"{NUM_FACES + NUM_MOUTHS} of" in told) == (0, True), told
    corpus.pipeline("pack")
    assert corpus.made() == corpus.undisturbed


def test_torsos_of_killed_processes_are_removed_when_old(corpus: Corpus) -> None:
    old, young = (corpus.cache / "clips" / "ab" / f".{name}.npz.x.tmp" for name in ("old", "young"))
    old.parent.mkdir(parents=True, exist_ok=True)
    old.write_bytes(b"torso")
    young.write_bytes(b"another run writes it")
    os.utime(old, (time.time() - 2 * 86_400,) * 2)
    corpus.pipeline("crop")
    assert (old.exists(), young.exists()) == (False, True)
    young.unlink()


FULL = """
set -e
if "$PIPELINE" crop; then exit 9; fi
ls -A $PLACE >&2
mount -o remount,size=64m $PLACE
"$PIPELINE" crop
"$PIPELINE" pack
cp -r $PLACE/. "$KEPT"
"""


def on_a_full_disk(on_small_disk: OnSmallDisk, corpus: Corpus, place: str, small: str, kept: Path) -> str:
    """Crop, with a real small file system at `place`; then again with more room. Gives what was said."""
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "PIPELINE": PIPELINE,
        "PLACE": place,
        "KEPT": str(kept),
    }
    done = on_small_disk(corpus.folder / place, small, ["sh", "-c", FULL], corpus.folder, environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pipeline: the disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_the_disk_of_the_cache_is_full(corpus: Corpus, tmp_path: Path, on_small_disk: OnSmallDisk) -> None:
    shutil.rmtree(corpus.cache, ignore_errors=True)
    corpus.cache.mkdir()
    told = on_a_full_disk(on_small_disk, corpus, "cache", "1m", tmp_path)
    num_cached = int(told.split(" from the cache")[0].rpartition(" ")[2])
    assert 3 <= num_cached < NUM_MOUTHS
    assert corpus.made() == corpus.undisturbed
    assert not [*tmp_path.rglob("*.tmp")]


def test_the_disk_of_the_tables_is_full(corpus: Corpus, tmp_path: Path, on_small_disk: OnSmallDisk) -> None:
    clips = corpus.folder / "data" / "clips.parquet"
    before = corpus.made()
    text = (corpus.folder / "params.yaml").read_text("utf-8")
    try:
        there = text.replace("data/crops", "small/crops").replace("data/tracks", "small/tracks")
        (corpus.folder / "params.yaml").write_text(there, "utf-8")
        on_a_full_disk(on_small_disk, corpus, "small", "8k", tmp_path)
    finally:
        (corpus.folder / "params.yaml").write_text(text, "utf-8")
    assert clips.exists()
    for name in ("crops", "tracks"):
        assert (tmp_path / f"{name}.parquet").read_bytes() == before[f"data/{name}.parquet"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["crops.parquet", "tracks.parquet"]
