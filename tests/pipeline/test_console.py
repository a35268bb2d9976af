"""Tests what goes to the terminal and what to native.log while stderr of native code is redirected."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from pipeline import console

SOURCE = """
import logging, os, sys
from pathlib import Path
from pipeline.console import show_logs
from stages.mouths.landmarker import native_stderr_to

show_logs()
for number in (1, 2):
    native_stderr_to(Path("logs") / f"{number}.log")
    os.write(2, f"native {number}\\n".encode())
    logging.getLogger("stages.any").info("output %d", number)
    print("printed", number, file=sys.stderr)
raise SystemError("traceback")
"""


def test_only_native_code_is_sent_to_the_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SOURCE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    for line in ("output 1", "printed 1", "output 2", "printed 2", "SystemError: traceback"):
        assert line in done.stderr
    assert "native" not in done.stderr
    for number in (1, 2):
        assert (tmp_path / "logs" / f"{number}.log").read_text("utf-8") == f"native {number}\n"


def test_lines_show_the_recent_rate_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """If stderr is not a terminal: a line every 10 s; clips found in the cache affect the rate only briefly."""
    now = 0.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    with console.progress("cropping", "clips") as on_progress:
        on_progress(500, 1_000)
        for second in range(1, 121):
            now = float(second)
            on_progress(500 + second, 1_000)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 12
    assert lines[0] == "cropping: 510/1000 clips, 51.0 clips/s, 0:00:10 left"
    assert lines[-1] == "cropping: 620/1000 clips, 1.0 clips/s, 0:06:20 left"


@pytest.mark.parametrize("first_epoch", [0, 1])
def test_progress_never_jumps_though_epochs_differ_in_length(first_epoch: int) -> None:
    lengths = [3, 7, 10, 10]
    shown: list[tuple[int, int]] = []
    on_batch = console.over_epochs(lambda done, total, detail="": shown.append((done, total)), len(lengths))
    for epoch in range(first_epoch, len(lengths)):
        for done in range(1, lengths[epoch] + 1):
            on_batch(epoch, done, lengths[epoch], 0.5)
    steps = [done for done, _ in shown]
    assert steps == list(range(steps[0], steps[0] + len(steps)))
    assert all(done < total for done, total in shown[:-1]) and shown[-1][0] == shown[-1][1]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_training_shows_epoch_batch_and_loss(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], is_terminal: bool
) -> None:
    terminal = io.StringIO()
    shown_on = Console(file=terminal, force_terminal=is_terminal, width=140)
    monkeypatch.setattr(console, "stderr", shown_on)
    with console.progress("training", "batches") as on_progress:
        on_batch = console.over_epochs(on_progress, 2)
        for done in range(1, 6):
            on_batch(1, done, 5, 2.5 - 0.25 * done)
    output = terminal.getvalue() if is_terminal else capfd.readouterr().err
    for figure in ("training", "10/10", "batches/s", "epoch 1 of 2, batch 5/5, loss 1.250"):
        assert figure in output


def test_output_to_a_file_is_not_cut_to_a_terminal_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Output to a file or to grep has lines of any length; on a terminal a word is wrapped, not lost."""
    monkeypatch.delenv("COLUMNS", raising=False)
    table = {f"characters of column {i}": f"{'long' * 10}-{i}" for i in range(8)}
    sent = io.StringIO()
    piped = console.console_on(sent)
    piped.print(drawn(table))
    assert all(text in sent.getvalue() for pair in table.items() for text in pair)


def drawn(row: dict[str, str]) -> Table:
    table = Table()
    for name in row:
        table.add_column(name)
    table.add_row(*row.values())
    return table
