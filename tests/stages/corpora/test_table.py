"""Corpora given as one table, CSV or Parquet, and the seeded split of those without one."""

import bz2
import gzip
import logging
import lzma
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import CorpusError
from stages.corpora import read_corpus
from stages.corpora.table import seeded_split
from stages.settings import CorpusParams
from tests.support.corpora import table


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_table_is_read_from_csv_and_parquet(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    columns = {
        "note": ["x", "y"],
        "text": ["你好", "a b"],
        "media": ["v\\1.mp4", "/abs/2.mp4"],
        "clip_id": ["1", "2"],
        "split": ["train", "night-1"],
        "speaker": ["zhang", ""],
        "topic": ["", "KJ"],
    }
    with caplog.at_level(logging.WARNING):
        first, second = read_corpus(table(tmp_path, columns, suffix))
    assert (first.clip_id, first.split, first.speaker, first.topic) == ("1", "train", "zhang", None)
    assert (first.media, first.text) == ("v/1.mp4", "你好")
    assert (second.media, second.split, second.speaker, second.topic) == ("/abs/2.mp4", "night-1", None, "KJ")
    assert "columns note are not known" in caplog.text


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_gender_age_and_topic_are_taken(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    columns = {
        "clip_id": ["1", "2", "3"],
        "media": ["a.mp4"] * 3,
        "text": ["好"] * 3,
        "split": ["train"] * 3,
        "gender": ["F", " ", "divers"],
        "age": ["25", "nan", "31.0"] if suffix == "csv" else [25.0, None, 31.0],
        "topic": ["KJ", "", "LY"],
    }
    with caplog.at_level(logging.WARNING):
        found = read_corpus(table(tmp_path, columns, suffix))
    assert [(one.gender, one.age, one.topic) for one in found] == [
        ("F", 25, "KJ"),
        (None, None, None),
        ("divers", 31, "LY"),
    ]
    assert caplog.text == ""


@pytest.mark.parametrize("age", ["young", "-3", "2024-01-01", "31.5", "1000"])
def test_an_age_that_is_none_stops(tmp_path: Path, age: str) -> None:
    columns = {"clip_id": ["a", "b"], "media": ["m"] * 2, "text": ["t"] * 2, "split": ["train"] * 2}
    with pytest.raises(CorpusError, match=r"clips\.csv:3: age .* is not a number of years"):
        read_corpus(table(tmp_path, columns | {"age": ["40", age]}))


def test_parquet_of_numbers_and_nulls_is_read(tmp_path: Path) -> None:
    columns = {"clip_id": [7], "media": ["a.mp4"], "text": pa.array([None], pa.string()), "split": ["train"]}
    (transcript,) = read_corpus(table(tmp_path, columns, "parquet"))
    assert (transcript.clip_id, transcript.text) == ("7", "")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"clip_id": ["a"], "media": ["m"]}, "clips.parquet:1: header clip_id,media lacks text"),
        (
            {"clip_id": ["a"], "media": ["m"], "text": [["list"]]},
            "clips.parquet:1: .*not a Parquet table of strings",
        ),
        ({"clip_id": [None, "a"], "media": ["m"] * 2, "text": ["t"] * 2}, "clips.parquet:1: clip id ''"),
        ({"clip_id": ["a", "a"], "media": ["m"] * 2, "text": ["t"] * 2}, "clips.parquet:2: .*parquet:1"),
        (
            {"clip_id": ["a", "b"], "media": ["m"] * 2, "text": ["t"] * 2, "split": ["train", ""]},
            "clips.parquet:2: split ''",
        ),
        ({"clip_id": ["a"], "media": ["m"], "text": [b"\xff\xfe"]}, "clips.parquet:1: "),
    ],
)
def test_untrue_parquet_stops(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        read_corpus(table(tmp_path, columns, "parquet", valid_fraction=0, test_fraction=0))


def test_parquet_with_broken_strings_or_bytes_stops(tmp_path: Path) -> None:
    broken = pa.array([b"\xff"], pa.binary()).view(pa.string())
    corpus = table(tmp_path, {"clip_id": ["a"], "media": ["m"], "text": broken}, "parquet")
    with pytest.raises(CorpusError, match=r"clips.parquet:1: .*UTF8"):
        read_corpus(corpus)
    (tmp_path / "clips.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(CorpusError, match=r"clips.parquet:1: "):
        read_corpus(corpus)


def test_a_csv_table_with_a_doubled_column_or_none_stops(tmp_path: Path) -> None:
    (tmp_path / "clips.csv").write_text("clip_id,media,text,text\na,b,c,d\n")
    corpus = CorpusParams(kind="table", root=str(tmp_path))
    with pytest.raises(CorpusError, match=r"clips.csv:1: column text occurs twice"):
        read_corpus(corpus)
    (tmp_path / "clips.csv").unlink()
    with pytest.raises(CorpusError, match=r"clips.csv is missing; set corpus.table"):
        read_corpus(corpus)


HEADER = "clip_id,media,text,split"
ROWS = ["a,a.mp4,好,train", "b,b.mp4,你,valid"]
ODD_TABLES = {
    "columns without a name at the end": ([f"{HEADER},,", *(f"{row},," for row in ROWS)], ""),
    "a column without a name between": (
        ["clip_id,,media,text,split", "a,,a.mp4,好,train", "b, ,b.mp4,你,valid"],
        "",
    ),
    "fields behind the header": ([HEADER, f"{ROWS[0]},,", f"{ROWS[1]}, "], ""),
    "fewer fields where columns have no name": ([f"{HEADER},,", *ROWS], ""),
    "empty rows": (
        [HEADER, ROWS[0], ",,,", ROWS[1], ",,,", " , ,,", ",,,,,,"],
        "4 empty rows and 0 repeated headers",
    ),
    "an empty row before the header": ([",,,", HEADER, *ROWS], "1 empty rows"),
    "tables joined by cat": (
        [HEADER, ROWS[0], f"\ufeff{HEADER}", ROWS[1], f"{HEADER.replace(',', ' , ')},,"],
        "0 empty rows and 2 repeated headers",
    ),
    "a header in another case": (
        [HEADER, ROWS[0], "Clip_ID,Media,Text,Split", ROWS[1]],
        "0 empty rows and 1 repeated headers",
    ),
    "byte order marks on lines of their own, and before rows": (
        [f"\ufeff{HEADER}", "\ufeff", ROWS[0], f"\ufeff\ufeff{ROWS[1]}", "\ufeff"],
        "",
    ),
    "rows without their last fields": (
        [f"{HEADER},speaker,topic", ROWS[0], f"{ROWS[1]}, "],
        "2 rows lack their last fields, which are treated as empty",
    ),
}


@pytest.mark.parametrize("odd", ODD_TABLES)
def test_what_spreadsheets_and_joining_leave_is_passed_over(
    tmp_path: Path, odd: str, caplog: pytest.LogCaptureFixture
) -> None:
    lines, expected = ODD_TABLES[odd]
    (tmp_path / "clips.csv").write_text("\r\n".join([*lines, ""]), "utf-8")
    found = read_corpus(CorpusParams(kind="table", root=str(tmp_path)))
    assert [(one.clip_id, one.media, one.text, one.split) for one in found] == [
        ("a", "a.mp4", "好", "train"),
        ("b", "b.mp4", "你", "valid"),
    ]
    assert expected in caplog.text and bool(expected) == bool(caplog.text)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([f"{HEADER},,", f"{ROWS[0]},,note"], "2: 6 fields where the header has 4"),
        (
            ["clip_id,,media,text,split", "a,note,a.mp4,好,train"],
            "2: 'note' is in column 2, which has no name; name the column in the header",
        ),
        ([HEADER, ROWS[0], "a.mp4,train"], "3: 2 fields where the header has 4"),
        ([HEADER, "a,a.mp4"], "2: 2 fields where the header has 4"),
        ([f"{HEADER}", "a,a.mp4,好"], "2: split ''"),
        *(
            (
                [HEADER, ROWS[0], second, "b,b.mp4,你,valid"],
                f"3: a second table begins here, with the header {second};",
            )
            for second in (
                "media,clip_id,text,split",
                "clip_id,media,text,speaker",
                "clip_id,media,text",
                "Clip_ID,MEDIA,Text,speaker,age,topic,gender",
                "media,text,id,speaker",
                "clip_id,text",
            )
        ),
        ([f"{HEADER},text,,", f"{ROWS[0]},x,,"], "1: column text occurs twice"),
        (["clip_id,,media", "a,,m"], "1: header clip_id,media lacks text"),
        ([",,,", ",,,"], "1: the file is empty"),
    ],
)
def test_what_would_lose_a_value_is_named(tmp_path: Path, lines: list[str], expected: str) -> None:
    (tmp_path / "clips.csv").write_text("\n".join([*lines, ""]), "utf-8")
    with pytest.raises(CorpusError, match=rf"clips\.csv:{re.escape(expected)}"):
        read_corpus(CorpusParams(kind="table", root=str(tmp_path)))


