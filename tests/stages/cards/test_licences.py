"""Shards of a corpus that may not be shared stay on this machine, unless somebody says that he has the rights."""

import sysconfig
from pathlib import Path

import pytest

from pipeline.params import check, load_params, params_text, parse_yaml, recipe_text
from shards.errors import ConfigError
from shards.store import FolderStore
from stages.cards.licences import hub_licence, why_not_shared
from stages.pack import pack
from stages.settings import CorpusParams
from tests.support.in_process import pipeline
from tests.support.packing import PARAMS, Packing, make

PIPELINE = str(Path(sysconfig.get_path("scripts")) / "pipeline")
RESTRICTED = (
    "CC-BY-NC-SA-4.0",
    "cc-by-nc-4.0",
    "CC BY-NC-ND 3.0",
    "CC-BY-4.0 AND CC-BY-NC-4.0",
    "PolyForm-Noncommercial-1.0.0",
    "LicenseRef-non-commercial",
    "LicenseRef-GRID-research-use",
    "LicenseRef-Research",
    "LicenseRef-ours",
    "CC-BY-ND-4.0",
    "CC-BY-4.0 AND Evaluation-only",
    "All rights reserved",
    "Non–Commercial",
    "CCBYNC",
    "TBD",
    "n/a",
    "()",
    "OR",
    "",
    " ",
    "unknown",
    "NOASSERTION",
)
FREE = (
    "CC0-1.0",
    "cc-by-4.0",
    "CC-BY-SA-3.0",
    "Apache-2.0",
    "MIT",
    "ODbL-1.0",
    "(CC0-1.0 OR MIT) AND CC-BY-4.0",
)


@pytest.mark.parametrize("license", RESTRICTED)
def test_restricted(license: str) -> None:
    assert why_not_shared(license)


@pytest.mark.parametrize("license", FREE)
def test_free(license: str) -> None:
    assert why_not_shared(license) is None


def test_the_recipes_say_what_their_corpora_say() -> None:
    from recipes import RECIPES

    restricted = {
        "demo": False,
        "blend": False,
        "grid": True,
        "chinese_lips": True,
        "chinese_lips_conformer": True,
    }
    for recipe in RECIPES:
        # of an unknown corpus nothing is known
        expected = restricted.get(recipe, True)
        license = check(parse_yaml(recipe_text(recipe), recipe), recipe).corpus.license
        assert bool(why_not_shared(license)) is expected
        assert "#" not in license


def test_names_on_the_hub() -> None:
    assert hub_licence("CC-BY-NC-SA-4.0") == {"license": "cc-by-nc-sa-4.0"}
    assert hub_licence("CC0-1.0") == {"license": "cc0-1.0"}
    assert hub_licence("") == {"license": "unknown"}
    other = {"license": "other", "license_name": "LicenseRef-GRID-research-use"}
    assert hub_licence("LicenseRef-GRID-research-use") == other


class Remote(FolderStore):
    is_remote = True


@pytest.fixture(scope="module")
def packing(tmp_path_factory: pytest.TempPathFactory) -> Packing:
    return make(tmp_path_factory.mktemp("licences"), 2)


def run(packing: Packing, license: str, store: FolderStore, has_rights: bool = False) -> None:
    corpus = CorpusParams(root=packing.corpus.root, license=license)
    samples = store.folder.with_suffix(".parquet")
    pack(
        corpus,
        PARAMS,
        packing.params(),
        packing.machine,
        *packing.tables,
        store,
        samples,
        has_rights=has_rights,
    )


def test_a_remote_place_is_refused_and_nothing_of_it_touched(packing: Packing, tmp_path: Path) -> None:
    store = Remote(tmp_path / "shards")
    for license in ("CC-BY-NC-SA-4.0", ""):
        with pytest.raises(ConfigError, match="--i-have-the-rights"):
            run(packing, license, store)
        assert list(tmp_path.iterdir()) == []
    run(packing, "CC-BY-4.0", store)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"CC-BY-NC-SA-4\.0"):
        run(packing, "CC-BY-NC-SA-4.0", store)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    run(packing, "CC-BY-NC-SA-4.0", store, has_rights=True)
    assert "CC-BY-NC-SA-4.0" in (tmp_path / "shards" / "README.md").read_text("utf-8")


def test_a_folder_of_this_machine_takes_any(packing: Packing, tmp_path: Path) -> None:
    run(packing, "CC-BY-NC-SA-4.0", FolderStore(tmp_path / "shards"))
    assert "only for the same purposes" in (tmp_path / "shards" / "README.md").read_text("utf-8").replace(
        "\n", " "
    )


@pytest.mark.parametrize("verb", ["pack", "preprocess"])
def test_the_command_says_why_and_names_the_flag(verb: str, tmp_path: Path) -> None:
    """Before any work: there is not even a corpus."""
    (tmp_path / "params.yaml").write_text(recipe_text("demo"), "utf-8")
    changes = {"corpus.license": "CC-BY-NC-SA-4.0", "paths.shards": "memory://bucket/shards"}
    params = load_params(tmp_path / "params.yaml", flags=changes)
    (tmp_path / "params.yaml").write_text(params_text(params), "utf-8")
    done = pipeline(tmp_path, [verb])
    assert done.returncode == 2, done.stderr
    for word in ("memory://bucket/shards", "CC-BY-NC-SA-4.0", "--i-have-the-rights"):
        assert word in done.stderr
    assert done.stdout == ""
    # with the flag it is the missing tables, or corpus, that stop it
    done = pipeline(tmp_path, [verb, "--i-have-the-rights"])
    assert (done.returncode, "rights" in done.stderr) == (1, False), done.stderr
