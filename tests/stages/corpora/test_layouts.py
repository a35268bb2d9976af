"""Readers of CMLR, CN-CVS and CNVSRC, LRS2 and LRS3, manifests and Kaldi folders read the right values."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.settings import TextParams
from shards.errors import CorpusError
from shards.files import read_table
from shards.schema import CLIPS
from stages.corpora import Transcript, read_corpus
from stages.corpora.layout import clip_id_of, split_of_name
from stages.corpora.timed import parse_timed
from stages.ingest import ingest
from stages.settings import CropParams
from tests.support.layouts import LAYOUTS, manifest, objects, read_layout, text

Change = Callable[[Path], Any]


def read(kind: str, root: Path) -> dict[str, Transcript]:
    return {clip.clip_id: clip for clip in read_corpus(LAYOUTS[kind](root))}


def test_cmlr(tmp_path: Path) -> None:
    clips = read("cmlr", tmp_path)
    assert clips["s2_20170121_section_3_030-36_032-65"] == Transcript(
        clip_id="s2_20170121_section_3_030-36_032-65",
        split="test",
        speaker="s2",
        gender=None,
        age=None,
        topic=None,
        media="video/s2/20170121/section_3_030.36_032.65.mp4",
        text="你们",
        where=f"{tmp_path}/test.csv:1",
    )
    assert [clip.split for clip in clips.values()] == ["train", "train", "valid", "test"]


def test_cnvsrc(tmp_path: Path) -> None:
    clips = read("cnvsrc", tmp_path)
    assert {name: (clip.split, clip.speaker, clip.text) for name, clip in clips.items()} == {
        "cncvs_n001_00001_001": ("train", "n001", "你好"),
        "cncvs_s00001_001_00001": ("train", "s00001", "我们好"),
        "cnvsrc-multi_80100246": ("valid", None, "我们"),
        "cnvsrc-single_00023065": ("test", "cnvsrc-single", "你们<unk>"),
    }


def test_the_word_units_of_2023(tmp_path: Path) -> None:
    """Lines of the published list and units: https://github.com/MKT-Dataoceanai/CNVSRC2023Baseline."""
    units = {"▁": 2, "不": 313, "方案": 1126, "一": 4460, "▁但是": 746, "<unk>": 1}
    text(tmp_path / "unigram5000_units.txt", *(f"{unit} {number}" for unit, number in units.items()))
    text(
        tmp_path / "cncvs" / "valid.csv",
        "cncvs,speech/s02270/video/a.mp4,9,746 313 1126",
        "cncvs,b.mp4,9,2 313",
    )
    assert [clip.text for clip in read_layout("cnvsrc", tmp_path)] == ["但是不方案", "不"]
    # the numbers of 2024 with the units of 2023 are other characters
    text(tmp_path / "cncvs" / "train.csv", "cncvs,c.mp4,9,313 1126")
    with pytest.raises(CorpusError, match=r"train\.csv:1: '不方案' is no sentence .*char_units\.txt \(2024"):
        read_layout("cnvsrc", tmp_path)


def test_lrs3_holds_out_whole_talks_of_pretrain_and_trainval(tmp_path: Path) -> None:
    clips = read("lrs3", tmp_path)
    long = clips["pretrain_0Fi83BHQsMA_00001"]
    assert (long.text, long.speaker, long.times) == ("SO WE GO", "0Fi83BHQsMA", long.media[:-3] + "txt")
    assert clips["trainval_-a_b-c_d-e__50002"].text == "IT'S ON"
    assert clips["test_zzzzzzzzzzz_00003"].split == "test"
    talks = [f"talk{number:07}" for number in range(6)]
    for talk in talks:
        for folder in ("pretrain", "trainval"):
            text(tmp_path / folder / talk / "00001.txt", "Text:  A")
    for seed in range(8):
        splits = {clip.clip_id: clip.split for clip in read_layout("lrs3", tmp_path, seed=seed)}
        pretrain, trainval = (
            [splits[f"{folder}_{talk}_00001"] for talk in talks] for folder in ("pretrain", "trainval")
        )
        assert pretrain == trainval and set(pretrain) == {"train", "valid"}
        assert sorted(splits.values()).count("test") == 1


def test_lrs2_reads_its_lists_and_tags_also_without_the_folder_mvlrs(tmp_path: Path) -> None:
    clips = read("lrs2", tmp_path)
    expected = {
        "pretrain_5535415699068794046_00001": ("train", "SO WE GO"),
        "main_5535415699068794046_00002": ("train", "HELLO"),
        "main_6331559613336179781_00003": ("valid", "IT'S ON"),
        "main_6332062124509813446_00004": ("test", "WE GO"),
    }
    assert {name: (clip.split, clip.text) for name, clip in clips.items()} == expected
    for folder in ("main", "pretrain"):
        (tmp_path / "mvlrs_v1" / folder).rename(tmp_path / folder)
    (tmp_path / "mvlrs_v1").rmdir()
    flat = read_layout("lrs2", tmp_path)
    assert {clip.clip_id: (clip.split, clip.text) for clip in flat} == expected
    assert flat[0].media == "pretrain/5535415699068794046/00001.mp4"


