"""Foreign text in output: no character controls a terminal, and no CSV cell is run as a formula."""

import csv
import io
import json
import logging
import os
import sys
import tty
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.text import SPECIAL_TOKENS, Tokenizer
from pipeline.cli import app
from pipeline.command import say
from pipeline.params import PathsParams
from pipeline.query import write_answer
from shards.errors import CheckpointError
from shards.safe_text import LogFormatter, csv_cell, message_lines, one_line, write_csv_rows
from stages.pages.report_page import render_page
from stages.reports.csv_tables import GROUP_COLUMNS, csv_tables
from tests.support.report_figures import group, made_context, made_figures

ROOT = Path(__file__).parents[2]
FORGED = "2026-11-30 00:00:00 - ERROR - forged"
HOSTILE = f"S1\x1b]0;title\x07\x1b[2J\u202egpj.exe\n{FORGED}\r\x9b31m\u2028\x00end"
SHOWN = r"S1\x1b]0;title\x07\x1b[2J\u202egpj.exe\n" + FORGED + r"\r\x9b31m\u2028\x00end"
STEERING = {"Cc", "Cf", "Cs", "Zl", "Zp"}


# -- control characters --------------------------------------------------------------------------------------


def test_no_character_of_unicode_controls_a_terminal_or_the_direction() -> None:
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    shown = one_line(every)
    assert {c for c in shown if unicodedata.category(c) in STEERING} == {"\u200c", "\u200d"}
    kept = "".join(c for c in every if unicodedata.category(c) not in STEERING)
    assert one_line(kept) == kept


def test_each_character_that_is_not_shown_is_named() -> None:
    assert one_line(HOSTILE) == SHOWN
    assert one_line("می‌خواهم 你好 🙂 naïve") == "می‌خواهم 你好 🙂 naïve"


def test_a_message_of_ours_keeps_its_lines_and_nothing_foreign_begins_one() -> None:
    ours = f"last.pt does not fit:\n  topic: {HOSTILE} there\n  'b' here"
    assert message_lines(ours) == f"last.pt does not fit:\n  topic: {SHOWN} there\n  'b' here"


