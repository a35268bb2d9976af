"""Tests `pipeline compare`: the bootstrap against a slow loop and closed forms, refusals, table and page."""

import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from model.decoding.registry import used_settings
from model.decoding.result import Candidate, ScoredClip
from model.metrics import EditCounts, edit_counts
from model.pinyin import syllables_of
from model.settings import DecodeParams
from pipeline.cli import app
from shards.errors import ConfigError, TableError
from shards.files import read_table, write_table
from shards.schema import PREDICTIONS, is_optional
from stages.pages.compare_page import compare_page, verdict
from stages.report import write_report
from stages.reports.compare import ComparedClip, compare, paired_difference
from stages.reports.figures import ReportFacts
from tests.support.report_figures import HOSTILE
from tests.support.reports import READ, made_clips, made_context

BETTER = [(reference, reference) for reference, _ in READ]


def report_of(folder: Path, clips: list[ScoredClip]) -> Path:
    write_report(clips, [], made_context(), folder)
    return folder


def compared(errors_a: int, errors_b: int, num_chars: int = 10, speaker: str | None = None) -> ComparedClip:
    counts = (EditCounts(errors_a, 0, 0, num_chars), EditCounts(errors_b, 0, 0, num_chars))
    return ComparedClip("c", speaker, None, None, None, "字" * num_chars, "", "", *counts)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], catch_exceptions=False)


# -- the paired bootstrap ----------------------------------------------------------------------------------


def test_the_difference_agrees_with_a_slow_loop() -> None:
    draw = random.Random(2)
    clips = [
        compared(draw.randrange(8), draw.randrange(7), 8 + draw.randrange(9), f"s{draw.randrange(10)}")
        for _ in range(80)
    ]
    found = paired_difference(clips, 20_000, seed=0)
    said = {
        name: [clip for clip in clips if clip.speaker == name]
        for name in sorted({str(c.speaker) for c in clips})
    }
    changes = []
    for _ in range(20_000):
        some = [clip for _ in said for clip in said[draw.choice(list(said))]]
        chars = sum(clip.counts_a.num_chars for clip in some)
        changes.append(sum(clip.change for clip in some) / chars)
    assert found.over == "speakers" and found.interval is not None
    assert (found.interval.low, found.interval.high) == pytest.approx(
        np.quantile(changes, [0.025, 0.975]), abs=3e-3
    )
    assert found.better_share == pytest.approx(np.mean(np.array(changes) < 0), abs=0.01)
    counts = [sum(getattr(c, name).errors for c in clips) for name in ("counts_a", "counts_b")]
    assert found.change == pytest.approx((counts[1] - counts[0]) / sum(c.counts_a.num_chars for c in clips))


def test_two_speakers_have_a_closed_form() -> None:
    # drawing two of two speakers: a twice, both (twice as likely), b twice
    found = paired_difference([compared(5, 1, speaker="a"), compared(5, 7, speaker="b")], 40_000, seed=0)
    assert found.interval and (found.interval.low, found.interval.high) == pytest.approx((-0.4, 0.2))
    assert found.better_share == pytest.approx(3 / 4, abs=0.01)


def test_pairing_finds_a_difference_that_two_intervals_hide() -> None:
    # speakers differ much; B is slightly better for each speaker
    clips = [compared(number, number - 1, 40, f"s{number}") for number in range(1, 40)]
    found = paired_difference(clips, 2_000, seed=0)
    assert found.is_shown and found.better_share == 1.0
    assert found.interval and (found.interval.low, found.interval.high) == pytest.approx((-1 / 40, -1 / 40))


def test_swapping_a_and_b_swaps_the_answer() -> None:
    clips = [compared(3, 1, 9, "a"), compared(2, 4, 9, "b"), compared(5, 5, 9, "c")]
    forth = paired_difference(clips, 2_000, seed=4)
    back = paired_difference(
        [replace(clip, counts_a=clip.counts_b, counts_b=clip.counts_a) for clip in clips], 2_000, seed=4
    )
    assert forth.interval and back.interval
    assert (back.interval.low, back.interval.high) == pytest.approx(
        (-forth.interval.high, -forth.interval.low)
    )
    assert forth.better_share is not None and back.better_share == pytest.approx(1 - forth.better_share)


