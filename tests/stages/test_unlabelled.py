"""Clips without a label: from the corpus to the packed split `unlabelled`."""

import logging
from pathlib import Path

import pytest

from shards.errors import CorpusError, TableError
from shards.files import read_table
from shards.schema import CLIPS, CROPS, SAMPLES, Reason
from shards.settings import LoaderParams, MachineParams
from shards.store import FolderStore
from stages.clips.ledger import refuse_other_ledger
from stages.crop import crop
from stages.ingest import ingest
from stages.pack import pack
from stages.settings import CorpusParams
from tests.support.crop_runs import forked_workers
from tests.support.ingested import CROP, TEXT
from tests.support.packing import Packing
from tests.support.videos import write_mouth


def table(root: Path, text: str, **options: str) -> CorpusParams:
    root.mkdir(exist_ok=True)
    (root / "clips.csv").write_text(text, "utf-8")
    return CorpusParams.model_validate({"kind": "table", "root": str(root), **options})


ROWS = """clip_id,media,split,text,confidence
said,0.mp4,train,你好,0.5
no_text,1.mp4,train,,
only_marks,2.mp4,train,…！,
no_split,3.mp4,,,
hidden,4.mp4,unlabelled,我们我们我们我们我们,0.9
unread,5.mp4,valid,,
heard,6.mp4,valid,你们,
"""


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus that keeps clips without a text, cropped and packed."""
    folder = tmp_path_factory.mktemp("kept")
    corpus = table(folder / "corpus", ROWS, unlabelled="keep", media_kind="mouth")
    for number in range(7):
        write_mouth(folder / "corpus" / f"{number}.mp4", 12, seed=number)
    tables = [folder / f"{name}.parquet" for name in ("clips", "crops", "tracks")]
    machine = MachineParams(workers=1, cache_dir=str(folder / "cache"))
    ingest(corpus, TEXT, CROP, tables[0])
    with forked_workers():
        crop(corpus, CROP, machine, *tables)
    store, samples = FolderStore(folder / "shards"), folder / "samples.parquet"
    pack(corpus, CROP, Packing.params(), machine, *tables, store, samples)
    return folder


def splits(path: Path) -> dict[str, str]:
    return {row["clip_id"]: row["split"] for row in read_table(path, CLIPS, "ingest").to_pylist()}


def test_training_clips_without_a_label_are_unlabelled_if_they_are_kept(kept: Path) -> None:
    assert splits(kept / "clips.parquet") == {
        "said": "train",
        "no_text": "unlabelled",
        "only_marks": "unlabelled",
        "no_split": "unlabelled",
        "hidden": "unlabelled",
        "unread": "valid",
        "heard": "valid",
    }


def test_unlabelled_clips_need_no_label_and_others_do(kept: Path) -> None:
    """Ten characters in half a second are too many for a label, but a hidden label is not checked."""
    ledger = {row["clip_id"]: row for row in read_table(kept / "crops.parquet", CROPS, "crop").to_pylist()}
    assert [clip_id for clip_id, row in ledger.items() if row["status"] != "ok"] == ["unread"]
    assert ledger["unread"]["reason"] == Reason.EMPTY_TEXT
    assert "corpus.unlabelled does not keep clips of split valid" in ledger["unread"]["detail"]


def test_unlabelled_clips_are_packed_with_their_hidden_labels(kept: Path) -> None:
    rows = read_table(kept / "samples.parquet", SAMPLES, "pack").to_pylist()
    found = {row["clip_id"]: (row["split"], row["label"], row["confidence"]) for row in rows}
    assert found == {
        "said": ("train", "你好", 0.5),
        "no_text": ("unlabelled", "", None),
        "only_marks": ("unlabelled", "", None),
        "no_split": ("unlabelled", "", None),
        "hidden": ("unlabelled", "我们" * 5, pytest.approx(0.9)),
        "heard": ("valid", "你们", None),
    }
    assert (kept / "shards" / "unlabelled" / "index.json").exists()


def test_without_the_option_a_clip_without_a_text_is_rejected_as_before(tmp_path: Path) -> None:
    corpus = table(tmp_path, "clip_id,media,split,text\na,a.mp4,train,\nb,a.mp4,unlabelled,\n")
    path = tmp_path / "clips.parquet"
    ingest(corpus, TEXT, CROP, path)
    assert splits(path) == {"a": "train", "b": "unlabelled"}
    write_mouth(tmp_path / "a.mp4", 12)
    tables = [path, tmp_path / "crops.parquet", tmp_path / "tracks.parquet"]
    machine = MachineParams(workers=1, cache_dir=str(tmp_path / "cache"))
    with forked_workers():
        crop(corpus.model_copy(update={"media_kind": "mouth"}), CROP, machine, *tables)
    rows = read_table(tables[1], CROPS, "crop").to_pylist()
    assert [(row["status"], row["detail"]) for row in rows] == [
        ("rejected", "nothing is left of the transcript after normalising"),
        ("ok", None),
    ]
    with pytest.raises(CorpusError, match="split '' must be"):
        ingest(table(tmp_path, "clip_id,media,split,text\na,a.mp4,,\n"), TEXT, CROP, path)


def test_a_ledger_is_of_other_clips_if_one_became_unlabelled(kept: Path) -> None:
    """Its label is still empty, but then the ledger should say that it is rejected."""
    metadata = read_table(kept / "crops.parquet", CROPS, "crop").schema.metadata
    rows = read_table(kept / "clips.parquet", CLIPS, "ingest").to_pylist()
    refuse_other_ledger(metadata, rows, CROP, kept / "clips.parquet", kept / "crops.parquet")
    changed = [row | {"split": "train"} if row["clip_id"] == "no_text" else row for row in rows]
    with pytest.raises(TableError, match="was not made from"):
        refuse_other_ledger(metadata, changed, CROP, kept / "clips.parquet", kept / "crops.parquet")


def test_a_speaker_may_be_in_train_and_unlabelled_but_not_in_valid(tmp_path: Path) -> None:
    """Unlabelled video of a person of the valid split is a leak, of the train split not."""
    rows = "clip_id,media,split,text,speaker\na,a.mp4,train,你,li\nb,b.mp4,unlabelled,,li\n"
    summary = ingest(table(tmp_path, rows), TEXT, CROP, tmp_path / "clips.parquet")
    assert summary.shared_speakers == {} and summary.shared_videos == {}
    with pytest.raises(CorpusError, match="Wang in valid, unlabelled"):
        rows += "c,c.mp4,valid,我,wang\nd,d.mp4,unlabelled,,Wang\n"
        ingest(table(tmp_path, rows), TEXT, CROP, tmp_path / "clips.parquet")


def test_a_seeded_split_gives_no_unlabelled_person_to_valid_and_test(tmp_path: Path) -> None:
    """The clips without a text of a person of valid stay there, and crop rejects them."""
    rows = [f"l{n},l{n}.mp4,字,p{n % 10}" for n in range(100)]
    rows += [f"u{n},u{n}.mp4,,p{n % 20}" for n in range(200)]
    corpus = table(
        tmp_path,
        "\n".join(["clip_id,media,text,speaker", *rows]),
        unlabelled="keep",
        valid_fraction="0.2",
        test_fraction="0.1",
    )
    ingest(corpus, TEXT, CROP, tmp_path / "clips.parquet")
    clips = read_table(tmp_path / "clips.parquet", CLIPS, "ingest").to_pylist()
    labelled = [row for row in clips if row["label"]]
    counts = {split: sum(row["split"] == split for row in labelled) for split in ("train", "valid", "test")}
    assert counts == {"train": 70, "valid": 20, "test": 10}
    strangers = {f"p{n}" for n in range(10, 20)}
    assert {row["split"] for row in clips if row["speaker"] in strangers} == {"unlabelled"}
    people = {row["speaker"]: row["split"] for row in labelled}
    for row in clips:
        if not row["label"] and row["speaker"] in people:
            of_person = people[row["speaker"]]
            assert row["split"] == ("unlabelled" if of_person == "train" else of_person)


def test_keeping_unlabelled_clips_where_there_are_none_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = table(tmp_path, "clip_id,media,split,text\na,a.mp4,train,你\n", unlabelled="keep")
    with caplog.at_level(logging.WARNING):
        ingest(corpus, TEXT, CROP, tmp_path / "clips.parquet")
    assert "corpus.unlabelled is keep, but every clip of split train has a text" in caplog.text


@pytest.mark.parametrize("value", ["1.5", "-0.1", "90%", "sure", "９"])
def test_a_confidence_outside_0_to_1_is_refused(value: str, tmp_path: Path) -> None:
    corpus = table(tmp_path, f"clip_id,media,split,text,confidence\na,a.mp4,train,你,{value}\n")
    with pytest.raises(CorpusError, match=r"clips\.csv:2: confidence .* is not between 0 and 1"):
        ingest(corpus, TEXT, CROP, tmp_path / "clips.parquet")


def test_audio_and_confidence_of_a_table_are_read(tmp_path: Path) -> None:
    rows = (
        "clip_id,media,split,text,confidence,audio\na,a.mp4,train,你,.25,./wav/a.wav\nb,b.mp4,train,我,nan,\n"
    )
    ingest(table(tmp_path, rows), TEXT, CROP, tmp_path / "clips.parquet")
    clips = read_table(tmp_path / "clips.parquet", CLIPS, "ingest").to_pylist()
    assert [(row["audio"], row["confidence"]) for row in clips] == [("wav/a.wav", 0.25), (None, None)]


def test_the_share_must_leave_labelled_clips() -> None:
    with pytest.raises(ValueError, match="less than 1"):
        LoaderParams(unlabelled_share=1.0)
