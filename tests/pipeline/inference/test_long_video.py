"""Videos of any length: cut, read and joined; a part that cannot be read says why, and the rest is read."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from model.decoding.result import Candidate, PartScores, Reading
from model.settings import DecodeParams, TextParams
from pipeline.inference.found_videos import find_videos
from pipeline.inference.text_of_video import JoinedReadings, RankedText, Segment, _ranked, read_video
from shards.errors import ClipRejected
from shards.schema import MediaKind, Reason
from stages.mouths.cropping import Figures, MouthClip, crop_video
from stages.mouths.flow import ANCHORS
from stages.mouths.landmarks import KEPT
from stages.mouths.long_video import MouthStream, mouth_pieces
from stages.mouths.mouth_pictures import MouthPatches
from stages.mouths.pieces import Piece
from stages.settings import CropParams, InferenceParams
from stages.videos.media import Source
from stages.videos.picture import SourceFrame
from stages.videos.video import decode, read_header
from tests.support.faces import face_points
from tests.support.readers import CountingReader, params_with
from tests.support.videos import (
    EACH_ALONE,
    face_pictures,
    placed,
    write_audio,
    write_face,
    write_mouth,
    write_video,
)

pytestmark = pytest.mark.usefixtures("networks_once")

FPS = 25


def face_and_blank(path: Path, *stretches: tuple[bool, int]) -> Path:
    """Writes the photograph's face, speaking, or a blank picture, for the given numbers of frames."""
    shown = [shows for shows, num in stretches for _ in range(num)]
    faces = face_pictures([placed()] * len(shown), speaking=True)
    pictures = [face if shows else np.full_like(face, 90) for face, shows in zip(faces, shown, strict=True)]
    return write_video(path, pictures, options=EACH_ALONE)


class Watching:
    """Collects the pieces that `read_video` passes to `on_mouth`."""

    def __init__(self) -> None:
        self.seen: list[tuple[Piece, MouthClip]] = []

    def __call__(self, piece: Piece, mouth: MouthClip) -> None:
        self.seen.append((piece, mouth))


def test_a_short_video_is_read_from_the_same_clip_as_in_preprocessing(tmp_path: Path) -> None:
    moving = [placed(shift=(i / 2, i / 5), degrees=i / 9) for i in range(36)]
    video = write_video(tmp_path / "a.mp4", face_pictures(moving, speaking=True), rate=30)
    params, watching = params_with(), Watching()
    reading = read_video(video, CountingReader(), params, on_mouth=watching)
    made = crop_video(video, MediaKind.FACE, params.crop)
    ((piece, mouth),) = watching.seen
    assert np.array_equal(mouth.clip_THW, made.clip_THW)
    assert mouth.figures == made.figures
    assert np.array_equal(mouth.transform_T23, made.transform_T23)  # type: ignore[arg-type]
    assert (piece.start_s, piece.end_s) == (0.0, pytest.approx(1.2))
    assert (reading.text, reading.num_frames, reading.reason) == ("frames30", 30, None)
    (segment,) = reading.segments
    assert (segment.start_s, segment.end_s, segment.text) == (0.0, pytest.approx(1.2), "frames30")
    assert segment.confidence == reading.confidence == pytest.approx(0.5)
    assert [one.text for one in segment.candidates] == ["frames30", "x"]
    weights = np.array([0.5**8, np.exp(-2.0)])  # eight characters of probability 0.5, and a more likely text
    assert [one.share for one in segment.candidates] == pytest.approx(weights / weights.sum())


def test_a_part_without_a_face_is_a_gap_and_the_rest_is_read(tmp_path: Path) -> None:
    video = face_and_blank(tmp_path / "a.mp4", (True, 30), (False, 40), (True, 25))
    reading = read_video(video, CountingReader(), params_with())
    first, gap, second = reading.segments
    assert reading.reason is None and reading.gaps == (gap,)
    assert gap.reason is not None and gap.reason.startswith("no_face") and gap.confidence is None
    assert gap.start_s == pytest.approx(1.2, abs=0.17) and gap.end_s == pytest.approx(2.8, abs=0.17)
    assert (first.start_s, first.end_s) == (0.0, gap.start_s)
    assert (second.start_s, second.end_s) == (gap.end_s, pytest.approx(3.8))
    assert reading.text == f"{first.text} {second.text}"


