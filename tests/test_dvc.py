"""dvc.yaml is tied to the code: each stage declares the parameters and files that its verb really reads.

Every verb runs here on a tiny drawn corpus, in a process that records which values of params.yaml it takes and
which files below the working directory it opens. What native code opens by itself (videos, by FFmpeg) is not seen.
"""

import ast
import functools
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SCRIPTS = Path(sysconfig.get_path("scripts"))
STAGES = ("ingest", "crop", "pack", "lm", "stats", "train", "report")
FREE_SECTIONS = frozenset(["machine", "paths"])
"""Sections that are no part of DVC's params: one changes no result, the other stands in deps and outs."""
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
# A part of the declaration that this run cannot show: pack and stats open a video again, and stats its track, only
# where the cache lost its clip; stats also shows the first picture of rejected ones, and none is rejected here.
# The language model is asked only where decode.lm_weight says so; a text file is normalised only where there is one.
UNSEEN_DEPS = {
    "pack": {"corpus.root"},
    "stats": {"corpus.root", "paths.tracks"},
    "report": {"paths.lm"},
}
UNSEEN_PARAMS = {"pack": {"corpus.root", "crop"}, "lm": {"text"}}


@dataclass(frozen=True)
class Declared:
    """One stage of dvc.yaml, its `${…}` filled in."""

    command: str
    deps: frozenset[str]
    outs: frozenset[str]
    params: frozenset[str]
    """Names in params.yaml."""
    constants: tuple[tuple[str, str], ...]
    """(Python file, name) of constants that are parameters."""


@dataclass(frozen=True)
class Recorded:
    """What a verb did: `section.key` it read, files it read and files it wrote below the working directory."""

    keys: frozenset[str]
    read: frozenset[str]
    written: frozenset[str]


def params_of(file: Path) -> dict[str, Any]:
    from pipeline.params import read_mapping

    return read_mapping(file)


def declared(params: dict[str, Any]) -> dict[str, Declared]:
    """The stages of dvc.yaml by name, with `params` filled in."""
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


def test_the_stages_call_verbs_that_exist() -> None:
    import typer

    from pipeline.cli import app

    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert tuple(DECLARED) == STAGES
    for name, stage in DECLARED.items():
        assert stage.command == f"pipeline {name}"
        assert name in verbs


