"""Tests the documentation against the program: commands parse, keys and make targets exist, links work."""

import importlib
import re
import runpy
import shlex
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from pipeline.cli import UsageError, app
from pipeline.command import PARAMS
from pipeline.params import load_params, read_mapping
from shards.errors import ConfigError
from shards.schema import Reason

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
GUIDES = (README, *sorted((ROOT / "docs").glob("*.md")))
LINKED = (*GUIDES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md")
HISTORY = {"decisions.md"}
"""May name commands and keys of earlier versions, outside of code blocks."""
MAX_README_WORDS = 1_200

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_KEY = re.compile(r"([a-z]+(?:\.[a-z_0-9]+)+)(?:[=:].*)?")
_FILES = frozenset({"csv", "html", "json", "onnx", "pt", "py", "safetensors", "yaml", "zip"})
_NO_SHELL = frozenset({"csv", "json", "python", "sql", "text", "yaml"})
_BETWEEN_COMMANDS = re.compile(r"[;&|()<>]+")


class Command(NamedTuple):
    """A command in a document, as the shell splits it."""

    where: str
    words: tuple[str, ...]
    is_whole: bool
    """From a code block, to be pasted; a command within a line may lack its arguments."""


def blocks(text: str) -> Iterator[str]:
    """Returns the code blocks that a reader may paste into a shell."""
    return (code for language, code in _BLOCK.findall(text) if language not in _NO_SHELL)


def spans(text: str) -> list[str]:
    """Returns code within lines."""
    return _INLINE.findall(_BLOCK.sub("", text))


def commands(path: Path) -> Iterator[Command]:
    """Returns all commands of a document: in code blocks, and those of `pipeline` and `make` within lines."""
    text = path.read_text("utf-8")
    lines = [(line, True) for code in blocks(text) for line in code.replace("\\\n", " ").splitlines()]
    if path.name not in HISTORY:
        lines += [
            (span, False) for span in spans(text) if span.startswith(("pipeline ", "make ", "python -m "))
        ]
    for line, is_whole in lines:
        if any(name in line for name in ("pipeline", "make", "benchmarks.", " -S ")):
            where = f"{path.name}: {line.strip()}"
            try:
                yield from [Command(where, words, is_whole) for words in shell_words(line)]
            except ValueError as error:
                pytest.fail(f"{where}: no shell reads this ({error}); a block of something else is ```text")


def shell_words(line: str) -> Iterator[tuple[str, ...]]:
    """Returns the commands of a line, including commands in quotes (sbatch --wrap '…')."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if not _BETWEEN_COMMANDS.fullmatch(word):
            words.append(word)
        elif words:
            yield tuple(words)
            words = []
        if word.startswith("pipeline "):
            yield from shell_words(word)


def arguments_of(words: tuple[str, ...]) -> list[str] | None:
    """Returns arguments after `pipeline` or `-m pipeline`, or from `-m benchmarks.X` on; None for other programs."""
    for place, (option, name) in enumerate(pairwise(words)):
        if option == "-m" and name.startswith("benchmarks."):
            return [name, *map(_with_value, words[place + 2 :])]
    program = next((i for i, word in enumerate(words) if not re.match(r"[A-Z_0-9]+=", word)), 0)
    if words[program] != "pipeline":
        places = (i for i, pair in enumerate(pairwise(words)) if pair == ("-m", "pipeline"))
        program = next(places, -2) + 1
    return [_with_value(word) for word in words[program + 1 :]] if program >= 0 else None


def _with_value(word: str) -> str:
    # shell variables are numbers in these documents; options may have the spelling of the older trainer
    name, equals, value = re.sub(r"\$\{?\w+\}?", "0", word).partition("=")
    return (name.replace("_", "-") if name.startswith("--") else name) + equals + value


@cache
def _command(module: str = "pipeline") -> Any:
    if module == "pipeline":
        return typer.main.get_command(app)
    of_module = typer.Typer(add_completion=False)
    of_module.command()(importlib.import_module(module).command)
    return typer.main.get_command(of_module)


def fault(arguments: list[str], is_whole: bool) -> str | None:
    """Returns the error of a command: of all its arguments, or only of the names of verb and options."""
    arguments = [word for word in arguments if word not in ("--quiet", "--verbose")]  # allowed everywhere
    is_benchmark = bool(arguments) and arguments[0].startswith("benchmarks.")
    command = _command(arguments.pop(0)) if is_benchmark else _command()
    while hasattr(command, "commands") and arguments and not arguments[0].startswith("-"):
        verb, *arguments = arguments
        if verb not in command.commands:
            return f"there is no verb {verb}"
        command = command.commands[verb]
    options = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    for word in arguments:
        if re.match(r"--?[a-z]", word) and word.partition("=")[0] not in {*options, "--help"}:
            return f"there is no option {word}"
    # these act at once, even while the command line is only parsed
    if not is_whole or {"--help", "--version", "--install-completion"} & set(arguments):
        return None
    try:
        command.make_context("pipeline", arguments)
    except UsageError as error:
        # folders in a document are those of the reader
        return None if "does not exist" in str(error) else str(error)
    return None


def known_keys() -> set[str]:
    """Returns `section.key` and `section.key.inner` of params.yaml."""
    return set(_dotted(read_mapping(ROOT / PARAMS)))


def _dotted(values: dict[str, Any], before: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{before}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{before}{key}.")


def is_known(key: str, known: set[str]) -> bool:
    # the keys of model.sizes depend on the preset
    return key in known or key.startswith("model.sizes.")


def test_every_command_of_the_documents_parses() -> None:
    found = [
        (where, arguments, is_whole)
        for path in GUIDES
        for where, words, is_whole in commands(path)
        if (arguments := arguments_of(words)) is not None
    ]
    assert sum(is_whole for *_, is_whole in found) > 30
    faults = [(where, fault(arguments, is_whole)) for where, arguments, is_whole in found]
    assert [(where, wrong) for where, wrong in faults if wrong] == []


@pytest.mark.parametrize(
    "line",
    [
        "pipeline cropp",
        "pipeline crop --no-such",
        "python -m benchmarks.crop --no-such DIR",
        "srun torchrun -m pipeline train --no-such",
        "PIPELINE_REALDATA=/x pipeline compare",
        "sbatch --wrap 'pipeline crop --jobs 3'",
        "pipeline ingest && pipeline crop --num-jobs many",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    found = [arguments for words in shell_words(line) if (arguments := arguments_of(words)) is not None]
    assert any(fault(arguments, is_whole=True) for arguments in found)


def test_every_value_that_a_command_sets_is_allowed() -> None:
    """In commands to be pasted; for commands within a line only the key is checked."""
    known, wrong = known_keys(), []
    for path in GUIDES:
        for where, words, is_whole in commands(path):
            values = [value for option, value in pairwise(words) if option in ("--set", "-S")]
            wrong += [(where, value) for value in values if not is_known(value.partition("=")[0], known)]
            # W is a number that the reader chooses
            allowed = [value for value in values if is_whole and not re.search("=[A-Z]+$", value)]
            try:
                if allowed:
                    load_params(ROOT / PARAMS, assignments=allowed)
            except ConfigError as error:
                wrong.append((where, str(error)))
    assert wrong == []


def test_every_key_that_the_guides_name_is_in_params_yaml() -> None:
    known = known_keys()
    sections = {key for key in known if "." not in key}
    unknown = []
    for path in GUIDES:
        if path.name in HISTORY:
            continue
        for span in spans(path.read_text("utf-8")):
            match = _KEY.fullmatch(span)
            if match is None or match[1].split(".")[0] not in sections or match[1].split(".")[-1] in _FILES:
                continue
            if not is_known(match[1], known):
                unknown.append(f"{path.name}: {span}")
    assert unknown == []


def test_every_make_target_of_the_documents_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    named = {words[1] for path in GUIDES for _, words, _ in commands(path) if words[0] == "make"}
    assert {"demo", "test"} <= named <= targets


def headings(path: Path) -> set[str]:
    """Returns anchors as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", _BLOCK.sub("", path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("path", LINKED, ids=lambda path: path.name)
def test_links_and_pictures_exist(path: Path) -> None:
    missing = []
    for link in _LINK.findall(_BLOCK.sub("", path.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        if not target.exists() or (anchor and anchor not in headings(target)):
            missing.append(link)
    assert missing == []


def test_the_readme_is_short_and_leads_to_every_guide() -> None:
    text = README.read_text("utf-8")
    assert len(text.split()) <= MAX_README_WORDS
    links = set(_LINK.findall(text))
    assert {f"docs/{path.name}" for path in GUIDES if path != README} <= links


def test_the_guide_lists_every_reason() -> None:
    section = (
        (ROOT / "docs" / "crop.md").read_text("utf-8").partition("## The ledger")[2].partition("\n## ")[0]
    )
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == [reason.value for reason in Reason]


def test_contributing_lists_every_version_constant() -> None:
    """With its file."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert len(text.splitlines()) <= 60
    found = {
        (name, path.relative_to(ROOT).as_posix())
        for folder in ("pipeline", "stages", "model", "shards")
        for path in (ROOT / folder).rglob("*.py")
        for name in re.findall(r"^([A-Z_]+_VERSION)(?:: \w+)? = \d+$", path.read_text("utf-8"), re.MULTILINE)
    }
    assert set(re.findall(r"^\| `(\w+_VERSION)`, `([\w/.]+)` \|", text, re.MULTILINE)) == found


# split by a bar, so that this file does not contain them
UNUSUAL_WORDS = (
    "to|ld",
    "me|nd",
    "me|nds",
    "me|nded",
    "tor|so",
    "tor|sos",
    "be|side",
    "be|sides",
    "loo|ks",
    "sigh|ted",
)
FOLDERS = (
    "pipeline",
    "stages",
    "model",
    "shards",
    "benchmarks",
    "tests",
    "docs",
    "recipes",
    ".github",
    ".ci",
)
TEXT_FILES = {".py", ".md", ".j2", ".yaml", ".yml", ".toml", ".html", ".js", ".css"}


def test_no_text_has_the_words_that_newcomers_did_not_understand() -> None:
    """Plain terms replace them: message, fix, partial file, next to, look-alike class, normal (as opposed to blind)."""
    words = "|".join(word.replace("|", "", 1) for word in UNUSUAL_WORDS)
    pattern = re.compile(rf"(?<![a-z])(?:{words}|the way of {'the data'})(?![a-z])", re.IGNORECASE)
    files = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.suffix in TEXT_FILES]
    files += [path for path in ROOT.iterdir() if path.suffix in TEXT_FILES or path.name == "Makefile"]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if pattern.search(line)
    ]
    assert len(files) > 400 and found == []


def test_the_programs_of_the_data_guide_run(tmp_path: Path) -> None:
    programs = [
        code
        for language, code in _BLOCK.findall((ROOT / "docs/data.md").read_text("utf-8"))
        if language == "python"
    ]
    for program in programs:
        (tmp_path / "program.py").write_text(program, "utf-8")
        runpy.run_path(str(tmp_path / "program.py"))
    assert programs
