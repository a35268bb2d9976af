"""Runs the notebook docs/tour.ipynb, with a smaller corpus, and checks what is committed of its output."""

import os
import sysconfig
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parents[2] / "docs" / "tour.ipynb"
MAX_BYTES = 100_000
SMALL = "TRAIN, VALID, TEST = (1, 4), (1, 2), (1, 2)\nNUM_EPOCHS = 1"


@pytest.mark.slow
def test_the_tour_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = nbformat.read(TOUR, 4)
    (sizes,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    assert "NUM_EPOCHS = " in sizes.source
    sizes.source = SMALL
    monkeypatch.setenv("PATH", f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "8 of 8 clips ok" in printed
    assert "split test: 2 clips" in printed
    assert "pipeline: " not in printed, "an error message of a command"


def test_the_committed_output_is_small_and_has_no_error() -> None:
    assert TOUR.stat().st_size < MAX_BYTES
    text = TOUR.read_text("utf-8")
    assert "/tmp/" not in text
    cells = [cell for cell in nbformat.reads(text, 4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    for output in (output for cell in cells for output in cell.outputs):
        assert output.output_type != "error"
        assert "pipeline: " not in output.get("text", "")
