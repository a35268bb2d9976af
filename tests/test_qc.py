"""The page of `pipeline qc`: its figures against numpy, its clips against a plain sort, hostile text, lost clips."""

import base64
import html
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import cv2
import duckdb
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.params import read_mapping
from shards.errors import TableError
from shards.files import table_from_rows, write_table
from shards.schema import CROPS, Reason
from stages import qc as qc_stage
from stages import qc_pictures
from stages.cache import ClipCache
from stages.histogram import NUM_BINS, bin_edges, count
from stages.qc_pictures import PICTURE_BYTES
from stages.quality import EXPLAINED, QUALITIES, Limit
from tests.ledgers import HOSTILE, PARAMS, Corpus, Row, cropped, with_made_up
from tests.test_crop_stage import clip_row
from tests.videos import number_of

ROOT = Path(__file__).parent.parent
PIPELINE = Path(sysconfig.get_path("scripts")) / "pipeline"
MAX_PAGE_BYTES = 8_000_000


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """As the crop stage left it; not to be changed."""
    return cropped(tmp_path_factory.mktemp("real"))


@pytest.fixture
def own(real: Corpus, tmp_path: Path) -> Corpus:
    """A copy to harm."""
    return Corpus(Path(shutil.copytree(real.folder, tmp_path / "own")), real.clips, real.crops)


@pytest.fixture(scope="module")
def made(real: Corpus, tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, str]:
    """Every reason five times, 60 more usable clips; and their page."""
    corpus = with_made_up(real, tmp_path_factory.mktemp("made"), 60, 5)
    return corpus, corpus.page()


def part(page: str, title: str) -> str:
    """The list of clips under a heading."""
    found = re.search(rf'<section class="shots">\s*<h3>{re.escape(title)} .*?</section>', page, re.DOTALL)
    assert found is not None, title
    return found[0]


def ids(text: str) -> list[str]:
    return re.findall(r"<h4><bdi>(.*?)</bdi></h4>", text)


def pictures(text: str) -> list[np.ndarray]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]*)"', text)
    return [
        cv2.imdecode(np.frombuffer(base64.b64decode(uri), np.uint8), cv2.IMREAD_UNCHANGED) for uri in found
    ]


