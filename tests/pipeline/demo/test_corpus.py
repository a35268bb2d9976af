"""The demo corpus: layout, equal pictures for homophenes, determinism, and texts that a blind model cannot guess."""

import csv
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import av
import numpy as np
import pytest

from pipeline.demo import corpus
from pipeline.demo.corpus import CorpusSummary, build_demo_corpus, render_frames
from pipeline.demo.face import Face
from pipeline.demo.motion import DOMINANCE, SHAPES, clip_motion, viseme_sequence
from pipeline.demo.plan import (
    CHARACTERS,
    CSV_HEADER,
    HOMOPHENES,
    SLOTS,
    ClipPlan,
    CorpusSize,
    clip_rng,
    plan_corpus,
    speaker_of,
)
from shards.errors import CorpusError
from tests.support import forked

LANDMARKER = Path(__file__).parents[3] / "stages" / "mouths" / "assets" / "face_landmarker.task"
TINY = CorpusSize(train=(1, 2), valid=(1, 1), test=(1, 1))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, CorpusSummary]:
    root = tmp_path_factory.mktemp("demo")
    return root, build_demo_corpus(root, seed=3, size=TINY)


@pytest.fixture(scope="module")
def plans() -> list[ClipPlan]:
    return plan_corpus(0, CorpusSize())


def rows(root: Path, split: str) -> list[dict[str, str]]:
    with (root / f"meta_{split}.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def tree(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def test_layout_is_chinese_lips_raw(tiny: tuple[Path, CorpusSummary]) -> None:
    root, summary = tiny
    assert summary.num_clips == {"train": 2, "valid": 1, "test": 1}
    for split, folder in (("train", "train"), ("valid", "val"), ("test", "test")):
        assert (
            (root / f"meta_{split}.csv").read_bytes().startswith(b"\xef\xbb\xbfID,TOPIC,WAV,PPT,FACE,TEXT\n")
        )
        for row in rows(root, split):
            assert tuple(row) == CSV_HEADER
            match = re.fullmatch(r"(\d+_\d+_[MF]_([A-Z]+))_\d+", row["ID"])
            assert match and match[2] == row["TOPIC"]
            assert row["FACE"] == f"{folder}/{match[1]}/FACE/{row['ID']}_FACE.mp4"
            assert row["PPT"] == f"{folder}/{match[1]}/PPT/{row['ID']}_PPT.mp4"
            assert (root / row["FACE"]).is_file() and (root / row["WAV"]).is_file()
            assert len(row["TEXT"]) == sum(c in CHARACTERS for c in row["TEXT"])


def test_videos_are_30_fps_h264(tiny: tuple[Path, CorpusSummary]) -> None:
    root, summary = tiny
    seconds = 0.0
    for path in root.rglob("*.mp4"):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            context = stream.codec_context
            assert (context.name, context.pix_fmt) == ("h264", "yuv420p")
            assert (context.width, context.height, stream.average_rate) == (640, 360, 30)
            seconds += sum(1 for _ in container.decode(stream)) / 30
    assert seconds == pytest.approx(summary.seconds, abs=0.01)


def test_the_same_seed_gives_the_same_bytes_for_any_number_of_workers(
    tiny: tuple[Path, CorpusSummary], tmp_path: Path
) -> None:
    root, summary = tiny
    with patch.object(corpus, "multiprocessing", SimpleNamespace(get_context=lambda _: forked.context())):
        assert build_demo_corpus(tmp_path, seed=3, workers=2, size=TINY) == summary
    assert tree(tmp_path) == tree(root)


def test_a_complete_corpus_is_kept_and_a_damaged_one_rebuilt(tmp_path: Path) -> None:
    size = CorpusSize(train=(1, 1), valid=(0, 0), test=(0, 0))
    calls: list[tuple[int, int]] = []
    build_demo_corpus(tmp_path, 1, 1, lambda *done: calls.append(done), size=size)
    before = tree(tmp_path)
    assert calls == [(1, 1)]
    build_demo_corpus(tmp_path, 1, 1, lambda *done: calls.append(done), size=size)
    assert len(calls) == 1
    video = next(tmp_path.rglob("*.mp4"))
    video.write_bytes(video.read_bytes()[:100])
    build_demo_corpus(tmp_path, 1, 1, lambda *done: calls.append(done), size=size)
    assert len(calls) == 2 and tree(tmp_path) == before
    build_demo_corpus(tmp_path, 2, size=size)
    assert len(list(tmp_path.rglob("*.mp4"))) == 1, "the clips of the other seed must be removed"


def test_a_real_corpus_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "train" / "9_30_F_TY").mkdir(parents=True)
    with pytest.raises(CorpusError, match=r"demo_corpus\.json"):
        build_demo_corpus(tmp_path, size=TINY)
    assert (tmp_path / "train" / "9_30_F_TY").is_dir()


