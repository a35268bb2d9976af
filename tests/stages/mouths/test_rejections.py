"""Which videos are rejected, with which reason and figures; and the outcome of difficult real videos."""

from pathlib import Path

import numpy as np
import pytest

from shards.schema import MediaKind, Reason
from stages.mouths.cropping import MouthClip, crop_video
from stages.mouths.media_kind import media_kind_of
from stages.videos.media import Source
from stages.videos.video import read_header
from tests.support.faces import landmarks_of, synthetic_face
from tests.support.pictures import PARAMS, rejected
from tests.support.videos import photograph, write_audio, write_face, write_video

pytestmark = pytest.mark.usefixtures("networks_once")


def crop(path: Path) -> MouthClip:
    return crop_video(path, MediaKind.FACE, PARAMS)


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_face(tmp_path_factory.mktemp("still") / "a.mp4", 20)


def no_landmarks(*_: object) -> None:
    raise AssertionError("this video must not be landmarked")


def test_a_video_without_a_face_is_rejected(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [np.full((288, 512, 3), 120, np.uint8)] * 12)
    error, figures = rejected(path)
    assert error.reason is Reason.NO_FACE
    assert (figures.source_width, figures.source_frames, figures.num_faces) == (512, 12, 0)


def test_a_face_in_half_of_the_frames_is_low_detection(tmp_path: Path) -> None:
    blank = np.full((288, 512, 3), 120, np.uint8)
    error, figures = rejected(write_video(tmp_path / "a.mp4", [photograph()] * 15 + [blank] * 15))
    assert error.reason is Reason.LOW_DETECTION
    assert figures.detection_rate == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("changes", "find_landmarks", "reason"),
    [
        ({}, synthetic_face(0.3), Reason.SMALL_MOUTH),
        ({"min_frames": 21}, synthetic_face(1.0), Reason.TOO_SHORT),
        ({"max_frames": 19}, synthetic_face(1.0), Reason.TOO_LONG),
        ({"min_detection_rate": 0.5, "max_gap_s": 0.2}, synthetic_face(1.0, unseen=range(8, 14)), Reason.LOW_DETECTION),
        ({"min_detection_rate": 0.0}, synthetic_face(1.0, unseen=range(20)), Reason.NO_FACE),
        ({"min_detection_rate": 0.0}, synthetic_face(1.0, x=-1000.0), Reason.MOUTH_OUTSIDE),
        ({"max_jitter_px": 1e-9}, synthetic_face(1.0, opening_px=np.arange(20) % 2 * 9.0), Reason.UNSTABLE_TRACK),
    ],
)  # fmt: skip
def test_limits(still: Path, changes: dict, find_landmarks, reason: Reason) -> None:  # type: ignore[no-untyped-def]
    error, figures = rejected(still, PARAMS.model_copy(update=changes), find_landmarks=find_landmarks)
    assert error.reason is reason
    assert figures.source_frames == 20
    if reason is not Reason.NO_FACE:
        assert "crop." in error.detail


@pytest.mark.parametrize(("degrees", "reason"), [(50, None), (62, None), (68, Reason.TURNED_AWAY)])
def test_a_head_turned_away_is_rejected(still: Path, degrees: float, reason: Reason | None) -> None:
    """At 65 degrees the near half of the mouth is as wide as from the front."""
    landmarks = landmarks_of(np.array([[[1.0, 0, 0], [0, 1, 0]]] * 20))
    landmarks.points_MK3[..., 2] = landmarks.points_MK3[..., 0] * np.sin(np.radians(degrees))
    landmarks.points_MK3[..., 0] *= np.cos(np.radians(degrees))
    find_landmarks = lambda path, params, patches: landmarks  # noqa: E731
    if reason is None:
        clip = crop_video(still, MediaKind.FACE, PARAMS, find_landmarks=find_landmarks)
        assert clip.figures.yaw_deg == pytest.approx(degrees, abs=1)
        return
    error, figures = rejected(still, find_landmarks=find_landmarks)
    assert error.reason is reason
    assert figures.yaw_deg == pytest.approx(degrees, abs=1)