def test_nothing_in_a_log_begins_a_line_but_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    handler.setFormatter(LogFormatter("%(asctime)s - %(levelname)s - %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    logger.warning("speakers %s", HOSTILE)
    logger.warning(HOSTILE)
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("while reading %s", HOSTILE)
    lines = text.getvalue().split("\n")
    own = [line for line in lines if line and not line.startswith("  ")]
    assert [line.split(" - ")[1] for line in own] == ["WARNING", "WARNING", "ERROR"]
    assert [line for line in own if SHOWN in line] == own
    assert not any(unicodedata.category(c) in STEERING for line in lines for c in line)
    assert any(line.startswith("  ValueError: S1\\x1b") for line in lines)


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A corpus table with hostile values; its videos are missing."""
    (tmp_path / "corpus").mkdir()
    with (tmp_path / "corpus" / "clips.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["clip_id", "split", "media", "text", "speaker", "topic"])
        harm = HOSTILE.replace("\x00", "")
        for number, split in enumerate(("train", "test")):
            rows.writerow(
                [
                    f"c{number}",
                    split,
                    f"c{number}\x1b[2J.mp4",
                    f"你好[{harm}]",
                    harm,
                    f"=cmd|' /C calc'!A{harm}",
                ]
            )
    (tmp_path / "params.yaml").write_text((ROOT / "recipes" / "table.yaml").read_text("utf-8"), "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_corpus_cannot_forge_a_line_or_steer_the_terminal(
    corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """In tables, logs and messages of real commands."""
    for command in (
        ["ingest", "--set", "corpus.speaker_overlap=warn"],
        ["stats"],
        ["query", 'SELECT speaker, topic, media AS "m\x1b[2J" FROM clips'],
    ):
        app(command, standalone_mode=False)
    out, err = capfd.readouterr()
    assert "S1\\x1b]0;title\\x07" in err and out.count("S1\\x1b]0;title\\x07") >= 3
    assert "m\\x1b[2J" in out and "c0\\x1b[2J.mp4" in out
    for line in (out + err).split("\n"):
        assert not any(unicodedata.category(c) in STEERING for c in line), line
        assert not line.startswith(FORGED)


@pytest.mark.parametrize("out", [None, "the terminal by name"])
def test_csv_steers_no_terminal_and_is_left_as_it_is_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str | None
) -> None:
    literal = "'" + HOSTILE.replace("\x00", "") + "'"
    sql = f"SELECT {literal} AS \"m\x1b[2J\", [{literal}] AS list, {{'k': {literal}}} AS struct, 1 AS n, NULL AS none"
    ours, terminal = os.openpty()
    with os.fdopen(terminal, "w", encoding="utf-8") as file:
        tty.setraw(terminal)
        monkeypatch.setattr(sys, "stdout", file)
        write_answer(sql, PathsParams(), "csv", out and Path(os.ttyname(terminal)))
        file.flush()
        shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    plain = SHOWN.replace(r"\x00", "")
    assert shown.splitlines()[0] == r"m\x1b[2J,list,struct,n,none" and shown.count(plain) == 3
    assert not {c for c in shown if unicodedata.category(c) in STEERING} - {"\n"}
    write_answer(sql, PathsParams(), "csv", tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes().decode().count(HOSTILE.replace("\x00", "")) == 3


def test_no_page_holds_a_control_character(tmp_path: Path, corpus: Path) -> None:
    app(["ingest", "--set", "corpus.speaker_overlap=warn"], standalone_mode=False)
    app(["crop"], standalone_mode=False)
    app(["qc", "--out", str(tmp_path / "qc.html")], standalone_mode=False)
    qc = (tmp_path / "qc.html").read_text("utf-8")
    assert r"S1\x1b]0;title\x07" in qc and "c0" in qc
    report = render_page(replace(made_figures(), groups={"speaker": [group(HOSTILE, 9)]}), made_context())
    assert r"S1\x1b]0;title\x07" in report
    for page in (qc, report):
        assert not {c for c in page if unicodedata.category(c) in STEERING} - {"\n"}


@pytest.mark.parametrize(
    "unit", ["\x1b", "\n", "\x7f", "\x9b", "\u202e", "\u2066", "\u2028", "\ufeff", "\ud800"]
)
def test_a_character_table_that_would_steer_the_terminal_is_refused(unit: str) -> None:
    for units, joiner in ((["你", unit], ""), (["ni", f"ha{unit}o"], " ")):
        stored = {"special_tokens": list(SPECIAL_TOKENS), "characters": units, "joiner": joiner}
        with pytest.raises(
            CheckpointError, match=r"best\.pt: 'characters' holds '.*\\.*control character.*train again"
        ) as caught:
            Tokenizer.from_json(stored, "best.pt")
        assert unit not in str(caught.value)


def test_a_table_of_any_other_characters_is_read() -> None:
    table = Tokenizer.of_units("你好az '-é️\u200c्")
    assert Tokenizer.from_json(table.to_json(), "best.pt") == table


# -- formulas ------------------------------------------------------------------------------------------------

FORMULAS = [
    "=cmd|' /C calc'!A0",
    '=HYPERLINK("http://evil","click")',
    "+1+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(1+1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "＝1+1",
    "'=1",
    "-",
    "-1.5'",
    "+49 170 1",
]
HARMLESS = ["-1.5", "+3", "-1e-9", ".5", "", "'tis", "你好", "a=b", "1-2", " =1"]


def read_back(cell: str) -> str:
    """Restores text as in docs/queries.md: removes one apostrophe if such text follows apostrophes."""
    rest = cell.lstrip("'")
    return cell[1:] if cell != rest and rest[:1] in tuple("=+-@\t\r\n＝＋－＠") else cell


@pytest.mark.parametrize("text", FORMULAS)
def test_text_that_a_spreadsheet_would_run_is_text(text: str) -> None:
    assert csv_cell(text) == f"'{text}" and read_back(csv_cell(text)) == text


@pytest.mark.parametrize("value", [*HARMLESS, -1.5, 3, None, float("-inf"), True])
def test_numbers_and_other_text_stay_as_they_are(value: object) -> None:
    assert csv_cell(value) is value


@given(st.text() | st.from_regex(r"'{0,2}[=+\-@＝][0-9.e']{0,4}", fullmatch=True))
def test_every_text_is_read_back(text: str) -> None:
    assert read_back(csv_cell(text)) == text


def test_a_query_as_csv_holds_no_formula(corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_answer(
        """SELECT '=1+1' AS "=cmd", -1.5 AS number, '-1.5' AS text, NULL AS nothing, ['=1'] AS list""",
        PathsParams(),
        "csv",
        corpus / "out.csv",
    )
    with (corpus / "out.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [
            ["'=cmd", "number", "text", "nothing", "list"],
            ["'=1+1", "-1.5", "-1.5", "", "['=1']"],
        ]


BREAKS = "a\r=cmd|calc"
"""A carriage return without quotes begins a new row, in spreadsheets and in the csv module of Python."""


def test_no_line_break_in_a_value_begins_a_row(corpus: Path) -> None:
    sql = "SELECT 1 AS n, 'a' || chr(13) || '=cmd|calc' AS t, 'b' || chr(10) || 'c' AS \"u\r=v\""
    write_answer(sql, PathsParams(), "csv", corpus / "out.csv")
    assert (corpus / "out.csv").read_bytes() == b'n,t,"u\r=v"\n1,"a\r=cmd|calc","b\nc"\n'
    tables = csv_tables(replace(made_figures(), groups={"speaker": [group(BREAKS, 9)]}), [])
    rows = list(csv.DictReader(io.StringIO(tables["by_speaker.csv"], newline="")))
    assert [row["group"] for row in rows] == [BREAKS] and f'"{BREAKS}"' in tables["by_speaker.csv"]


@given(st.lists(st.lists(st.text(), min_size=1)))
def test_every_row_is_read_back_and_ordinary_ones_are_as_csv_writes_them(rows: list[list[str]]) -> None:
    text, plain = io.StringIO(newline=""), io.StringIO(newline="")
    write_csv_rows(text, rows)
    cells = [list(map(csv_cell, row)) for row in rows]
    if not any("\x00" in cell for row in cells for cell in row):
        assert list(csv.reader(io.StringIO(text.getvalue(), newline=""))) == cells
    csv.writer(plain, lineterminator="\n").writerows(cells)
    if "\r" not in plain.getvalue():
        assert text.getvalue() == plain.getvalue()


def test_a_reports_tables_hold_no_formula() -> None:
    topics = ["=cmd|' /C calc'!A0", "-1.5", "KJ"]
    figures = replace(made_figures(), groups={"topic": [group(topic, 9) for topic in topics]})
    tables = csv_tables(figures, [])
    rows = list(csv.DictReader(io.StringIO(tables["by_topic.csv"])))
    assert rows and list(rows[0]) == list(GROUP_COLUMNS)
    assert {row["group"] for row in rows} == {"'=cmd|' /C calc'!A0", "-1.5", "KJ"}


def test_json_of_a_query_steers_no_terminal_and_is_read_back(
    corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "a\x1b\x9b\u202e\u2028\U000e0001好"
    sql = "SELECT '" + text + "' AS t"
    app(["query", sql, "--format", "json"], standalone_mode=False)
    out = capsys.readouterr().out
    assert json.loads(out) == [{"t": text}]
    assert "好" in out and not any(unicodedata.category(c) in STEERING for c in out.replace("\n", ""))


def test_a_path_on_stdout_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    say(Path("a\nb\u202e"))
    assert capsys.readouterr().out == "a\\nb\\u202e\n"