def test_a_long_stretch_without_a_face_is_one_gap(tmp_path: Path) -> None:
    video = face_and_blank(tmp_path / "a.mp4", (False, 50), (True, 20))
    gap, read = read_video(video, CountingReader(), params_with(longest_s=1, overlap_s=0.2)).segments
    assert gap.reason is not None and read.reason is None
    assert (gap.start_s, read.end_s) == (0.0, pytest.approx(2.8))
    blank = face_and_blank(tmp_path / "b.mp4", (False, 50))
    reading = read_video(blank, CountingReader(), params_with(longest_s=1, overlap_s=0.2))
    assert reading.reason is not None and reading.reason.startswith("no_face")
    assert (reading.text, reading.confidence, reading.segments) == ("", None, ())


def test_windows_overlap_and_their_texts_are_joined(tmp_path: Path) -> None:
    video = write_face(tmp_path / "a.mp4", 65, speaking=True)
    reader = CountingReader(texts=["一二三四五六七八", "七八九十甲乙丙丁", "丙丁戊己"])
    watching = Watching()
    params = params_with(longest_s=1, overlap_s=0.2)
    reading = read_video(video, reader, params, on_mouth=watching)
    times_s = [time_s for p, _ in watching.seen for time_s in (p.start_s, p.end_s)]
    assert times_s == pytest.approx([0.0, 1.0, 0.8, 1.8, 1.6, 2.6])
    assert reading.text == "一二三四五六七八九十甲乙丙丁戊己"
    assert reading.num_frames == 65
    assert "".join(segment.text for segment in reading.segments) == reading.text
    for before, after in zip(reading.segments, reading.segments[1:], strict=False):
        assert before.end_s == after.start_s


def test_pieces_are_joined_without_double_spaces_or_lost_frames() -> None:
    """Frames that a window shares with a piece that could not be read count as new."""
    joined = JoinedReadings(FPS)
    refused = ClipRejected(Reason.NO_FACE, "nobody")
    clip_THW = np.zeros((100, 4, 4), np.uint8)
    mouth = MouthClip(clip_THW, None, np.arange(100, dtype=np.int32), np.zeros(0, np.int32), Figures())
    joined.add_gap(Piece(0.0, 4.0, None, refused))
    joined.add(Piece(3.0, 7.0, mouth), Reading("lay white agt ", -0.1, ()))
    assert joined.num_frames == 100
    joined.add(Piece(7.0, 11.0, mouth), Reading(" bin", -0.1, ()))
    joined.add(Piece(11.0, 15.0, mouth), Reading("blue", -0.1, ()))
    assert joined.text == "lay white agt bin blue" and joined.num_frames == 300
    joined.add(Piece(14.0, 18.0, mouth), Reading("blue now", -0.1, ()))
    assert joined.num_frames == 375


def test_a_part_that_was_read_is_neither_read_again_nor_a_gap() -> None:
    """A window whose speaker leaves soon after its start has parts that the previous window shows whole."""
    joined = JoinedReadings(FPS)
    refused = ClipRejected(Reason.LOW_DETECTION, "gone")
    mouth = MouthClip(
        np.zeros((100, 4, 4), np.uint8),
        None,
        np.arange(100, dtype=np.int32),
        np.zeros(0, np.int32),
        Figures(),
    )
    joined.add(Piece(0.0, 4.0, mouth), Reading("lay blue at", -0.1, ()))
    assert joined.covers(Piece(3.0, 3.4, mouth)) and joined.covers(Piece(3.0, 4.0, mouth))
    assert not joined.covers(Piece(3.4, 6.0, mouth)) and not joined.covers(Piece(4.0, 4.0, None))
    assert joined.add_gap(Piece(3.4, 4.0, None, refused)) is None
    gap = joined.add_gap(Piece(3.6, 5.0, None, refused))
    assert gap is not None and (gap.start_s, gap.end_s) == (4.0, 5.0)
    # a part that the next window can read is not a gap any more
    joined.add(Piece(4.4, 8.0, mouth), Reading("f two", -0.1, ()))
    assert [(one.start_s, one.end_s) for one in joined.segments] == [(0, 4), (4, 4.4), (4.4, 8)]


