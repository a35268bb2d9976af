"""Readers of corpus layouts name the file and line that they refuse, and read no file outside the corpus."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.settings import TextParams
from shards.errors import CorpusError
from stages.ingest import ingest
from stages.settings import CorpusParams, CropParams
from tests.support.layouts import LAYOUTS, objects, read_layout, text

Change = Callable[[Path], Any]
NO_UTF8 = b"\xff\xfe\xfa"


def lines(path: str, *rows: str) -> Change:
    """Writes a file of these lines."""
    return lambda root: text(root / path, *rows)


def content(path: str, payload: bytes) -> Change:
    return lambda root: (root / path).write_bytes(payload)


def removed(path: str) -> Change:
    return lambda root: (root / path).unlink()


FAULTS: list[tuple[str, Change, str]] = [
    # lists
    ("cmlr", removed("val.csv"), r"has no val\.csv; set corpus\.root to the folder of CMLR"),
    ("cmlr", lines("val.csv", "s1/2017"), r"val\.csv:1: 's1/2017' must be speaker/date_section"),
    (
        "cmlr",
        lines("val.csv", "", "../s1/20170121_section_1_003.00_004.00"),
        r"val\.csv:2: '\.\./s1.* must be speaker",
    ),
    (
        "cmlr",
        lines("val.csv", *2 * ["s1/20170121_section_1_003.00_004.00"]),
        r"val\.csv:2: clip id .* already occurs at .*val\.csv:1",
    ),
    ("cmlr", content("val.csv", b"\n" + NO_UTF8), r"val\.csv:2: byte 0xff is not UTF-8"),
    ("cnvsrc", lines("cncvs/test.csv", "cncvs,a.mp4,24"), r"test\.csv:1: .* must be set,video"),
    ("cnvsrc", lines("cncvs/test.csv", "other,a.mp4,24,2"), r"test\.csv:1: .* of the set cncvs"),
    ("cnvsrc", lines("cncvs/test.csv", "cncvs,a.mp4,-4,2"), r"test\.csv:1: .* must be set,video"),
    ("cnvsrc", lines("cncvs/test.csv", "cncvs,a.mp4,9,77"), r"test\.csv:1: number 77 is not in"),
    ("cnvsrc", removed("char_units.txt"), r"neither char_units\.txt nor unigram"),
    ("cnvsrc", lines("char_units.txt", "我"), r"char_units\.txt:1: '我' must be a unit and its number"),
    ("cnvsrc", lines("char_units.txt", "我 2", "你 2"), r"char_units\.txt:2: .* each number once"),
    ("cnvsrc", lines("unigram5000_units.txt", "我 2"), r"has char_units\.txt and unigram"),
    ("lrs2", lines("val.txt", "../../etc/passwd"), r"val\.txt:1: .* must be broadcast/clip"),
    ("lrs2", lines("val.txt", "a/1", "a/1"), r"val\.txt:2: clip id main_a_1 already occurs"),
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
        lines("test/zzzzzzzzzzz/00003.txt", "HELLO"),
        r"00003\.txt:1: 'HELLO' must be the text of a clip",
    ),
    (
        "lrs3",
        content("test/zzzzzzzzzzz/00003.txt", b"Text: A\n" + NO_UTF8),
        r"00003\.txt:2: byte 0xff is not UTF-8",
    ),
    (
        "lrs3",
        lambda r: (r / "test" / "zzzzzzzzzzz").rename(r / "test" / "a b"),
        r"clip id 'test_a b_00003' must be",
    ),
    # manifests
    ("manifest", lines("manifests/train_manifest.json", "[1]"), r"\.json:1: a manifest has one object"),
    ("manifest", lines("manifests/train_manifest.json", "", "{"), r"\.json:2: this is not JSON"),
    ("manifest", lines("manifests/train_manifest.json", "[" * 99_999), r"\.json:1: this is not JSON"),
    (
        "manifest",
        content("manifests/train_manifest.json", b'{"video": "\xff"}'),
        r"\.json:1: byte 0xff is not UTF-8",
    ),
    ("manifest", content("manifests/a_test.jsonl.gz", b"\x1f\x8b no"), r"gz cannot be unpacked"),
    (
        "manifest",
        content("manifests/a_test.jsonl.gz", gzip.compress(b"{}" * 99)[:-9]),
        r"gz cannot be unpacked",
    ),
    ("manifest", removed("manifests/mini_recordings_test.jsonl.gz"), r"recordings_test.* unpacked"),
    # Kaldi
    ("kaldi", removed("data/train/wav.scp"), r"data/train has neither video\.scp nor wav\.scp; write"),
    ("kaldi", lines("data/train/segments", "u rec1 0"), r"segments:1: .* must be recording, start"),
    ("kaldi", lines("data/train/segments", "u rec1 0 -2"), r"segments:1: end '-2' is not a time"),
    ("kaldi", lines("data/train/segments", "u rec1 -1 2"), r"segments:1: start '-1' is not a"),
    ("kaldi", lines("data/train/segments", "u rec1 2 1"), r"segments:1: end 1 is not after start"),
    (
        "kaldi",
        lines("data/train/segments", "u rec9 0 1"),
        r"segments:1: recording rec9 is not in .*wav\.scp; add it",
    ),
    ("kaldi", lines("data/train/utt2spk", "u"), r"utt2spk:1: .* must be utterance and speaker"),
    ("kaldi", lines("data/train/text", "u a", "u b"), r"text:2: u already occurs at .*text:1"),
    ("kaldi", content("data/train/text", b"u " + NO_UTF8), r"text:1: byte 0xff is not"),
    (
        "kaldi",
        lines("data/train/wav.scp", "rec1 sph2pipe a.sph |"),
        r"wav\.scp:1: .* must be the path of a video, not a command",
    ),
    ("kaldi", lines("data/train/wav.scp", "rec1 a.wav"), r"wav\.scp:1: a\.wav is sound.* video\.scp"),
    (
        "kaldi",
        lambda r: (r / "data" / "test_clean").rename(r / "data" / "night"),
        r"wav\.scp:1: this clip is in no split, but other clips",
    ),
]


@pytest.mark.parametrize(("kind", "change", "message"), FAULTS)
def test_a_wrong_file_is_refused_by_file_and_line(
    kind: str, change: Change, message: str, tmp_path: Path
) -> None:
    LAYOUTS[kind](tmp_path)
    read_layout(kind, tmp_path)
    change(tmp_path)
    with pytest.raises(CorpusError, match=message):
        read_layout(kind, tmp_path)


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
        ({"video": "a.mp4", "confidence": 80}, "confidence '80' is not between 0 and 1"),
        (
            {**CUT, "recording": FILE, "supervisions": [{"confidence": True}]},
            "confidence must be a text or a number",
        ),
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
        read_layout("manifest", tmp_path, table="all.jsonl", test_fraction=0.0, valid_fraction=0.0)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ("NaN", "NaN is not a number"),
        ("Infinity", "Infinity is not a number"),
        ("1e999", "offset 'inf' is not a time"),
        pytest.param("1" * 5000, "this is not JSON", id="5000 digits"),
    ],
)
def test_a_wrong_number_is_refused(number: str, message: str, tmp_path: Path) -> None:
    text(tmp_path / "train.jsonl", f'{{"video": "a.mp4", "text": "a", "offset": {number}}}')
    with pytest.raises(CorpusError, match=rf"train\.jsonl:1: .*{message}"):
        read_layout("manifest", tmp_path, table="*.jsonl")


def test_a_name_given_twice_in_an_object_is_refused(tmp_path: Path) -> None:
    text(tmp_path / "train.jsonl", '{"video": "a.mp4", "text": "a", "text": "b"}')
    with pytest.raises(CorpusError, match=r"train\.jsonl:1: .*a name occurs twice"):
        read_layout("manifest", tmp_path, table="*.jsonl")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("cmlr", "has no train.csv and no val.csv and no test.csv; set corpus.root to the folder of CMLR"),
        ("cnvsrc", "no folder with train.csv"),
        ("lrs2", "has none of pretrain.txt, train.txt"),
        ("lrs3", "has none of pretrain, trainval, test"),
        ("manifest", "set corpus.table to the manifest"),
        ("kaldi", "set corpus.table to the data folders"),
    ],
)
def test_another_folder_is_refused_with_what_it_should_hold(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=message):
        read_layout(kind, tmp_path)


@pytest.mark.parametrize("path", ["../out.mp4", "/etc/passwd", "a/../../out.mp4"])
def test_a_path_that_leaves_the_root_is_counted_and_never_read(path: str, tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    objects(root / "train.jsonl", {"video": path, "text": "a"}, {"video": "./v/../b.mp4", "text": "b"})
    text(root / "data" / "train" / "wav.scp", f"u {path}")
    text(root / "data" / "train" / "text", "u a")
    text(root / "cncvs" / "train.csv", f"cncvs,../{path},9,2")
    text(root / "char_units.txt", "我 2")
    (tmp_path / "out.mp4").write_bytes(b"")
    first, second = read_layout("manifest", root, table="*.jsonl")
    assert (first.media, second.media) == (path, "b.mp4")
    assert [clip.media for clip in read_layout("kaldi", root)] == [path]
    for kind in ("manifest", "kaldi", "cnvsrc"):
        corpus = CorpusParams(kind=kind, root=str(root), table="data/*" if kind == "kaldi" else "*.jsonl")
        summary = ingest(corpus, TextParams(), CropParams(), tmp_path / "clips.parquet")
        # cncvs/../ and an absolute path stay within the root, where there is no such file
        assert summary.num_outside + summary.num_missing == sum(summary.clips_by_split.values())


@pytest.mark.parametrize("is_absolute", [True, False])
@pytest.mark.parametrize("kind", ["table", "manifest", "kaldi"])
def test_a_table_may_be_outside_the_root_but_its_videos_may_not(
    kind: str, is_absolute: bool, tmp_path: Path
) -> None:
    root, tables = tmp_path / "corpus", tmp_path / "my tables"
    root.mkdir()
    (root / "a.mp4").write_bytes(b"x")
    (tables / "b.mp4").parent.mkdir()
    (tables / "b.mp4").write_bytes(b"x")
    outside = str(tables / "b.mp4")
    text(tables / "a.csv", "clip_id,media,text,split", "a,a.mp4,x,train", f"b,{outside},y,train")
    rows = [{"id": "a", "video": "a.mp4", "text": "x"}, {"id": "b", "video": outside, "text": "y"}]
    objects(tables / "train.jsonl", *rows)
    text(tables / "train" / "video.scp", "a a.mp4", f"b {outside}")
    text(tables / "train" / "text", "a x", "b y")
    name = {"table": "a.csv", "manifest": "*.jsonl", "kaldi": "t*"}[kind]
    table = str(tables / name) if is_absolute else f"../my tables/{name}"
    clips = read_layout(kind, root, table=table)
    assert [(clip.clip_id, clip.media, clip.split) for clip in clips] == [
        ("a", "a.mp4", "train"),
        ("b", outside, "train"),
    ]
    corpus = CorpusParams(kind=kind, root=str(root), table=table)
    summary = ingest(corpus, TextParams(), CropParams(), tmp_path / "clips.parquet")
    assert (summary.num_outside, summary.num_missing) == (1, 0)


def test_links_out_of_the_corpus_are_followed_only_on_request(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    LAYOUTS["lrs3"](whole)
    root = tmp_path / "linked"
    root.mkdir()
    for name in ("pretrain", "trainval", "test"):
        (root / name).symlink_to(whole / name)
    with pytest.raises(CorpusError, match=r"00001\.txt is a link to .* set corpus\.follow_links to true"):
        read_layout("lrs3", root)
    linked = read_layout("lrs3", root, follow_links=True)
    assert [clip.text for clip in linked] == [clip.text for clip in read_layout("lrs3", whole)]
