"""Long clips: where they are cut, against all other ways to cut, and what ingest makes of them."""

import re
import zipfile
from itertools import chain, combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.settings import TextParams
from shards.errors import CorpusError
from shards.files import read_table
from shards.schema import CLIPS, MediaKind
from stages.clips.cache import ClipCache
from stages.corpora.long_clips import EDGE_S, MIN_PAUSE_S, ClipPart, split_at_pauses
from stages.corpora.timed import Utterance
from stages.ingest import IngestSummary, ingest
from stages.settings import CorpusParams, CropParams
from stages.videos.media import resolve_media
from stages.videos.video import decode
from tests.support.videos import number_of, numbered, write_mouth, write_video

TEXT = TextParams()
PARAMS = CropParams(split_long=True, max_frames=101)  # of which parts have 100, 4 s

# -- where to cut ----------------------------------------------------------------------------------------


def words(*pauses_s: float, word_s: float = 1.0, start_s: float = 0.5) -> list[Utterance]:
    """Words of a second each, with a pause after each but the last."""
    utterances = []
    for number, pause_s in enumerate([*pauses_s, 0.0]):
        utterances.append(Utterance(start_s, start_s + word_s, f"w{number}", number + 1))
        start_s += word_s + pause_s
    return utterances


def test_parts_are_as_long_as_they_may_be_and_cut_at_the_longest_pauses() -> None:
    utterances = words(0.2, 0.9, 0.2, 0.3, 0.4, 0.2)  # 7 s of words, 2.2 s of pauses
    parts = split_at_pauses(utterances, 10.2, 6.0)
    assert parts is not None
    # in two parts of at most 6 s: after w2 or w3, not at the longest pause of all
    assert [part.text for part in parts] == ["w0 w1 w2 w3", "w4 w5 w6"]
    assert (parts[0].start_s, parts[1].end_s) == (None, None)
    assert parts[0].end_s == parts[1].start_s == pytest.approx(0.5 + 4 + 1.3 + 0.15)


def test_a_cut_where_nobody_pauses_is_the_last_resort() -> None:
    utterances = words(0.05, 0.3, 0.05, 0.3, 0.05)
    parts = split_at_pauses(utterances, 9.0, 4.0)
    assert parts is not None
    assert [part.text for part in parts] == ["w0 w1", "w2 w3", "w4 w5"], "three parts rather than two"
    forced = split_at_pauses(words(0.0, 0.0, 0.0, start_s=0.0), 4.0, 3.0)
    assert forced is not None
    assert len(forced) == 2


def test_long_silence_belongs_to_no_part() -> None:
    utterances = [Utterance(30.0, 31.0, "a", 1), Utterance(90.0, 91.0, "b", 2)]
    assert split_at_pauses(utterances, 120.0, 10.0) == [
        ClipPart(30.0 - EDGE_S, 31.0 + EDGE_S, "a"),
        ClipPart(90.0 - EDGE_S, 91.0 + EDGE_S, "b"),
    ]


def test_cues_that_overlap_stay_together() -> None:
    cues = [Utterance(0, 3, "a", 1), Utterance(2, 5, "b", 2), Utterance(5.5, 8, "c", 3)]
    parts = split_at_pauses(cues, 8.0, 6.0)
    assert parts is not None
    assert [part.text for part in parts] == ["a b", "c"]
    assert split_at_pauses(cues, 8.0, 4.0) is None
    assert split_at_pauses([], 8.0, 4.0) is None


def test_words_beyond_the_video_keep_their_time() -> None:
    parts = split_at_pauses(words(2.0, 2.0), 5.0, 4.0)
    assert parts is not None
    assert parts[-1].end_s == pytest.approx(7.5), "crop finds the video truncated"