def test_the_size_of_the_default_corpus(plans: list[ClipPlan]) -> None:
    texts = {s: [p.text for p in plans if p.split == s] for s in ("train", "valid", "test")}
    assert len(texts["train"]) >= 240 and len(texts["valid"]) >= 24 and len(texts["test"]) >= 60
    assert sum(map(len, texts["test"])) > 320
    counts = Counter("".join(texts["train"]))
    assert len(counts) >= 32 and min(counts.values()) >= 25 and set(counts) == set(CHARACTERS)
    assert all(4 <= len(p.text) <= 7 for p in plans)
    assert len({p.clip_id for p in plans}) == len(plans)


def test_splits_share_no_speaker_no_sentence_and_no_visemes(plans: list[ClipPlan]) -> None:
    for a, b in combinations(("train", "valid", "test"), 2):
        for key in (
            lambda p: p.clip_id.split("_")[0],
            lambda p: p.speaker_index,
            lambda p: p.text,
            lambda p: viseme_sequence(p.text),
        ):
            assert not {key(p) for p in plans if p.split == a} & {key(p) for p in plans if p.split == b}


def edits(a: str, b: str) -> int:
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        diagonal, row[0] = row[0], i + 1
        for j, y in enumerate(b):
            diagonal, row[j + 1] = row[j + 1], min(row[j + 1] + 1, row[j] + 1, diagonal + (x != y))
    return row[-1]


def test_a_blind_model_cannot_guess_the_sentences(plans: list[ClipPlan]) -> None:
    train = [p.text for p in plans if p.split == "train"]
    test = [p.text for p in plans if p.split == "test"]
    num_chars = sum(map(len, test))
    # The best constant answer for each length, chosen among the training sentences by the test set itself:
    # more than any blind model can know, since even the true length is given.
    guess = 0
    for length in {len(t) for t in test}:
        of_length = [t for t in test if len(t) == length]
        guess += min(sum(edits(g, t) for t in of_length) for g in train if len(g) == length)
    assert guess / num_chars >= 0.60
    # The correct text of a clip against the references of other clips of the same length.
    rng = np.random.default_rng(0)
    chance = 0
    for length in {len(t) for t in test}:
        of_length = [t for t in test if len(t) == length]
        order = rng.permutation(len(of_length))
        chance += sum(
            edits(of_length[a], of_length[b]) for a, b in zip(order, np.roll(order, 1), strict=True)
        )
    assert chance / num_chars >= 0.60
    # A model that knows the previous character still has several equally likely guesses for the next one.
    following: dict[str, Counter[str]] = {}
    for text in train:
        for a, b in zip("^" + text, text + "$", strict=True):
            following.setdefault(a, Counter())[b] += 1
    hits = sum(following[a].most_common(1)[0][0] == b for t in test for a, b in zip("^" + t, t, strict=False))
    assert hits / num_chars <= 0.40


def test_homophenes_are_in_different_slots() -> None:
    assert len(HOMOPHENES) >= 2
    slot_of = {c: slot for slot, fillers in SLOTS.items() for c in fillers}
    alike = {
        frozenset(pair)
        for pair in combinations(CHARACTERS, 2)
        if viseme_sequence(pair[0]) == viseme_sequence(pair[1])
    }
    assert alike == {frozenset(pair) for pair in HOMOPHENES}
    assert all(slot_of[pair[0]] != slot_of[pair[1]] for pair in HOMOPHENES)


