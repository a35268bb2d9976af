"""Times and ages of a corpus table, in all the forms and under all the names that programs write."""

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shards.errors import CorpusError
from stages.corpora import read_corpus
from tests.support.corpora import table

TIMES = {
    "": None,
    "0": None,
    "0.0": None,
    "1.5": 1.5,
    "72": 72.0,
    " 3.25 ": 3.25,
    "1:12": 72.0,
    "01:02:03.5": 3723.5,
    "00:00:00.040": 0.04,
    "100:00:00": 360_000.0,
    "0.30000000000000004": 0.3,
    "1e0": 1.0,
    "1.1574E-05": 0.000012,
    ".5": 0.5,
    "1.": 1.0,
    "00:00:01,500": 1.5,
    "1:12,25": 72.25,
    "NaN": None,
    "None": None,
}


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_start_and_end_are_the_part_that_says_the_text(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    starts = list(TIMES)
    columns = {
        "clip_id": [f"c{i}" for i in range(len(starts))],
        "media": ["a.mp4"] * len(starts),
        "text": ["t"] * len(starts),
        "split": ["train"] * len(starts),
        "start": starts,
        "end": ["400000", *[""] * (len(starts) - 2), "100:00:00.5"],
    }
    found = read_corpus(table(tmp_path, columns, suffix))
    assert [one.start_s for one in found] == list(TIMES.values())
    assert [one.end_s for one in found] == [400_000.0, *[None] * (len(starts) - 2), 360_000.5]
    assert caplog.text == ""


def test_parquet_times_may_be_numbers(tmp_path: Path) -> None:
    columns = {"clip_id": ["a", "b", "c"], "media": ["m"] * 3, "text": ["t"] * 3, "split": ["train"] * 3}
    columns |= {"start": [0.0, 1.25, None], "end": [1, 3, None]}
    found = read_corpus(table(tmp_path, columns, "parquet"))
    assert [(one.start_s, one.end_s) for one in found] == [(None, 1.0), (1.25, 3.0), (None, None)]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        ("soon", "", "start 'soon' is not a time"),
        ("-1", "2", "start '-1' is not a time"),
        ("1,5", "2", "start '1,5' is not a time"),
        ("inf", "", "start 'inf' is not a time"),
        ("", "1e10", "end '1e10' is not a time"),
        ("", "1e999", "end '1e999' is not a time"),
        ("", "9" * 5000, "end '9999"),
        (".", "", "start '.' is not a time"),
        ("1_0", "", "start '1_0' is not a time"),
        ("٣", "", "start '٣' is not a time"),
        ("1:00:60", "", "start '1:00:60' is not a time"),
        ("0.1", "0.1000000001", "end 0.1000000001 is not after start 0.1"),
        ("0:75", "", "start '0:75' is not a time"),
        ("1:60:00", "", "start '1:60:00' is not a time"),
        ("1:2:3:4", "", "is not a time"),
        ("2", "1.5", "end 1.5 is not after start 2"),
        ("2", "2", "end 2 is not after start 2"),
        ("", "0", "end 0 is not after start 0"),
    ],
)
def test_times_that_are_none_stop(tmp_path: Path, start: str, end: str, expected: str) -> None:
    columns = {
        "clip_id": ["a"],
        "media": ["m"],
        "text": ["t"],
        "split": ["train"],
        "start": [start],
        "end": [end],
    }
    with pytest.raises(CorpusError, match=rf"clips\.csv:2: .*{re.escape(expected)}"):
        read_corpus(table(tmp_path, columns))