def test_one_clip_and_equal_readings_show_nothing() -> None:
    alone = paired_difference([compared(3, 1)], 200, seed=0)
    assert (alone.interval, alone.better_share) == (None, None) and verdict(alone)[0] == "open"
    same = paired_difference([compared(3, 3, speaker=name) for name in "abc"], 200, seed=0)
    assert (same.change, same.better_share) == (0, 0.5) and not same.is_shown
    assert same.interval is None, "0 to 0 would pass for certainty"
    assert verdict(same)[0] == "open" and "the same difference" in verdict(same)[1]


@pytest.mark.parametrize("num_speakers", [1, 2, 7, 8, 20])
def test_few_speakers_show_no_difference(num_speakers: int) -> None:
    def clips(errors_b: int) -> list[ComparedClip]:
        return [
            compared(10, errors_b + (number < 13), 50, f"s{number % num_speakers}") for number in range(40)
        ]

    for some, wins in ((clips(8), "good"), (clips(11), "bad")):
        found = paired_difference(some, 200, seed=0)
        kind, text = verdict(found)
        assert (
            found.num_speakers == num_speakers
            and found.interval
            and found.interval.high * found.interval.low > 0
        )
        if num_speakers < 8:
            assert (kind, found.is_shown) == ("open", False)
            assert f"{num_speakers} speaker" in text and "fewer than 8" in text
        else:
            assert (kind, found.is_shown) == (wins, True) and text.startswith("B is ")


def test_unknown_speakers_show_no_difference() -> None:
    found = paired_difference([compared(10, 9, 50) for _ in range(40)], 200, seed=0)
    assert (found.num_speakers, found.over, verdict(found)[0]) == (0, "clips", "open")


# -- two reports -------------------------------------------------------------------------------------------


def test_improved_and_worsened_clips_are_listed(tmp_path: Path) -> None:
    clips = made_clips()
    others = made_clips([*BETTER[:4], (READ[4][0], "吃")])
    found = compare(report_of(tmp_path / "a", clips), report_of(tmp_path / "b", others), 200, seed=0)
    errors = {
        c.clip_id: [edit_counts(c.reference, one.hypothesis).errors for one in (c, o)]
        for c, o in zip(clips, others, strict=True)
    }
    assert {c.clip_id: [c.counts_a.errors, c.counts_b.errors] for c in (*found.better, *found.worse)} == {
        clip_id: pair for clip_id, pair in errors.items() if pair[0] != pair[1]
    }
    assert [clip.clip_id for clip in found.better] == ["clip_003", "clip_001", "clip_002"]
    assert [clip.clip_id for clip in found.worse] == ["clip_004"] and found.num_same == 1
    assert found.whole.num_clips == 5 and found.split == "test"
    assert [name for name, _ in found.groups["topic"]] == ["KJ"], "clips of no topic are in no group of it"
    speakers = dict(found.groups["speaker"])
    assert speakers["047"].change < 0 and speakers["047"].over == "clips"
    assert "gender" not in found.groups, "the corpus does not say"


def test_a_predictions_file_is_accepted_and_unmatched_clips_are_named(tmp_path: Path) -> None:
    clips = made_clips()
    run_a, run_b = report_of(tmp_path / "a", clips[1:]), report_of(tmp_path / "b", clips[:4])
    found = compare(run_a / "predictions.parquet", run_b, 200, seed=0)
    assert (found.only_a, found.only_b, found.whole.num_clips) == (["clip_004"], ["clip_000"], 3)
    assert "Only in A, not counted: 1 clips (clip_004)" in run(run_a, run_b).stdout


def test_different_splits_or_references_are_refused(tmp_path: Path) -> None:
    clips = made_clips()
    run_a = report_of(tmp_path / "a", clips)
    valid = report_of(tmp_path / "valid", [replace(clip, split="valid") for clip in clips])
    with pytest.raises(ConfigError, match=r"a is of split test, .*valid of split valid"):
        compare(run_a, valid, 200, 0)
    other = report_of(tmp_path / "other", [replace(clips[0], reference="今天"), *clips[1:]])
    with pytest.raises(
        ConfigError, match=r"1 of 5 clips have different references .* clip_000: '今天天气很好' and '今天'"
    ):
        compare(run_a, other, 200, 0)
    renamed = report_of(tmp_path / "renamed", [replace(clip, clip_id=f"x{clip.clip_id}") for clip in clips])
    with pytest.raises(ConfigError, match="no clip in common"):
        compare(run_a, renamed, 200, 0)


