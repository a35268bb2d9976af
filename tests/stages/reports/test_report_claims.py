"""Tests the claims of a report: independent of seeds, no verdict from too few clips, correct normalisers."""

import io
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from model.decoding.result import ScoredClip
from model.settings import TextParams
from model.text import describe_normaliser
from pipeline.tables.evaluation import print_metrics
from stages.pages.report_page import verdict
from stages.report import write_report
from stages.reports.counting import split_metrics
from stages.reports.figures import ReportFacts, normaliser_warning
from tests.support.reports import blind_of, made_clips, made_context, page_of

OURS = describe_normaliser(TextParams())
OTHERS = describe_normaliser(TextParams(digits="chinese", simplify=True))


def printed(metrics: dict[str, Any]) -> str:
    out = io.StringIO()
    print_metrics(metrics, Console(file=out, width=2_000))
    return out.getvalue()


def half_read(num_clips: int = 33) -> list[ScoredClip]:
    """Makes short sentences of few words: much is correct by chance, and how much depends on the pairing."""
    draw = random.Random(0)
    made = ["".join(draw.choices("今天气很好一二三", k=6)) for _ in range(num_clips)]
    clips = made_clips([(sentence, sentence[:3] + "很好") for sentence in made])
    return [replace(clip, speaker=f"s{index % 11}") for index, clip in enumerate(clips)]


def read_without_error(num_clips: int = 40, num_speakers: int = 10) -> list[ScoredClip]:
    clips = half_read(num_clips)
    return [
        replace(clip, hypothesis=clip.reference, speaker=f"s{index % num_speakers}")
        for index, clip in enumerate(clips)
    ]


# -- chance and the verdict --------------------------------------------------------------------------------


def test_the_seed_changes_neither_chance_cer_nor_verdict() -> None:
    clips = half_read()
    found = [split_metrics(clips, blind_of(clips), "test", seed) for seed in range(8)]
    assert len({metrics["chance_cer"] for metrics in found}) == 1
    assert len({verdict(metrics)[0] for metrics in found}) == 1
    assert found[0]["chance_pairings"] == 200


def figures(
    cer: float, low: float | None, high: float | None, blind: Any, chance: Any, num_clips: int = 29
) -> dict[str, Any]:
    rates = {"cer": cer, "cer_low": low, "cer_high": high, "blind_cer": blind, "chance_cer": chance}
    return rates | {"num_clips": num_clips}


@pytest.mark.parametrize(
    ("metrics", "kind"),
    [
        (figures(0.4, 0.3, 0.5, 0.9, 0.7), "good"),
        (figures(0.544, 0.462, 0.634, 0.94, 0.698), "open"),
        (figures(0.6, 0.5, 0.65, 0.94, 0.7), "bad"),
        (figures(0.4, 0.3, 0.5, 0.4, 0.7), "bad"),
        (figures(0.4, 0.3, 0.5, None, 0.7), "open"),
        (figures(0.4, None, None, 0.9, None), "open"),
        (figures(0.0, None, None, 0.9, 0.7), "open"),
        (figures(0.0, None, None, 0.9, 0.7, num_clips=30), "good"),
        (figures(0.01, None, None, 0.9, 0.7, num_clips=30), "open"),
        (figures(1.0, None, None, 0.95, None), "bad"),
        (figures(0.0, None, None, 0.0, 0.9, num_clips=40), "bad"),  # it reads equally well blind
        (figures(0.4, 0.3, 0.56, 0.9, 0.7), "open"),
    ],
)
def test_the_verdict_is_good_only_if_the_whole_interval_is_below(metrics: dict[str, Any], kind: str) -> None:
    found, text = verdict(metrics)
    assert found == kind
    for claim in ("most of what", "Much of what", "Far below"):
        assert claim not in text, "how much was read from the lips no CER tells"


def test_the_verdict_names_what_it_compares() -> None:
    text = verdict(figures(0.544, 0.462, 0.634, 0.94, 0.698))[1].replace("\u202f", "")
    assert "CER of 54.4%" in text and "63.4%, is not below 55.8%, 80% of the chance CER (69.8%)" in text
    text = verdict(figures(0.4, 0.3, 0.5, 0.9, 0.7))[1].replace("\u202f", "")
    assert "CER of 40.0% and the upper end of its interval, 50.0%, are below 72.0% and 56.0%" in text
    assert "80% of the blind CER (90.0%) and of the chance CER (70.0%)" in text


# -- intervals ---------------------------------------------------------------------------------------------


def test_a_few_clips_without_errors_give_no_verdict(tmp_path: Path) -> None:
    clips = read_without_error()
    metrics = write_report(clips, blind_of(clips), made_context(), tmp_path)
    assert metrics["cer"] == 0
    assert metrics["cer_low"] is metrics["cer_high"] is metrics["cer_interval_over"] is None
    reason = "all speakers, or clips, have the same error rate"
    assert reason in page_of(tmp_path).split('<p class="interval')[1].split("</p>")[0]
    assert reason in printed(metrics)
    assert (tmp_path / "by_speaker.csv").read_text().splitlines()[1].split(",")[4:7] == ["", "", ""]
    assert "0.0 to 0.0" not in page_of(tmp_path).replace("\u202f", " ")