PARTS = {"clip_id": ["a", "b"], "media": ["m"] * 2, "text": ["t"] * 2, "split": ["train"] * 2}
# each is nothing, then half a second
TIME_TYPES: dict[str, Any] = {
    "double": pa.array([float("nan"), 0.5]),
    "float": pa.array([float("nan"), 0.5], pa.float32()),
    "half": pa.array(np.array([np.nan, 0.5], np.float16)),
    "decimal": pa.array([None, Decimal("0.50")]),
    "large text": pa.array([None, "0.5"], pa.large_string()),
    "dictionary": pa.array(["", "0.5"]).dictionary_encode(),
    "seconds of a clock": pa.array([None, 500], pa.time32("ms")),
    "time64": pa.array([None, 500_000_000], pa.time64("ns")),
    **{
        unit: pa.array([None, 10**digits // 2], pa.duration(unit))
        for unit, digits in {"ms": 3, "us": 6, "ns": 9}.items()
    },
}


@pytest.mark.parametrize("kind", TIME_TYPES)
def test_parquet_times_of_every_type_are_seconds(tmp_path: Path, kind: str) -> None:
    found = read_corpus(table(tmp_path, PARTS | {"start": TIME_TYPES[kind]}, "parquet"))
    assert [one.start_s for one in found] == [None, 0.5]


def test_a_parquet_duration_of_whole_seconds_is_seconds(tmp_path: Path) -> None:
    found = read_corpus(table(tmp_path, PARTS | {"end": pa.array([1, 90], pa.duration("s"))}, "parquet"))
    assert [one.end_s for one in found] == [1.0, 90.0]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (pa.timestamp("us"), 1_000_000),
        (pa.date32(), 1),
        (pa.bool_(), True),
        (pa.binary(), b"1"),
        (pa.list_(pa.int8()), [1]),
    ],
    ids=str,
)
def test_parquet_types_that_are_no_time_stop(tmp_path: Path, kind: pa.DataType, value: object) -> None:
    columns = PARTS | {"end_s": pa.array([value, None], kind)}
    with pytest.raises(
        CorpusError, match=r"clips\.parquet: column end_s is of type .*; convert it to seconds"
    ):
        read_corpus(table(tmp_path, columns, "parquet"))


def test_a_nan_in_parquet_is_nothing_in_any_column(tmp_path: Path) -> None:
    gap = [float("nan"), 31.0]
    first, _ = read_corpus(table(tmp_path, PARTS | {"age": gap, "speaker": gap, "topic": gap}, "parquet"))
    assert (first.age, first.speaker, first.topic) == (None, None, None)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_start_s_and_end_s_are_start_and_end(
    tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = read_corpus(table(tmp_path, PARTS | {"start_s": ["", "1.5"], "end_s": ["1.5", "3"]}, suffix))
    assert [(one.start_s, one.end_s) for one in found] == [(None, 1.5), (1.5, 3.0)]
    assert caplog.text == ""
    with pytest.raises(CorpusError, match=r":1: columns start and start_s are the same; remove one"):
        read_corpus(table(tmp_path, PARTS | {"start": ["", "1"], "start_s": ["", "1"]}, suffix))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *(
            (name, "start")
            for name in ("start_time", "Start", "START", "begin", "Begin Time", "t_start", "onset")
        ),
        *((name, "start") for name in ("startTime", "start_ms", "Start (s)", "segment_start", "开始时间")),
        *(
            (name, "end")
            for name in ("end_time", "End", "END", "end-sec", "stop", "t_end", "offset", "结束时间")
        ),
    ],
)
def test_names_like_start_and_end_stop(tmp_path: Path, name: str, meant: str) -> None:
    with pytest.raises(
        CorpusError, match=rf":1: column {re.escape(name)} may be the {meant} of .* start and end"
    ):
        read_corpus(table(tmp_path, PARTS | {name: ["0", "1"]}))


@pytest.mark.parametrize(
    "name", ["gender", "restart", "weekend", "send_time", "start_date", "backend", "extended"]
)
def test_other_names_are_only_ignored(tmp_path: Path, name: str) -> None:
    assert len(read_corpus(table(tmp_path, PARTS | {name: ["x", "y"]}))) == 2


def test_a_start_with_a_duration_in_place_of_an_end_stops(tmp_path: Path) -> None:
    columns = PARTS | {"duration": ["1", "2"]}
    assert len(read_corpus(table(tmp_path, columns))) == 2
    assert len(read_corpus(table(tmp_path, columns | {"start": ["1", "2"], "end": ["2", "4"]}))) == 2
    with pytest.raises(
        CorpusError, match=r":1: column duration may be the length of .* columns start and end"
    ):
        read_corpus(table(tmp_path, columns | {"start_s": ["1", "2"]}))


def test_other_times_next_to_start_and_end_are_only_ignored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    columns = {
        "start_s": ["0", "1"],
        "end": ["1", "2"],
        "start_frame": ["0", "25"],
        "end_frame": ["25", "50"],
    }
    assert [one.end_s for one in read_corpus(table(tmp_path, PARTS | columns))] == [1.0, 2.0]
    assert "columns start_frame, end_frame are not known" in caplog.text