@pytest.mark.parametrize("text", ["media", "text", "clip_id"])
def test_a_row_that_says_the_name_of_one_column_is_no_header(tmp_path: Path, text: str) -> None:
    (tmp_path / "clips.csv").write_text(f"{HEADER},speaker\na,a.mp4,{text},train,speaker\n", "utf-8")
    (found,) = read_corpus(CorpusParams(kind="table", root=str(tmp_path)))
    assert (found.text, found.speaker) == (text, "speaker")


OTHER_FILES = {
    "clips.xlsx": (b"PK\x03\x04\x14\0", "an Excel workbook or another zip"),
    "clips.xls": (b"\xd0\xcf\x11\xe0\xa1\xb1", "an old Excel workbook"),
    "clips.csv.gz": (gzip.compress(HEADER.encode()), "packed by gzip"),
    "packed.csv": (gzip.compress(HEADER.encode()), "packed by gzip"),
    "clips.csv.bz2": (bz2.compress(HEADER.encode()), "packed by bzip2"),
    "clips.csv.xz": (lzma.compress(HEADER.encode()), "packed by xz"),
    "clips": (b"PAR1\x15\x04", "a Parquet file without the extension"),
}


@pytest.mark.parametrize("name", OTHER_FILES)
def test_a_table_of_another_kind_is_named(tmp_path: Path, name: str) -> None:
    content, expected = OTHER_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=rf"{name} is {expected}.*; save it as a plain text file in UTF-8"):
        read_corpus(CorpusParams(kind="table", root=str(tmp_path), table=name))


