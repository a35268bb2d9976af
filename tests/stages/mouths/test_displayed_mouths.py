"""The mouth crop of a video is that of the displayed pictures, whatever its ratio, orientation and transfer."""

from fractions import Fraction
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.schema import MediaKind, Transfer
from stages.mouths.cropping import MouthClip, crop_video
from stages.videos.video import decode
from tests.support.displayed import PARAMS, hdr_planes, stored, write_hdr, write_planes
from tests.support.videos import face_pictures, placed, set_display_matrix, write_mouth, write_video


def face_clip(path: Path) -> MouthClip:
    return crop_video(path, MediaKind.FACE, PARAMS)


@pytest.fixture(scope="module")
def plain_clip(tmp_path_factory: pytest.TempPathFactory) -> MouthClip:
    return face_clip(write_video(tmp_path_factory.mktemp("plain") / "a.mp4", moving_faces()))


def moving_faces() -> list[np.ndarray]:
    return list(face_pictures([placed(1.2, 0, (2 * number, number)) for number in range(15)], speaking=True))


@pytest.mark.parametrize(
    ("matrix", "ratio"),
    [
        ((1, 0, 0, 1), Fraction(4, 3)),
        ((1, 0, 0, 1), Fraction(3, 4)),
        ((-1, 0, 0, 1), Fraction(1)),
        ((0, 1, 1, 0), Fraction(16, 11)),
        ((0, -1, 1, 0), Fraction(1, 2)),
    ],
)
def test_the_mouth_crop_equals_that_of_the_plain_video(
    tmp_path: Path, plain_clip: MouthClip, matrix: tuple[int, int, int, int], ratio: Fraction
) -> None:
    pictures = [stored(picture, matrix, ratio) for picture in moving_faces()]
    path = write_video(tmp_path / "a.mp4", pictures, pixel_ratio=ratio)
    set_display_matrix(path, *matrix)
    clip = face_clip(path)
    assert np.abs(clip.clip_THW.astype(int) - plain_clip.clip_THW).mean() < 2.5
    assert clip.figures.mouth_width_px == pytest.approx(plain_clip.figures.mouth_width_px, rel=0.03)
    width, height = clip.figures.source_width, clip.figures.source_height
    assert width == pytest.approx(512, abs=1) and height == pytest.approx(288, abs=1)
    assert clip.figures.source_transfer is Transfer.SDR
    assert clip.transform_T23 is not None and plain_clip.transform_T23 is not None
    corners = np.array([[200, 260], [110, 170], [1, 1]])
    assert np.abs((clip.transform_T23 - plain_clip.transform_T23) @ corners).max() < 2


def test_the_figures_name_the_transfer(tmp_path: Path, plain_clip: MouthClip) -> None:
    planes = hdr_planes(moving_faces()[0], Transfer.HLG, 203, 10, False)
    path = write_planes(tmp_path / "a.mkv", planes, "yuv420p10le", 18, 1, 9, num_frames=12)
    figures = face_clip(path).figures
    assert figures.as_row()["source_transfer"] == "hlg"
    assert figures.mean_luma == pytest.approx(plain_clip.figures.mean_luma, rel=0.1)


def test_a_ready_mouth_has_square_pixels(tmp_path: Path) -> None:
    square = write_mouth(tmp_path / "square.mp4")
    pictures = [frame.rgb_HW3()[..., ::-1] for frame in decode(square, PARAMS)]
    narrow = [cv2.resize(picture, (72, 96), interpolation=cv2.INTER_AREA) for picture in pictures]
    oblong = write_video(tmp_path / "oblong.mp4", narrow, pixel_ratio=Fraction(4, 3))
    clips = [crop_video(path, MediaKind.MOUTH, PARAMS) for path in (square, oblong)]
    assert np.abs(clips[0].clip_THW.astype(int) - clips[1].clip_THW).mean() < 3
    assert (clips[1].figures.source_width, clips[1].figures.source_height) == (96, 96)
    assert clips[1].figures.source_transfer is Transfer.SDR


# -- a real speaker ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speaker_pictures(realdata: Path) -> list[np.ndarray]:
    """One second, in which the speaker talks; each picture of a video is shown alike."""
    video = realdata / "grid" / "video" / "s1" / "bbaf2n.mp4"
    shown = (frame.rgb_HW3()[..., ::-1] for frame in decode(video, PARAMS))
    return [np.ascontiguousarray(picture) for picture in islice(shown, 25, 50)]


@pytest.fixture(scope="module")
def speaker_clip(speaker_pictures: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> MouthClip:
    """The clip of the plain video, encoded like the others through RGB, which already changes 1.7 levels."""
    return face_clip(write_video(tmp_path_factory.mktemp("speaker") / "a.mp4", speaker_pictures))


@pytest.mark.parametrize(
    ("matrix", "ratio"),
    [
        ((1, 0, 0, 1), Fraction(4, 3)),
        ((1, 0, 0, 1), Fraction(3, 4)),
        ((1, 0, 0, 1), Fraction(16, 11)),
        ((-1, 0, 0, 1), Fraction(1)),
        ((1, 0, 0, -1), Fraction(12, 11)),
        ((0, 1, 1, 0), Fraction(1)),
        ((0, -1, -1, 0), Fraction(8, 9)),
        ((0, 1, -1, 0), Fraction(3, 2)),
    ],
)
def test_the_mouth_crop_of_a_real_speaker(
    tmp_path: Path,
    speaker_pictures: list[np.ndarray],
    speaker_clip: MouthClip,
    matrix: tuple[int, int, int, int],
    ratio: Fraction,
) -> None:
    pictures = [stored(picture, matrix, ratio) for picture in speaker_pictures]
    path = write_video(tmp_path / "a.mp4", pictures, pixel_ratio=ratio)
    set_display_matrix(path, *matrix)
    clip = face_clip(path)
    assert np.abs(clip.clip_THW.astype(int) - speaker_clip.clip_THW).mean() <= 2
    # the mouth is 37.9 px wide
    assert clip.figures.mouth_width_px == pytest.approx(speaker_clip.figures.mouth_width_px, abs=0.7)


@pytest.mark.parametrize("white_nits", [203, 100])
@pytest.mark.parametrize("transfer", [Transfer.PQ, Transfer.HLG])
def test_a_real_speaker_in_hdr(
    tmp_path: Path,
    speaker_pictures: list[np.ndarray],
    speaker_clip: MouthClip,
    transfer: Transfer,
    white_nits: float,
) -> None:
    path = write_hdr(tmp_path / "a.mp4", speaker_pictures, transfer, white_nits, {"crf": "12"})
    clip = face_clip(path)
    assert clip.figures.source_transfer is transfer
    # the mean luma is 146
    assert clip.figures.mean_luma == pytest.approx(speaker_clip.figures.mean_luma, rel=0.1)
    assert np.abs(clip.clip_THW.astype(int) - speaker_clip.clip_THW).mean() < 6
