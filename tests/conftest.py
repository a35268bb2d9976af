"""What a machine may lack: real videos, a browser, a GPU. A test that needs one skips, or fails where told to."""

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
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def _lacking(what: str, variable: str) -> None:
    """Skips the test; fails it where `variable` is 1, so that CI notices what it no longer tests."""
    if os.environ.get(variable) == "1":
        pytest.fail(f"{what}, and {variable}=1")
    pytest.skip(what)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real videos that PIPELINE_REALDATA names; it holds `grid`."""
    named = os.environ.get("PIPELINE_REALDATA", "")
    if not named or not Path(named).is_dir():
        _lacking(
            f"PIPELINE_REALDATA names no folder of real videos ({named or 'unset'})", "FAIL_WITHOUT_REALDATA"
        )
    return Path(named).resolve()


@pytest.fixture(scope="session")
def chromium_path() -> str:
    """A headless browser's program, for playwright's `executable_path`."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        _lacking(f"none of {', '.join(BROWSERS)} is on PATH", "FAIL_WITHOUT_BROWSER")
    assert found is not None
    return found


@pytest.fixture(scope="module")
def browser(chromium_path: str) -> "Iterator[Browser]":
    """Headless Chromium. playwright is imported here, so that collecting tests stays quick."""
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
    """Name of a CUDA device. torch is imported here, so that collecting tests stays quick."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        if torch.cuda.is_available():
            return "cuda"
    _lacking("torch sees no CUDA device", "FAIL_WITHOUT_GPU")
    raise AssertionError("unreachable: the line above skips or fails")


@pytest.fixture(scope="session")
def on_small_disk() -> OnSmallDisk:
    """Runs a command that finds a real file system of its own, `size` small, in the folder `place`.

    Nobody else sees it, and it is gone with the command, which may make it larger:
    `mount -o remount,size=64m PLACE`.
    """
    if subprocess.run(["unshare", "-rm", "true"], check=False, capture_output=True).returncode:
        _lacking("no mounts of one's own here (unshare -rm)", "FAIL_WITHOUT_UNSHARE")

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
