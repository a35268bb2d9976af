"""Packs and models on the Hugging Face Hub: push makes one commit, pull checks every file before it is used.

`index.json` at the top of the repository lists all other files with size and sha256. A commit is whole or absent, and
files that an interrupted push has sent are not sent again. Pull downloads into a folder next to its target, resumes
there, and renames it when every file is as listed.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pipeline.command import verbosity
from shards.errors import ConfigError, MachineError, PipelineError, ShardError
from shards.files import json_bytes, sha256_of
from shards.tar import INDEX, parse_index
from stages.cards.card import CARD, METADATA
from stages.cards.licences import licence_of_card, refuse_sharing

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Kind = Literal["pack", "model"]
SAMPLES, CHECKPOINT = "samples.parquet", "best_model.pt"
PULLING = ".pulling"
"""Ends the name of the folder of an unfinished pull."""
_NAMES = {
    "pack": re.compile(
        rf"{re.escape(CARD)}|{re.escape(METADATA)}|{re.escape(SAMPLES)}"
        r"|[A-Za-z0-9_-]+/(index\.json|[A-Za-z0-9_-]+-\d{6}\.tar)"
    ),
    "model": re.compile(r"README\.md|config\.json|model(_int8)?\.onnx|model\.safetensors|best_model\.pt"),
}
"""The files of a repository. Others are neither pushed nor pulled, so no name leaves the folder."""
_REQUIRED = {"pack": SAMPLES, "model": "config.json"}
_TARGET = re.compile(r"(?:hf://)?(?:(datasets|models)/)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)")


@dataclass(frozen=True, slots=True)
class Repo:
    """A repository of the Hub."""

    kind: Kind
    id: str

    @classmethod
    def of(cls, kind: Kind, target: str) -> "Repo":
        """Returns the repository that `target` names: USER/NAME, hf://USER/NAME or hf://datasets/USER/NAME."""
        found = _TARGET.fullmatch(target)
        if not found or found[1] not in (None, "datasets" if kind == "pack" else "models"):
            example = "hf://datasets/USER/NAME" if kind == "pack" else "hf://USER/NAME"
            raise ConfigError(f"{target} names no repository for a {kind}; write USER/NAME or {example}")
        return cls(kind, found[2])

    @property
    def type(self) -> Literal["dataset", "model"]:
        return "dataset" if self.kind == "pack" else "model"

    def __str__(self) -> str:
        return f"hf://{'datasets/' if self.kind == 'pack' else ''}{self.id}"


@dataclass(frozen=True, slots=True)
class PulledFile:
    name: str
    num_bytes: int
    sha256: str


def pack_files(shards: Path, samples: Path) -> dict[str, Path]:
    """Returns the files of a complete pack by their names in the repository.

    Raises ShardError if a shard is missing or differs from its index.
    """
    indexes = sorted(shards.glob(f"*/{INDEX}"))
    if not indexes or not samples.is_file():
        raise ShardError(f"{shards} and {samples} are not a complete pack; run `pipeline pack`")
    files = {name: shards / name for name in (CARD, METADATA)} | {SAMPLES: samples}
    for path in indexes:
        split = path.parent.name
        for name, shard in parse_index(path.read_bytes(), split, str(path)).shards.items():
            files[name] = shards / name
            if not files[name].is_file() or sha256_of(files[name]) != shard.sha256:
                raise ShardError(f"{files[name]} is missing or differs from {path}; run `pipeline verify`")
        files[f"{split}/{INDEX}"] = path
    return files


def model_files(export: Path, checkpoint: Path) -> dict[str, Path]:
    """Returns the files of an export, its card as README.md, and its checkpoint, if that is the one in the card."""
    card = export / "MODEL_CARD.md"
    if not card.is_file():
        raise ConfigError(f"{export} holds no exported model; run `pipeline export`")
    files = {path.name: path for path in sorted(export.iterdir()) if _NAMES["model"].fullmatch(path.name)}
    if checkpoint.is_file() and f"Checkpoint {sha256_of(checkpoint)[:16]}," in card.read_text("utf-8"):
        files[CHECKPOINT] = checkpoint
    return files | {CARD: card}