def test_a_ready_mouth_video_is_cut_by_windows(tmp_path: Path) -> None:
    video = write_mouth(tmp_path / "a.mp4", 110)
    watching = Watching()
    reading = read_video(video, CountingReader(), params_with(longest_s=2, overlap_s=0.4), on_mouth=watching)
    whole = crop_video(video, MediaKind.MOUTH, CropParams()).clip_THW
    assert [p.first_frame for p, _ in watching.seen] == [0, 40, 80]
    for piece, mouth in watching.seen:
        assert np.array_equal(mouth.clip_THW, whole[piece.first_frame :][: len(mouth.clip_THW)])
    assert sum(len(mouth.clip_THW) for _, mouth in watching.seen) == 110 + 20
    assert reading.num_frames == 110 and reading.segments[-1].end_s == pytest.approx(4.4)


def test_pieces_of_thai_are_joined_without_spaces_if_labels_have_none(tmp_path: Path) -> None:
    mouth = write_mouth(tmp_path / "a.mp4", 100)
    for spaces, expected in (("keep", "ฉันรัก เธอมาก"), ("drop", "ฉันรักเธอมาก")):
        text = TextParams.model_validate({"phrase_spaces": spaces})
        reader = CountingReader(texts=["ฉันรัก", "เธอมาก", "", ""], text=text)
        reading = read_video(mouth, reader, params_with(longest_s=2.0, overlap_s=0.0))
        assert len(reader.clips) >= 2 and reading.text == expected


def test_a_long_truncated_video_is_read_up_to_its_end(tmp_path: Path) -> None:
    whole = write_video(
        tmp_path / "whole.mkv",
        face_pictures([placed()] * 100, speaking=True),
        options={"g": "10", "crf": "12"},
    )
    torn = tmp_path / "torn.mkv"
    torn.write_bytes(whole.read_bytes()[: int(0.7 * whole.stat().st_size)])
    reading = read_video(torn, CountingReader(), params_with(longest_s=2, overlap_s=0.2))
    *read, gap = reading.segments
    assert reading.reason is None and reading.text and all(segment.reason is None for segment in read)
    assert gap.reason is not None and gap.reason.startswith("truncated")
    assert 2 < read[-1].end_s == pytest.approx(gap.start_s, abs=0.1)
    # also if all of it is one segment, which preprocessing rejects
    read_once, gap = read_video(torn, CountingReader(), params_with()).segments
    assert read_once.reason is None and gap.reason is not None and gap.reason.startswith("truncated")
    assert (read_once.end_s, gap.end_s) == (read[-1].end_s, pytest.approx(4.0, abs=0.1))


def test_a_video_longer_than_allowed_is_refused_before_it_is_read(tmp_path: Path) -> None:
    video, reader = write_face(tmp_path / "a.mp4", 60, speaking=True), CountingReader()
    reading = read_video(video, reader, params_with(max_video_s=2))
    assert reading.reason is not None and "inference.max_video_s is 2" in reading.reason
    assert not reader.clips
    # the limits of preprocessing do not apply
    params = params_with(longest_s=3)
    crop = params.crop.model_copy(update={"max_source_s": 1.0, "max_frames": 20})
    assert read_video(video, reader, params.model_copy(update={"crop": crop})).reason is None