def test_a_path_without_a_report_is_refused(tmp_path: Path) -> None:
    run_a = report_of(tmp_path / "a", made_clips())
    with pytest.raises(TableError, match=r"nowhere is missing; run `pipeline report`"):
        compare(run_a, tmp_path / "nowhere", 200, 0)
    with pytest.raises(TableError, match=r"predictions.parquet is missing"):
        compare(tmp_path, run_a, 200, 0)
    (tmp_path / "text").write_text("no parquet")
    with pytest.raises(TableError, match="not a readable Parquet"):
        compare(tmp_path / "text", run_a, 200, 0)
    rows = read_table(run_a / "predictions.parquet", PREDICTIONS, "pipeline report")
    write_table(tmp_path / "empty.parquet", rows.slice(0, 0), PREDICTIONS)
    with pytest.raises(TableError, match="contains no clips"):
        compare(run_a, tmp_path / "empty.parquet", 200, 0)
    write_table(tmp_path / "twice.parquet", rows.take([0, 0, 1]), PREDICTIONS)
    with pytest.raises(TableError, match="clip_000 2 times"):
        compare(run_a, tmp_path / "twice.parquet", 200, 0)


def test_the_decoder_is_named_if_metrics_are_next_to_the_predictions(tmp_path: Path) -> None:
    clips = made_clips()
    settings = used_settings("ctc_beam", DecodeParams(lm_weight=0.5, length_bonus=-2), ("ctc",))
    facts = ReportFacts("ctc_beam", checkpoint="c0ffee", decode=settings, language_model="1234abcd")
    write_report(clips, [], made_context(), tmp_path / "a", facts)
    write_report(clips, [], made_context(), tmp_path / "b", ReportFacts("ctc", checkpoint="c0ffee"))
    read_by_a = (
        "checkpoint c0ffee; ctc_beam, beam 10, length_bonus -2, lm_weight 0.5; language model 1234abcd"
    )
    output = run(tmp_path / "a", tmp_path / "b" / "predictions.parquet").stdout
    assert f"A: {tmp_path / 'a'} ({read_by_a})" in output and "(checkpoint c0ffee; ctc, greedy)" in output
    found = compare(tmp_path / "a", tmp_path / "b", 200, 0)
    assert found.as_json()["read_by_a"] == read_by_a and read_by_a in compare_page(found)
    (tmp_path / "b" / "metrics.json").unlink()
    assert compare(tmp_path / "a", tmp_path / "b", 200, 0).read_by_b is None
    for damaged in (
        "{",
        "[]",
        '{"decode": 3}',
        '{"decode": {"decoder": "ctc", "beam": "x"}}',
    ):
        (tmp_path / "b" / "metrics.json").write_text(damaged)
        with pytest.raises(TableError, match=r"metrics\.json is damaged"):
            compare(tmp_path / "a", tmp_path / "b", 200, 0)


def pinyin_clips(read: list[tuple[str, str]] = READ) -> list[ScoredClip]:
    return [
        replace(
            clip,
            reference=" ".join(syllables_of(clip.reference)),
            hypothesis=" ".join(syllables_of(clip.hypothesis)),
        )
        for clip in made_clips(read)
    ]


def test_two_reports_in_pinyin_are_counted_in_letters(tmp_path: Path) -> None:
    for name, read in (("a", READ), ("b", BETTER)):
        facts = ReportFacts(
            "syllables", checkpoint="c0ffee", decode=used_settings("syllables", DecodeParams(), ())
        )
        write_report(pinyin_clips(read), [], made_context(), tmp_path / name, facts)
    page_file = tmp_path / "page.html"
    output = run(tmp_path / "a", tmp_path / "b", "--html", page_file).stdout
    page = page_file.read_text("utf-8")
    for text in (output, page, (tmp_path / "a" / "report.html").read_text("utf-8")):
        assert "error rate of pinyin’s letters" in text and "do not compare this rate with a CER" in text
    num_letters = sum(len(clip.reference) for clip in pinyin_clips())
    assert f"{num_letters} letters of pinyin" in output and f"{num_letters} letters of pinyin" in page
    assert "character error rate" not in output + page and "CER</th>" not in page
    assert compare(tmp_path / "a", tmp_path / "b", 200, 0).as_json()["unit"] == "letters of pinyin"
    # without metrics.json the unit follows from equal references
    (tmp_path / "b" / "metrics.json").unlink()
    assert compare(tmp_path / "a", tmp_path / "b", 200, 0).unit.name == "letter"