@settings(deadline=None, max_examples=150)
@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(1, 15)), min_size=1, max_size=7),
    st.integers(10, 60),
)
def test_against_all_ways_to_cut(steps: list[tuple[int, int]], max_tenths: int) -> None:
    """Pauses and words in tenths of a second."""
    utterances, now = [], 0
    for pause, length in steps:
        utterances.append(Utterance((now + pause) / 10, (now + pause + length) / 10, f"w{now}", 1))
        now += pause + length
    max_s, duration_s, num = max_tenths / 10 + 1e-3, now / 10, len(utterances)

    def span(first: int, after: int) -> tuple[float, float]:
        begin, end = utterances[first].start_s - EDGE_S, utterances[after - 1].end_s + EDGE_S
        if first:
            begin = max(begin, (utterances[first - 1].end_s + utterances[first].start_s) / 2)
        if after < num:
            end = min(end, (utterances[after - 1].end_s + utterances[after].start_s) / 2)
        return max(begin, 0.0), min(end, duration_s)

    ways = []
    for count in range(num):
        for inner in combinations(range(1, num), count):
            edges = [0, *inner, num]
            spans = [span(*edge) for edge in pairwise(edges)]
            pauses = [utterances[j].start_s - utterances[j - 1].end_s for j in inner]
            if all(end - begin <= max_s for begin, end in spans):
                breathless = sum(pause < MIN_PAUSE_S - 1e-9 for pause in pauses)
                ways.append((breathless, len(spans), -sum(pauses)))
    parts = split_at_pauses(utterances, duration_s, max_s)
    if not ways:
        assert parts is None
        return
    assert parts is not None
    assert " ".join(part.text for part in parts) == " ".join(u.text for u in utterances)
    chosen = np.cumsum([0, *(len(part.text.split()) for part in parts)]).tolist()
    pauses = [utterances[j].start_s - utterances[j - 1].end_s for j in chosen[1:-1]]
    cost = (sum(pause < MIN_PAUSE_S - 1e-9 for pause in pauses), len(parts), -sum(pauses))
    least = min(ways)
    assert cost[:2] == least[:2]
    assert cost[2] == pytest.approx(least[2])
    for part, edge in zip(parts, pairwise(chosen), strict=True):
        begin, end = span(*edge)
        assert (part.start_s or 0.0) == pytest.approx(begin)
        assert (duration_s if part.end_s is None else part.end_s) == pytest.approx(end)


# -- ingest ----------------------------------------------------------------------------------------------

CUES = [
    (0.6, 1.9, "今天，天气很好。"),
    (2.3, 3.9, "我们去"),
    (4.2, 6.0, "公园 Hello World"),
    (6.9, 9.4, "散步吧！"),
]
WHOLE = "今天，天气很好。我们去公园 Hello World散步吧！"


def srt(cues: list[tuple[float, float, str]]) -> str:
    def clock(time_s: float) -> str:
        return f"00:00:{int(time_s):02d},{round(time_s % 1 * 1000):03d}"

    return "\n".join(f"{i}\n{clock(a)} --> {clock(b)}\n{text}\n" for i, (a, b, text) in enumerate(cues, 1))


def table(root: Path, media: str = "long.mkv", text: str = WHOLE, times: str | None = None) -> CorpusParams:
    header, end = (
        ("clip_id,split,media,text", "") if times is None else ("clip_id,split,media,text,times", f",{times}")
    )
    (root / "clips.csv").write_text(f'{header}\nlong,train,{media},"{text}"{end}\n', "utf-8")
    return CorpusParams(kind="table", root=str(root))