def test_a_stream_frees_the_frames_of_complete_pieces(tmp_path: Path) -> None:
    """Twenty seconds of the same face: the number of stored frames does not grow."""
    patches = MouthPatches()
    points_K3 = face_points(np.array([[[1.0, 0, 0], [0, 1, 0]]]))[0]
    mesh = np.tile(points_K3.mean(axis=0), (478, 1)).astype(np.float32)
    mesh[list(KEPT)] = points_K3
    for number, index in enumerate(sorted(set(ANCHORS) - set(KEPT))):
        mesh[index, :2] += (number, 2 * number)
    picture = av.VideoFrame.from_ndarray(np.full((256, 256), 90, np.uint8), format="gray")
    crop = CropParams(tolerance_px=0.0)
    stream = MouthStream(
        Source(tmp_path / "none.mp4"), lambda frame: [mesh], crop, InferenceParams(longest_s=2), patches
    )
    covered_s, held = 0.0, 0
    for index in range(500):
        for piece in stream.add(SourceFrame(index, index / FPS, picture)):
            assert piece.rejected is None and piece.start_s <= covered_s
            covered_s = piece.end_s
        begin_s, end_s = stream.open_s
        held = max(held, len(patches._patches))
        assert end_s - begin_s <= 2 + 2 / FPS
    assert held <= 2 * FPS + 2
    pieces = list(stream.end())
    assert pieces[-1].end_s == pytest.approx(20.0)


class Failing(CountingReader):
    def read_clip(self, clip_THW: np.ndarray, params: DecodeParams) -> Reading:
        raise AssertionError("nothing must be read")


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none.mp4", Reason.MISSING_FILE), ("text.mp4", Reason.UNREADABLE), ("sound.wav", Reason.NO_VIDEO)],
)
def test_a_file_that_is_not_a_video_says_so(tmp_path: Path, name: str, reason: Reason) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    write_audio(tmp_path / "sound.wav")
    reading = read_video(tmp_path / name, Failing(), params_with())
    assert reading.reason is not None and reading.reason.startswith(f"{reason.value}: ")
    assert replace(reading, reason=None) == replace(
        reading, text="", confidence=None, reason=None, segments=()
    )


def test_files_folders_and_patterns(tmp_path: Path) -> None:
    (tmp_path / "b" / ".hidden").mkdir(parents=True)
    a = write_mouth(tmp_path / "a.mp4", 12)
    unnamed = tmp_path / "b" / "unnamed"
    unnamed.write_bytes(a.read_bytes())
    (tmp_path / "b" / "broken.MOV").write_bytes(b"")
    (tmp_path / "b" / "notes.txt").write_text("no video")
    (tmp_path / "b" / ".hidden" / "c.mp4").write_bytes(a.read_bytes())
    broken, notes = tmp_path / "b" / "broken.MOV", tmp_path / "b" / "notes.txt"
    burnt = tmp_path / "b" / "a.captioned.mp4"
    burnt.write_bytes(a.read_bytes())
    found, skipped = find_videos([str(a), str(tmp_path / "b"), str(a)])
    assert (list(found), skipped) == ([a, broken, unnamed], [burnt, notes])
    assert [str(place) for place in found.values()] == ["a.mp4", "broken.MOV", "unnamed"]
    found, _ = find_videos([str(tmp_path / "**" / "*")])
    assert list(found) == [a, broken, unnamed]
    assert [str(place) for place in found.values()] == ["a.mp4", "b/broken.MOV", "b/unnamed"]
    assert [str(place) for place in find_videos([str(tmp_path)])[0].values()] == [
        "a.mp4",
        "b/broken.MOV",
        "b/unnamed",
    ]
    # a file named by itself is always used, also if it does not exist
    missing, nothing = tmp_path / "none.mp4", tmp_path / "x*.mp4"
    found, skipped = find_videos([str(notes), str(missing), str(nothing), str(burnt)])
    assert (list(found), skipped) == ([notes, missing, nothing, burnt], [])