def test_pinyin_is_not_compared_with_characters(tmp_path: Path) -> None:
    """Even with equal references: labels without Han characters equal their syllables without spaces."""
    clips = [replace(clip, reference="a b", hypothesis="a") for clip in made_clips()]
    for name, decoder in (("a", "syllables"), ("b", "pinyin")):
        write_report(clips, [], made_context(), tmp_path / name, ReportFacts(decoder))
    error = r"a contains toneless pinyin \(decoder syllables\), .*b contains characters \(decoder pinyin\).*report both"
    with pytest.raises(ConfigError, match=error):
        compare(tmp_path / "a", tmp_path / "b", 200, 0)
    with pytest.raises(ConfigError, match=r"b contains characters .*a contains toneless pinyin"):
        compare(tmp_path / "b", tmp_path / "a", 200, 0)


# -- output ---------------------------------------------------------------------------------------


def test_json_and_table(tmp_path: Path) -> None:
    run_a, run_b = report_of(tmp_path / "a", made_clips()), report_of(tmp_path / "b", made_clips(BETTER))
    output = json.loads(run(run_a, run_b, "--json").stdout)
    assert output["unit"] == "characters"
    assert (output["cer_a"], output["cer_b"], output["difference"]) == (0.4, 0, -0.4)
    assert output["num_speakers"] == 2 and output["groups"]["speaker"][0]["num_speakers"] == 1
    assert output["difference_over"] == "speakers" and output["better_share"] == 1.0
    assert output["difference_low"] <= -0.4 <= output["difference_high"] < 0
    assert {clip["clip_id"]: clip["errors_b"] for clip in output["better"]} == {
        f"clip_00{n}": 0 for n in (1, 2, 3, 4)
    }
    assert output["worse"] == [] and output["groups"]["speaker"][0]["num_clips"] == 2
    assert json.loads(run(run_a, run_b, "--json").stdout) == output, "seeded"
    table = run(run_a, run_b, "--clips", 1).stdout
    assert "Too few speakers to exclude chance: 2 speakers known" in table
    assert "Fewer errors in B: 4 clips" in table and "clips if fewer than two speakers are known" in table
    assert re.search(r"−\d+\.\d†", table), "each interval of few speakers is marked"
    assert table.count("reference:") == 1


def test_the_oracle_of_both_reports_is_that_of_the_common_clips(tmp_path: Path) -> None:
    found = [tuple(Candidate(text, -1.0, -1.0) for text in (read, said[1:], said[:2])) for said, read in READ]
    clips = [replace(clip, candidates=texts) for clip, texts in zip(made_clips(), found, strict=True)]
    beam, greedy = ReportFacts("ctc_beam"), ReportFacts("ctc")
    write_report(clips, [], made_context(), tmp_path / "a", beam)
    write_report(clips[:3], [], made_context(), tmp_path / "b", beam)
    write_report(made_clips(), [], made_context(), tmp_path / "greedy", greedy)
    best = [
        min((one.text for one in clip.candidates), key=partial(jiwer.cer, clip.reference)) for clip in clips
    ]
    oracle = jiwer.cer([clip.reference for clip in clips[:3]], best[:3])
    output = json.loads(run(tmp_path / "a", tmp_path / "b", "--json").stdout)
    assert output["oracle_cer_a"] == output["oracle_cer_b"] == oracle
    page_file = tmp_path / "page.html"
    table = run(tmp_path / "greedy", tmp_path / "a", "--html", page_file).stdout
    whole = jiwer.cer([clip.reference for clip in clips], best)
    assert re.search(rf"oracle *│ *5 *│ *– *│ *{100 * whole:.1f}\u202f% *│ *– *│ *–", table)
    for text in (table, page_file.read_text("utf-8")):
        assert "Oracle: the rate if the best candidate of each clip were chosen." in text
        assert "Oracle CER of A: none: decoder ctc is greedy" in text
    # a report of an older version
    rows = read_table(tmp_path / "a" / "predictions.parquet", PREDICTIONS, "")
    older = pa.schema([field for field in PREDICTIONS if not is_optional(field)], PREDICTIONS.metadata)
    write_table(tmp_path / "a" / "predictions.parquet", rows.select(older.names), older)
    older_found = compare(tmp_path / "a", tmp_path / "b", 200, 0)
    assert (older_found.oracle_a, older_found.oracle_b) == (None, oracle)
    assert "Oracle CER of A: not known: this report has no candidates" in older_found.oracle_notes[1]