def test_the_word_times_of_lrs() -> None:
    content = b"Text:  SO WE\nConf:  4\n\nWORD START END ASDSCORE\nSO 0.05 0.20 7.1\nWE 0.35 0.5 nan\n"
    first, second = parse_timed("a.txt", content)
    assert (first.start_s, first.end_s, first.text, first.line) == (0.05, 0.2, "SO", 5)
    assert (second.start_s, second.end_s, second.text, second.line) == (0.35, 0.5, "WE", 6)
    with pytest.raises(CorpusError, match=r"a\.txt:5: 'SO now 0\.20 7\.1' must be a word"):
        parse_timed("a.txt", content.replace(b"0.05", b"now"))
    with pytest.raises(CorpusError, match=r"a\.txt:1: a text with times has a line WORD START"):
        parse_timed("a.txt", b"SO 0.05 0.20 7.1\n")


def test_a_long_clip_of_lrs_is_cut_at_its_pauses(tmp_path: Path) -> None:
    corpus = LAYOUTS["lrs3"](tmp_path / "corpus")
    crop = CropParams(split_long=True, max_frames=20, min_frames=5)
    ingest(corpus, TextParams(), crop, tmp_path / "clips.parquet")
    rows = read_table(tmp_path / "clips.parquet", CLIPS, "pipeline ingest").to_pylist()
    parts = {row["clip_id"]: row for row in rows if row["clip_id"].startswith("pretrain")}
    assert " ".join(row["label"] for row in parts.values()) == "so we go"
    assert len(parts) == 2 and parts["pretrain_0Fi83BHQsMA_00001_001"]["start_s"] > 0


def test_a_manifest_of_nemo_and_lhotse(tmp_path: Path) -> None:
    clips = read("manifest", tmp_path)
    found = {name: (c.split, c.speaker, c.media, c.text, c.start_s, c.end_s) for name, c in clips.items()}
    assert found == {
        "clips_one": ("train", "anna", "clips/one.mp4", "hello", None, 0.96),
        "clips_two": ("train", "7", "clips/two.mp4", "so", None, 0.48),
        "clips_two_000480": ("train", "7", "clips/two.mp4", "we", 0.48, 0.96),
        "sup-1": ("valid", "bob", "clips/cut.mp4", "it's", 0.2, 0.6),
        "sup-2": ("test", None, "clips/last.mp4", "go", None, 0.96),
    }
    assert clips["sup-1"].gender == "M"


# written by lhotse 1.33.0 (CutSet.to_file)
LHOTSE_CUT = (
    '{"id": "r1-0", "start": 0.5, "duration": 2.5, "channel": 0, "supervisions": [{"id": "s1", "recording_id": "r1", '
    '"start": 0.0, "duration": 1.0, "channel": 0, "text": "a", "language": "en", "speaker": "bob", "gender": "M"}, '
    '{"id": "s2", "recording_id": "r1", "start": 1.1, "duration": 1.2, "channel": 0, "text": "b", "speaker": "amy"}], '
    '"recording": {"id": "r1", "sources": [{"type": "file", "channels": [0], "source": "clips/cut.mp4", "video": '
    '{"fps": 25.0, "num_frames": 75, "height": 96, "width": 96}}], "sampling_rate": 16000, "num_samples": 48000, '
    '"duration": 3.0, "channel_ids": [0]}, "type": "MonoCut"}'
)


def test_a_cut_as_lhotse_writes_it_gives_a_clip_for_each_supervision(tmp_path: Path) -> None:
    text(tmp_path / "cuts_train.jsonl", LHOTSE_CUT)
    first, second = read_layout("manifest", tmp_path, table="*.jsonl")
    assert (first.clip_id, first.speaker, first.gender, first.text) == ("s1", "bob", "M", "a")
    assert (first.media, first.start_s, first.end_s) == ("clips/cut.mp4", 0.5, 1.5)
    assert (second.clip_id, second.text, second.start_s, second.end_s) == ("s2", "b", 1.6, 2.8)


def test_a_manifest_without_splits_is_split_by_a_seed_that_new_lines_do_not_change(tmp_path: Path) -> None:
    rows = [{"video": f"v/{number}.mp4", "text": "a"} for number in range(40)]
    objects(tmp_path / "all.jsonl", *rows)
    first = {clip.clip_id: clip.split for clip in read_layout("manifest", tmp_path, table="all.jsonl")}
    assert set(first.values()) == {"train", "valid", "test"}
    objects(tmp_path / "all.jsonl", *reversed(rows))
    assert {
        clip.clip_id: clip.split for clip in read_layout("manifest", tmp_path, table="all.jsonl")
    } == first