def test_empty_rows_of_parquet_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    columns: dict[str, Any] = {"clip_id": ["a", None, "b", None], "media": ["a.mp4", None, "b.mp4", ""]}
    columns |= {
        "text": ["t", None, "t", None],
        "split": ["train", None, "train", None],
        "": ["x"] * 4,
        " ": [1] * 4,
    }
    found = read_corpus(table(tmp_path, columns, "parquet"))
    assert [(one.clip_id, one.where.rpartition(":")[2]) for one in found] == [("a", "1"), ("b", "3")]
    assert "2 empty rows are skipped" in caplog.text


GROUPS = st.dictionaries(st.text(max_size=4), st.integers(1, 40), min_size=3, max_size=60)


@settings(max_examples=150, deadline=None)
@given(groups=GROUPS, seed=st.integers(0, 5), order=st.randoms(use_true_random=False))
def test_seeded_split_fills_every_split_and_ignores_order(
    groups: dict[str, int], seed: int, order: Any
) -> None:
    split = seeded_split(groups, 0.1, 0.2, seed)
    items = list(groups.items())
    order.shuffle(items)
    assert seeded_split(dict(items), 0.1, 0.2, seed) == split
    assert split.keys() == groups.keys()
    assert set(split.values()) == {"train", "valid", "test"}


@given(seed=st.integers(0, 1_000))
@settings(max_examples=30, deadline=None)
def test_seeded_split_of_single_clips_meets_its_fractions(seed: int) -> None:
    split = seeded_split({f"clip {i}": 1 for i in range(200)}, 0.05, 0.1, seed)
    assert Counter(split.values()) == {"train": 170, "valid": 10, "test": 20}


def test_seeded_split_keeps_a_giant_speaker_in_train() -> None:
    for seed in range(20):
        for others in ("ab", "abcd"):
            groups = {"giant": 900} | dict.fromkeys(others, 5)
            assert seeded_split(groups, 0.05, 0.1, seed)["giant"] == "train"


def test_a_table_without_splits_is_split_by_speaker(tmp_path: Path) -> None:
    count = 60
    columns = {
        "clip_id": [f"c{i}" for i in range(count)],
        "media": [f"{i}.mp4" for i in range(count)],
        "text": ["t"] * count,
        "speaker": [f"s{i % 12}" if i % 5 else "" for i in range(count)],
    }
    reversed_columns = {name: values[::-1] for name, values in columns.items()}
    transcripts = read_corpus(table(tmp_path / "a", columns))
    again = read_corpus(table(tmp_path / "b", reversed_columns))
    assert {t.clip_id: t.split for t in transcripts} == {t.clip_id: t.split for t in again}
    splits_of: dict[str, set[str]] = {}
    for transcript in transcripts:
        if transcript.speaker:
            splits_of.setdefault(transcript.speaker, set()).add(transcript.split)
    assert all(len(splits) == 1 for splits in splits_of.values())
    other = read_corpus(table(tmp_path / "a", columns, seed=1))
    assert [t.split for t in other] != [t.split for t in transcripts]


