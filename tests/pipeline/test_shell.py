"""Tests completion, --version, --quiet, --verbose, NO_COLOR and --json as docs/scripting.md describes them."""

import json
import os
import pty
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from pipeline.cli import app
from pipeline.command import verbosity
from pipeline.params import read_mapping
from tests.support.crop_runs import forked_workers
from tests.support.in_process import pipeline
from tests.support.videos import write_mouth

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
DOCUMENTED = {
    row[1]: set(re.findall(r"`(\w+)`", row[2]))
    for row in re.finditer(
        r"^\| `([\w -]+)` \| (`.*) \|$", (ROOT / "docs" / "scripting.md").read_text("utf-8"), re.MULTILINE
    )
}
"""The keys of each verb's JSON."""
NUM_CLIPS = 6


@pytest.fixture(scope="module", autouse=True)
def quick_workers() -> Iterator[None]:
    with forked_workers():
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small mouth videos, and parameters for a small model."""
    folder = tmp_path_factory.mktemp("shell")
    (folder / "corpus").mkdir()
    lines = ["clip_id,split,media,text,speaker"]
    for number in range(NUM_CLIPS):
        write_mouth(folder / "corpus" / f"m{number}.mp4", 12 + number, seed=number)
        lines.append(f"m{number},{('train', 'valid', 'test')[number % 3]},m{number}.mp4,你好,s{number}")
    (folder / "corpus" / "clips.csv").write_text("\n".join(lines) + "\n", "utf-8")
    params = read_mapping(ROOT / "params.yaml")
    params["corpus"] |= {"kind": "table", "root": "corpus", "media_kind": "mouth", "license": "CC-BY-4.0"}
    params["crop"] |= {"max_chars_per_s": 30.0}
    params["model"] |= {
        "frame_height": 24,
        "frame_width": 24,
        "sizes": {"channels": [4, 8, 8, 12], "hidden_dim": 16},
    }
    params["train"] |= {"num_epochs": 1, "warmup_epochs": 0, "batch_size": 2, "mixed_precision": False}
    params["machine"] |= {"workers": 1, "threads": 1, "device": "cpu", "cache_dir": "cache"}
    (folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    return folder


def printed(folder: Path, *arguments: str) -> dict[str, object]:
    """Returns the JSON on stdout, which has nothing else."""
    done = pipeline(folder, [*arguments, "--json"])
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def test_json_has_the_documented_keys(folder: Path) -> None:
    """The verbs in the order of their work; later ones read what earlier ones wrote."""
    made = printed(folder, "preprocess")
    assert made.keys() == DOCUMENTED["preprocess"]
    for verb, keys in made.items():
        assert keys.keys() == DOCUMENTED[verb], verb  # type: ignore[attr-defined]
    for verb in ("ingest", "crop", "pack", "stats", "qc", "verify", "train"):
        assert printed(folder, verb).keys() == DOCUMENTED[verb], verb
    assert printed(folder, "crop")["num_ok"] == NUM_CLIPS
    for part in ("0", "1"):
        printed(folder, "crop", "--num-jobs", "2", "--job-index", part)
    merged = printed(folder, "crop", "--merge")
    assert merged.keys() == DOCUMENTED["crop --merge"]
    assert merged["num_clips"] == NUM_CLIPS
    figures = printed(folder, "report")
    assert figures == printed(folder, "show") == json.loads((folder / "report" / "metrics.json").read_text())


@pytest.mark.parametrize("place", [["--quiet", "ingest"], ["ingest", "--quiet"]])
def test_quiet_leaves_results_and_warnings(folder: Path, place: list[str]) -> None:
    plain, quiet = pipeline(folder, ["ingest"]), pipeline(folder, place)
    assert (quiet.returncode, quiet.stdout) == (0, plain.stdout)
    assert quiet.stderr == ""
    assert "cropping mouths" in pipeline(folder, ["crop"]).stderr
    assert pipeline(folder, ["crop", "--quiet"]).stderr == ""
    wrong = pipeline(folder, ["ingest", "--quiet", "--data-root", "nowhere"])
    assert (wrong.returncode, "nowhere" in wrong.stderr) == (1, True)


def test_verbose_adds_the_traceback(folder: Path) -> None:
    plain = pipeline(folder, ["ingest", "--data-root", "nowhere"])
    verbose = pipeline(folder, ["ingest", "--verbose", "--data-root", "nowhere"])
    assert (plain.returncode, verbose.returncode) == (1, 1)
    assert "Traceback" not in plain.stderr
    assert "Traceback" in verbose.stderr
    assert verbose.stderr.endswith(plain.stderr)
    assert pipeline(folder, ["--quiet", "--verbose", "ingest"]).returncode == 2
    assert pipeline(folder, ["ingest"]).returncode == 0
    assert verbosity.shows_progress


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    assert pipeline(tmp_path, ["--version"]).stdout == f"lip-pipeline {version('lip-pipeline')}\n"


@pytest.mark.parametrize("has_colour", [True, False])
def test_no_color_is_respected_on_a_terminal(folder: Path, has_colour: bool) -> None:
    main, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color"} | ({} if has_colour else {"NO_COLOR": "1"})
    with subprocess.Popen(
        [SCRIPTS / "pipeline", "crop"],
        cwd=folder,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=terminal,
    ) as crop:
        os.close(terminal)
        shown = b""
        with suppress(OSError):  # the terminal of an ended process
            while chunk := os.read(main, 1 << 16):
                shown += chunk
    os.close(main)
    assert crop.returncode == 0
    assert b"cropping mouths" in shown
    assert bool(re.search(rb"\x1b\[[0-9;]*3[0-9]", shown)) == has_colour


COMPLETE = {
    "bash": 'eval "$(pipeline --show-completion bash)"; COMP_WORDS=(pipeline "{word}"); COMP_CWORD=1; '
    "_pipeline_completion pipeline; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
    # in zsh a completion calls _arguments, which works only at a prompt
    "zsh": 'compdef() {{ : }}; eval "$(pipeline --show-completion zsh)"; _arguments() {{ print -r -- "$@" }}; '
    "words=(pipeline {word}); CURRENT=2; _pipeline_completion | grep -oE '\"[a-z-]+\":' | tr -d '\":'",
    "fish": "pipeline --show-completion fish | source; complete -C 'pipeline {word}'",
}


@pytest.mark.parametrize("shell", COMPLETE)
def test_a_real_shell_completes_verbs(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    environment = os.environ | {"PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", "HOME": str(tmp_path)}
    environment |= {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [shell, "-c", COMPLETE[shell].format(word="in")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    verbs = {line.split("\t")[0] for line in done.stdout.splitlines()}
    assert verbs == {verb for verb in _verbs() if verb.startswith("in")}, done.stderr


def _verbs() -> list[str]:
    import typer

    return list(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


def test_help_shows_every_verb_once_with_its_whole_summary(tmp_path: Path) -> None:
    shown = pipeline(tmp_path, ["--help"]).stdout
    assert re.findall(r"^  ([a-z][\w-]*)  ", shown, re.MULTILINE) == [*_panel_order()]
    assert "..." not in shown.partition("Options:")[2]
    text = " ".join(shown.split())
    for verb in _panel_order():
        summary = app_command(verb).help.partition("\n\n")[0].replace("\n", " ")
        assert f"{verb} {' '.join(summary.split())}" in text


def app_command(verb: str):  # type: ignore[no-untyped-def]
    import typer

    return typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]


def _panel_order() -> list[str]:
    from pipeline.command import DATA, EVALUATION, READING, TOOLS, TRAINING

    panels = (DATA, TRAINING, EVALUATION, READING, TOOLS)
    return sorted(_verbs(), key=lambda verb: panels.index(app_command(verb).rich_help_panel))