def test_unreadable_files_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "garbage.mp4").write_bytes(b"no video" * 1_000)
    assert rejected(tmp_path / "empty.mp4")[0].reason is Reason.UNREADABLE
    assert rejected(tmp_path / "garbage.mp4")[0].reason is Reason.UNREADABLE
    assert rejected(write_audio(tmp_path / "a.wav"))[0].reason is Reason.NO_VIDEO
    assert rejected(tmp_path / "nowhere.mp4")[0].reason is Reason.MISSING_FILE


def test_a_too_long_video_is_rejected_before_landmarks(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [np.zeros((64, 64, 3), np.uint8)] * 60)
    error, figures = rejected(path, PARAMS.model_copy(update={"max_frames": 20}), find_landmarks=no_landmarks)
    assert error.reason is Reason.TOO_LONG
    assert figures.source_width == 64


def test_the_message_for_a_too_long_part_does_not_suggest_split_long(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [np.zeros((64, 64, 3), np.uint8)] * 60)
    params = PARAMS.model_copy(update={"max_frames": 20})
    detail = rejected(Source(path, start_s=0.4), params, find_landmarks=no_landmarks)[0].detail
    assert "shorter parts in the corpus table" in detail and "split_long: true" not in detail
    assert "Set crop.split_long: true" in rejected(path, params, find_landmarks=no_landmarks)[0].detail


def test_a_tiny_picture_has_no_face(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [np.zeros((16, 16, 3), np.uint8)] * 12)
    assert rejected(path)[0].reason is Reason.NO_FACE


# -- real video ---------------------------------------------------------------------------------------

HARD = {
    "WolfgangLanger_Pexels.mp4": None,
    "carphone_pristine.mp4": None,
    "single_face.mp4": None,
    "face_noface.mov": Reason.LOW_DETECTION,
    "noface_face.mov": Reason.LOW_DETECTION,
    "no_face.mp4": Reason.NO_FACE,
    "nasa_13013_rotated.mp4": Reason.NO_FACE,
    "h265_video.mp4": Reason.NO_FACE,
    "av1_video.mkv": Reason.NO_FACE,
    "test_non_zero_start.mp4": Reason.NO_FACE,
}


@pytest.mark.realdata
@pytest.mark.parametrize(("name", "reason"), HARD.items())
def test_difficult_videos(realdata: Path, name: str, reason: Reason | None) -> None:
    """The expected outcomes were decided by a person."""
    path = realdata / "hard" / name
    assert media_kind_of(path, read_header(path), "auto", PARAMS) is MediaKind.FACE
    if reason is not None:
        error, figures = rejected(path)
        assert error.reason is reason
        assert figures.source_frames is not None
        return
    clip = crop(path)
    assert clip.figures.detection_rate == 1
    assert clip.figures.duration_s is not None
    assert abs(len(clip.clip_THW) / 25 - clip.figures.duration_s) <= 1 / 25


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["s1/bbaf2n.mp4", "s26/lbbo3n.mpg"])
def test_grid_speakers(realdata: Path, name: str) -> None:
    clip = crop(realdata / "grid" / "video" / name)
    figures = clip.figures
    assert clip.clip_THW.shape == (75, 96, 96)
    assert figures.num_faces == 1
    assert figures.mouth_width_px == pytest.approx(37, abs=4)
    assert figures.jitter_px is not None
    assert figures.jitter_px < 0.5
    # the lips move most in the middle rows of the crop, not at its edges
    motion_HW = np.abs(np.diff(clip.clip_THW.astype(int), axis=0)).mean(axis=0)
    assert motion_HW[36:72, 28:68].mean() > 1.5 * motion_HW[:24].mean()


def test_pictures_that_change_size_are_rejected(tmp_path: Path) -> None:
    """Two H.264 streams one after the other, as from a video call over a bad line."""
    large = write_video(tmp_path / "a.h264", [np.full((96, 128, 3), 90, np.uint8)] * 12)
    small = write_video(tmp_path / "b.h264", [np.full((64, 96, 3), 90, np.uint8)] * 12)
    path = tmp_path / "c.h264"
    path.write_bytes(large.read_bytes() + small.read_bytes())
    error, _ = rejected(path)
    assert error.reason is Reason.UNREADABLE
    assert "128x96 to 96x64 pictures at frame 12" in error.detail
