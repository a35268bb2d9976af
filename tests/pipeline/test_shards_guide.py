"""The programs in docs/shards.md run as they stand there."""

import re
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.packed import pack_clips, toy_clips
from tests.support.remote_packs import write_indexes

GUIDE = Path(__file__).parents[2] / "docs" / "shards.md"
PROGRAMS = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text("utf-8"), re.MULTILINE | re.DOTALL)

Run = Callable[[str], None]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Returns a function that runs the program with this text, in a folder with a pack of 25 clips."""
    write_indexes(pack_clips(tmp_path / "data", toy_clips(25, 5)).shards)
    monkeypatch.chdir(tmp_path)

    def run_program(text: str) -> None:
        (program,) = (program for program in PROGRAMS if text in program)
        (tmp_path / "program.py").write_text(program, "utf-8")
        runpy.run_path(str(tmp_path / "program.py"), run_name="__main__")

    return run_program


def test_the_stream_trains(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("shards.webdataset(")
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 2 and losses[1] < losses[0]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata 0.11 with torch 2.13
def test_the_plan_resumes_where_it_stopped(
    run: Run, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run("shards.dataset(")
    whole = capsys.readouterr().out.splitlines()
    assert len(whole) == 4 and len(set(whole)) == 4
    Path("loop.pt").unlink()
    save, stops = torch.save, [1, 2]

    def stop(*arguments: Any) -> None:
        save(*arguments)
        stops[0] -= 1
        if not stops[0]:
            stops.pop(0)
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run("shards.dataset(")
    monkeypatch.setattr(torch, "save", save)
    run("shards.dataset(")
    assert capsys.readouterr().out.splitlines() == whole


@pytest.mark.filterwarnings(
    "ignore:unclosed file:ResourceWarning"
)  # webdataset closes shards by garbage collection
def test_plain_webdataset_reads_the_shards(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run("webdataset.WebDataset(shards")
    assert len(capsys.readouterr().out.splitlines()) == 25
