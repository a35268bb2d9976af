"""The stages of dvc.yaml, and the dvc program."""

import json
import os
import socketserver
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support import forked

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
SMALL = {
    "model": {"frame_height": 24, "frame_width": 24, "sizes": {"channels": [4, 8, 8, 12], "hidden_dim": 16}},
    "train": {
        "num_epochs": 1,
        "warmup_epochs": 0,
        "batch_size": 4,
        "mixed_precision": False,
        "valid_every": 1,
    },
    "report": {"num_examples": 1},
    "machine": {"workers": 1, "threads": 1, "device": "cpu"},
}


@dataclass(frozen=True)
class Declared:
    """A stage of dvc.yaml with its `${…}` filled in."""

    command: str
    deps: frozenset[str]
    outs: frozenset[str]
    params: frozenset[str]
    """Names in params.yaml."""
    constants: tuple[tuple[str, str], ...]
    """(Python file, name) of constants that are parameters."""


def params_of(file: Path) -> dict[str, Any]:
    from pipeline.params import read_mapping

    return read_mapping(file)


def declared(params: dict[str, Any]) -> dict[str, Declared]:
    """Returns the stages of dvc.yaml by name, with `params` filled in."""
    text = (ROOT / "dvc.yaml").read_text("utf-8")
    for section in ("corpus", "paths"):
        for key, value in params[section].items():
            text = text.replace(f"${{{section}.{key}}}", str(value))
    assert "${" not in text, "dvc.yaml takes values from corpus and paths only"
    stages = {}
    for name, stage in yaml.safe_load(text)["stages"].items():
        named = [item for item in stage.get("params", []) if isinstance(item, str)]
        files = [item for item in stage.get("params", []) if isinstance(item, dict)]
        outs = [*stage.get("outs", []), *stage.get("metrics", [])]
        stages[name] = Declared(
            stage["cmd"],
            frozenset(stage["deps"]),
            frozenset(next(iter(out)) if isinstance(out, dict) else out for out in outs),
            frozenset(named),
            tuple((file, constant) for item in files for file, names in item.items() for constant in names),
        )
    return stages


DECLARED = declared(params_of(ROOT / "params.yaml"))


def dvc(folder: Path, *arguments: str) -> str:
    """Runs DVC in `folder` with the PATH that make sets, and returns its stdout.

    The `pipeline` commands of stages run in forked processes, too; test_wheel.py has DVC start the installed command.
    """
    program = "import sys; from dvc.cli import main; sys.argv[0] = 'dvc'; sys.exit(main())"
    with forked_command() as first:
        path = os.pathsep.join([str(first), str(SCRIPTS), os.environ["PATH"]])
        environment = {"PATH": path, "DVC_NO_ANALYTICS": "1"}
        done = forked.python(program, *arguments, folder=folder, environment=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


COMMAND = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({server!r})
    server.sendall(json.dumps([os.getcwd(), sys.argv[1:], dict(os.environ)]).encode())
    server.shutdown(socket.SHUT_WR)
    code, stdout, stderr = json.load(server.makefile())
print(stdout, end="")
print(stderr, end="", file=sys.stderr)
sys.exit(code)
"""


class _ForkedCommand(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        folder, arguments, environment = json.load(self.rfile)
        done = forked.pipeline(Path(folder), arguments, environment)
        self.wfile.write(json.dumps([done.returncode, done.stdout, done.stderr]).encode())


@contextmanager
def forked_command() -> Iterator[Path]:
    """A folder with a program `pipeline` for PATH: it has this process run the command in a forked one."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        server_path, program = str(folder / "server"), folder / "pipeline"
        program.write_text(COMMAND.format(python=sys.executable, server=server_path))
        program.chmod(0o755)
        with socketserver.ThreadingUnixStreamServer(server_path, _ForkedCommand) as server:
            threading.Thread(target=server.serve_forever, args=(0.05,)).start()
            try:
                yield folder
            finally:
                server.shutdown()