def push(repo: Repo, files: dict[str, Path], *, has_rights: bool, public: bool) -> str:
    """Replaces the pack or model in the repository by these files, in one commit; returns its address.

    Other files stay. Creates the repository, for its owner only unless `public`. Raises ConfigError if the licence in
    the card does not allow sharing, MachineError if the Hub cannot be reached or refuses.
    """
    license = licence_of_card(files[CARD].read_text("utf-8")) if files[CARD].is_file() else ""
    refuse_sharing(
        license, str(repo), has_rights, what=f"a {repo.kind} is made from the videos of the corpus"
    )
    listed = [
        {"name": name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}
        for name, path in sorted(files.items())
    ]
    with _hub(repo, "push") as api:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        url = api.create_repo(repo.id, repo_type=repo.type, private=not public, exist_ok=True)
        there = api.list_repo_files(repo.id, repo_type=repo.type)
        stale = {name for name in there if _NAMES[repo.kind].fullmatch(name)} - set(files)
        api.create_commit(
            repo.id,
            [
                *(CommitOperationAdd(name, str(path)) for name, path in sorted(files.items())),
                CommitOperationAdd(INDEX, json_bytes({"kind": repo.kind, "files": listed})),
                *(CommitOperationDelete(name) for name in sorted(stale)),
            ],
            commit_message=f"Push a {repo.kind} with pipeline",
            repo_type=repo.type,
        )
        return str(url)


def pull(repo: Repo, folder: Path, revision: str | None = None) -> list[PulledFile]:
    """Downloads the repository to `folder`, which must not exist or be empty; returns its files.

    Resumes an interrupted pull. Raises ShardError if a file is not as listed (the next pull gets it again), and
    MachineError if the Hub cannot be reached or the repository is not there.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; move it away, or pull to another folder")
    partial = folder.with_name(folder.name + PULLING)
    with _hub(repo, "pull") as api:
        # one commit for all files: somebody may push meanwhile
        commit = api.repo_info(repo.id, repo_type=repo.type, revision=revision).sha
        if not api.file_exists(repo.id, INDEX, repo_type=repo.type, revision=commit):
            raise ConfigError(f"{repo} has no {INDEX}: `pipeline push {repo.kind}` did not write it")
        api.hf_hub_download(repo.id, INDEX, repo_type=repo.type, revision=commit, local_dir=partial)
        files = _listed((partial / INDEX).read_bytes(), repo)
        names = [file.name for file in files]
        api.snapshot_download(
            repo.id, repo_type=repo.type, revision=commit, local_dir=partial, allow_patterns=names
        )
    for file in files:
        path = partial / file.name
        if not path.is_file() or path.stat().st_size != file.num_bytes or sha256_of(path) != file.sha256:
            path.unlink(missing_ok=True)
            raise ShardError(
                f"{repo}: {file.name} is missing or is not the file of {INDEX}; run the same command again, and if it "
                "differs again, push it again"
            )
    shutil.rmtree(partial / ".cache")
    (partial / INDEX).unlink()
    if folder.exists():
        folder.rmdir()
    partial.rename(folder)
    return files


def _listed(content: bytes, repo: Repo) -> list[PulledFile]:
    """Returns the files of index.json. Raises ShardError if it is damaged, or lists a file of no such repository."""
    try:
        value = json.loads(content)
        files = [PulledFile(file["name"], file["bytes"], file["sha256"]) for file in value["files"]]
        wrong = [file.name for file in files if not _NAMES[repo.kind].fullmatch(file.name)]
        if value["kind"] != repo.kind:
            raise ValueError(f"it is of a {value['kind']}")
        if wrong:
            raise ValueError(f"{wrong[0]} is no file of it")
        if _REQUIRED[repo.kind] not in {file.name for file in files}:
            raise ValueError(f"{_REQUIRED[repo.kind]} is missing")
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{repo}: {INDEX} does not list the files of a {repo.kind} ({error})") from error
    return files


@contextmanager
def _hub(repo: Repo, verb: str) -> Iterator["HfApi"]:
    """Yields the Hub's client. Its errors become a MachineError with the fix."""
    if not verbosity.shows_progress:
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"  # read when it is imported
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HTTPError
    except ModuleNotFoundError as error:
        raise MachineError(
            f"the package huggingface_hub is missing ({error}); it comes with pip install 'lip-pipeline[hub]'"
        ) from error
    try:
        yield HfApi()
    except PipelineError:
        raise
    # the client raises RuntimeError for a failed upload, and has its own ValueErrors for names and cards
    except (OSError, HTTPError, RuntimeError, ValueError) as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise MachineError(
            f"{repo}: cannot {verb} it: {error}{cause}; check the network, the name and the token (HF_TOKEN, or "
            "`hf auth login`), then run the same command again: files that have arrived are not sent again"
        ) from error
