"""What goes to the terminal and what to native.log, once native code's stderr is sent there."""

import subprocess
import sys
from pathlib import Path

SOURCE = """
import logging, os, sys
from pathlib import Path
from pipeline.console import show_logs
from stages.chatter import native_stderr_to

show_logs()
for number in (1, 2):
    native_stderr_to(Path("logs") / f"{number}.log")
    os.write(2, f"native {number}\\n".encode())
    logging.getLogger("stages.any").info("told %d", number)
    print("printed", number, file=sys.stderr)
raise SystemError("traceback")
"""


def test_only_native_code_is_sent_to_the_log(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SOURCE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    for line in ("told 1", "printed 1", "told 2", "printed 2", "SystemError: traceback"):
        assert line in done.stderr
    assert "native" not in done.stderr
    for number in (1, 2):
        assert (tmp_path / "logs" / f"{number}.log").read_text("utf-8") == f"native {number}\n"