def test_dvc_itself_reads_the_file_and_the_committed_lock(tmp_path: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n", "utf-8")
    for stage in DECLARED.values():
        for file, _ in stage.constants:
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    dvc(tmp_path, "init", "--no-scm")
    assert tuple(dvc(tmp_path, "stage", "list", "--name-only").split()) == STAGES
    # status looks every parameter up; one that is not there would be told as deleted
    status = json.loads(dvc(tmp_path, "status", "--json"))
    changes = [
        change
        for told in status.values()
        for item in told
        if isinstance(item, dict)
        for change in item.values()
    ]
    states = {name: state for change in changes for name, state in change.items()}
    assert states["params.yaml"] == "new"
    for stage in DECLARED.values():
        for file, _ in stage.constants:
            assert states[file] == "new"


@pytest.mark.parametrize("stage", STAGES)
def test_constants_that_are_parameters_are_literals_of_their_file(stage: str) -> None:
    for file, name in DECLARED[stage].constants:
        tree = ast.parse((ROOT / file).read_text("utf-8"))
        values = [
            node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            if [target.id for target in node.targets if isinstance(target, ast.Name)] == [name]
        ]
        assert len(values) == 1, f"{file} must hold `{name} = <number>` once, at its top level: DVC parses it"
        assert isinstance(values[0], int)


def test_git_sees_the_lock_and_ignores_every_out() -> None:
    """A git-ignored dvc.lock is fatal to DVC; an out that git sees makes `make demo` leave a mess."""
    lines = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    ignored = {line.strip() for line in lines if not line.startswith("#")}
    assert "dvc.lock" not in ignored
    for stage in DECLARED.values():
        for out in stage.outs:
            assert f"/{Path(out).parts[0]}/" in ignored, out


def test_no_out_holds_what_must_survive_a_rerun() -> None:
    params = params_of(ROOT / "params.yaml")
    for kept in (params["paths"]["runs"], params["machine"]["cache_dir"], params["corpus"]["root"]):
        for stage in DECLARED.values():
            assert not [out for out in stage.outs if below(kept, out) or below(out, kept)]


def test_every_dep_is_an_out_of_another_stage_or_the_corpus() -> None:
    outs = {out for stage in DECLARED.values() for out in stage.outs}
    root = params_of(ROOT / "params.yaml")["corpus"]["root"]
    for name, stage in DECLARED.items():
        assert stage.deps <= outs | {root}, name


# --- what the verbs really do ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with a tiny corpus and params.yaml of a tiny model."""
    from pipeline.demo.corpus import build_demo_corpus
    from pipeline.demo.plan import CorpusSize

    folder = tmp_path_factory.mktemp("workplace")
    params = params_of(ROOT / "params.yaml")
    for section, values in SMALL.items():
        params[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    build_demo_corpus(folder / params["corpus"]["root"], 0, 1, size=CorpusSize((1, 5), (1, 2), (1, 2)))
    return folder


@pytest.fixture(scope="module")
def record(workplace: Path) -> Callable[[str], Recorded]:
    """Runs a verb and those before it, each once."""

    @functools.cache
    def run(verb: str) -> Recorded:
        before = STAGES[: STAGES.index(verb)]
        for earlier in before:
            run(earlier)
        log = workplace.parent / f"{workplace.name}.{verb}.log"
        # the recorder's folder holds a sitecustomize, which Python imports in child processes too
        recorder = workplace.parent / f"{workplace.name}.recorder"
        recorder.mkdir(exist_ok=True)
        (recorder / "sitecustomize.py").write_text(OPENS, "utf-8")
        environment = os.environ | {
            "PYTHONPATH": str(recorder),
            "RECORD_TO": str(log),
            "RECORD_IN": str(workplace),
        }
        command = [sys.executable, str(Path(__file__).resolve()), verb]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=workplace, env=environment, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        keys: set[str] = set()
        read: set[str] = set()
        written: set[str] = set()
        for line in log.read_text("utf-8").splitlines():
            kind, _, name = line.partition(" ")
            {"key": keys, "read": read, "write": written}[kind].add(name)
        # the import system tries names that are no files, and folders are opened to be synced
        read = {name for name in read if (workplace / name).is_file()}
        return Recorded(frozenset(keys), frozenset(read), frozenset(written))

    return run


@pytest.mark.parametrize("verb", STAGES)
def test_a_stage_declares_the_parameters_it_reads(verb: str, record: Callable[[str], Recorded]) -> None:
    read = {key for key in record(verb).keys if key.partition(".")[0] not in FREE_SECTIONS}
    stage = DECLARED[verb]
    undeclared = {
        key for key in read if not any(key == name or key.startswith(f"{name}.") for name in stage.params)
    }
    assert not undeclared, f"{verb} reads {undeclared}; add them to its params in dvc.yaml"
    unread = {
        name for name in stage.params if not any(key == name or key.startswith(f"{name}.") for key in read)
    }
    unread -= UNSEEN_PARAMS.get(verb, set())
    assert not unread, f"{verb} never reads {unread}; take them out of its params in dvc.yaml"


@pytest.mark.parametrize("verb", STAGES)
def test_a_stage_declares_the_files_it_reads_and_writes(
    verb: str, record: Callable[[str], Recorded], workplace: Path
) -> None:
    params = params_of(workplace / "params.yaml")
    stage, recorded = DECLARED[verb], record(verb)
    kept = {params["paths"]["runs"], params["machine"]["cache_dir"]}
    strangers = {name for name in recorded.written if not _among(name, stage.outs | kept)}
    assert not strangers, f"{verb} writes {strangers}, which are no outs of its stage"
    allowed = stage.deps | stage.outs | kept | {"params.yaml"}
    strangers = {name for name in recorded.read if not _among(name, allowed)}
    assert not strangers, f"{verb} reads {strangers}; add them to its deps in dvc.yaml"
    for out in stage.outs:
        assert any(_among(name, {out}) for name in recorded.written), f"{verb} never writes its out {out}"
        assert (workplace / out).exists(), f"{verb} leaves no {out}"
    unseen = {
        params[section][key] for section, key in (name.split(".") for name in UNSEEN_DEPS.get(verb, ()))
    }
    for dep in stage.deps - unseen:
        assert any(_among(name, {dep}) for name in recorded.read), f"{verb} never opens its dep {dep}"


# --- experiments -----------------------------------------------------------------------------------------------


def test_experiments_are_run_shown_and_compared(tmp_path: Path) -> None:
    """`dvc exp run -S`, `dvc exp show` and `dvc plots diff` in a git repository with packed clips of its own."""
    from tests.packed import pack_clips, toy_clips

    params = params_of(ROOT / "params.yaml")
    for section, values in SMALL.items():
        params[section] |= values
    params["train"]["num_epochs"] = 2
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    whole = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))
    logs = [plot for plot in whole["plots"] if next(iter(plot)).startswith("${paths.logs}")]
    of_train = {"stages": {"train": whole["stages"]["train"]}, "metrics": whole["metrics"], "plots": logs}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(of_train), "utf-8")
    for name in [".gitignore", *(file for file, _ in DECLARED["train"].constants)]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    pack_clips(tmp_path / "data", toy_clips(8, 4))
    for command in ("init -q", "config user.name a", "config user.email a@example.org"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    dvc(tmp_path, "init", "-q")
    for command in ("add -A", "commit -qm base"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    rates = {"high": 1e-2, "low": 2e-4}
    for name, rate in rates.items():
        dvc(tmp_path, "exp", "run", "-n", name, "-S", f"train.learning_rate={rate:g}")
    told = json.loads(dvc(tmp_path, "exp", "show", "--json", "--no-pager"))
    (base,) = [entry for entry in told if entry["rev"] != "workspace"]
    shown = {entry["name"]: entry["revs"][0]["data"] for entry in base["experiments"]}
    assert shown.keys() == rates.keys()
    for name, data in shown.items():
        assert data["params"]["params.yaml"]["data"]["train"]["learning_rate"] == rates[name]
        metrics = data["metrics"]["logs/dvclive/metrics.json"]["data"]
        assert metrics["step"] == 1 and 0 < metrics["best_val_cer"] <= metrics["val_cer"]
    plots = json.loads(dvc(tmp_path, "plots", "diff", "high", "low", "--json"))
    assert "errors" not in plots
    drawn = {Path(name).name: plot for name, plot in plots["data"].items()}
    for table in ("train_loss.tsv", "val_cer.tsv", "gradient_norm.tsv"):
        (plot,) = drawn[table]
        points = plot["content"]["data"]["values"]
        assert {(point["rev"], point["step"]) for point in points} == {
            (name, step) for name in rates for step in ("0", "1")
        }
    status = subprocess.run(
        ["git", "status", "--porcelain"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert {line[3:] for line in status.stdout.splitlines()} <= {"dvc.lock", "params.yaml"}


def below(path: str, folder: str) -> bool:
    return Path(path) == Path(folder) or Path(folder) in Path(path).parents


def _among(name: str, places: frozenset[str] | set[str]) -> bool:
    """Whether `name` is one of `places`, below one, or the temporary file that is renamed to one."""
    path = Path(name)
    if path.suffix == ".tmp" and path.name.startswith("."):
        # shards/files.py: .<final name>.<random>.tmp beside the final name
        path = path.with_name(path.name[1:-4].rpartition(".")[0])
    return any(below(str(path), place) for place in places)


def dvc(folder: Path, *arguments: str) -> str:
    """stdout of DVC in `folder`; its own environment is as make sets it up."""
    environment = os.environ | {"PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    command = [str(SCRIPTS / "dvc"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# Writes "read NAME" and "write NAME" for every file below RECORD_IN that Python code opens.
OPENS = """
import os, sys
_here = os.path.realpath(os.environ["RECORD_IN"]) + os.sep
_log = os.open(os.environ["RECORD_TO"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def _hook(event, arguments):
    if event != "open" or not isinstance(arguments[0], (str, bytes)):
        return
    name = os.path.realpath(os.fsdecode(arguments[0]))
    flags = arguments[2] if isinstance(arguments[2], int) else 0
    if name.startswith(_here):
        kind = "write" if flags & (os.O_WRONLY | os.O_RDWR) else "read"
        os.write(_log, f"{kind} {name[len(_here):]}\\n".encode())
sys.addaudithook(_hook)
"""


def run_recorded(verb: str) -> None:
    """Runs `pipeline verb` in this process, telling RECORD_TO of every value of params.yaml that it takes."""
    import pipeline.params
    from pipeline.cli import app
    from pipeline.params import Params
    from shards.settings import Section

    owners: dict[int, tuple[str, Section]] = {}  # the section too, so that its id is not used again
    plain = Section.__getattribute__
    load, whole_dump, muted = pipeline.params.load_params, Params.model_dump, False
    with Path(os.environ["RECORD_TO"]).open("a", encoding="utf-8") as log:

        def note(section: Section, name: str) -> None:
            owner = owners.get(id(section))
            if owner is None or muted:
                return
            fields = type(section).model_fields
            # a dump takes every value
            names = list(fields) if name in ("model_dump", "model_dump_json", "__dict__") else [name]
            for field in names:
                if field in fields:
                    log.write(f"key {owner[0]}.{field}\n")

        def getattribute(self: Section, name: str) -> Any:
            note(self, name)
            value = plain(self, name)
            if name == "model_copy" and id(self) in owners:
                prefix = owners[id(self)][0]

                def copied(*arguments: Any, **more: Any) -> Any:
                    return register(value(*arguments, **more), prefix)

                return copied
            return value

        def register(section: Section, prefix: str) -> Section:
            owners[id(section)] = prefix, section
            for field in type(section).model_fields:
                inner = plain(section, field)
                if isinstance(inner, Section):
                    register(inner, f"{prefix}.{field}")
            return section

        def dump(self: Params, *arguments: Any, **more: Any) -> dict[str, Any]:
            # the effective configuration that is saved beside a result decides nothing
            nonlocal muted
            muted = True
            try:
                return whole_dump(self, *arguments, **more)
            finally:
                muted = False

        def load_params(*arguments: Any, **more: Any) -> Any:
            params = load(*arguments, **more)
            for field in type(params).model_fields:
                register(getattr(params, field), field)
            return params

        Section.__getattribute__ = getattribute  # type: ignore[method-assign, assignment]
        Params.model_dump = dump  # type: ignore[method-assign, assignment]
        pipeline.params.load_params = load_params
        app([verb], standalone_mode=False)


if __name__ == "__main__":
    run_recorded(sys.argv[1])
