"""The page of `pipeline qc`: its figures compared with numpy, hostile text, tables that do not match, the commands."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import duckdb
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.params import read_mapping
from shards.errors import TableError
from shards.files import table_from_rows, write_table
from shards.schema import AUDIT, CROPS, SOUND
from stages.pages.histogram import NUM_BINS, bin_edges, count
from stages.qc import pages as qc_stage
from stages.statistics.quality import QUALITIES, Limit
from tests.support.crop_runs import clip_row
from tests.support.in_process import pipeline
from tests.support.ledgers import PARAMS, Corpus, Row
from tests.support.qc_pages import (  # noqa: F401
    ids,
    own_fixture,
    part,
    pictures,
    plain,
    real_fixture,
    synthetic_fixture,
)
from tests.support.report_figures import HOSTILE

ROOT = Path(__file__).parents[3]
PIPELINE = Path(sysconfig.get_path("scripts")) / "pipeline"

# --- figures --------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(
        st.tuples(
            st.one_of(st.floats(-50, 150, width=32), st.integers(-2, 34).map(lambda i: i * 3.125), st.none()),
            st.booleans(),
        ),
        min_size=1,
    )
)
def test_bars_count_like_numpy(values: list[tuple[float | None, bool]]) -> None:
    edges = np.linspace(0, 100, NUM_BINS + 1)
    with duckdb.connect(":memory:") as connection:
        connection.execute("CREATE TABLE ledger (status VARCHAR, value REAL)")
        rows = [["ok" if is_ok else "rejected", value] for value, is_ok in values]
        connection.executemany("INSERT INTO ledger VALUES (?, ?)", rows)
        counts = count(connection, "value", edges)
    for found, wanted in ((counts.ok, True), (counts.rejected, False)):
        measured = np.array([v for v, is_ok in values if is_ok is wanted and v is not None], np.float32)
        expected, _ = np.histogram(np.clip(measured.astype(float), 0, 100), edges)
        assert list(found) == expected.tolist()


@pytest.mark.parametrize(
    ("low", "high", "limit", "first", "last"),
    [
        (30.0, 40.0, 16.0, 10, 40),  # near: the axis extends to the limit
        (30.0, 40.0, 500.0, 30, 40),  # far: labelled at the edge
        (3.0, 3.0, 0.4, 2.8, 3.2),  # all equal
        (0.0, 0.0, 45.0, -0.05, 0.05),
    ],
)
def test_the_axis_contains_the_data_and_near_limits(
    low: float, high: float, limit: float, first: float, last: float
) -> None:
    edges = bin_edges(low, high, [Limit("crop.x", limit, is_least=True)])
    assert (edges[0], edges[-1]) == (pytest.approx(first), pytest.approx(last))
    assert (len(edges), bool((np.diff(edges) > 0).all())) == (NUM_BINS + 1, True)


def test_the_bars_of_the_page_equal_numpys(synthetic: tuple[Corpus, str]) -> None:
    corpus, page = synthetic
    drawn = re.findall(r'<figure class="chart">.*?</figure>', page, re.DOTALL)
    assert len(drawn) == len(QUALITIES)
    for quality, figure in zip(QUALITIES, drawn, strict=True):
        assert quality.title in figure
        for status, kind in (("ok", "usable"), ("rejected", "rejected")):
            values = figures_of(corpus.crops, quality.name, status)
            counts = [int(n.replace(",", "")) for n in re.findall(rf": ([\d,]+) {kind}</title>", figure)]
            assert sum(counts) == len(values)
        if quality.bounds is not None:
            expected, _ = np.histogram(
                figures_of(corpus.crops, quality.name, "ok"), np.linspace(*quality.bounds, NUM_BINS + 1)
            )
            counts = [int(n) for n in re.findall(r": (\d+) usable</title>", figure)]
            assert counts == [n for n in expected.tolist() if n]
        for limit in quality.limits(PARAMS):
            assert limit.key.removeprefix("crop.") in figure


def figures_of(crops: list[Row], name: str, status: str = "ok") -> np.ndarray:
    rows = [row for row in crops if row["status"] == status]
    if name == "landmarked_share":
        shares = [
            (row["landmarked_frames"], row["source_frames"]) for row in rows if row["landmarked_frames"]
        ]
        return np.array([np.int32(a) / np.int32(b) for a, b in shares])
    return np.array([row[name] for row in rows if row[name] is not None], np.float32).astype(float)


def test_the_page_shows_the_totals(synthetic: tuple[Corpus, str]) -> None:
    corpus, page = synthetic
    ok = [row for row in corpus.crops if row["status"] == "ok"]
    text = plain(page)
    assert f"{len(ok)} ok + {len(corpus.crops) - len(ok)} rejected = {len(corpus.crops)} clips" in text
    hours = sum(row["duration_s"] for row in ok) / 3600
    assert f"Hours {hours:.2f}" in text
    both = [row for row in corpus.crops if row["landmarked_frames"] is not None and row["source_frames"]]
    landmarked, source = (sum(row[name] for row in both) for name in ("landmarked_frames", "source_frames"))
    assert f"{landmarked:,} of {source:,} source frames" in text
    assert f"{sum(row['bridged_frames'] or 0 for row in ok)} frames of usable clips" in text
    assert "crop.min_detection_rate 80 % of the frames" in text


def test_hostile_text_is_escaped(synthetic: tuple[Corpus, str]) -> None:
    _, page = synthetic
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#39;嘴&#39;)&lt;/script&gt;") > 30
    assert not re.search(r"(src|href)=\"(?!data:image/jpeg|#)", page)
    assert HOSTILE in plain(page)


def test_the_clips_whose_label_the_video_contradicts_are_shown_with_their_reading(own: Corpus) -> None:
    usable = [row["clip_id"] for row in own.crops if row["status"] == "ok"]
    label_of = {row["clip_id"]: row["label"] for row in own.clips}
    audit = own.folder / "audit.parquet"
    assert "Contradicted labels" not in own.page(audit_path=audit), "not audited"
    rows = [
        dict.fromkeys(AUDIT.names, 0.0)
        | {"clip_id": clip_id, "label": label_of[clip_id], "reading": f"{HOSTILE} {number}", "fold": 1}
        | {"contradiction": float(number), "is_doubtful": number == 1}
        for number, clip_id in enumerate(usable)
    ]
    rows[0]["label"] = "a former label"
    write_table(audit, table_from_rows(rows, AUDIT), AUDIT)
    shown = part(own.page(audit_path=audit), "Contradicted labels")
    assert ids(shown) == [usable[1], *usable[:1:-1]], "the doubtful clip first, then by contradiction"
    text = plain(shown)
    assert "1.00 nats, doubtful" in text and f"{len(usable) - 1:.2f} nats" in text
    assert f"read: {HOSTILE} 1" in text and label_of[usable[1]] in text and "<script" not in shown
    assert len(pictures(shown)) == 2 * (len(usable) - 1), "two pictures of four frames each"
    assert len(ids(part(own.page(audit_path=audit, num_clips=1), "Contradicted labels"))) == 1


def test_the_clips_whose_sound_is_out_of_step_are_shown_worst_first(own: Corpus) -> None:
    usable = [row["clip_id"] for row in own.crops if row["status"] == "ok"]
    sound = own.folder / "sound.parquet"
    assert "out of step" not in own.page(sound_path=sound), "not compared"
    rows = [
        {
            "clip_id": clip_id,
            "has_audio": number > 0,
            "offset_frames": None if number == 0 else (-1) ** number * number,
            "offset_s": None if number == 0 else (-1) ** number * number / 25,
            "agreement": None if number == 0 else 1.5,
        }
        for number, clip_id in enumerate(usable)
    ]
    write_table(sound, table_from_rows(rows, SOUND), SOUND)
    shown = part(own.page(sound_path=sound), "Sound and picture out of step")
    assert ids(shown) == usable[:0:-1], "the largest offset first; a silent clip is not shown"
    assert "-1 frames, -0.04 s; agreement 1.50" in plain(shown) and len(usable) > 2
    assert "+2 frames, +0.08 s" in plain(shown)


# --- faults --------------------------------------------------------------------------------------------


def test_usable_clips_beyond_a_limit_are_reported(own: Corpus) -> None:
    face = next(row for row in own.crops if row["clip_id"] == "face")
    assert own.page("kept.html") and not own.summary.warnings
    # a float32 may be slightly below the limit that it met, and a duration below its frames
    exact = PARAMS.model_copy(
        update={"min_mouth_width_px": face["mouth_width_px"] + 1e-6, "min_frames": face["num_frames"]}
    )
    own.page("exact.html", params=exact)
    assert not own.summary.warnings, "a value at the limit is not beyond it"
    stricter = PARAMS.model_copy(update={"min_mouth_width_px": 60.0, "min_frames": 14})
    text = plain(own.page("stricter.html", params=stricter))
    assert "usable clips beyond crop.min_mouth_width_px (60.0 px): 1" in text
    assert "usable clips beyond crop.min_frames" in text


def test_a_page_without_usable_clips_rejected_clips_or_speakers(own: Corpus) -> None:
    clips, crops = own.clips, own.crops
    by_id = {row["clip_id"]: row | {"speaker": None} for row in clips}
    for status, sentence in (("ok", "No clip was rejected."), ("rejected", "There are none.")):
        kept = [row for row in crops if row["status"] == status]
        own.write([by_id[row["clip_id"]] for row in kept], kept)
        text = plain(own.page())
        assert sentence in text and "The corpus does not name the speakers." in text
    assert "Nothing was measured" not in text, "the duration of the short clip was measured"


def test_tables_that_do_not_match_are_rejected(own: Corpus) -> None:
    clips, crops = own.clips, own.crops
    own.write(clips[1:], crops)
    with pytest.raises(TableError, match=r"crops.parquet does not match the clips .*`pipeline crop`"):
        own.page()
    own.write([], [])
    with pytest.raises(TableError, match="holds no clip"):
        own.page()
    own.tables[1].unlink()
    own.write(clips, crops)
    own.tables[1].unlink()
    with pytest.raises(TableError, match=r"crops.parquet is missing; run `pipeline crop`"):
        own.page()
    write_table(own.tables[1], table_from_rows(crops, CROPS), CROPS)
    shutil.rmtree(own.folder / "cache")
    own.tables[2].unlink()
    with pytest.raises(TableError, match=r"tracks.parquet is missing; run `pipeline crop`"):
        own.page()
    assert not (own.folder / "qc.html").exists()


# --- the commands --------------------------------------------------------------------------------------


def test_qc_and_stats_write_the_same_page(own: Corpus) -> None:
    params = read_mapping(ROOT / "params.yaml")
    params["corpus"] |= {"root": "corpus", "kind": "table"}
    params["machine"]["cache_dir"] = "cache"
    params["paths"] |= {name: f"{name}.parquet" for name in ("clips", "crops", "tracks", "samples")}
    (own.folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return pipeline(own.folder, arguments)

    done = run("qc")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("stats/qc.html: 4 of 6 clips usable")
    assert lines[1] == "  rejected: 1 too_short, 1 unreadable"
    page = (own.folder / "stats" / "qc.html").read_bytes()
    (own.folder / "stats" / "qc.html").unlink()
    done = run("stats")
    assert done.returncode == 0, done.stderr
    assert (own.folder / "stats" / "qc.html").read_bytes() == page
    done = run("qc", "--out", "other.html", "--seed", "5", "--clips", "1")
    assert done.returncode == 0, done.stderr
    assert "drawn by seed 5" in (own.folder / "other.html").read_text("utf-8")
    assert run("qc", "--clips", str(qc_stage.MAX_CLIPS + 1)).returncode == 2
    assert run("qc", "--out", "corpus").returncode == 2
    # crops of other clips: a page would show wrong clips
    own.write([clip_row("other", "face.mp4")], own.crops)
    assert run("stats").returncode == 0
    assert not (own.folder / "stats" / "qc.html").exists()
    refused = run("qc")
    assert refused.returncode == 1 and "does not match the clips" in refused.stderr