def plain(text: str) -> str:
    """What a person reads."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())


# --- figures ----------------------------------------------------------------------------------------------------


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
def test_a_bar_counts_what_numpy_counts(values: list[tuple[float | None, bool]]) -> None:
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
        (30.0, 40.0, 16.0, 10, 40),  # near: the axis goes on to the limit
        (30.0, 40.0, 500.0, 30, 40),  # far: named at the edge
        (3.0, 3.0, 0.4, 2.8, 3.2),  # all alike
        (0.0, 0.0, 45.0, -0.05, 0.05),
    ],
)
def test_the_axis_holds_the_data_and_limits_that_are_near(
    low: float, high: float, limit: float, first: float, last: float
) -> None:
    edges = bin_edges(low, high, [Limit("crop.x", limit, is_least=True)])
    assert (edges[0], edges[-1]) == (pytest.approx(first), pytest.approx(last))
    assert (len(edges), bool((np.diff(edges) > 0).all())) == (NUM_BINS + 1, True)


def test_the_bars_of_the_page_are_those_of_numpy(made: tuple[Corpus, str]) -> None:
    corpus, page = made
    drawn = re.findall(r'<figure class="chart">.*?</figure>', page, re.DOTALL)
    assert len(drawn) == len(QUALITIES)
    for quality, figure in zip(QUALITIES, drawn, strict=True):
        assert quality.title in figure
        for status, kind in (("ok", "usable"), ("rejected", "rejected")):
            values = figures_of(corpus.crops, quality.name, status)
            told = [int(n.replace(",", "")) for n in re.findall(rf": ([\d,]+) {kind}</title>", figure)]
            assert sum(told) == len(values)
        if quality.bounds is not None:
            expected, _ = np.histogram(
                figures_of(corpus.crops, quality.name, "ok"), np.linspace(*quality.bounds, NUM_BINS + 1)
            )
            told = [int(n) for n in re.findall(r": (\d+) usable</title>", figure)]
            assert told == [n for n in expected.tolist() if n]
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


def test_the_head_tells_the_sums(made: tuple[Corpus, str]) -> None:
    corpus, page = made
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


# --- which clips ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "title", "sign"),
    [(q.name, q.lowest, 1) for q in QUALITIES if q.lowest]
    + [(q.name, q.highest, -1) for q in QUALITIES if q.highest],
)
def test_the_worst_clips_are_the_extremes(made: tuple[Corpus, str], name: str, title: str, sign: int) -> None:
    corpus, page = made
    rows = [row for row in corpus.crops if row["status"] == "ok" and row[name_of(name)] is not None]
    values = sign * np.array([value_of(row, name) for row in rows])
    names = np.array([row["clip_id"] for row in rows])
    order = np.lexsort((names, values))
    assert ids(part(page, title)) == names[order[values[order] < values.max()]][:4].tolist()


def name_of(name: str) -> str:
    return "landmarked_frames" if name == "landmarked_share" else name


def value_of(row: Row, name: str) -> float:
    if name == "landmarked_share":
        return float(row["landmarked_frames"] / row["source_frames"])
    return float(np.float32(row[name]))


def test_where_all_are_alike_none_is_the_worst(own: Corpus) -> None:
    assert "all measured ones are alike" in part(own.page(), "Mouth least often seen")


def test_random_clips_and_speakers_are_the_seeds_not_the_tables(made: tuple[Corpus, str]) -> None:
    corpus, page = made
    usable = {row["clip_id"] for row in corpus.crops if row["status"] == "ok"}
    drawn = ids(part(page, "Random clips"))
    assert len(set(drawn)) == 12 and set(drawn) <= usable
    assert "12 of 64 usable clips, drawn by seed 0" in part(page, "Random clips")
    others = corpus.page("other.html", seed=1)
    assert set(ids(part(others, "Random clips"))) != set(drawn)
    assert corpus.page("again.html") == page
    clips, crops = corpus.clips, corpus.crops
    try:
        corpus.write(clips[::-1], crops[::-1])
        assert corpus.page("reversed.html") == page
    finally:
        corpus.write(clips, crops)


def test_each_speaker_once_and_the_rest_counted(made: tuple[Corpus, str]) -> None:
    corpus, page = made
    speakers = {row["clip_id"]: row["speaker"] for row in corpus.clips}
    usable = {speakers[row["clip_id"]] for row in corpus.crops if row["status"] == "ok"}
    strips = part(page, "One clip a speaker")
    shown = [speakers[clip_id] for clip_id in ids(strips)]
    assert shown == sorted(set(shown)) and len(shown) == 24
    assert (
        f"24 of {len(usable)} speakers with usable clips, drawn by seed 0; {len(usable) - 24} are left out"
        in strips
    )
    table = re.search(r'<table class="stacked">.*?</table>', page, re.DOTALL)
    assert table is not None
    names = [html.unescape(name) for name in re.findall(r'<th scope="row"><bdi>(.*?)</bdi>', table[0])]
    assert len(names) == len(set(speakers.values()) - {None})
    assert names[0].startswith("<script>"), "who lost all clips comes first"
    anna = next(row for row in table[0].split("</tr>") if "anna" in row)
    face = next(row for row in corpus.crops if row["clip_id"] == "face")
    assert f'data-name="mouth">{face["mouth_width_px"]:.1f}' in anna


# --- rejected clips ---------------------------------------------------------------------------------------------


def test_every_reason_is_explained_and_shown(made: tuple[Corpus, str]) -> None:
    _, page = made
    assert EXPLAINED.keys() == set(Reason)
    for reason in Reason:
        found = re.search(rf'<section class="reason" id="{reason}">.*?</section>', page, re.DOTALL)
        assert found is not None, reason
        assert EXPLAINED[reason] in plain(found[0])
        num = 6 if reason in (Reason.UNREADABLE, Reason.TOO_SHORT) else 5
        assert f"{num} clips, 4 shown" in plain(found[0])
        assert len(ids(found[0])) == 4
        has_no_picture = {Reason.UNREADABLE, Reason.MISSING_FILE, Reason.CRASHED, Reason.TIMEOUT}
        stills, boxes = pictures(found[0]), found[0].count('class="nothing"')
        assert (len(stills), boxes) == ((0, 4) if reason in has_no_picture else (4, 0))
        if reason in (Reason.CRASHED, Reason.TIMEOUT):
            assert "not opened here" in found[0], "a file that killed its reader would kill this one"
    # NASA's orange suit: colour, the right way round and not mirrored in its channels
    still = pictures(page[page.index('id="no_face"') :])[0]
    assert still.shape == (144, 256, 3)
    assert still[-10:, 60:120, 2].mean() > still[-10:, 60:120, 0].mean() + 30


def test_a_part_of_a_video_shows_its_own_first_picture(own: Corpus) -> None:
    rows = [clip_row("whole", "numbered.mp4"), clip_row("part", "numbered.mp4", start_s=0.6, end_s=1.0)]
    rejected = dict.fromkeys(CROPS.names) | {"status": "rejected", "reason": "no_face", "detail": "none"}
    rejected |= {"source_frames": 30}
    own.write([*own.clips, *rows], [*own.crops, *(rejected | {"clip_id": row["clip_id"]} for row in rows)])
    page = own.page()
    section = page[page.index('id="no_face"') :]
    articles = re.findall(r"<article>.*?</article>", section, re.DOTALL)[:2]
    numbers = {
        ids(text)[0]: number_of(cv2.cvtColor(pictures(text)[0], cv2.COLOR_BGR2GRAY)) for text in articles
    }
    assert numbers == {"whole": 0, "part": 15}


def test_what_crop_did_not_decode_is_not_opened(own: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    row = dict.fromkeys(CROPS.names) | {"clip_id": "x", "status": "rejected", "detail": "d"}
    own.write([*own.clips, clip_row("x", "numbered.mp4")], [*own.crops, row | {"reason": "oversized"}])
    opened = []
    first_picture = qc_pictures.first_picture
    monkeypatch.setattr(
        qc_pictures,
        "first_picture",
        lambda source, row: opened.append(row["clip_id"]) or first_picture(source, row),
    )
    page = own.page()
    section = page[page.index('id="oversized"') :]
    assert "not opened here: oversized" in plain(section[: section.index("</article>")])
    assert opened == ["brief"]


def test_hostile_text_stays_text(made: tuple[Corpus, str]) -> None:
    _, page = made
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(&#39;嘴&#39;)&lt;/script&gt;") > 30
    assert not re.search(r"(src|href)=\"(?!data:image/jpeg|#)", page)
    assert HOSTILE in plain(page)


# --- pictures ---------------------------------------------------------------------------------------------------


def test_a_strip_holds_eight_frames_of_the_clip(own: Corpus) -> None:
    page = own.page()
    strips = part(page, "Random clips").split("</article>")
    strip = next(text for text in strips if "<bdi>m2</bdi>" in text)
    clip_THW = ClipCache(own.folder / "cache").read_clip(
        next(row["clip_key"] for row in own.crops if row["clip_id"] == "m2")
    )
    assert clip_THW is not None
    expected = np.hstack(list(clip_THW[np.linspace(0, 15, 8).round().astype(int)]))
    found = np.hstack(pictures(strip))
    assert found.shape == expected.shape == (96, 768)
    assert np.abs(found.astype(int) - expected).mean() < 2
    assert "李雷" in strip and "你好" in strip


def test_clips_that_the_cache_lost_are_cut_again_alike(own: Corpus) -> None:
    page = own.page()
    assert own.summary.num_rendered == 0
    for path in (own.folder / "cache" / "clips").rglob("*.npz"):
        path.unlink()
    assert own.page("again.html") == page
    assert own.summary.num_rendered == 4
    assert "4 clips cut again" in str(own.summary)


def test_clips_that_cannot_be_cut_again_are_told(own: Corpus) -> None:
    shutil.rmtree(own.folder / "cache")
    (own.folder / "corpus" / "0.mp4").unlink()
    text = plain(own.page())
    assert "clip m0 is not in the cache and cannot be cut again" in text
    assert "usable clips without a film strip: 1" in text
    assert "usable clips without a film strip: 1" in str(own.summary)
    assert own.summary.num_rendered == 3
    assert len(pictures(part(own.page(), "Random clips"))) == 6


def test_a_large_corpus_gives_a_small_page_of_few_clips(
    real: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = with_made_up(real, tmp_path, 5_000, 300)
    rng = np.random.default_rng(0)
    keys = {row["clip_key"]: row["num_frames"] for row in corpus.crops if row["status"] == "ok"}
    read: list[str] = []

    def noise(_: ClipCache, clip_key: str) -> np.ndarray:
        """Pictures that no JPEG makes small."""
        read.append(clip_key)
        return rng.integers(0, 256, (keys[clip_key], 96, 96), dtype=np.uint8)

    monkeypatch.setattr(ClipCache, "read_clip", noise)
    page = corpus.page(num_clips=qc_stage.MAX_CLIPS)
    assert len(page.encode()) == corpus.summary.num_bytes < MAX_PAGE_BYTES
    assert sum(len(uri) for uri in re.findall(r'src="(data:[^"]*)"', page)) <= PICTURE_BYTES
    assert len(read) <= 48 + 10 * 16 + 96
    assert "pictures left out to keep" in plain(page)
    assert page.count("the page has room for no more pictures") > 10
    assert "The other 53 speakers are left out." in plain(page)


# --- what is not as it should be --------------------------------------------------------------------------------


def test_usable_clips_beyond_a_limit_are_told(own: Corpus) -> None:
    face = next(row for row in own.crops if row["clip_id"] == "face")
    assert own.page("kept.html") and not own.summary.warnings
    # a float32 may lie a hair below the limit that it met, and so may a duration below its frames
    exact = PARAMS.model_copy(
        update={"min_mouth_width_px": face["mouth_width_px"] + 1e-6, "min_frames": face["num_frames"]}
    )
    own.page("exact.html", params=exact)
    assert not own.summary.warnings, "at the limit is not beyond it"
    stricter = PARAMS.model_copy(update={"min_mouth_width_px": 60.0, "min_frames": 14})
    text = plain(own.page("stricter.html", params=stricter))
    assert "usable clips beyond crop.min_mouth_width_px (60.0 px): 1" in text
    assert "usable clips beyond crop.min_frames" in text


def test_nothing_usable_nothing_rejected_nobody_named(own: Corpus) -> None:
    clips, crops = own.clips, own.crops
    by_id = {row["clip_id"]: row | {"speaker": None} for row in clips}
    for status, told in (("ok", "No clip was rejected."), ("rejected", "There are none.")):
        kept = [row for row in crops if row["status"] == status]
        own.write([by_id[row["clip_id"]] for row in kept], kept)
        text = plain(own.page())
        assert told in text and "The corpus does not say who speaks." in text
    assert "Nothing was measured" not in text, "the duration of the short one was"


def test_tables_that_do_not_belong_together(own: Corpus) -> None:
    clips, crops = own.clips, own.crops
    own.write(clips[1:], crops)
    with pytest.raises(TableError, match=r"crops.parquet is not of these clips .*`pipeline crop`"):
        own.page()
    own.write([], [])
    with pytest.raises(TableError, match="holds no clip"):
        own.page()
    own.tables[1].unlink()
    own.write(clips, crops)
    own.tables[1].unlink()
    with pytest.raises(TableError, match=r"crops.parquet is missing; `pipeline crop` makes it"):
        own.page()
    write_table(own.tables[1], table_from_rows(crops, CROPS), CROPS)
    shutil.rmtree(own.folder / "cache")
    own.tables[2].unlink()
    with pytest.raises(TableError, match=r"tracks.parquet is missing; `pipeline crop` makes it"):
        own.page()
    assert not (own.folder / "qc.html").exists()


# --- the verbs --------------------------------------------------------------------------------------------------


def test_qc_and_stats_write_the_same_page(own: Corpus) -> None:
    params = read_mapping(ROOT / "params.yaml")
    params["corpus"] |= {"root": "corpus", "kind": "table"}
    params["machine"]["cache_dir"] = "cache"
    params["paths"] |= {name: f"{name}.parquet" for name in ("clips", "crops", "tracks", "samples")}
    (own.folder / "params.yaml").write_text(yaml.safe_dump(params), "utf-8")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(PIPELINE), *arguments]
        return subprocess.run(
            command, cwd=own.folder, capture_output=True, text=True, check=False, timeout=120
        )

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
    done = run("qc", "--out", "look.html", "--seed", "5", "--clips", "1")
    assert done.returncode == 0, done.stderr
    assert "drawn by seed 5" in (own.folder / "look.html").read_text("utf-8")
    assert run("qc", "--clips", str(qc_stage.MAX_CLIPS + 1)).returncode == 2
    assert run("qc", "--out", "corpus").returncode == 2
    # of other clips: its page would be taken for theirs
    own.write([clip_row("other", "face.mp4")], own.crops)
    assert run("stats").returncode == 0
    assert not (own.folder / "stats" / "qc.html").exists()
    refused = run("qc")
    assert refused.returncode == 1 and "is not of these clips" in refused.stderr
