"""Fixtures for resources that a machine may lack: real videos, a browser, a GPU. Tests skip without them, or fail."""

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

OnSmallDisk = Callable[..., "subprocess.CompletedProcess[str]"]
# OpenMP reads it when torch is imported. Otherwise waiting threads spin: tests of small networks then cost up to ten
# times the processor time if other programs use the processors, too. The number of threads stays.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def _skip_or_fail(what: str, variable: str) -> None:
    """Skips the test; fails it if `variable` is 1, so that CI notices tests that it no longer runs."""
    if os.environ.get(variable) == "1":
        pytest.fail(f"{what}, and {variable}=1")
    pytest.skip(what)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real videos in PIPELINE_REALDATA; it contains `grid`."""
    named = os.environ.get("PIPELINE_REALDATA", "")
    if not named or not Path(named).is_dir():
        _skip_or_fail(
            f"PIPELINE_REALDATA is not a folder of real videos ({named or 'unset'})", "FAIL_WITHOUT_REALDATA"
        )
    return Path(named).resolve()


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """Path of a headless browser, for `executable_path` of playwright."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        _skip_or_fail(f"none of {', '.join(BROWSERS)} is on PATH", "FAIL_WITHOUT_BROWSER")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def browser(chromium_path: str) -> "Iterator[Browser]":
    """Headless Chromium. playwright is imported here to keep test collection fast."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium_path,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def cuda() -> str:
    """Name of a CUDA device. torch is imported here to keep test collection fast."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return "cuda"
    _skip_or_fail("torch sees no CUDA device", "FAIL_WITHOUT_GPU")
    raise AssertionError("unreachable: the line above skips or fails")


@pytest.fixture(scope="session")
def on_small_disk() -> OnSmallDisk:
    """Runs a command with its own small file system of `size` mounted at the folder `place`.

    Only this command sees it, and it ends with the command. The command may enlarge it:
    `mount -o remount,size=64m PLACE`.
    """
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        _skip_or_fail("this machine does not allow private mounts (unshare -rm)", "FAIL_WITHOUT_UNSHARE")

    def run(
        place: Path, size: str, command: Sequence[str], cwd: Path, environment: Mapping[str, str] = os.environ
    ) -> "subprocess.CompletedProcess[str]":
        place.mkdir(exist_ok=True)
        mounted = f'mount -t tmpfs -o size={size} tmpfs "$0" && exec "$@"'
        return subprocess.run(
            ["unshare", "-rm", "sh", "-c", mounted, str(place.resolve()), *command],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run
