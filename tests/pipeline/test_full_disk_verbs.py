"""Tests every verb that writes on a full disk: one message that names the file, and intact previous results.

A real disk, small and its own, holds all that the verbs write; they run in one process of their own.
"""

import json
import re
from typing import Any

import pytest

from pipeline.params import load_params, params_text, recipe_text
from tests.conftest import OnSmallDisk
from tests.support.small_disk import python_on_small_disk
from tests.support.videos import write_mouth

RUN = """
import atexit, contextlib, hashlib, io, json, os, sys, traceback
from pathlib import Path

from pipeline.cli import main

atexit.register = lambda *_: None  # otherwise the first verb would end this process
small = Path("small")


def run(line):
    output, sys.argv = io.StringIO(), ["pipeline", *line.split(" | ")]
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            main()
        except SystemExit as done:
            return done.code, output.getvalue()
        except Exception:
            return 1, output.getvalue() + traceback.format_exc()
    raise AssertionError(line)


def results():
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(small.rglob("*"))
        if path.is_file() and path.name != "filler" and not path.name.endswith(".lock")
    }


def leave_pages(count):
    # pages of 4 kB, as a file system counts
    with (small / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    os.truncate(small / "filler", (small / "filler").stat().st_size // 4096 * 4096 - 4096 * count)


def checkpoint():
    from model.checkpoints import save_checkpoint
    from tests.support.packed import Packed
    from tests.support.resuming import state_of
    from tests.support.trainings import job_in

    packed = Packed.at(small)
    state = state_of(job_in(Path("aside"), packed)).as_checkpoint(None)
    save_checkpoint(small / "checkpoints" / "best_model.pt", state)


first, answers = json.loads(Path("lines.json").read_text()), []
for line in first["made"]:
    if line == "checkpoint":
        checkpoint()
        continue
    code, output = run(line)
    assert code == 0, (line, output)
for pages, line in first["full"]:
    leave_pages(pages)
    before = results()
    code, output = run(line)
    answers.append({"line": line, "code": code, "output": output, "same": results() == before})
    (small / "filler").unlink()
print(json.dumps({"answers": answers, "files": list(results())}))
"""

VERBS = {
    "init": ("init | --recipe | table | --params | small/params.yaml | --force", "small/params.yaml"),
    "ingest": ("ingest", "small/clips.parquet"),
    "crop": ("crop", "paths.crops small"),
    "pack": ("pack", "paths.samples small"),
    "checkpoint": ("checkpoint", ""),
    "lm": ("lm", "small/lm.arpa"),
    "stats": ("stats", "small/stats/"),
    "qc": ("qc | --out | small/look.html", "small/look.html"),
    "report": ("report", "small/report/"),
    "compare": (
        "compare | small/report | small/report | --html | small/compare.html",
        "small/compare.html",
    ),
    "query csv": ("query | FROM range(20000) | --format | csv | --out | small/q.csv", "small/q.csv"),
    "query json": ("query | FROM range(20000) | --format | json | --out | small/q.json", "small/q.json"),
    "query table": ("query | FROM range(900) | --out | small/q.txt", "small/q.txt"),
    "query parquet": (
        "query | SELECT hash(range) FROM range(9000) | --format | parquet | --out | small/q.parquet",
        "small/q.parquet",
    ),
    "export": ("export | --format | safetensors | --out | small/export", "small/export/"),
    "inference": ("inference | corpus/a0.mp4 | --format | json | --out | small/read", "--out small/read"),
}
"""Command lines, and the file that their message names."""
NO_PAGE = ("crop", "pack", "inference")
"""Their results would fit into the free page of the others, or into the space of the shards that pack removes."""


@pytest.fixture(scope="module")
def answers(
    tmp_path_factory: pytest.TempPathFactory, on_small_disk: OnSmallDisk
) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("full")
    (folder / "corpus").mkdir()
    rows = ["clip_id,split,media,text"]
    for number, split in enumerate(("train",) * 4 + ("valid",) * 2 + ("test",) * 2):
        write_mouth(folder / "corpus" / f"a{number}.mp4", 40, number)
        text = "".join(chr(0x4E00 + 40 * number + place) for place in range(14))
        rows.append(f"a{number},{split},a{number}.mp4,{text}")
    (folder / "corpus" / "clips.csv").write_text("\n".join(rows) + "\n", "utf-8")
    (folder / "params.yaml").write_text(recipe_text("table"), "utf-8")
    changes: dict[str, Any] = {"machine.workers": 1, "machine.threads": 1, "machine.device": "cpu"}
    changes |= {"machine.cache_dir": "cache", "corpus.media_kind": "mouth", "report.resamples": 100}
    changes |= {f"paths.{name}": f"small/{name}.parquet" for name in ("clips", "crops", "tracks", "samples")}
    changes |= {
        f"paths.{name}": f"small/{name}" for name in ("shards", "stats", "report", "checkpoints", "logs")
    }
    changes |= {"paths.lm": "small/lm.arpa"}
    (folder / "params.yaml").write_text(
        params_text(load_params(folder / "params.yaml", flags=changes)), "utf-8"
    )
    pages = {name: int(name not in NO_PAGE) for name in VERBS if name != "checkpoint"}
    lines = {
        "made": [line for line, _ in VERBS.values()],
        "full": [(number, VERBS[name][0]) for name, number in pages.items()],
    }
    (folder / "lines.json").write_text(json.dumps(lines))
    done = python_on_small_disk(folder / "small", "24m", RUN, folder=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert not [name for name in found["files"] if name.endswith(".tmp")]
    return dict(zip(pages, found["answers"], strict=True))


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "checkpoint"])
def test_a_full_disk_is_one_message_and_loses_nothing(answers: dict[str, dict[str, Any]], verb: str) -> None:
    answer = answers[verb]
    last = answer["output"].splitlines()[-1]
    if verb in NO_PAGE:
        assert answer["code"] == 2
        place = re.escape(VERBS[verb][1])
        wanted = rf"pipeline: {place}: cannot write to this folder \(No space left.*free disk space.*"
    else:
        assert answer["code"] == 1
        wanted = rf"pipeline: the disk is full: {re.escape(VERBS[verb][1])}\S* cannot be written.*Free some space.*"
    assert re.fullmatch(wanted, last), answer["output"]
    assert "Traceback" not in answer["output"]
    assert answer["same"]
