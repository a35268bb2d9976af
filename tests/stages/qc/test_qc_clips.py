"""The clips on the page of `pipeline qc`: compared with a plain sort and the cache; rejected and missing clips."""

import html
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.schema import CROPS, Reason
from stages.clips.cache import ClipCache
from stages.qc import page as pictures_module
from stages.qc import pages as qc_stage
from stages.qc.page import PICTURE_BYTES
from stages.statistics.quality import EXPLAINED, QUALITIES
from tests.support.crop_runs import clip_row
from tests.support.ledgers import Corpus, Row, with_synthetic_clips
from tests.support.qc_pages import (  # noqa: F401
    ids,
    own_fixture,
    part,
    pictures,
    plain,
    real_fixture,
    synthetic_fixture,
)
from tests.support.videos import face_pictures, number_of, placed, write_mirrored

MAX_PAGE_BYTES = 8_000_000


@pytest.mark.parametrize(
    ("name", "title", "sign"),
    [(q.name, q.lowest, 1) for q in QUALITIES if q.lowest]
    + [(q.name, q.highest, -1) for q in QUALITIES if q.highest],
)
def test_the_worst_clips_are_the_extremes(
    synthetic: tuple[Corpus, str], name: str, title: str, sign: int
) -> None:
    corpus, page = synthetic
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


def test_equal_clips_have_no_worst_clip(own: Corpus) -> None:
    assert "all measured clips have the same value" in part(own.page(), "Mouth least often detected")


def test_random_clips_depend_on_the_seed_not_on_the_order_of_tables(synthetic: tuple[Corpus, str]) -> None:
    corpus, page = synthetic
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


def test_each_speaker_is_shown_once_and_the_rest_is_counted(synthetic: tuple[Corpus, str]) -> None:
    corpus, page = synthetic
    speakers = {row["clip_id"]: row["speaker"] for row in corpus.clips}
    usable = {speakers[row["clip_id"]] for row in corpus.crops if row["status"] == "ok"}
    strips = part(page, "One clip per speaker")
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
    assert names[0].startswith("<script>"), "the speaker whose clips were all rejected comes first"
    anna = next(row for row in table[0].split("</tr>") if "anna" in row)
    face = next(row for row in corpus.crops if row["clip_id"] == "face")
    assert f'data-name="mouth">{face["mouth_width_px"]:.1f}' in anna


# --- rejected clips -------------------------------------------------------------------------------------


def test_every_reason_is_explained_and_shown(synthetic: tuple[Corpus, str]) -> None:
    _, page = synthetic
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
            assert "not opened here" in found[0], "a file that crashed its reader may crash this process"
    # NASA's orange suit: in colour, with the channels in the right order
    still = pictures(page[page.index('id="no_face"') :])[0]
    assert still.shape == (144, 256, 3)
    assert still[-10:, 60:120, 2].mean() > still[-10:, 60:120, 0].mean() + 30


def test_a_rejected_part_shows_its_own_first_picture(own: Corpus) -> None:
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


def test_a_rejected_clip_is_shown_like_in_a_player(own: Corpus) -> None:
    shown = next(iter(face_pictures([placed()])))
    write_mirrored(own.folder / "corpus" / "mirrored.mp4", [shown] * 3)
    rejected = dict.fromkeys(CROPS.names) | {"status": "rejected", "reason": "no_face", "detail": "none"}
    rejected |= {"source_frames": 3, "clip_id": "mirrored"}
    own.write([*own.clips, clip_row("mirrored", "mirrored.mp4")], [*own.crops, rejected])
    page = own.page()
    still = pictures(page[page.index('id="no_face"') :])[0]
    assert still.shape == (144, 256, 3)
    expected = cv2.resize(shown, (256, 144), interpolation=cv2.INTER_AREA)
    assert np.abs(still.astype(int) - expected).mean() < 6


def test_videos_that_crop_did_not_decode_are_not_opened(own: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    row = dict.fromkeys(CROPS.names) | {"clip_id": "x", "status": "rejected", "detail": "d"}
    own.write([*own.clips, clip_row("x", "numbered.mp4")], [*own.crops, row | {"reason": "oversized"}])
    opened = []
    first_picture = pictures_module.first_picture
    monkeypatch.setattr(
        pictures_module,
        "first_picture",
        lambda source, row: opened.append(row["clip_id"]) or first_picture(source, row),
    )
    page = own.page()
    section = page[page.index('id="oversized"') :]
    assert "not opened here: oversized" in plain(section[: section.index("</article>")])
    assert opened == ["brief"]


# --- pictures -------------------------------------------------------------------------------------------


def test_a_strip_holds_eight_frames_of_the_clip(own: Corpus) -> None:
    page = own.page()
    strips = part(page, "Random clips").split("</article>")
    strip = next(text for text in strips if "<bdi>m2</bdi>" in text)
    clip_THW = ClipCache(own.folder / "cache").read_clip(
        next(row["clip_key"] for row in own.crops if row["clip_id"] == "m2"), (16, 96, 96)
    )
    assert clip_THW is not None
    expected = np.hstack(list(clip_THW[np.linspace(0, 15, 8).round().astype(int)]))
    found = np.hstack(pictures(strip))
    assert found.shape == expected.shape == (96, 768)
    assert np.abs(found.astype(int) - expected).mean() < 2
    assert "李雷" in strip and "你好" in strip


def test_clips_missing_from_the_cache_are_cut_again(own: Corpus) -> None:
    page = own.page()
    assert own.summary.num_rendered == 0
    for path in (own.folder / "cache" / "clips").rglob("*.npz"):
        path.unlink()
    assert own.page("again.html") == page
    assert own.summary.num_rendered == 4
    assert "4 clips cut again" in str(own.summary)


def test_clips_that_cannot_be_cut_again_are_reported(own: Corpus) -> None:
    shutil.rmtree(own.folder / "cache")
    (own.folder / "corpus" / "0.mp4").unlink()
    text = plain(own.page())
    assert "clip m0 is not in the cache and cannot be cropped again" in text
    assert "usable clips without a film strip: 1" in text
    assert "usable clips without a film strip: 1" in str(own.summary)
    assert own.summary.num_rendered == 3
    assert len(pictures(part(own.page(), "Random clips"))) == 6


def test_a_large_corpus_gives_a_small_page(
    real: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = with_synthetic_clips(real, tmp_path, 5_000, 300)
    rng = np.random.default_rng(0)
    read: list[str] = []

    def noise(_: ClipCache, clip_key: str, shape: tuple[int, int, int]) -> np.ndarray:
        """Returns pictures that JPEG cannot compress well."""
        read.append(clip_key)
        return rng.integers(0, 256, shape, dtype=np.uint8)

    monkeypatch.setattr(ClipCache, "read_clip", noise)
    page = corpus.page(num_clips=qc_stage.MAX_CLIPS)
    assert len(page.encode()) == corpus.summary.num_bytes < MAX_PAGE_BYTES
    assert sum(len(uri) for uri in re.findall(r'src="(data:[^"]*)"', page)) <= PICTURE_BYTES
    assert len(read) <= 48 + 10 * 16 + 96
    assert "pictures left out to keep" in plain(page)
    assert page.count("the page has no room for more pictures") > 10
    assert "The other 53 speakers are left out." in plain(page)