def test_an_interval_without_width_of_an_older_report_is_not_shown() -> None:
    metrics = split_metrics(read_without_error(), [], "test", 0)
    older = metrics | {"cer_low": 0.0, "cer_high": 0.0, "cer_interval_over": "speakers"}
    assert "0.0 % to 0.0 %" not in printed(older)


def test_groups_of_few_speakers_are_marked_visibly(tmp_path: Path) -> None:
    """Not in a tooltip, which a phone and paper do not show."""
    write_report(half_read(), [], made_context(), tmp_path)
    topics = page_of(tmp_path).split("<h2>By topic</h2>")[1].split("</section>")[0]
    assert "†" not in topics, "11 speakers each"
    speakers = page_of(tmp_path).split("<h2>By speaker</h2>")[1].split("</section>")[0]
    assert "title=" not in speakers
    assert "† too narrow for other speakers: drawn over fewer than 8 speakers" in speakers
    assert speakers.count("%†") + speakers.count("\u202f%†") >= 5
    rows = (tmp_path / "by_topic.csv").read_text().splitlines()
    assert rows[0].endswith("interval_over,speakers") and rows[1].endswith("speakers,11")


# -- normaliser --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("references", "learnt", "warns"), [(OURS, OURS, False), (OTHERS, OURS, True), (None, OURS, False)]
)
def test_both_normalisers_are_named_with_a_warning_if_they_differ(
    tmp_path: Path, references: str | None, learnt: str, warns: bool
) -> None:
    clips = half_read()
    facts = ReportFacts(normaliser=references, checkpoint_normaliser=learnt)
    write_report(clips, [], made_context(), tmp_path, facts)
    metrics = json.loads((tmp_path / "metrics.json").read_text("utf-8"))
    assert (metrics["normaliser"], metrics["checkpoint_normaliser"]) == (references, learnt)
    page = page_of(tmp_path)
    made = page.split("<dt>normaliser</dt>")[1].split("</dd>")[0]
    for text in (made, printed(metrics)):
        assert learnt in text or (text == made and references == learnt)
        assert (references or "samples.parquet does not name it") in text
    for text in (page.split("<h1>")[0], printed(metrics)):
        assert ("The differences count as errors: run `pipeline preprocess` with" in text) == warns
        assert "\n" not in (normaliser_warning(metrics) or "")


# -- sounds, confidence ------------------------------------------------------------------------------------


def test_the_step_to_look_alike_classes_is_that_of_homophenes(tmp_path: Path) -> None:
    # 爸 and 怕 look alike; 先 for 也 is partly correct by visemes, and in another look-alike class
    clips = made_clips([("爸爸也好", "怕爸先好"), ("今天很好", "今天很好")])
    metrics = write_report(clips, [], made_context(), tmp_path)
    assert (metrics["syllable_error_rate"], metrics["look_error_rate"]) == (2 / 8, 1 / 8)
    page = page_of(tmp_path).replace("\u202f", " ")
    assert "of the 25.0 %, 12.5 points disappear if homophenes count as equal" in page
    assert "what only language could tell" not in page
    assert "change the pronunciation of a right character" in page and "地" in page


def test_clips_without_a_score_are_left_out_of_the_calibration_and_counted(tmp_path: Path) -> None:
    clips = half_read()
    broken = [replace(clip, score=math.nan) if index < 3 else clip for index, clip in enumerate(clips)]
    metrics = write_report(broken, [], made_context(), tmp_path)
    rest = split_metrics(clips[3:], [], "test", 0)
    assert metrics["num_without_confidence"] == 3
    assert metrics["calibration_error"] == rest["calibration_error"] and rest["num_without_confidence"] == 0
    assert "Left out, because they have no score: 3 clips" in page_of(tmp_path)
    none = split_metrics([replace(clip, score=math.nan) for clip in clips], [], "test", 0)
    assert none["calibration_error"] is None
    assert "NaN" not in (tmp_path / "metrics.json").read_text("utf-8")


def test_other_normaliser_options_get_a_warning_and_other_versions_do_not() -> None:
    """Preprocessing cannot make labels of an older version, so such a warning would have no fix."""
    plain = TextParams()
    with_digits = plain.model_copy(update={"digits": "chinese"})

    def warned(references: str | None, learnt: str | None) -> bool:
        return normaliser_warning({"normaliser": references, "checkpoint_normaliser": learnt}) is not None

    assert not warned(describe_normaliser(plain), describe_normaliser(plain, 1))
    assert warned(describe_normaliser(with_digits), describe_normaliser(plain))
    assert warned(describe_normaliser(with_digits), describe_normaliser(plain, 2))
    assert not warned(None, describe_normaliser(plain)) and not warned(describe_normaliser(plain), None)
