"""Tests the figures of the report: interval, sounds, confusions, calibration, groups, quality, example clips."""

import csv
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.decoding.result import ScoredClip
from model.metrics import EditCounts, total_counts
from model.text import Tokenizer
from stages.report import write_report
from stages.reports.clip_tables import clip_facts
from stages.reports.counting import (
    character_confusions,
    figures_of,
    split_metrics,
    syllable_confusions,
    word_confusions,
)
from stages.reports.figures import ClipFacts, Confusion, CountedClip, ReportFacts
from stages.reports.groups import calibration_error, calibration_of, groups_of_split, quality_bins
from tests.support.reports import blind_of, made_clips, made_context


def counted(number: int, errors: int = 0, num_chars: int = 10, **values: Any) -> CountedClip:
    clip = ScoredClip(f"c{number:03d}", "test", "字" * num_chars, "", 0.0, 50, None, None)
    return CountedClip(replace(clip, **values), EditCounts(errors, 0, 0, num_chars))


def by_name(confusions: list[Confusion]) -> dict[tuple[str, str], Confusion]:
    return {(one.reference, one.hypothesis): one for one in confusions}


# -- metrics -----------------------------------------------------------------------------------------------


def test_the_interval_contains_the_cer_and_names_its_units() -> None:
    clips = made_clips()
    metrics = split_metrics(clips, [], "test", seed=0)
    assert metrics["cer_interval_over"] == "speakers" and metrics["num_speakers"] == 2
    assert metrics["cer_low"] <= metrics["cer"] <= metrics["cer_high"]
    # two speakers drawn with replacement: one twice, or both
    rates = [
        total_counts((c.reference, c.hypothesis) for c in clips if c.speaker == s).cer for s in ("012", "047")
    ]
    assert metrics["cer_low"] == pytest.approx(min(rates)) and metrics["cer_high"] == pytest.approx(
        max(rates)
    )
    metrics = split_metrics([replace(clip, speaker=None) for clip in clips], [], "test", seed=0)
    assert metrics["cer_interval_over"] == "clips" and metrics["num_speakers"] == 0
    alone = split_metrics(clips[:1], [], "test", seed=0)
    assert alone["cer_low"] is alone["cer_high"] is alone["cer_interval_over"] is None


def test_characters_outside_the_vocabulary_are_errors_and_are_counted() -> None:
    table = Tokenizer.of_units("今天气很")
    clips = made_clips([("今天天气很好", "今天天气很"), ("你好", "")])
    metrics = split_metrics(clips, [], "test", 0, facts=ReportFacts(table=table))
    assert metrics["num_unwritable"] == 3, "好, 你, 好"
    assert (metrics["num_chars"], metrics["deletions"], metrics["cer"]) == (8, 3, 3 / 8)
    assert split_metrics(clips, [], "test", 0)["num_unwritable"] is None
    syllables = ReportFacts("syllables", Tokenizer(("hao", "ni"), joiner=" "))
    assert (
        split_metrics(made_clips([("ni hao ma", "ni")]), [], "test", 0, facts=syllables)["num_unwritable"]
        == 1
    )


def test_sounds_are_counted_if_the_text_is_mandarin() -> None:
    # 爸 and 怕 look alike; 她 sounds like 他
    metrics = split_metrics(made_clips([("爸爸他好", "怕爸她好")]), [], "test", 0)
    assert (metrics["cer"], metrics["syllable_error_rate"], metrics["viseme_error_rate"]) == (1 / 2, 1 / 4, 0)
    english = split_metrics(made_clips([("bin blue", "bin red")]), [], "test", 0)
    assert english["syllable_error_rate"] is english["viseme_error_rate"] is None
    pinyin = split_metrics(
        made_clips([("ba ba hao", "pa ba")]), [], "test", 0, facts=ReportFacts("syllables")
    )
    assert pinyin["syllable_error_rate"] == pinyin["wer"] == 2 / 3
    assert pinyin["viseme_error_rate"] == pytest.approx(2 / 6), "h- and ao are missed, ba and pa look alike"


def test_mixed_text_gets_a_mixed_error_rate() -> None:
    assert split_metrics(made_clips([("用gpu跑", "用cpu跑")]), [], "test", 0)["mer"] == 1 / 3
    assert "mer" not in split_metrics(made_clips([("今天", "天")]), [], "test", 0)


# -- confusions --------------------------------------------------------------------------------------------


def test_confusions_are_counted_and_homophenes_marked() -> None:
    pairs = [("爸好", "怕好"), ("爸爸", "怕爸"), ("他们", "她"), ("好", "好吗")]
    found = character_confusions(pairs)
    assert found[0] == Confusion("爸", "怕", 2, 3, look_alike=True)
    named = by_name(found)
    assert named["他", "她"].look_alike is True
    assert named["们", ""] == Confusion("们", "", 1, 1, None)
    assert named["", "吗"] == Confusion("", "吗", 1, 0, None)
    assert [one.count for one in found] == sorted((one.count for one in found), reverse=True)
    sounds = by_name(syllable_confusions(pairs))
    assert sounds["ba", "pa"] == Confusion("ba", "pa", 2, 3, look_alike=True)
    assert ("ta", "ta") not in sounds
    assert by_name(syllable_confusions([("好", "发")]))["hao", "fa"].look_alike is False


