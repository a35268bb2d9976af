"""The commands push and pull.

Heavy imports are inside the commands, so that `pipeline --help` is fast.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.command import PARAMS, TOOLS, Assignments, ParamsFile, app, check_writable, load, resumable, say

if TYPE_CHECKING:
    from pipeline.params import Params

What = Annotated[Literal["pack", "model"], typer.Argument(help="pack (shards and catalogue) or model")]
Target = Annotated[
    str, typer.Argument(help="repository of the Hugging Face Hub: USER/NAME", metavar="USER/NAME")
]


@app.command(rich_help_panel=TOOLS)
def push(
    what: What,
    target: Target,
    export: Annotated[
        Path, typer.Option(help="for a model: folder of `pipeline export`", metavar="DIR")
    ] = Path("export/onnx"),
    public: Annotated[
        bool, typer.Option("--public", help="create a repository that everybody can read")
    ] = False,
    has_rights: Annotated[
        bool,
        typer.Option("--i-have-the-rights", help="allow a corpus with a non-commercial or unknown licence"),
    ] = False,
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
) -> None:
    """Upload a pack or an exported model to the Hugging Face Hub, in one commit; run it again to resume.

    Example: pipeline push pack USER/lips
    """
    from pipeline.hub import Repo, model_files, pack_files
    from pipeline.hub import push as run

    repo = Repo.of(what, target)
    values = load(params, assignments)
    checkpoint = Path(values.paths.checkpoints) / "best_model.pt"
    if what == "pack":
        files = pack_files(_local_shards(values), Path(values.paths.samples))
    else:
        files = model_files(export, checkpoint)
    with resumable("uploading"):
        url = run(repo, files, has_rights=has_rights, public=public)
    say(f"{url}: {len(files)} files, {sum(path.stat().st_size for path in files.values()) / 1e6:.1f} MB")


@app.command(rich_help_panel=TOOLS)
def pull(
    what: What,
    target: Target,
    out: Annotated[
        Path | None,
        typer.Option(help="for a model: folder to write; default: models/NAME", metavar="DIR"),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="commit, branch or tag; default: the newest")] = None,
    params: ParamsFile = PARAMS,
    assignments: Assignments = None,
) -> None:
    """Download a pack to paths.shards and paths.samples, or a model, and check it; run it again to resume.

    Example: pipeline pull pack USER/lips
    """
    from pipeline.hub import SAMPLES, Repo
    from pipeline.hub import pull as run
    from shards.errors import ConfigError

    repo = Repo.of(what, target)
    if what == "model":
        folder = out or Path("models") / repo.id.rpartition("/")[2]
    else:
        if out is not None:
            raise ConfigError("--out is for models; a pack goes to paths.shards and paths.samples")
        values = load(params, assignments)
        folder, samples = _local_shards(values), Path(values.paths.samples)
        if samples.exists():
            raise ConfigError(
                f"{samples} exists, and pull replaces no pack; move it away, or set paths.samples"
            )
    check_writable(folder.parent)
    # an earlier pull may have been killed before it moved the catalogue
    if what == "model" or not (folder / SAMPLES).exists():
        with resumable("downloading"):
            run(repo, folder, revision)
    if what == "pack":
        samples.parent.mkdir(parents=True, exist_ok=True)
        (folder / SAMPLES).rename(samples)
    say(folder)


def _local_shards(values: "Params") -> Path:
    """Returns the folder of the shards. Raises ConfigError if they are on remote storage."""
    from shards.errors import ConfigError
    from shards.open_store import open_store

    if open_store(values.paths.shards, values.machine).is_remote:
        raise ConfigError(
            f"paths.shards is {values.paths.shards}; push and pull need a folder of this machine"
        )
    return Path(values.paths.shards)
