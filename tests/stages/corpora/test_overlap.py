"""One video under several names, or in several rows: seen in the splits, the seeded split, and the texts."""

import logging
import unicodedata
import zipfile
from pathlib import Path

import pytest

from model.settings import TextParams
from shards.errors import CorpusError
from stages.corpora import read_corpus
from stages.ingest import ingest
from stages.settings import CorpusParams, CropParams

NFC, NFD = (unicodedata.normalize(form, "vidéo が.mp4") for form in ("NFC", "NFD"))
TWO_NAMES = {
    "Unicode forms, on disk": (NFC, NFD),
    "Unicode forms, of no file": ("gone " + NFC, "gone " + NFD),
    "a link": ("a.mp4", "link.mp4"),
    "a link in another folder": ("folder/b.mp4", "a.mp4"),
    "a linked folder": ("linked/c.mp4", "folder/c.mp4"),
    "zips": ("a.zip!" + NFC, "other.zip!" + NFD),
    "a hard link": ("a.mp4", "folder/hard.mp4"),
    "a link to a hard link": ("link.mp4", "folder/hard.mp4"),
    "a zip's hard link": ("a.zip!" + NFC, "hard.zip!" + NFD),
}


def corpus_of(root: Path, header: str, *rows: str, **params: object) -> CorpusParams:
    root.mkdir(exist_ok=True)
    (root / "clips.csv").write_text("\n".join([header, *rows, ""]), "utf-8")
    return CorpusParams(kind="table", root=str(root), **params)  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    (root / "folder").mkdir(parents=True)
    for name in (NFC, "a.mp4", "other.mp4", "folder/c.mp4"):
        (root / name).write_bytes(b"no video")
    (root / "link.mp4").symlink_to("a.mp4")
    (root / "folder" / "b.mp4").symlink_to("../a.mp4")
    (root / "linked").symlink_to("folder")
    with zipfile.ZipFile(root / "a.zip", "w") as archive:
        archive.writestr(NFC, b"no video")
    (root / "other.zip").symlink_to("a.zip")
    (root / "folder" / "hard.mp4").hardlink_to(root / "a.mp4")
    (root / "hard.zip").hardlink_to(root / "a.zip")
    return root


@pytest.mark.parametrize("kind", TWO_NAMES)
def test_a_video_under_two_names_is_seen_in_two_splits(root: Path, tmp_path: Path, kind: str) -> None:
    one, other = TWO_NAMES[kind]
    corpus = corpus_of(root, "clip_id,media,text,split", f"a,{one},好,train", f"b,{other},好,test")
    with pytest.raises(CorpusError, match=r"^1 video is in several splits: .* in train, test;"):
        ingest(corpus, TextParams(), CropParams(), tmp_path / "clips.parquet")


@pytest.mark.parametrize("kind", TWO_NAMES)
def test_a_seeded_split_keeps_the_names_of_a_video_together(root: Path, kind: str) -> None:
    one, other = TWO_NAMES[kind]
    rows = [f"c{i},{name},好" for i, name in enumerate([one, other] + [f"{i}.mp4" for i in range(6)])]
    for seed in range(12):
        found = read_corpus(corpus_of(root, "clip_id,media,text", *rows, seed=seed, test_fraction=0.4))
        splits = {name: transcript.split for name, transcript in zip((one, other), found, strict=False)}
        assert len(set(splits.values())) == 1


@pytest.mark.parametrize("kind", TWO_NAMES)
def test_two_texts_of_a_video_under_two_names_stop(root: Path, tmp_path: Path, kind: str) -> None:
    one, other = TWO_NAMES[kind]
    corpus = corpus_of(root, "clip_id,media,text,split", f"a,{one},好,train", f"b,{other},你,train")
    with pytest.raises(
        CorpusError, match=r"clips\.csv:3: .* another text here \('你'\) than at .*:2 \('好'\)"
    ):
        ingest(corpus, TextParams(), CropParams(), tmp_path / "clips.parquet")


def test_other_files_are_other_videos(root: Path, tmp_path: Path) -> None:
    """A link out of the corpus that may not be followed is no file of it."""
    (tmp_path / "a.mp4").write_bytes(b"no video")
    (root / "out.mp4").symlink_to(tmp_path / "a.mp4")
    names = ("a.mp4", "other.mp4", "folder/c.mp4", "a.zip", f"a.zip!{NFC}", "out.mp4", "out2.mp4")
    rows = [f"c{i},{name},{i},{('train', 'test')[i % 2]}" for i, name in enumerate(names)]
    summary = ingest(
        corpus_of(root, "clip_id,media,text,split", *rows),
        TextParams(),
        CropParams(),
        tmp_path / "clips.parquet",
    )
    assert summary.shared_videos == {}


WARNED = {
    "a whole video and a part": [(",", "好"), ("1,2", "你")],
    "an end later by a picture": [("0,2", "好"), ("0,2.01", "你")],
    "half of each": [("0,2", "好"), ("1,3", "你")],
    "one inside of another": [("0,10", "好"), ("9,10", "你")],
    "both to the end of the video": [("1,", "好"), ("3,", "你")],
    "one in the row before the last": [("0,1", "一"), ("1,2", "二"), ("2,3", "三"), ("2,3.01", "四")],
}
FINE = {
    "neighbours": [("0,2", "好"), ("2,4", "你"), ("4,", "他")],
    "silence shared by neighbours": [("0,2.2", "好"), ("1.8,4", "你")],
    "the same text": [("0,2", "好"), ("0,2.01", "好。"), (",", "好")],
    "no text": [(",", ""), ("0,2", "你")],
}


@pytest.mark.parametrize("kind", WARNED)
def test_different_texts_of_the_same_seconds_are_warned_of(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [f"c{i},a.mp4,{text},train,{times}" for i, (times, text) in enumerate(WARNED[kind])]
    corpus = corpus_of(tmp_path / "corpus", "clip_id,media,text,split,start,end", *rows)
    with caplog.at_level(logging.WARNING):
        ingest(corpus, TextParams(), CropParams(), tmp_path / "clips.parquet")
    (warning,) = [
        record.getMessage() for record in caplog.records if "different texts" in record.getMessage()
    ]
    first, second = len(rows), len(rows) + 1
    assert warning.startswith(
        "clips that share at least half of their time have different texts (pairs: 1): "
    )
    assert f"clips.csv:{first} ({WARNED[kind][-2][1]!r}) and " in warning
    assert f"clips.csv:{second} ({WARNED[kind][-1][1]!r}), of a.mp4" in warning


@pytest.mark.parametrize("kind", FINE)
def test_parts_that_can_both_be_true_are_not_warned_of(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [f"c{i},a.mp4,{text},train,{times}" for i, (times, text) in enumerate(FINE[kind])]
    # in another split it is reported as a video in two splits
    rows += ["d,a.mp4,别,test,0,2", "e,b.mp4,别,train,0,2"]
    corpus = corpus_of(
        tmp_path / "corpus", "clip_id,media,text,split,start,end", *rows, speaker_overlap="warn"
    )
    with caplog.at_level(logging.WARNING):
        ingest(corpus, TextParams(), CropParams(), tmp_path / "clips.parquet")
    assert "different texts" not in caplog.text
