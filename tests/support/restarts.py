"""A small corpus, and `pipeline crop` on it as a process that a test disturbs, for example kills."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from pipeline.params import load_params, params_text, recipe_text
from tests.support.forked import Forked
from tests.support.videos import write_face, write_mouth

ROOT = Path(__file__).parents[2]

NUM_FACES, NUM_MOUTHS = 2, 14

ONE_WORKER = ("--set", "machine.workers=1")
"""For runs that nothing disturbs: a worker takes a second of processor time to start."""

SOME = 4
"""Number of cached clips after which crop is disturbed."""

SLOW = """
import os, sys, time
if "spawn_main" in " ".join(sys.orig_argv):
    def trap(event, args):
        if event == "open" and isinstance(args[0], str) and args[0].endswith(".mp4"):
            time.sleep(0.25)
    sys.addaudithook(trap)
"""
"""A sitecustomize.py that delays workers at each video."""


IN_A_SESSION = """
import os, sys
from pipeline.cli import main
os.setsid()
sys.argv[0] = "pipeline"
main()
"""


class Corpus:
    """Videos, and the outputs of `pipeline preprocess` on them when nothing disturbs it."""

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
        self.pipeline("preprocess", *ONE_WORKER)
        self.undisturbed = self.made()
        assert len(self.undisturbed) == 7, sorted(self.undisturbed)

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    def made(self) -> dict[str, bytes]:
        """Returns the tables and shards."""
        files = (
            path for path in (self.folder / "data").rglob("*") if path.suffix in (".parquet", ".tar", ".json")
        )
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}

    def command(self, verb: str, *arguments: str, slow: bool = False) -> Forked:
        """Starts the command in a session and process group of its own."""
        paths = [str(self.folder / "slow")] if slow else []
        environment = {"PYTHONPATH": os.pathsep.join([*paths, str(ROOT)])}
        return Forked(self.folder, [verb, *arguments], source=IN_A_SESSION, environment=environment)

    def pipeline(self, verb: str, *arguments: str) -> str:
        done = self.command(verb, *arguments).wait()
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def num_cached(self) -> int:
        return len(list(self.cache.glob("clips/*/*.npz")))


def workers_of(process: Forked) -> list[psutil.Process]:
    return [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "spawn_main" in " ".join(child.cmdline())
    ]


def disturbed(corpus: Corpus, disturb: Callable[[Forked], None], *arguments: str) -> tuple[int, str]:
    """Runs crop without a cache and disturbs it after SOME clips; returns exit code and output. Leaves no process."""
    shutil.rmtree(corpus.cache, ignore_errors=True)
    for name in ("crops", "tracks"):
        (corpus.folder / "data" / f"{name}.parquet").unlink(missing_ok=True)
    process = corpus.command("crop", *arguments, slow=True)
    workers: list[psutil.Process] = []
    try:
        while corpus.num_cached() < SOME:
            assert process.poll() is None, process.output()
            time.sleep(0.02)
        workers = workers_of(process)
        assert len(workers) == 2
        disturb(process)
        done = process.wait(60)
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive
    finally:
        if psutil.pid_exists(process.pid):
            process.kill()
        for left in workers:
            if left.is_running():
                left.kill()
    return done.returncode, done.stdout + done.stderr