def ingested(corpus: CorpusParams, params: CropParams = PARAMS) -> tuple[list[dict], IngestSummary]:
    path = Path(corpus.root).with_suffix(".parquet")
    summary = ingest(corpus, TEXT, params, path)
    return read_table(path, CLIPS, "pipeline ingest").to_pylist(), summary


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten seconds of numbered pictures."""
    return write_video(tmp_path_factory.mktemp("long") / "long.mkv", map(numbered, range(250)))


def corpus_with(root: Path, video: Path) -> Path:
    root.mkdir()
    (root / "long.mkv").write_bytes(video.read_bytes())
    return root


def test_a_long_clip_becomes_several(tmp_path: Path, video: Path) -> None:
    root = corpus_with(tmp_path / "c", video)
    (root / "long.srt").write_text(srt(CUES), "utf-8")
    rows, summary = ingested(table(root))
    assert [row["clip_id"] for row in rows] == ["long_000", "long_001", "long_002"]
    assert "".join(row["label"] for row in rows).replace(" ", "") == "今天天气很好我们去公园helloworld散步吧"
    assert [row["text"] for row in rows] == ["今天，天气很好。 我们去", "公园 Hello World", "散步吧！"]
    assert (summary.num_split, summary.num_parts, summary.clips_by_split) == (1, 3, {"train": 3})
    assert {(row["media"], row["split"], row["media_kind"]) for row in rows} == {
        ("long.mkv", "train", "face")
    }
    shown = []
    for row in rows:
        source = resolve_media(root, row["media"], row["start_s"], row["end_s"])
        numbers = [number_of(f.picture.to_ndarray(format="gray")) for f in decode(source, PARAMS)]
        assert len(numbers) <= PARAMS.max_frames
        shown.append(numbers)
    assert (np.diff(list(chain(*shown))) > 0).all(), "in order, and no picture twice"
    # no picture of a word is lost or in another word's part
    for start_s, end_s, _ in CUES:
        spoken = {i for i in range(250) if start_s <= i / 25 <= end_s}
        assert sum(spoken <= set(numbers) for numbers in shown) == 1


@pytest.mark.parametrize("why", ["off", "short", "no_times", "no_pause"])
def test_a_clip_that_stays_whole(tmp_path: Path, video: Path, why: str) -> None:
    root = corpus_with(tmp_path / "c", video)
    if why != "no_times":
        (root / "long.srt").write_text(srt(CUES if why != "no_pause" else [(0.1, 9.0, WHOLE)]), "utf-8")
    changes = {"off": {"split_long": False}, "short": {"max_frames": 250}}.get(why, {})
    rows, summary = ingested(table(root), PARAMS.model_copy(update=changes))
    assert [(row["clip_id"], row["start_s"], row["end_s"]) for row in rows] == [("long", None, None)]
    assert summary.num_split == 0


def test_times_named_by_the_table(tmp_path: Path, video: Path) -> None:
    root = corpus_with(tmp_path / "c", video)
    (root / "times").mkdir()
    (root / "times" / "x.vtt").write_text("WEBVTT\n\n" + srt(CUES), "utf-8")
    assert len(ingested(table(root, times="times\\x.vtt"))[0]) == 3
    for times, message in (
        ("times/y.vtt", r"clips.csv:2: times: times/y.vtt is not below"),
        ("../x.vtt", r"clips.csv:2: times: ../x.vtt leads out of the corpus"),
        ("long.mkv", r"clips.csv:2: long.mkv must be one of"),
    ):
        with pytest.raises(CorpusError, match=message):
            ingested(table(root, times=times))


def test_other_words_than_the_table_says_stop_where_it_names_the_times(
    tmp_path: Path, video: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = corpus_with(tmp_path / "c", video)
    (root / "long.srt").write_text(srt([*CUES[:-1], (6.9, 9.4, "散散步！")]), "utf-8")
    message = r"long.srt: the text of long differs .*clips.csv:2: '散步' instead of '步吧'"
    with pytest.raises(CorpusError, match=message):
        ingested(table(root, times="long.srt"))
    assert len(ingested(table(root))[0]) == 1, "nobody said that the file is of this clip"
    assert re.search(message, caplog.text)
    caplog.clear()
    (root / "long.srt").write_text("1\nhello", "utf-8")
    with pytest.raises(CorpusError, match=r"long.srt:1: "):
        ingested(table(root, times="long.srt"))
    assert len(ingested(table(root))[0]) == 1
    assert re.search(r"long.srt:1: .*long is not split", caplog.text)


def test_parts_named_like_another_clip_stop(tmp_path: Path, video: Path) -> None:
    root = corpus_with(tmp_path / "c", video)
    (root / "long.srt").write_text(srt(CUES), "utf-8")
    corpus = table(root)
    with (root / "clips.csv").open("a", encoding="utf-8") as file:
        file.write("long_001,train,x.mp4,x\n")
    with pytest.raises(
        CorpusError, match=r"clips.csv:3: .*long_001, .* is also the id of the clip at .*clips.csv:2"
    ):
        ingested(corpus)


def test_in_a_zip_of_chinese_lips(tmp_path: Path, video: Path) -> None:
    root = tmp_path / "c"
    root.mkdir()
    with zipfile.ZipFile(root / "train.zip", "w") as archive:
        archive.write(video, "train/012_25_F_KJ/FACE/012_25_F_KJ_003_FACE.mp4")
        archive.writestr("train/012_25_F_KJ/FACE/012_25_F_KJ_003_FACE.srt", srt(CUES))
    for split in ("train", "valid", "test"):
        row = f"012_25_F_KJ_003,KJ,w,p,f,{WHOLE}\n" if split == "train" else ""
        (root / f"meta_{split}.csv").write_text("ID,TOPIC,WAV,PPT,FACE,TEXT\n" + row, "utf-8")
    rows, _ = ingested(CorpusParams(root=str(root)))
    assert [row["clip_id"] for row in rows] == [f"012_25_F_KJ_003_{i:03d}" for i in range(3)]
    assert rows[0]["media"].startswith("train.zip!train/")


def test_in_grid_and_through_the_cache(tmp_path: Path) -> None:
    root = tmp_path / "c"
    (root / "video" / "s1").mkdir(parents=True)
    (root / "align" / "s1").mkdir(parents=True)
    write_mouth(root / "video" / "s1" / "a.mp4", 150)
    lines = ["0 25000 sil", "25000 50000 bin", "50000 75000 blue", "80000 100000 at", "100000 140000 f"]
    (root / "align" / "s1" / "a.align").write_text("\n".join(lines))
    (root / "splits.csv").write_text("clip,split\ns1/a,train\n")
    rows, _ = ingested(CorpusParams(kind="grid", root=str(root)))
    assert [(row["clip_id"], row["text"]) for row in rows] == [("s1_a_000", "bin blue"), ("s1_a_001", "at f")]
    cache = ClipCache(tmp_path / "cache")
    lengths = []
    for row in rows:
        source = resolve_media(root, row["media"], row["start_s"], row["end_s"])
        outcome = cache.crop(source, MediaKind.MOUTH, PARAMS)
        assert outcome.rejection is None
        lengths.append(outcome.figures.num_frames)
    assert lengths == [65, 72]  # 0.5 to 3.1 s, 3.1 s to the end