def test_the_class_of_a_character_depends_on_its_sentence() -> None:
    # 行 is hang in 银行, in the class of 航; elsewhere it is xing, in another class
    assert by_name(character_confusions([("银行", "银航")]))["行", "航"].look_alike is True
    assert by_name(character_confusions([("步行", "步航")]))["行", "航"].look_alike is False


def test_letters_and_words_have_no_look_alike_class() -> None:
    assert by_name(character_confusions([("bin a", "pin a")]))["b", "p"].look_alike is None
    assert word_confusions([("bin blue now", "bin red now")]) == [Confusion("blue", "red", 1, 1, None)]


texts = st.text(alphabet="今天气很好爸怕ab ", max_size=10)


@given(st.lists(st.tuples(texts, texts), max_size=6))
def test_confusions_are_the_errors(pairs: list[tuple[str, str]]) -> None:
    # few characters, so that no list is cut
    counts = total_counts(pairs)
    found = character_confusions(pairs)
    substituted = sum(one.count for one in found if one.reference and one.hypothesis)
    assert sum(one.count for one in found if not one.hypothesis) <= counts.deletions
    assert sum(one.count for one in found if not one.reference) <= counts.insertions
    assert substituted <= counts.substitutions
    if len(found) < 10:
        assert sum(one.count for one in found) == counts.errors
    assert all(one.count <= one.num_reference for one in found if one.reference)


# -- calibration -------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(-9, 0.1), st.integers(0, 10)), min_size=1, max_size=60))
def test_calibration_bins_contain_every_clip_once_in_order(clips: list[tuple[float, int]]) -> None:
    made = [counted(number, errors, score=score) for number, (score, errors) in enumerate(clips)]
    bins = calibration_of(made)
    assert sum(one.num_clips for one in bins) == len(clips)
    assert max(one.num_clips for one in bins) - min(one.num_clips for one in bins) <= 1
    assert all(0 <= one.low <= one.confidence + 1e-12 <= one.high + 2e-12 <= 1 + 3e-12 for one in bins)
    assert all(one.high <= other.low for one, other in pairwise(bins))
    assert 0 <= calibration_error(bins) <= 1


def test_confidence_equal_to_accuracy_is_calibrated() -> None:
    calibrated = [
        counted(index, errors=index % 10, score=math.log(1 - index % 10 / 10)) for index in range(100)
    ]
    assert calibration_error(calibration_of(calibrated)) == pytest.approx(0, abs=1e-12)
    overconfident = [replace(one, clip=replace(one.clip, score=0.0)) for one in calibrated]
    assert calibration_error(calibration_of(overconfident)) == pytest.approx(0.45)
    hopeless = [counted(0, errors=30, score=-5.0)]
    assert calibration_of(hopeless)[0].accuracy == 0, "more wrong than said is still none right"


# -- groups ------------------------------------------------------------------------------------------------


def test_groups_follow_the_columns_of_the_corpus() -> None:
    clips = [
        counted(0, 5, speaker="a", topic="KJ", num_frames=20),
        counted(1, 0, speaker="b", topic="LY", num_frames=60),
        counted(2, 10, speaker="b", topic="LY", num_frames=240),
        counted(3, 1, speaker=None, topic=None, num_frames=250),
    ]
    facts = {"c000": ClipFacts("F", 9), "c001": ClipFacts("M", 29), "c002": ClipFacts("M", 101)}
    groups = groups_of_split(clips, facts, 25.0, 200, 0)
    assert {kind: [group.name for group in found] for kind, found in groups.items()} == {
        "speaker": ["a", "b", None],
        "gender": ["F", "M", None],
        "age": ["0–9", "20–29", "100–109", None],
        "topic": ["KJ", "LY", None],
        "length": ["0–5\u202fs", "5–10\u202fs", "10–15\u202fs"],
    }
    for found in groups.values():
        assert sum((group.counts for group in found), EditCounts()) == EditCounts(16, 0, 0, 40)
    b = groups["speaker"][1]
    assert b.interval and (b.interval.low, b.interval.high) == (0, 1), "over its two clips"
    assert groups["speaker"][0].interval is None, "one clip"
    assert groups["topic"][1].over == "clips", "of one speaker"
    assert groups["length"][0].over == "speakers"


def test_clips_of_one_length_are_one_group() -> None:
    (group,) = groups_of_split([counted(0, num_frames=75), counted(1, num_frames=75)], {}, 25.0, 200, 0)[
        "length"
    ]
    assert group.num_clips == 2 and group.name == "3–3.5\u202fs"