def test_an_ascii_terminal_gets_utf8(tmp_path: Path) -> None:
    """The locale of the terminal does not stop a verb after its work."""
    run_a = report_of(tmp_path / "a", made_clips())
    locale = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "pipeline", "compare", str(run_a), str(run_a)]
    done = subprocess.run(command, env=os.environ | locale, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "No difference is shown" in done.stdout.decode("utf-8")


def test_names_are_not_terminal_markup(tmp_path: Path) -> None:
    clips = [replace(clip, speaker=f"[red]{clip.speaker}[/nonsense]") for clip in made_clips()]
    run_a = report_of(tmp_path / "a", clips)
    assert "[red]012[/nonsense]" in run(run_a, run_a).stdout


def test_the_page_is_complete_and_escaped_and_loads_nothing(tmp_path: Path) -> None:
    clips = [replace(clip, speaker=HOSTILE, topic=HOSTILE, hypothesis=HOSTILE) for clip in made_clips()]
    run_a = report_of(tmp_path / "a", clips)
    run_b = report_of(tmp_path / "b", [replace(clip, hypothesis=clip.reference[1:]) for clip in clips])
    page_file = tmp_path / "page.html"
    assert str(page_file) in run(run_a, run_b, "--html", page_file).stdout
    page = page_file.read_text("utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and "default-src &#39;none&#39;" not in page
    assert "content=\"default-src 'none'" in page
    assert page == compare_page(compare(run_a, run_b, 2_000, 0))
    for text in ("By speaker", "By topic", "Better in B: 5 clips", "Too few speakers", "−"):
        assert text in page, text
    assert "Worse in B" not in page


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(tmp_path: Path, browser: Any, scheme: str) -> None:
    clips = made_clips(READ * 4)
    run_a = report_of(tmp_path / "a", clips)
    run_b = report_of(
        tmp_path / "b", [replace(c, hypothesis=c.reference[index % 3 :]) for index, c in enumerate(clips)]
    )
    page_file = tmp_path / "page.html"
    for folder in (run_a, run_b):
        settings = used_settings(
            "joint_beam", DecodeParams(lm_weight=0.5, syllable_weight=0.2), ("ctc", "syllables")
        )
        metrics = {"checkpoint": "c0ffee" * 3, "decode": settings, "language_model": "1234abcd" * 2}
        (folder / "metrics.json").write_text(json.dumps(metrics))
    run(run_a, run_b, "--html", page_file)
    for width in (390, 1280):
        page = browser.new_page(viewport={"width": width, "height": 800}, color_scheme=scheme, offline=True)
        complaints: list[object] = []
        page.on("console", lambda message: complaints.append(message.text))  # noqa: B023
        page.goto(page_file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("article.clip").count() >= 10 and complaints == []
        page.close()


def test_the_headline_says_that_no_difference_is_shown(tmp_path: Path) -> None:
    clips = [replace(clip, speaker=f"s{i}") for i, clip in enumerate(made_clips(READ * 3))]
    run_a = report_of(tmp_path / "a", [replace(clip, hypothesis="") for clip in clips])
    better = [replace(clip, hypothesis=clip.reference[: 1 + i % 2]) for i, clip in enumerate(clips)]
    run_b = report_of(tmp_path / "b", better)
    for other, is_shown in ((run_b, True), (run_a, False)):
        page = compare_page(compare(run_a, other, 200, 0))
        headline = page[page.index("<h1>") : page.index("</h1>")]
        assert ("no difference shown" in headline) != is_shown
