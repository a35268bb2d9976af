"""Tests that each stage of dvc.yaml declares the parameters and files that its verb really reads.

Every verb runs here on a tiny drawn corpus, in a process that records which values of params.yaml it takes and
which files below the working directory it opens. What native code opens by itself (videos, by FFmpeg) is not seen.
"""

import ast
import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.command import STAGES
from tests.support import forked
from tests.support.dvc_stages import DECLARED, ROOT, SMALL, params_of
from tests.support.recorded_verb import OPENS, RUN, Recorded

FREE_SECTIONS = frozenset(["machine", "paths"])
"""Sections that are not in DVC's params: machine changes no result, paths is in deps and outs."""
# Declared items that this run does not read: pack and stats open a video again, and stats its track, only if the clip
# is missing in the cache; stats also shows the first picture of rejected clips, and here no clip is rejected.
# The language model is read only if decode.lm_weight is above 0; a text file is normalised only if there is one.
UNSEEN_DEPS = {
    "pack": {"corpus.root"},
    "stats": {"corpus.root", "paths.tracks"},
    "report": {"paths.lm"},
}
UNSEEN_PARAMS = {"ingest": {"inference"}, "pack": {"corpus.root", "corpus.audio", "crop"}, "lm": {"text"}}


def test_the_stages_call_verbs_that_exist() -> None:
    import typer

    from pipeline.cli import app

    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert tuple(DECLARED) == STAGES
    assert f"The stages, in order: {', '.join(STAGES)}." in str(app.info.help)
    for name, stage in DECLARED.items():
        assert stage.command == f"pipeline {name}"
        assert name in verbs


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
    """DVC fails on a git-ignored dvc.lock; an output that git sees would be left over after `make demo`."""
    lines = (ROOT / ".gitignore").read_text("utf-8").splitlines()
    ignored = {line.strip() for line in lines if not line.startswith("#")}
    assert "dvc.lock" not in ignored
    for stage in DECLARED.values():
        for out in stage.outs:
            assert f"/{Path(out).parts[0]}/" in ignored, out


def test_no_output_contains_what_must_survive_a_rerun() -> None:
    params = params_of(ROOT / "params.yaml")
    for kept in (params["paths"]["runs"], params["machine"]["cache_dir"], params["corpus"]["root"]):
        for stage in DECLARED.values():
            assert not [out for out in stage.outs if below(kept, out) or below(out, kept)]


def test_every_dep_is_an_out_of_another_stage_or_the_corpus() -> None:
    outs = {out for stage in DECLARED.values() for out in stage.outs}
    root = params_of(ROOT / "params.yaml")["corpus"]["root"]
    for name, stage in DECLARED.items():
        assert stage.deps <= outs | {root}, name


# --- recorded verbs ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, demo_corpus: Path) -> Path:
    """A working directory with a tiny corpus and params.yaml of a tiny model."""
    folder = tmp_path_factory.mktemp("workplace")
    params = params_of(ROOT / "params.yaml")
    for section, values in SMALL.items():
        params[section] |= values
    (folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")
    shutil.copytree(demo_corpus, folder / params["corpus"]["root"])
    return folder


@pytest.fixture(scope="module")
def record(workplace: Path) -> Callable[[str], Recorded]:
    """Runs a verb and the verbs before it, each once."""

    @functools.cache
    def run(verb: str) -> Recorded:
        before = STAGES[: STAGES.index(verb)]
        for earlier in before:
            run(earlier)
        log = workplace.parent / f"{workplace.name}.{verb}.log"
        # the recorder's folder contains a sitecustomize, which Python imports in child processes too
        recorder = workplace.parent / f"{workplace.name}.recorder"
        recorder.mkdir(exist_ok=True)
        (recorder / "sitecustomize.py").write_text(OPENS, "utf-8")
        environment = {"PYTHONPATH": str(recorder), "RECORD_TO": str(log), "RECORD_IN": str(workplace)}
        done = forked.python(f"{OPENS}\n{RUN}", verb, folder=workplace, environment=environment)
        assert done.returncode == 0, done.stderr
        keys: set[str] = set()
        read: set[str] = set()
        written: set[str] = set()
        for line in log.read_text("utf-8").splitlines():
            kind, _, name = line.partition(" ")
            {"key": keys, "read": read, "write": written}[kind].add(name)
        # the import system tries names that do not exist, and folders are opened to be synced
        read = {name for name in read if (workplace / name).is_file()}
        # a file without a name tests whether a folder is writable
        written = {name for name in written if not (workplace / name).is_dir()}
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
    packed = (Path(params["paths"][name]) for name in ("samples", "shards"))
    locks = {str(path.with_name(f".{path.name}.lock")) for path in packed}
    kept = {params["paths"]["runs"], params["machine"]["cache_dir"], *locks}
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


def below(path: str, folder: str) -> bool:
    return Path(path) == Path(folder) or Path(folder) in Path(path).parents


def _among(name: str, places: frozenset[str] | set[str]) -> bool:
    """Returns whether `name` is one of `places`, below one, or the partial file that is renamed to one."""
    path = Path(name)
    if path.suffix == ".tmp" and path.name.startswith("."):
        # shards/files.py: .<final name>.<random>.tmp next to the final name
        path = path.with_name(path.name[1:-4].rpartition(".")[0])
    return any(below(str(path), place) for place in places)