def test_one_viseme_sequence_gives_the_same_frames() -> None:
    assert viseme_sequence("爸吃十花") == viseme_sequence("八十吃画")
    face = Face(speaker_of(0, 0))
    a, b, other = (
        list(render_frames(viseme_sequence(text), face, clip_rng(0, 0, 0)))
        for text in ("爸吃花", "八十画", "我吃花")
    )
    assert len(a) == len(b) and all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert len(other) != len(a) or any(not np.array_equal(x, y) for x, y in zip(a, other, strict=True))


def test_visemes_follow_pinyin() -> None:
    def shapes(text: str) -> list[str]:
        return [v.shape for v in viseme_sequence(text)]

    assert shapes("妈") == ["B", "a"] and shapes("飞") == ["F", "e", "-i"]
    assert shapes("有") == ["Y", "o", "-u"] and shapes("六") == ["D", "i", "o", "-u"]
    assert shapes("鱼") == ["YU", "v"] and shapes("五") == ["W", "u"] and shapes("一") == ["Y", "i"]
    assert (
        shapes("是") == ["R", "retroflex"] and shapes("四") == ["Z", "apical"] and shapes("七") == ["J", "i"]
    )
    assert shapes("学") == ["J", "v", "eh"] and shapes("音") == ["Y", "i", "-n"]
    assert shapes("你，好。") == shapes("你好")
    with pytest.raises(ValueError, match="'5'"):
        viseme_sequence("五5")
    assert set(DOMINANCE) == set(SHAPES)


def test_lips_meet_for_bilabials_and_round_for_u() -> None:
    rng = np.random.default_rng(0)
    mouth = clip_motion(viseme_sequence("他爸他"), 1.0, 1.0, rng).mouth
    opening = mouth[:, 0]
    middle = opening[len(opening) // 3 : 2 * len(opening) // 3]
    assert opening[0] < 0.05 and opening[-1] < 0.05 and opening.max() > 0.75
    assert middle.min() < 0.12, "ba between two a must still close"
    rounded = clip_motion(viseme_sequence("五"), 1.0, 1.0, rng).mouth[:, 2].max()
    spread = clip_motion(viseme_sequence("一"), 1.0, 1.0, rng).mouth[:, 1].max()
    assert rounded > 0.8 and spread > 0.7


def test_mediapipe_finds_the_face_in_every_frame(tiny: tuple[Path, CorpusSummary]) -> None:
    mp = pytest.importorskip("mediapipe")
    vision = mp.tasks.vision
    root, _ = tiny
    planned = {p.clip_id: p for p in plan_corpus(3, TINY)}
    for split in ("train", "test"):
        row = rows(root, split)[0]
        plan = planned[row["ID"]]
        options = vision.FaceLandmarkerOptions(
            base_options=mp.tasks.BaseOptions(model_asset_path=str(LANDMARKER)),
            running_mode=vision.RunningMode.VIDEO,
        )
        gaps = []
        with (
            vision.FaceLandmarker.create_from_options(options) as landmarker,
            av.open(str(root / row["FACE"])) as video,
        ):
            for index, frame in enumerate(video.decode(video=0)):
                image = np.ascontiguousarray(frame.to_ndarray(format="rgb24"))
                found = landmarker.detect_for_video(mp.Image(mp.ImageFormat.SRGB, image), index * 33)
                assert len(found.face_landmarks) == 1, f"{row['ID']}, frame {index}"
                face = found.face_landmarks[0]
                gaps.append(abs(face[14].y - face[13].y))
        speaker = speaker_of(3, plan.speaker_index)
        rng = clip_rng(3, plan.speaker_index, plan.clip_number)
        commanded = clip_motion(viseme_sequence(plan.text), speaker.speed, speaker.effort, rng).mouth[:, 0]
        assert len(gaps) == len(commanded)
        assert np.corrcoef(gaps, commanded)[0, 1] >= 0.85


def test_corpus_imports_neither_mediapipe_nor_torch() -> None:
    code = "import sys, pipeline.demo.corpus; print(*{'torch', 'mediapipe'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