# -- quality -----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 5), min_size=1, max_size=50))
def test_quarters_contain_every_clip_and_keep_equal_values_together(values: list[int]) -> None:
    clips = [counted(number, number % 7) for number in range(len(values))]
    facts = {
        f"c{number:03d}": ClipFacts(qualities={"sharpness": value}) for number, value in enumerate(values)
    }
    found = quality_bins(clips, facts)
    assert ("sharpness" in found) == (len(set(values)) > 1), "left out where all are alike"
    bins = found.get("sharpness", [])
    assert len(bins) <= 4
    assert all(one.high < other.low for one, other in pairwise(bins))
    if bins:
        assert sum(one.num_clips for one in bins) == len(values)
        assert bins[0].low == min(values) and bins[-1].high == max(values)
        assert sum((one.counts for one in bins), EditCounts()).num_chars == 10 * len(values)


def test_quarters_of_different_values_are_quarters() -> None:
    clips = [counted(number, errors=number // 10) for number in range(40)]
    facts = {f"c{number:03d}": ClipFacts(qualities={"yaw_deg": 40 - number}) for number in range(40)}
    bins = quality_bins(clips, facts)["yaw_deg"]
    assert [one.num_clips for one in bins] == [10] * 4
    assert [one.counts.cer for one in bins] == [0.3, 0.2, 0.1, 0]


# -- the whole ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_clips", [1, 2, 3, 4, 5, 9, 40])
def test_worst_median_and_best_are_different_clips(num_clips: int) -> None:
    read = [("字" * 40, "字" * number) for number in np.random.default_rng(0).permutation(40)[:num_clips]]
    found = figures_of(made_clips(read), [], made_context(num_examples=3))
    shown = [*found.worst, *found.median, *found.best]
    assert len({one.clip.clip_id for one in shown}) == len(shown) == min(9, num_clips)
    order = sorted(40 - len(hypothesis) for _, hypothesis in read)
    errors = [[one.counts.errors for one in some] for some in (found.worst, found.median, found.best)]
    assert errors[0] == order[::-1][: len(errors[0])] and errors[2] == order[: len(errors[2])]
    if num_clips >= 9:
        middle = (num_clips - 3) // 2
        assert sorted(errors[1]) == order[middle : middle + 3]


def test_files_for_plots_and_duckdb(tmp_path: Path) -> None:
    clips = made_clips()
    known = {clip.clip_id: ClipFacts("F", 31, {"sharpness": index}) for index, clip in enumerate(clips)}
    facts = ReportFacts("ctc", None, known)
    metrics = write_report(clips, blind_of(clips), made_context(), tmp_path, facts)
    assert metrics["decoder"] == "ctc"

    def rows(name: str) -> list[dict[str, str]]:
        with (tmp_path / name).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    (women,) = rows("by_gender.csv")
    assert (women["group"], float(women["cer"])) == ("F", metrics["cer"])
    assert (float(women["cer_low"]), float(women["cer_high"])) == (metrics["cer_low"], metrics["cer_high"])
    assert women["interval_over"] == "speakers"
    assert [row["interval_over"] for row in rows("by_speaker.csv")] == ["clips", "clips"]
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "of clips, if fewer than two speakers are known" in page
    assert [row["group"] for row in rows("by_age.csv")] == ["30–39"]
    assert {row["kind"] for row in rows("confusions.csv")} == {"character", "syllable"}
    assert sum(int(row["num_clips"]) for row in rows("calibration.csv")) == len(clips)
    assert {row["quality"] for row in rows("qualities.csv")} == {"sharpness"}
    file = tmp_path / "predictions.parquet"
    with duckdb.connect() as connection:
        answer = connection.sql(
            "SELECT sum(substitutions + deletions + insertions) / sum(num_chars), max(abs(confidence - exp(score))), "
            f"min(age), min(gender), count(DISTINCT speaker) FROM '{file}'"
        ).fetchall()
    assert answer[0] == (metrics["cer"], pytest.approx(0, abs=1e-6), 31, "F", 2)


def test_facts_of_a_clip_come_from_the_tables() -> None:
    clips = pa.table(
        {"clip_id": ["a", "b", "x"], "gender": ["F", None, "M"], "age": pa.array([30, None, 5], pa.int32())}
    )
    crops = pa.table(
        {
            "clip_id": ["b", "a", "x"],
            "sharpness": [None, 7.0, 1.0],
            "landmarked_frames": [None, 3, 1],
            "source_frames": [0, 12, 1],
        }
    )
    assert clip_facts(clips, crops, {"a", "b"}) == {
        "a": ClipFacts("F", 30, {"sharpness": 7.0, "landmarked_share": 0.25}),
        "b": ClipFacts(None, None, {}),
    }
