"""Long unlabelled videos are cut at pauses by ingest, once, and cropped as clips of their own."""

import logging
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from shards.files import read_table
from shards.schema import CLIPS, CROPS
from shards.settings import MachineParams
from stages.clips import long_videos
from stages.crop import crop
from stages.ingest import IngestSummary, ingest
from stages.mouths.long_video import mouth_pieces
from stages.settings import CorpusParams, CropParams, InferenceParams
from stages.videos.media import Source
from stages.videos.video import read_header
from tests.support.crop_runs import forked_workers
from tests.support.ingested import TEXT
from tests.support.videos import EACH_ALONE, face_pictures, placed, write_mouth, write_video

CROP = CropParams(split_long=True, max_frames=60, min_frames=8)
INFERENCE = InferenceParams(longest_s=10, overlap_s=0.4)


@pytest.fixture(scope="module", autouse=True)
def _forked() -> Iterator[None]:
    with forked_workers():
        yield


class Corpus:
    """A face that leaves for a second, a ready mouth crop, a blank video, and videos that are not cut."""

    def __init__(self, folder: Path) -> None:
        self.folder, root = folder, folder / "corpus"
        root.mkdir()
        faces = list(face_pictures([placed()] * 100, speaking=True))
        faces[40:65] = [np.full_like(faces[0], 90)] * 25
        write_video(root / "face.mp4", faces, options=EACH_ALONE)
        write_video(root / "blank.mp4", [np.full_like(faces[0], 90)] * 70)
        write_mouth(root / "mouth.mp4", 130)
        write_mouth(root / "short.mp4", 50, seed=1)
        rows = [
            "clip_id,media,split,text",
            "face,face.mp4,unlabelled,",
            "blank,blank.mp4,unlabelled,",
            "mouth,mouth.mp4,unlabelled,藏",
            "short,short.mp4,unlabelled,",
            "labelled,mouth.mp4,train,字",
        ]
        (root / "clips.csv").write_text("\n".join(rows), "utf-8")
        self.corpus = CorpusParams(kind="table", root=str(root), speaker_overlap="warn")
        self.machine = MachineParams(workers=1, cache_dir=str(folder / "cache"))
        self.progress: list[tuple[int, int]] = []

    def ingest(self, params: CropParams = CROP) -> IngestSummary:
        self.progress.clear()
        return ingest(
            self.corpus,
            TEXT,
            params,
            self.folder / "clips.parquet",
            INFERENCE,
            self.machine,
            lambda done, total: self.progress.append((done, total)),
        )

    def clips(self) -> dict[str, tuple[float | None, float | None, str]]:
        rows = read_table(self.folder / "clips.parquet", CLIPS, "ingest").to_pylist()
        return {row["clip_id"]: (row["start_s"], row["end_s"], row["text"]) for row in rows}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("long"))


def test_long_unlabelled_videos_are_cut_where_the_face_leaves_and_by_windows(
    corpus: Corpus, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "stages.corpora.parts"):
        summary = corpus.ingest()
    clips = corpus.clips()
    assert clips["short"] == (None, None, "") and clips["labelled"] == (None, None, "字")
    assert clips["blank"] == (None, None, ""), "crop finds out why nothing of it can be used"
    assert clips["face_000"] == (None, 1.6, "") and clips["face_001"] == (2.6, 4.0, "")
    of_mouth = [clips[f"mouth_{number:03d}"] for number in range(3)]
    # windows of 59 frames at most, that share 0.4 s; a text is of the whole video, so no part has one
    assert of_mouth == [(None, 2.36, ""), (1.96, 4.32, ""), (3.92, 5.2, "")]
    assert len(clips) == 8 and (summary.num_split, summary.num_parts) == (2, 5)
    assert corpus.progress[-1] == (3, 3)
    assert "2 of 3 long unlabelled videos were cut into 5 clips" in caplog.text


def test_the_cuts_are_those_of_inference(corpus: Corpus) -> None:
    corpus.ingest()
    path = Path(corpus.corpus.root) / "face.mp4"
    params = long_videos.piece_params(CROP, INFERENCE)
    assert params.longest_s == 59 / 25
    pieces = mouth_pieces(Source(path), read_header(path), CROP, params)
    read = [(piece.start_s, piece.end_s) for piece in pieces if piece.mouth is not None]
    clips = corpus.clips()
    assert [(clips[f"face_{n:03d}"][0] or 0.0, clips[f"face_{n:03d}"][1]) for n in range(2)] == [
        (pytest.approx(start_s), pytest.approx(end_s)) for start_s, end_s in read
    ]


def test_the_parts_are_cropped_and_others_say_why_not(corpus: Corpus) -> None:
    corpus.ingest()
    tables = [corpus.folder / f"{name}.parquet" for name in ("clips", "crops", "tracks")]
    crop(corpus.corpus, CROP, corpus.machine, *tables)
    ledger = {row["clip_id"]: row for row in read_table(tables[1], CROPS, "crop").to_pylist()}
    rejected = {clip_id: row["reason"] for clip_id, row in ledger.items() if row["status"] != "ok"}
    assert rejected == {"blank": "too_long", "labelled": "too_long"}
    assert ledger["face_000"]["num_frames"] == 40 and ledger["face_001"]["num_frames"] == 35
    assert [ledger[f"mouth_{n:03d}"]["num_frames"] for n in range(3)] == [59, 59, 32]


def test_a_second_run_decodes_nothing(corpus: Corpus) -> None:
    corpus.ingest()
    before = (corpus.folder / "clips.parquet").read_bytes()
    with patch.object(long_videos, "mouth_pieces", side_effect=AssertionError("decoded again")):
        corpus.ingest()
    assert (corpus.folder / "clips.parquet").read_bytes() == before


def test_a_damaged_entry_is_made_again_and_other_parameters_are_another_entry(corpus: Corpus) -> None:
    corpus.ingest()
    before = corpus.clips()
    entries = sorted((corpus.folder / "cache" / "pieces").rglob("*.npz"))
    assert len(entries) == 3
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-40])
    corpus.ingest()
    assert corpus.clips() == before
    corpus.ingest(CROP.model_copy(update={"max_frames": 45}))
    assert len(corpus.clips()) > len(before)


def test_without_split_long_the_videos_stay_whole(corpus: Corpus) -> None:
    corpus.ingest(CROP.model_copy(update={"split_long": False}))
    assert {times[:2] for times in corpus.clips().values()} == {(None, None)}
    assert not corpus.progress