@pytest.mark.realdata
def test_sentences_of_a_real_speaker_are_cut_in_silence(realdata: Path, tmp_path: Path) -> None:
    """Five clips in a row: each cut is in a silence of the corpus's own alignment."""
    pictures, silences, begin_s = [], [], 0.0
    for path in sorted((realdata / "grid" / "video" / "s1").glob("*.mp4"))[10:15]:
        with av.open(str(path)) as container:
            pictures += [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
        lines = (realdata / "grid" / "align" / "s1" / f"{path.stem}.align").read_text().splitlines()
        for start, end, word in map(str.split, lines):
            if word in ("sil", "sp"):
                silences.append((begin_s + int(start) / 25_000, begin_s + int(end) / 25_000))
        begin_s = len(pictures) / FPS
    video = write_video(tmp_path / "a.mp4", pictures, options={"crf": "18", "preset": "ultrafast"})
    params = InferenceParams(longest_s=4)
    pieces = list(mouth_pieces(Source(video), read_header(video), CropParams(), params))
    assert all(piece.rejected is None for piece in pieces)
    assert all(one.end_s == other.start_s for one, other in pairwise(pieces))
    cuts_s = [piece.end_s for piece in pieces[:-1]]
    assert len(cuts_s) >= 4
    in_silence = [any(begin <= cut_s <= end for begin, end in silences) for cut_s in cuts_s]
    assert all(in_silence), list(zip(cuts_s, in_silence, strict=True))


@pytest.mark.realdata
def test_the_half_of_a_real_video_with_a_face_is_read(realdata: Path) -> None:
    reading = read_video(realdata / "hard" / "noface_face.mov", CountingReader(), params_with())
    gap, read = reading.segments
    assert gap.reason is not None and gap.reason.startswith("no_face") and read.reason is None
    assert gap.end_s == read.start_s == pytest.approx(3.95, abs=0.2)


def test_the_reason_for_no_text_is_that_of_the_larger_part() -> None:
    joined = JoinedReadings(FPS)
    assert joined.reason_for_no_text(30.0).startswith("at_rest")
    joined.segments.append(Segment(0.0, 1.0, "", None, "no_face: nobody"))
    joined.segments.append(Segment(5.0, 5.5, "", None, "too_short: 12 frames"))
    assert joined.reason_for_no_text(30.0).startswith("at_rest"), (
        "a second without a face in half a minute of rest"
    )
    assert joined.reason_for_no_text(2.0) == joined.reason_for_no_text(None) == "no_face: nobody"


def test_the_share_of_an_impossible_text_is_a_number() -> None:
    """A decoder without a possible text returns one of log-probability -inf, and JSON has no NaN."""
    parts = PartScores(-math.inf, None, -1.0, None, 0)
    (only,) = _ranked((Candidate("", -math.inf, -math.inf, parts),))
    assert only == RankedText("", 1.0, None, {"ctc": None, "syllables": -1.0, "length": 0})


@pytest.fixture(scope="module")
def two_people(realdata: Path) -> list[list[np.ndarray]]:
    """The pictures of two people in the same place."""
    return [
        [frame.rgb_HW3()[..., ::-1] for frame in decode(realdata / "grid" / "video" / name, CropParams())]
        for name in ("s1/bbaf2n.mp4", "s26/bgbsza.mpg")
    ]


@pytest.mark.realdata
@pytest.mark.parametrize("cut", [20, 33, 48])
def test_at_a_hard_cut_a_video_is_read_as_two_pieces(
    two_people: list[list[np.ndarray]], tmp_path: Path, cut: int
) -> None:
    """Each piece shows its own person, and together they have every frame."""
    (one, other), params, watching = two_people, params_with(), Watching()
    video = write_video(tmp_path / "a.mp4", one[:cut] + other[cut:75], options=EACH_ALONE)
    reading = read_video(video, CountingReader(), params, on_mouth=watching)
    pieces = [(piece.start_s, piece.end_s) for piece, _ in watching.seen]
    assert pieces == [(0.0, pytest.approx(cut / FPS)), (pytest.approx(cut / FPS), pytest.approx(3.0))]
    assert [len(mouth.clip_THW) for _, mouth in watching.seen] == [cut, 75 - cut]
    assert all(segment.reason is None for segment in reading.segments)
    alone = crop_video(
        write_video(tmp_path / "b.mp4", one[:cut], options=EACH_ALONE), MediaKind.FACE, params.crop
    )
    assert np.abs(watching.seen[0][1].clip_THW.astype(int) - alone.clip_THW).mean() < 3