def test_a_seeded_split_keeps_the_spellings_of_a_name_together(tmp_path: Path) -> None:
    names = [spelling.format(i) for i in range(12) for spelling in ("S{}", "s{}", "Ｓ{}")]
    columns = {name: [f"{name[0]}{i}" for i in range(36)] for name in ("clip_id", "media", "text")}
    found = read_corpus(table(tmp_path, columns | {"speaker": names}))
    assert [one.speaker for one in found] == [f"S{i}" for i in range(12) for _ in range(3)]
    assert len({(one.speaker, one.split) for one in found}) == 12
    assert {one.split for one in found} == {"train", "valid", "test"}


def test_too_few_speakers_for_a_disjoint_split_stop(tmp_path: Path) -> None:
    columns = {"clip_id": ["a", "b"], "media": ["m"] * 2, "text": ["t"] * 2, "speaker": ["x", "x"]}
    with pytest.raises(CorpusError, match=r"without sharing a speaker .*column split, or set corpus.valid"):
        read_corpus(table(tmp_path, columns))
    whole = read_corpus(table(tmp_path, columns, valid_fraction=0, test_fraction=0))
    assert {t.split for t in whole} == {"train"}


def test_a_seeded_split_keeps_the_clips_of_one_video_together(tmp_path: Path) -> None:
    """A video under many ids, with and without a speaker, and one with two names: none is learnt and tested."""
    videos, copies = 30, 4
    columns = {
        "clip_id": [f"c{i}" for i in range(videos * copies)],
        "media": [f"v{i % videos}.mp4" for i in range(videos * copies)],
        "text": ["t"] * videos * copies,
        "speaker": [
            ("", "", "li", f"s{i % 7}")[i // videos] if i % 5 == 0 else "" for i in range(videos * copies)
        ],
    }
    found = read_corpus(table(tmp_path / "a", columns))
    backwards = {name: values[::-1] for name, values in columns.items()}
    again = read_corpus(table(tmp_path / "b", backwards))
    assert {t.clip_id: t.split for t in found} == {t.clip_id: t.split for t in again}
    for names in ([t.media for t in found], [t.speaker for t in found]):
        together: dict[str, set[str]] = {}
        for name, transcript in zip(names, found, strict=True):
            if name is not None:
                together.setdefault(name, set()).add(transcript.split)
        assert all(len(splits) == 1 for splits in together.values())
    assert {t.split for t in found} == {"train", "valid", "test"}


def test_clips_without_a_video_are_no_copies_of_each_other(tmp_path: Path) -> None:
    columns = {"clip_id": [f"c{i}" for i in range(60)], "media": [""] * 60, "text": ["t"] * 60}
    assert {t.split for t in read_corpus(table(tmp_path, columns))} == {"train", "valid", "test"}


def test_an_absolute_path_below_the_root_is_the_file_there(tmp_path: Path) -> None:
    root = tmp_path / "语料 1"
    inside, outside = str(root / "v" / "a.mp4"), str(tmp_path / "b.mp4")
    columns = {
        "clip_id": ["a", "b", "c", "d"],
        "media": [inside, outside, f"{root}/../b.mp4", f"{root}x/a.mp4"],
        "text": ["t"] * 4,
        "split": ["train"] * 4,
        "times": [f"{root}/a.srt", "", "", ""],
    }
    found = read_corpus(table(root, columns))
    assert [one.media for one in found] == ["v/a.mp4", outside, f"{root}/../b.mp4", f"{root}x/a.mp4"]
    assert found[0].times == "a.srt"


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("clip_id;media;text;split", r"separated by ';'; it must be commas"),
        ("clip_id\tmedia\ttext", r"separated by tabs; it must be commas"),
        ("clip_id|media|text", r"separated by '\|'; it must be commas"),
        ("Clip_ID,Media,TEXT", r"lacks clip_id, media, text; names are lower case"),
        ("id,media,text", r"lacks clip_id; needed are"),
    ],
)
def test_a_header_of_another_form_is_refused_with_the_expected_one(
    tmp_path: Path, header: str, expected: str
) -> None:
    (tmp_path / "clips.csv").write_text(f"{header}\na,b,c\n", "utf-8")
    with pytest.raises(CorpusError, match=rf"clips\.csv:1: .*{expected}"):
        read_corpus(CorpusParams(kind="table", root=str(tmp_path)))
