"""Readers of CMLR, CN-CVS and CNVSRC, LRS2 and LRS3, manifests and Kaldi folders: right values and hostile input."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stages.videos.settings import CropParams

from model.settings import TextParams
from shards.errors import CorpusError
from shards.files import read_table
from shards.schema import CLIPS
from stages.corpora import Transcript, read_corpus
from stages.corpora.layout import clip_id_of, split_of_name
from stages.corpora.timed import parse_timed
from stages.ingest import ingest
from stages.settings import CorpusParams
from tests.support.layouts import LAYOUTS, manifest, objects, text

Change = Callable[[Path], Any]


def read(kind: str, root: Path) -> dict[str, Transcript]:
    return {clip.clip_id: clip for clip in read_corpus(LAYOUTS[kind](root))}


def again(kind: str, root: Path, **values: Any) -> list[Transcript]:
    """Reads a changed miniature."""
    table = {"manifest": "manifests/*.json*", "kaldi": "data/*"}.get(kind, "clips.csv")
    values = {"table": table, "valid_fraction": 0.3, **values}
    return read_corpus(CorpusParams(kind=kind, root=str(root), **values))  # type: ignore[arg-type]


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
    assert [clip.text for clip in again("cnvsrc", tmp_path)] == ["但是不方案", "不"]
    # the numbers of 2024 with the units of 2023 are other characters
    text(tmp_path / "cncvs" / "train.csv", "cncvs,c.mp4,9,313 1126")
    with pytest.raises(CorpusError, match=r"train\.csv:1: '不方案' is no sentence .*char_units\.txt \(2024"):
        again("cnvsrc", tmp_path)


def test_lrs3_holds_out_whole_talks_of_pretrain_and_trainval(tmp_path: Path) -> None:
    clips = read("lrs3", tmp_path)
    long = clips["pretrain_0Fi83BHQsMA_00001"]
    assert (long.text, long.speaker, long.times) == ("SO WE GO", "0Fi83BHQsMA", long.media[:-3] + "txt")
    assert clips["trainval_-a_b-c_d-e__50002"].text == "IT'S ON"
    assert clips["test_zzzzzzzzzzz_00003"].split == "test"
    for seed in range(8):
        splits = {clip.clip_id: clip.split for clip in again("lrs3", tmp_path, seed=seed)}
        assert splits["pretrain_0Fi83BHQsMA_00001"] == splits["trainval_0Fi83BHQsMA_50001"]
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
    flat = again("lrs2", tmp_path)
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
    first, second = again("manifest", tmp_path, table="*.jsonl")
    assert (first.clip_id, first.speaker, first.gender, first.text) == ("s1", "bob", "M", "a")
    assert (first.media, first.start_s, first.end_s) == ("clips/cut.mp4", 0.5, 1.5)
    assert (second.clip_id, second.text, second.start_s, second.end_s) == ("s2", "b", 1.6, 2.8)


def test_a_manifest_without_splits_is_split_by_a_seed_that_new_lines_do_not_change(tmp_path: Path) -> None:
    rows = [{"video": f"v/{number}.mp4", "text": "a"} for number in range(40)]
    objects(tmp_path / "all.jsonl", *rows)
    first = {clip.clip_id: clip.split for clip in again("manifest", tmp_path, table="all.jsonl")}
    assert set(first.values()) == {"train", "valid", "test"}
    objects(tmp_path / "all.jsonl", *reversed(rows))
    assert {clip.clip_id: clip.split for clip in again("manifest", tmp_path, table="all.jsonl")} == first


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
    assert f"1 of {len(rows)} clips have no text; crop will reject them: {silent}" in caplog.text
    assert summary.num_missing == 1
    assert [row["media"] for row in rows if row["media_kind"] is None] == [video]
    # a video that no list names
    assert ("s00001_001_00001.mp4" in caplog.text) is (kind == "cnvsrc")


NO_UTF8 = b"\xff\xfe\xfa"

FAULTS: list[tuple[str, Change, str]] = [
    # lists
    ("cmlr", lambda r: (r / "val.csv").unlink(), r"val\.csv cannot be read: No such file"),
    ("cmlr", lambda r: text(r / "val.csv", "s1/2017"), r"val\.csv:1: 's1/2017' must be speaker/date_section"),
    (
        "cmlr",
        lambda r: text(r / "val.csv", "", "../s1/20170121_section_1_003.00_004.00"),
        r"val\.csv:2: '\.\./s1.* must be speaker",
    ),
    (
        "cmlr",
        lambda r: text(r / "val.csv", *2 * ["s1/20170121_section_1_003.00_004.00"]),
        r"val\.csv:2: clip id .* already occurs at .*val\.csv:1",
    ),
    ("cmlr", lambda r: (r / "val.csv").write_bytes(b"\n" + NO_UTF8), r"val\.csv:2: byte 0xff is not UTF-8"),
    (
        "cnvsrc",
        lambda r: text(r / "cncvs" / "test.csv", "cncvs,a.mp4,24"),
        r"test\.csv:1: .* must be set,video",
    ),
    (
        "cnvsrc",
        lambda r: text(r / "cncvs" / "test.csv", "other,a.mp4,24,2"),
        r"test\.csv:1: .* of the set cncvs",
    ),
    (
        "cnvsrc",
        lambda r: text(r / "cncvs" / "test.csv", "cncvs,a.mp4,-4,2"),
        r"test\.csv:1: .* must be set,video",
    ),
    (
        "cnvsrc",
        lambda r: text(r / "cncvs" / "test.csv", "cncvs,a.mp4,9,77"),
        r"test\.csv:1: number 77 is not in",
    ),
    ("cnvsrc", lambda r: (r / "char_units.txt").unlink(), r"neither char_units\.txt nor unigram"),
    (
        "cnvsrc",
        lambda r: text(r / "char_units.txt", "我"),
        r"char_units\.txt:1: '我' must be a unit and its number",
    ),
    (
        "cnvsrc",
        lambda r: text(r / "char_units.txt", "我 2", "你 2"),
        r"char_units\.txt:2: .* each number once",
    ),
    ("cnvsrc", lambda r: text(r / "unigram5000_units.txt", "我 2"), r"has char_units\.txt and unigram"),
    ("lrs2", lambda r: text(r / "val.txt", "../../etc/passwd"), r"val\.txt:1: .* must be broadcast/clip"),
    ("lrs2", lambda r: text(r / "val.txt", "a/1", "a/1"), r"val\.txt:2: clip id main_a_1 already occurs"),
    # texts
    (
        "cmlr",
        lambda r: next((r / "text").rglob("*.txt")).write_text("ni hao\n"),
        r"section_\S+\.txt:1: 'ni hao' must be the sentence in Chinese",
    ),
    (
        "cmlr",
        lambda r: next((r / "text").rglob("*.txt")).write_bytes(NO_UTF8),
        r"\.txt:1: byte 0xff is not UTF-8",
    ),
    (
        "lrs3",
        lambda r: (r / "test" / "zzzzzzzzzzz" / "00003.txt").write_text("HELLO\n"),
        r"00003\.txt:1: 'HELLO' must be the text of a clip",
    ),
    (
        "lrs3",
        lambda r: (r / "test" / "zzzzzzzzzzz" / "00003.txt").write_bytes(b"Text: A\n" + NO_UTF8),
        r"00003\.txt:2: byte 0xff is not UTF-8",
    ),
    (
        "lrs3",
        lambda r: (r / "test" / "zzzzzzzzzzz").rename(r / "test" / "a b"),
        r"clip id 'test_a b_00003' must be",
    ),
    # manifests
    (
        "manifest",
        lambda r: text(r / "manifests" / "train_manifest.json", "[1]"),
        r"\.json:1: a manifest has one object",
    ),
    (
        "manifest",
        lambda r: text(r / "manifests" / "train_manifest.json", "", "{"),
        r"\.json:2: this is not JSON",
    ),
    (
        "manifest",
        lambda r: text(r / "manifests" / "train_manifest.json", "[" * 99_999),
        r"\.json:1: this is not JSON",
    ),
    (
        "manifest",
        lambda r: (r / "manifests" / "train_manifest.json").write_bytes(b'{"video": "\xff"}'),
        r"\.json:1: byte 0xff is not UTF-8",
    ),
    (
        "manifest",
        lambda r: (r / "manifests" / "a_test.jsonl.gz").write_bytes(b"\x1f\x8b no"),
        r"gz cannot be unpacked",
    ),
    (
        "manifest",
        lambda r: (r / "manifests" / "a_test.jsonl.gz").write_bytes(gzip.compress(b"{}" * 99)[:-9]),
        r"gz cannot be unpacked",
    ),
    (
        "manifest",
        lambda r: (r / "manifests" / "mini_recordings_test.jsonl.gz").unlink(),
        r"recordings_test.* unpacked",
    ),
    # Kaldi
    ("kaldi", lambda r: (r / "data" / "train" / "wav.scp").unlink(), r"train/wav\.scp cannot be read"),
    (
        "kaldi",
        lambda r: text(r / "data" / "train" / "segments", "u rec1 0"),
        r"segments:1: .* must be recording, start",
    ),
    (
        "kaldi",
        lambda r: text(r / "data" / "train" / "segments", "u rec1 0 -2"),
        r"segments:1: end '-2' is not a time",
    ),
    (
        "kaldi",
        lambda r: text(r / "data" / "train" / "segments", "u rec1 -1 2"),
        r"segments:1: start '-1' is not a",
    ),
    (
        "kaldi",
        lambda r: text(r / "data" / "train" / "segments", "u rec1 2 1"),
        r"segments:1: end 1 is not after start",
    ),
    (
        "kaldi",
        lambda r: text(r / "data" / "train" / "text", "u a", "u b"),
        r"text:2: u already occurs at .*text:1",
    ),
    (
        "kaldi",
        lambda r: (r / "data" / "train" / "text").write_bytes(b"u " + NO_UTF8),
        r"text:1: byte 0xff is not",
    ),
    (
        "kaldi",
        lambda r: text(r / "data" / "train" / "wav.scp", "rec1 sph2pipe a.sph |"),
        r"wav\.scp:1: .* must be the path of a video, not a command",
    ),
    (
        "kaldi",
        lambda r: text(r / "data" / "train" / "wav.scp", "rec1 a.wav"),
        r"wav\.scp:1: a\.wav is sound.* video\.scp",
    ),
    (
        "kaldi",
        lambda r: (r / "data" / "test_clean").rename(r / "data" / "night"),
        r"wav\.scp:1: this clip is in no split, but other clips",
    ),
]


@pytest.mark.parametrize(("kind", "change", "message"), FAULTS)
def test_what_is_not_understood_is_refused_by_file_and_line(
    kind: str, change: Change, message: str, tmp_path: Path
) -> None:
    LAYOUTS[kind](tmp_path)
    again(kind, tmp_path)
    change(tmp_path)
    with pytest.raises(CorpusError, match=message):
        again(kind, tmp_path)


CUT = {"id": "c", "start": 0, "duration": 1, "supervisions": [{"id": "s", "start": 0, "duration": 1}]}
FILE = {"id": "r", "sources": [{"type": "file", "source": "a.mp4"}]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"audio_filepath": "a.wav", "text": "x"},
            "a.wav is sound, without pictures; name the video in video_filepath",
        ),
        ({"video": "a.mp4", "duration": -1.5}, "duration '-1.5' is not a time"),
        ({"video": "a.mp4", "offset": -0.5}, "offset '-0.5' is not a time"),
        ({"video": "a.mp4", "duration": 0}, "the part from 0 s to 0 s is empty"),
        ({"video": "a.mp4", "start": 2, "end": 1.5}, "the part from 2 s to 1.5 s is empty"),
        ({"video": "a.mp4", "duration": 1, "end": 1}, "duration and end are the same"),
        ({"video": "a.mp4", "offset": 1, "start": 1}, "offset and start are the same"),
        ({"video": "a.mp4", "media": "b.mp4"}, "video and media are the same"),
        ({"video": "a.mp4", "duration": True}, "duration must be a text or a number, not True"),
        ({"video": ["a.mp4"]}, "video must be a text or a number"),
        ({"video": "a.mp4", "text": {"a": 1}}, "text must be a text or a number"),
        ({"video": "a.mp4", "text": "\ud800"}, "half a character"),
        ({"video": "a.mp4", "begin_time": 3}, "begin_time may be a time of the part"),
        ({"video": "a.mp4", "age": "old"}, "age 'old' is not a number of years"),
        ({"video": "a.mp4", "split": "a b"}, "split 'a b' must be 1 to 120"),
        ({"recording_id": "rec", "start": 0, "duration": 1}, "must have `supervisions` in its name"),
        ({**CUT, "type": "MixedCut"}, "only cuts of one recording .* MixedCut has none"),
        ({**CUT, "recording": None}, "only cuts of one recording"),
        ({**CUT, "recording": {"id": "r", "sources": []}}, 'one source of type "file"'),
        (
            {**CUT, "recording": {"id": "r", "sources": [{"type": "url", "source": "a"}]}},
            'one source of type "file"',
        ),
        (
            {**CUT, "recording": {**FILE, "sources": [{"type": "file", "source": "a.flac"}]}},
            "a.flac is sound",
        ),
        ({**CUT, "recording": FILE, "supervisions": {"s": 1}}, "supervisions must be a list"),
        ({**CUT, "recording": FILE, "supervisions": [{"start": -1}]}, "start '-1' is not a time"),
    ],
)
def test_a_wrong_object_of_a_manifest_is_refused_by_line(
    row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    text(tmp_path / "all.jsonl", '{"video": "v.mp4", "text": "a", "split": "train"}', json.dumps(row))
    with pytest.raises(CorpusError, match=rf"all\.jsonl:2: .*{message}"):
        again("manifest", tmp_path, table="all.jsonl", test_fraction=0.0, valid_fraction=0.0)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "1" * 5000])
def test_a_number_that_is_none_is_refused(number: str, tmp_path: Path) -> None:
    text(tmp_path / "train.jsonl", f'{{"video": "a.mp4", "text": "a", "offset": {number}}}')
    with pytest.raises(CorpusError, match=r"train\.jsonl:1: "):
        again("manifest", tmp_path, table="*.jsonl")


def test_a_name_given_twice_in_an_object_is_refused(tmp_path: Path) -> None:
    text(tmp_path / "train.jsonl", '{"video": "a.mp4", "text": "a", "text": "b"}')
    with pytest.raises(CorpusError, match=r"train\.jsonl:1: .*a name occurs twice"):
        again("manifest", tmp_path, table="*.jsonl")


def test_unknown_fields_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    objects(tmp_path / "train.jsonl", {"video": "a.mp4", "text": "a", "lang": "en", "pnc": "no"})
    again("manifest", tmp_path, table="*.jsonl")
    assert "fields lang, pnc are not known and are ignored" in caplog.text


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cmlr", "train.csv cannot be read"),
        ("cnvsrc", "no folder with train.csv"),
        ("lrs2", "has none of pretrain.txt, train.txt"),
        ("lrs3", "has none of pretrain, trainval, test"),
        ("manifest", "set corpus.table to the manifest"),
        ("kaldi", "set corpus.table to the data folders"),
    ],
)
def test_another_folder_is_refused_with_what_it_should_hold(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=message):
        again(kind, tmp_path)


@pytest.mark.parametrize("path", ["../out.mp4", "/etc/passwd", "a/../../out.mp4"])
def test_a_path_that_leaves_the_root_is_counted_and_never_read(path: str, tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    objects(root / "train.jsonl", {"video": path, "text": "a"}, {"video": "./v/../b.mp4", "text": "b"})
    text(root / "data" / "train" / "wav.scp", f"u {path}")
    text(root / "data" / "train" / "text", "u a")
    text(root / "cncvs" / "train.csv", f"cncvs,../{path},9,2")
    text(root / "char_units.txt", "我 2")
    (tmp_path / "out.mp4").write_bytes(b"")
    first, second = again("manifest", root, table="*.jsonl")
    assert (first.media, second.media) == (path, "b.mp4")
    assert [clip.media for clip in again("kaldi", root)] == [path]
    for kind in ("manifest", "kaldi", "cnvsrc"):
        corpus = CorpusParams(kind=kind, root=str(root), table="data/*" if kind == "kaldi" else "*.jsonl")
        summary = ingest(corpus, TextParams(), CropParams(), tmp_path / "clips.parquet")
        # cncvs/../ and an absolute path stay within the root, where there is no such file
        assert summary.num_outside + summary.num_missing == sum(summary.clips_by_split.values())


def test_links_out_of_the_corpus_are_followed_only_on_request(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    LAYOUTS["lrs3"](whole)
    root = tmp_path / "linked"
    root.mkdir()
    for name in ("pretrain", "trainval", "test"):
        (root / name).symlink_to(whole / name)
    with pytest.raises(CorpusError, match=r"00001\.txt is a link to .* set corpus\.follow_links to true"):
        again("lrs3", root)
    linked = again("lrs3", root, follow_links=True)
    assert [clip.text for clip in linked] == [clip.text for clip in again("lrs3", whole)]


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


def test_any_name_gives_a_clip_id_of_its_own() -> None:
    names = ["a-1", "a.1", "a/1", "张三", "李四", "x" * 300, "x" * 299]
    ids = [clip_id_of(name) for name in names]
    assert len(set(ids)) == len(names) and ids[0] == "a-1"
    assert all(len(name) <= 120 for name in ids)
