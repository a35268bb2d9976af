"""The card and its metadata say what is in the pack, alike each time, and their referees take them."""

import json
import os
import re
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from shards.codec import decode_clip
from stages.cards.card import CARD, METADATA, card_files
from stages.cards.pack_facts import PackFacts, SplitFacts, facts_of
from tests.support import forked
from tests.support.packing import Packing, make

CODECS = ("raw", "jpeg", "h264", "ffv1")
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
FACTS = PackFacts(
    "CC-BY-NC-SA-4.0",
    "zh",
    "jpeg",
    96,
    25.0,
    (SplitFacts("train", 30_341, 85.37, 1_400_000, 175), SplitFacts("unseen-2", 0, 0.0, 0, None)),
)


@pytest.fixture(scope="module")
def packing(tmp_path_factory: pytest.TempPathFactory) -> Packing:
    packing = make(tmp_path_factory.mktemp("card"), 6)
    for codec in CODECS:
        packing.pack(codec, codec=codec)
    return packing


def front_matter(card: str) -> dict[str, Any]:
    return dict(yaml.safe_load(card.split("---\n")[1]))


def test_the_front_matter_is_as_the_hub_wants_it() -> None:
    matter = front_matter(card_files(FACTS)[CARD].decode())
    assert matter["license"] == "cc-by-nc-sa-4.0"
    assert matter["language"] == ["zh"]
    assert matter["size_categories"] == ["10K<n<100K"]
    assert matter["configs"][0]["data_files"] == [{"split": "train", "path": "train/*.tar"}]
    from huggingface_hub import DatasetCard

    card = DatasetCard(card_files(FACTS)[CARD].decode())
    assert card.data.task_categories == ["automatic-speech-recognition"]
    assert card.data.pretty_name


def test_the_text_says_whose_it_is_and_what_it_may_serve() -> None:
    card = card_files(FACTS)[CARD].decode()
    for part in (
        "CC-BY-NC-SA-4.0",
        "mouths of people",
        "have not agreed",
        "| train | 30341 | 85.37 |",
        "| 175 |",
    ):
        assert part in card
    assert "ceil(num_frames / 682)" in card  # of 96 px
    unknown = card_files(FACTS.__class__("", "", "raw", 96, 25.0, FACTS.splits))[CARD].decode()
    assert "Licence: unknown" in unknown
    assert "language" not in front_matter(unknown)


@pytest.mark.parametrize(
    "license", ["{{ 7 * 7 }} {% for %}", "<b>&amp; 'x' \"y\"", "a\nb: c\n---\n# d", "{0}%s"]
)
def test_a_licence_is_never_read_as_a_template_or_as_yaml(license: str) -> None:
    files = card_files(replace(FACTS, license=license))
    assert f"Licence: {license}. " in files[CARD].decode()
    assert f"under {license}: " in json.loads(files[METADATA])["description"]
    matter = next(yaml.safe_load_all(files[CARD].decode().split("\n---\n\n# Mouth")[0]))
    assert (matter["license"], matter["license_name"]) == ("other", license)
    assert matter["language"] == ["zh"]


def test_facts_are_counted_from_the_catalogue(packing: Packing) -> None:
    train = [row for row in packing.rows("raw") if row["split"] == "train"]
    facts = facts_of(
        train, ["train", "none"], kind="grid", license=" MIT ", codec="raw", size_px=96, fps=25.0
    )
    first, none = facts.splits
    assert (facts.license, facts.language) == ("MIT", "en")
    assert first.num_clips == len(train)
    assert first.hours == pytest.approx(sum(row["num_frames"] for row in train) / 25 / 3600, abs=1e-4)
    assert first.num_speakers == 1
    assert (none.num_clips, none.num_speakers) == (0, None)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of its rdflib
def test_mlcroissant_takes_the_metadata(packing: Packing, tmp_path: Path) -> None:
    mlcroissant = pytest.importorskip("mlcroissant")
    for codec in CODECS:
        dataset = mlcroissant.Dataset(packing.folder / codec / METADATA)  # raises what is wrong with it
        assert not dataset.metadata.ctx.issues.errors
        splits = {record["split/name"]: record["split/clips"] for record in dataset.records("split")}
        assert splits == {"train": 5, "test": 1, "empty_split": 0, "unseen-2": 2}
    # mlcroissant opens no tars of a file set (the format has them): here they are unpacked, and the rest is as it is
    metadata = json.loads((packing.folder / "raw" / METADATA).read_text("utf-8"))
    for file_set in metadata["distribution"]:
        file_set.pop("containedIn", None)
    (tmp_path / METADATA).write_text(json.dumps(metadata), "utf-8")
    for shard in sorted((packing.folder / "raw").rglob("*.tar")):
        with tarfile.open(shard) as tar:
            tar.extractall(tmp_path, filter="data")
    records = list(mlcroissant.Dataset(tmp_path / METADATA).records("sample"))
    rows = {row["clip_id"]: row for row in packing.rows("raw")}
    assert len(records) == len(rows)
    for record in records:
        row = rows[record["sample/clip_id"].decode()]
        assert record["sample/label"].decode() == row["label"]
        assert record["sample/num_frames"] == row["num_frames"]
        assert record["sample/split"].decode() == row["split"]
        assert record["sample/fps"] == 25.0


def test_both_are_alike_each_time_and_name_no_day_nor_machine(packing: Packing) -> None:
    assert card_files(FACTS) == card_files(FACTS)
    for content in card_files(FACTS).values():
        text = content.decode()
        assert not re.search(r"20[2-9]\d-\d\d", text)
        assert str(packing.folder) not in text


def programs(card: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card.read_text("utf-8"), re.DOTALL)


RUN = """
import json, os, sys
import numpy
for folder, program, kept in json.loads(sys.argv[1]):
    os.chdir(folder)
    os.mkdir(kept)
    print(folder)
    exec(program + f"    numpy.save('{kept}/' + about['clip_id'], clip_THW)", {"numpy": numpy})
"""
"""Runs programs as they stand, with a line more that keeps what they read."""


@pytest.mark.parametrize("number", [0, 1], ids=["webdataset", "datasets"])
def test_the_programs_of_the_card_read_the_pack(packing: Packing, number: int, tmp_path: Path) -> None:
    """As a stranger runs them, next to the card, offline."""
    folders = {codec: packing.folder / codec for codec in CODECS}
    work = [
        (str(path), programs(path / CARD)[number], str(tmp_path / codec)) for codec, path in folders.items()
    ]
    environment = os.environ | OFFLINE | {"HF_HOME": str(tmp_path / "home")}
    done = forked.python(RUN, json.dumps(work), folder=tmp_path, environment=environment)
    assert done.returncode == 0, done.stderr
    expected = []
    for codec, folder in folders.items():
        rows = [row for row in packing.rows(codec) if row["split"] == "train"]
        expected += [
            str(folder),
            *(f"{row['clip_id']} {(row['num_frames'], 96, 96)} {row['label']}" for row in rows),
        ]
        for row in rows:
            shard = (folder / row["shard"]).read_bytes()
            payload = shard[row["clip_offset"] : row["clip_offset"] + row["clip_size"]]
            ours = decode_clip(payload, codec, row["num_frames"])
            theirs = np.load(tmp_path / codec / f"{row['clip_id']}.npy")
            # PIL's JPEG library need not round as ours does
            assert np.abs(theirs.astype(int) - ours).max() <= (2 if codec == "jpeg" else 0)
    assert done.stdout.splitlines() == expected
