"""Checks after `make demo`: the figures match the README, a second run does nothing, and git sees no change."""

import json
import subprocess
import sys
import time
from pathlib import Path

AT_MOST = {"cer": 0.07}
AT_LEAST = {"blind_cer": 0.60, "chance_cer": 0.60, "num_clips": 40, "num_chars": 300}
SECOND_RUN_LIMIT_S = 60
"""About 10 s on an idle machine, longer on a shared one; training again would take minutes."""


def main() -> list[str]:
    """Returns the problems, one line each."""
    metrics = json.loads(Path("report/metrics.json").read_text("utf-8"))
    wrong = [f"{key} {metrics[key]} is above {most}" for key, most in AT_MOST.items() if metrics[key] > most]
    wrong += [
        f"{key} {metrics[key]} is below {least}" for key, least in AT_LEAST.items() if metrics[key] < least
    ]
    start = time.monotonic()
    again = subprocess.run(["make", "demo"], capture_output=True, text=True, check=False)
    seconds = time.monotonic() - start
    output = again.stdout + again.stderr
    if again.returncode != 0:
        wrong.append(f"a second `make demo` fails:\n{output}")
    for sign in ("Running stage", "pip install"):
        if sign in output:
            wrong.append(f"a second `make demo` does work again ({sign}):\n{output}")
    if "up to date" not in again.stdout + again.stderr:
        wrong.append(f"a second `make demo` does not say that everything is up to date:\n{output}")
    if seconds > SECOND_RUN_LIMIT_S:
        wrong.append(f"a second `make demo` takes {seconds:.0f} s")
    status = subprocess.run(
        ["git", "status", "--porcelain"], capture_output=True, text=True, check=True
    ).stdout
    if status:
        wrong.append(f"`git status` is not clean:\n{status}")
    figures = ", ".join(f"{key} {metrics[key]}" for key in (*AT_MOST, *AT_LEAST))
    sys.stdout.write(f"demo: {figures}; a second run took {seconds:.0f} s\n")
    return wrong


if __name__ == "__main__":
    sys.exit("\n".join(main()) or None)