def test_confidence_and_sound_of_a_manifest(tmp_path: Path) -> None:
    sure = '{"id": "a", "video": "v/a.mp4", "audio_filepath": "%s/w/a.wav", "text": "x", "confidence": 0.25}'
    alone = '{"id": "b", "audio_filepath": "v/b.mp4", "text": "x", "confidence": null}'
    text(tmp_path / "train.jsonl", sure % tmp_path, alone)
    found = read_layout("manifest", tmp_path, table="train.jsonl")
    assert [(clip.media, clip.audio, clip.confidence) for clip in found] == [
        ("v/a.mp4", "w/a.wav", 0.25),
        ("v/b.mp4", None, None),
    ]


def test_kaldi(tmp_path: Path) -> None:
    clips = read("kaldi", tmp_path)
    found = {name: (c.split, c.speaker, c.media, c.text, c.start_s, c.end_s) for name, c in clips.items()}
    assert found == {
        "anna-1": ("train", "anna", "media/one.mp4", "so we", None, 0.48),
        "anna-2": ("train", "anna", "media/one.mp4", "go", 0.48, None),
        clip_id_of("bob.1"): ("valid", "bob", "media/two.mp4", "hello", None, None),
        # a speaker named like the utterance is unknown
        "x1": ("test", None, "media/three.mp4", "it's", None, None),
    }


# for each layout: removes the text of one clip, and the video of another
LOSSES: dict[str, tuple[Change, str]] = {
    "cmlr": (
        lambda r: (r / "text" / "s1" / "20170121" / "section_1_000.80_002.91.txt").unlink(),
        "video/s2/20170121/section_3_030.36_032.65.mp4",
    ),
    "cnvsrc": (
        lambda r: text(r / "cncvs" / "train.csv", "cncvs,news/n001/video/n001_00001_001.mp4,24,"),
        "cnvsrc-multi/dev/video/80100246.mp4",
    ),
    "lrs2": (
        lambda r: (r / "mvlrs_v1/main/5535415699068794046/00002.txt").write_bytes(b""),
        "mvlrs_v1/main/6332062124509813446/00004.mp4",
    ),
    "lrs3": (
        lambda r: (r / "trainval/0Fi83BHQsMA/50001.txt").write_text("Text:\n"),
        "test/zzzzzzzzzzz/00003.mp4",
    ),
    "manifest": (
        lambda r: objects(r / "manifests/train_manifest.json", {"video": "clips/one.mp4"}),
        "clips/last.mp4",
    ),
    "kaldi": (lambda r: text(r / "data/dev/text", "bob.1"), "media/three.mp4"),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_clips_without_text_or_video_stay_and_are_counted(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = LAYOUTS[kind](tmp_path / "corpus")
    change, video = LOSSES[kind]
    change(tmp_path / "corpus")
    (tmp_path / "corpus" / video).unlink()
    summary = ingest(corpus, TextParams(), CropParams(), tmp_path / "clips.parquet")
    rows = read_table(tmp_path / "clips.parquet", CLIPS, "pipeline ingest").to_pylist()
    (silent,) = (row["clip_id"] for row in rows if not row["text"])
    assert (
        f"1 of {len(rows)} clips have no text; crop rejects them" in caplog.text
        and f"keep: {silent}" in caplog.text
    )
    assert summary.num_missing == 1
    assert [row["media"] for row in rows if row["media_kind"] is None] == [video]
    # a video that no list names
    assert ("s00001_001_00001.mp4" in caplog.text) is (kind == "cnvsrc")


def test_unknown_fields_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    objects(tmp_path / "train.jsonl", {"video": "a.mp4", "text": "a", "lang": "en", "pnc": "no"})
    read_layout("manifest", tmp_path, table="*.jsonl")
    assert "fields lang, pnc are not known and are ignored" in caplog.text


def test_offsets_behind_the_end_of_a_video_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = manifest(tmp_path / "corpus")
    objects(
        tmp_path / "corpus" / "manifests" / "train_manifest.json",
        {"video": "clips/one.mp4", "offset": 5.0, "duration": 1.0, "text": "a"},
    )
    ingest(corpus, TextParams(), CropParams(), tmp_path / "clips.parquet")
    assert "1 of 3 clips begin or end after the end of their video" in caplog.text


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train_manifest.json", "train"),
        ("libri_cuts_train-clean-100.jsonl.gz", "train"),
        ("dev", "valid"),
        ("test_clean", "test"),
        ("VAL.jsonl", "valid"),
        ("trainval", None),
        ("train_dev", None),
        ("latest", None),
    ],
)
def test_a_split_is_read_from_a_name(name: str, split: str | None) -> None:
    assert split_of_name(name) == split


def test_different_names_give_different_clip_ids() -> None:
    names = ["a-1", "a.1", "a/1", "张三", "李四", "x" * 300, "x" * 299]
    ids = [clip_id_of(name) for name in names]
    assert len(set(ids)) == len(names) and ids[0] == "a-1"
    assert all(len(name) <= 120 for name in ids)
