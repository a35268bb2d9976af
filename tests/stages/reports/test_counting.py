"""Tests the files of the report: figures against jiwer, tables with their schemas, a self-contained page."""

import csv
import io
import json
import math
import re
import resource
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from model.decoding.result import Candidate, PartScores
from model.pinyin import syllables_of
from pipeline.tables.evaluation import print_metrics
from shards.errors import ConfigError, DiskError
from shards.files import read_table
from shards.schema import PREDICTIONS
from stages.report import write_report
from stages.reports.counting import split_metrics
from stages.reports.figures import ReportFacts
from tests.support.report_figures import HOSTILE
from tests.support.reports import READ, blind_of, made_clips, made_context, page_of

FILES = [
    *(f"by_{name}.csv" for name in ("age", "gender", "length", "speaker", "topic")),
    *(
        "calibration.csv",
        "confusions.csv",
        "curves.csv",
        "metrics.json",
        "predictions.parquet",
        "qualities.csv",
    ),
    "report.html",
]


def test_all_files_are_written_and_figures_agree_with_jiwer(tmp_path: Path) -> None:
    clips = made_clips()
    metrics = write_report(clips, blind_of(clips), made_context(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8")) == metrics
    theirs = jiwer.process_characters([c.reference for c in clips], [c.hypothesis for c in clips])
    assert metrics["cer"] == theirs.cer
    assert metrics["accuracy"] == 1 - theirs.cer
    assert [metrics[key] for key in ("substitutions", "deletions", "insertions")] == [
        theirs.substitutions,
        theirs.deletions,
        theirs.insertions,
    ]
    assert metrics["cer_mean"] == pytest.approx(np.mean([jiwer.cer(*pair) for pair in READ]))
    assert metrics["blind_cer"] == jiwer.cer([c.reference for c in clips], ["的的的"] * len(clips))
    assert metrics["chance_cer"] > metrics["cer"]
    assert (metrics["num_clips"], metrics["num_chars"], metrics["split"]) == (5, 40, "test")
    assert "wer" not in metrics
    assert all(value is None or isinstance(value, int | float | str) for value in metrics.values())


def test_the_oracle_chooses_the_best_candidate_of_each_clip(tmp_path: Path) -> None:
    """jiwer counts; the second clip is best as it is, the others have a better candidate."""
    others = [
        ("今天",),
        ("请把", ""),
        ("电动汽车的续航路程", "电动"),
        ("科学",),
        ("早上吃", "早上吃两个苹果"),
    ]
    parts = PartScores(-1.5, None, -math.inf, -7.0, 4)
    clips = [
        replace(
            clip, candidates=tuple(Candidate(text, -1.0, -2.0, parts) for text in (clip.hypothesis, *texts))
        )
        for clip, texts in zip(made_clips(), others, strict=True)
    ]
    metrics = write_report(clips, [], made_context(), tmp_path, ReportFacts("ctc_beam"))
    best = [min((c.text for c in clip.candidates), key=partial(jiwer.cer, clip.reference)) for clip in clips]
    assert metrics["oracle_cer"] == jiwer.cer([clip.reference for clip in clips], best) < metrics["cer"]
    assert metrics["oracle_candidates"] == 3
    rows = read_table(tmp_path / "predictions.parquet", PREDICTIONS, "pipeline report").to_pylist()
    assert [row["oracle_errors"] for row in rows] == [
        round(len(clip.reference) * jiwer.cer(clip.reference, text))
        for clip, text in zip(clips, best, strict=True)
    ]
    assert rows[3]["candidates"] == [
        {"text": text, "rank_score": -2.0, "log_probability": -1.0}
        | {"ctc": -1.5, "attention": None, "syllables": -math.inf, "language_model": -7.0, "length": 4}
        for text in ("", "科学")
    ]
    about = "if the best of up to 3 candidates of each clip were chosen"
    assert about in page_of(tmp_path) and f"oracle CER {100 * metrics['oracle_cer']:.1f}" in printed(metrics)
    greedy = write_report(made_clips(), [], made_context(), tmp_path, ReportFacts("ctc"))
    assert (greedy["oracle_cer"], greedy["oracle_candidates"]) == (None, None)
    names = pq.read_schema(tmp_path / "predictions.parquet").names
    assert not {"oracle_errors", "candidates"} & set(names)
    for text in (page_of(tmp_path), printed(greedy)):
        assert "decoder ctc is greedy and has no candidates; set decode.decoder" in text
    assert "oracle CER – none" in printed(greedy)
    del greedy["oracle_cer"], greedy["oracle_candidates"], greedy["decoder"]
    assert "run `pipeline report` again" in printed(greedy), "an older report"


def printed(metrics: dict[str, Any]) -> str:
    """Returns the table of the terminal with single spaces and no lines."""
    with (console := Console(width=200)).capture() as captured:
        print_metrics(metrics, console)
    return " ".join(captured.get().replace("│", " ").replace("\u202f", " ").split())


def test_text_with_words_gets_a_word_error_rate(tmp_path: Path) -> None:
    read = [
        ("bin blue at f two now", "bin red at f two"),
        ("lay green by a one soon", "lay green by a one soon"),
    ]
    clips = made_clips(read)
    metrics = write_report(clips, blind_of(clips), made_context(), tmp_path)
    assert metrics["wer"] == jiwer.wer([r for r, _ in read], [h for _, h in read])
    assert "word error rate" in page_of(tmp_path)


def test_predictions_and_tables(tmp_path: Path) -> None:
    clips = made_clips()
    write_report(clips[::-1], blind_of(clips), made_context(), tmp_path)
    rows = read_table(tmp_path / "predictions.parquet", PREDICTIONS, "pipeline report").to_pylist()
    assert [row["clip_id"] for row in rows] == [clip.clip_id for clip in clips]
    assert rows[1]["cer"] == pytest.approx(jiwer.cer(*READ[1]))
    assert rows[3]["deletions"] == len(READ[3][0])
    with (tmp_path / "by_topic.csv").open(newline="", encoding="utf-8") as file:
        topics = list(csv.DictReader(file))
    assert [(row["group"], row["clips"], row["characters"]) for row in topics] == [
        ("KJ", "3", "22"),
        ("(unknown)", "2", "18"),
    ]
    with (tmp_path / "curves.csv").open(newline="", encoding="utf-8") as file:
        curves = list(csv.DictReader(file))
    assert len(curves) == 12 and curves[0]["val_cer"] == "" and float(curves[1]["val_cer"]) == 0.5


def test_order_of_clips_changes_nothing(tmp_path: Path) -> None:
    clips = made_clips()
    write_report(clips, blind_of(clips), made_context(), tmp_path / "a")
    write_report(clips[::-1], blind_of(clips)[::-1], made_context(), tmp_path / "b")
    for name in FILES:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_page_fetches_nothing(tmp_path: Path) -> None:
    clips = made_clips()
    write_report(clips, blind_of(clips), made_context(), tmp_path)
    page = page_of(tmp_path)
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == 2 * len(clips)
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    # base64 may contain //
    rest = re.sub(r'src="[^"]*"', "", page)
    assert not re.search(r"https?:|//|@import|<script|<link|<iframe|href|url\(", rest)


def test_hostile_text_is_escaped(tmp_path: Path) -> None:
    clips = [
        replace(clip, reference=HOSTILE, hypothesis=HOSTILE[3:], speaker=HOSTILE, topic=HOSTILE)
        for clip in made_clips()
    ]
    context = made_context(warnings=[HOSTILE], clip_totals={HOSTILE: 1}, corpus=HOSTILE)
    write_report(clips, blind_of(clips), context, tmp_path)
    page = page_of(tmp_path)
    assert "<script" not in page
    assert "&lt;script&gt;alert(&#39;嘴&#39;)" in page


def test_an_empty_hypothesis_is_mentioned(tmp_path: Path) -> None:
    clips = made_clips([(reference, "") for reference, _ in READ])
    metrics = write_report(clips, clips, made_context(), tmp_path)
    assert metrics["cer"] == metrics["blind_cer"] == metrics["chance_cer"] == 1.0
    assert "The model read nothing." in page_of(tmp_path)
    assert "not shown to read lips" in page_of(tmp_path)


def test_one_clip_has_no_chance_and_says_so(tmp_path: Path) -> None:
    clips = made_clips(READ[:1])
    metrics = write_report(clips, blind_of(clips), made_context(), tmp_path)
    assert metrics["chance_cer"] is None
    assert "a split of one clip has no other clip" in page_of(tmp_path)
    assert "Worst clips" in page_of(tmp_path) and "Best clips" not in page_of(tmp_path)


def test_without_curves_speakers_rejections_or_blind(tmp_path: Path) -> None:
    clips = [replace(clip, speaker=None, topic=None) for clip in made_clips()]
    metrics = write_report(clips, [], made_context(curves=[], rejections={}, clip_totals={}), tmp_path)
    assert metrics["blind_cer"] is None
    page = page_of(tmp_path)
    for line in (
        "There are no training curves",
        "The corpus does not name the gender.",
        "No clip was rejected.",
        "not measured",
    ):
        assert line in page


def test_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"report\.split: split 'test'"):
        write_report([], [], made_context(), tmp_path)


REJECTIONS = {"train": {"no_face": 9, "too_short": 1}, "test": {"too_short": 2, "turned_away": 1}}


def test_rejected_clips_of_the_split_are_counted(tmp_path: Path) -> None:
    """A CER falls if hard clips are rejected; rejected clips of other splits do not matter."""
    clips = made_clips()
    cases: list[tuple[dict[str, dict[str, int]], int]] = [(REJECTIONS, 3), ({"train": {"no_face": 9}}, 0)]
    for rejections, number in cases:
        context = made_context(rejections=rejections, clip_totals={"test": 5, "train": 40})
        metrics = write_report(clips, [], context, tmp_path, ReportFacts("ctc"))
        assert metrics["num_rejected"] == number
        page = page_of(tmp_path)
        left_out = "Not included: 3 clips of this split, rejected before reading (too short 2, turned away 1)"
        assert (left_out in page) == bool(number)
        rows = re.findall(
            r'<tr><th scope="row"[^>]*>(?:<bdi>)?(.*?)<.*?</tr>', page.split("<h2>Data</h2>")[1]
        )
        assert rows[:2] == ["test", "train"]
        out = io.StringIO()
        print_metrics(metrics, Console(file=out, width=200))
        assert (
            "3 clips of this split were rejected; these figures do not include" in out.getvalue()
        ) == bool(number)
    write_report(clips, [], made_context(rejections=REJECTIONS, split="test"), tmp_path)
    data = page_of(tmp_path).split("<h2>Rejections</h2>")[1].split("</table>")[0]
    cells = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>.*?</tr>", data)]
    assert [row[:3] for row in cells] == [
        ["reason", "this split", "all splits"],
        ["too short", "2", "3"],
        ["turned away", "1", "1"],
        ["no face", "0", "9"],
    ]
    assert split_metrics(clips, [], "test", 0)["num_rejected"] is None


def test_warnings_are_above_the_figures(tmp_path: Path) -> None:
    clips = made_clips()
    write_report(
        clips, blind_of(clips), made_context(warnings=["speaker 047 is in train and test"]), tmp_path
    )
    page = page_of(tmp_path)
    assert 0 < page.index("speaker 047 is in train and test") < page.index("<h1>")


@pytest.mark.parametrize("overlap", [0, 2, None])
def test_every_print_of_the_figures_names_shared_speakers(tmp_path: Path, overlap: int) -> None:
    clips = made_clips()
    metrics = write_report(clips, blind_of(clips), made_context(speaker_overlap=overlap), tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text("utf-8"))["speaker_overlap"] == overlap
    seed = made_context().seed
    assert metrics == split_metrics(clips, blind_of(clips), "test", seed, overlap, num_rejected=1)
    out = io.StringIO()
    print_metrics(metrics, Console(file=out, width=200))
    assert ("2 of the speakers of split test are in the training clips too" in out.getvalue()) == bool(
        overlap
    )
    assert ("No speakers are named: the training clips may show people of split test" in out.getvalue()) == (
        overlap is None
    )
    # an older metrics.json without this figure
    print_metrics({name: metrics[name] for name in metrics.keys() - {"speaker_overlap"}}, Console(file=out))


def test_each_clip_is_shown_once_at_most(tmp_path: Path) -> None:
    clips = made_clips(READ * 4)
    write_report(clips, blind_of(clips), made_context(), tmp_path)
    shown = re.findall(r'class="id">(\w+)<', page_of(tmp_path))
    assert len(shown) == len(set(shown)) == 9
    assert {shown[0], shown[1], shown[2]} <= {"clip_003", "clip_008", "clip_013", "clip_018"}


@pytest.mark.parametrize(
    ("num_speakers", "is_narrow"), [(0, True), (1, True), (2, True), (7, True), (8, False)]
)
def test_an_interval_of_few_speakers_is_called_too_narrow(
    tmp_path: Path, num_speakers: int, is_narrow: bool
) -> None:
    clips = [
        replace(clip, speaker=f"s{index % num_speakers}" if num_speakers else None)
        for index, clip in enumerate(made_clips(READ * 2 + READ[:1]))
    ]
    metrics = write_report(clips, [], made_context(), tmp_path)
    assert metrics["num_speakers"] == num_speakers
    out = io.StringIO()
    print_metrics(metrics, Console(file=out, width=200))
    headline = page_of(tmp_path).split('<p class="interval')[1].split("</p>")[0]
    for text in (headline, out.getvalue()):
        assert ("too narrow" in text) == is_narrow
        assert (f"over {num_speakers} speakers: with fewer than 8" in text) == (2 <= num_speakers < 8)


def test_letters_of_pinyin_are_not_called_characters(tmp_path: Path) -> None:
    clips = made_clips([(" ".join(syllables_of(a)), " ".join(syllables_of(b))) for a, b in READ])
    metrics = write_report(clips, [], made_context(), tmp_path, ReportFacts("syllables"))
    share = f"{100 * metrics['syllable_error_rate']:.1f}"
    page = page_of(tmp_path)
    assert "do not compare this rate with a CER" in page and share in page
    for text in (
        "character error rate",
        "sounds, tones and meaning",
        "Confusions of characters",
        "a spike is a character",
    ):
        assert text not in page, text
    out = io.StringIO()
    print_metrics(metrics, Console(file=out, width=200))
    assert "counted by letter; do not compare this rate with a CER" in out.getvalue()
    write_report(made_clips(), [], made_context(), tmp_path, ReportFacts("ctc"))
    assert "sounds, tones and meaning" in page_of(tmp_path) and "letters" not in page_of(tmp_path)


def test_a_foreign_report_cannot_control_the_terminal(tmp_path: Path) -> None:
    clips = made_clips()
    metrics = write_report(clips, blind_of(clips), made_context(), tmp_path, ReportFacts("ctc"))
    hostile = "\x1b[31mx\u202e\nforged"
    out = io.StringIO()
    names = ("decoder", "normaliser", "checkpoint_normaliser", "language_model")
    print_metrics(metrics | dict.fromkeys(names, hostile), Console(file=out, width=300))
    assert "\\x1b[31mx\\u202e\\nforged" in out.getvalue()
    assert not set("\x1b\u202e") & set(out.getvalue())
    assert not any(line.startswith("forged") for line in out.getvalue().split("\n"))


def test_a_report_that_fails_keeps_the_previous_one(tmp_path: Path) -> None:
    """Here the page exceeds the largest file size, and the tables do not."""
    clips = made_clips()
    write_report(clips, blind_of(clips), made_context(), tmp_path)
    former = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    limit_bytes = len(former["report.html"]) // 2
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        with pytest.raises(DiskError, match=r"report\.html cannot be written \(File too large\)"):
            write_report(clips[:-1], [], made_context(split="valid"), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == former
