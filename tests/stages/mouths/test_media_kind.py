"""Decides whether a video shows a face or a ready mouth crop."""

import random
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.errors import ClipRejected
from shards.schema import MediaKind, Reason
from stages.mouths import media_kind
from stages.mouths.cropping import crop_video
from stages.mouths.media_kind import MOUTH_MAX_PX, media_kind_of
from stages.settings import CropParams
from stages.videos.media import Source
from stages.videos.video import read_header
from tests.support.pictures import pictures_of
from tests.support.videos import (
    face_pictures,
    mouth_pictures,
    photograph,
    write_face,
    write_mouth,
    write_video,
)

pytestmark = pytest.mark.usefixtures("networks_once")

PARAMS = CropParams()
NUM_FRAMES, EVERY = 35, 7
"""Five pictures: as many as are examined of a video."""
SIZES = [(96, 96), (88, 88), (112, 112), (100, 50), (140, 46), (128, 128), (160, 120), (256, 256)]
MOUTHS = [
    (96, 96, 0.45), (88, 88, 0.5), (112, 112, 0.45), (128, 128, 0.6), (256, 256, 0.45), (160, 80, 0.45),
    (140, 46, 0.5), (80, 110, 0.55), (64, 64, 0.5),
]  # fmt: skip


def kind_of(path: Path) -> MediaKind:
    return media_kind_of(path, read_header(path), "auto", PARAMS)


def as_gray(pictures: Iterable[np.ndarray]) -> list[np.ndarray]:
    return [cv2.cvtColor(cv2.cvtColor(p, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR) for p in pictures]


def resized(pictures: Iterable[np.ndarray], size: tuple[int, int]) -> list[np.ndarray]:
    return [cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in pictures]


# -- decided by pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height", "mouth_share"), MOUTHS)
@pytest.mark.parametrize("is_gray", [False, True])
def test_mouth_crops_of_all_sizes(
    tmp_path: Path, width: int, height: int, mouth_share: float, is_gray: bool
) -> None:
    pictures = mouth_pictures(12, width, height, mouth_share)
    path = write_video(tmp_path / "1_FACE.mp4", as_gray(pictures) if is_gray else pictures)
    assert kind_of(path) is MediaKind.MOUTH


@pytest.mark.parametrize("side_px", [88, 96, 112, 160, 256])
@pytest.mark.parametrize(("half_face", "below"), [(40, 0), (55, 0), (55, 24), (80, 20)])
def test_small_videos_of_whole_faces(tmp_path: Path, side_px: int, half_face: int, below: int) -> None:
    """Faces that are close, usual, with the mouth in the middle as in LRW, and far."""
    scale = side_px / (2 * half_face)
    middle = (side_px - 1) / 2
    placement = np.array([[scale, 0, middle - scale * 223], [0, scale, middle - scale * (118 + below)]])
    pictures = list(face_pictures([placement] * 12, side_px, side_px, speaking=True))
    assert kind_of(write_video(tmp_path / "mouth.mp4", pictures)) is MediaKind.FACE
    assert kind_of(write_video(tmp_path / "gray.mp4", as_gray(pictures))) is MediaKind.FACE


def bars(width: int, height: int) -> np.ndarray:
    picture = np.zeros((height, width, 3), np.uint8)
    for number in range(8):
        picture[:, number * width // 8 : (number + 1) * width // 8] = [
            235 * (number >> bit & 1) for bit in range(3)
        ]
    return picture


@pytest.mark.parametrize("size", SIZES)
def test_drawn_pictures_are_not_mouths(tmp_path: Path, size: tuple[int, int]) -> None:
    width, height = size
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    ramp = np.repeat(np.linspace(0, 255, width).astype(np.uint8)[None, :, None], height, axis=0).repeat(3, 2)
    ring = cv2.circle(bars(width, height), (width // 2, height // 2), height // 3, (255, 255, 255), 2)
    background = photograph()[20 : 20 + height, 420:][:, :width]
    for name, picture in {
        "black": np.zeros((height, width, 3), np.uint8),
        "gray": np.full((height, width, 3), 128, np.uint8),
        "bars": bars(width, height),
        "ring": ring,
        "ramp": ramp,
        "smooth": cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 5), None, 0, 255, cv2.NORM_MINMAX),
        "background": cv2.resize(background, size),
    }.items():
        path = write_video(tmp_path / f"{name}.mp4", [picture] * 3)
        assert kind_of(path) is MediaKind.FACE, name


def test_single_dark_and_bright_pictures_do_not_decide(tmp_path: Path) -> None:
    """The video has a fade from black, and a flash."""
    pictures = mouth_pictures(20)
    pictures[:3] = [np.zeros_like(pictures[0])] * 3
    pictures[10] = np.full_like(pictures[0], 255)
    assert kind_of(write_video(tmp_path / "a.mp4", pictures)) is MediaKind.MOUTH


@pytest.mark.realdata
def test_real_mouth_crops_and_real_faces(realdata: Path, tmp_path: Path) -> None:
    """GRID's speakers: our own gray crops, whole and cut to the lips, and the shrunk videos."""
    s1 = random.Random(0).sample(sorted((realdata / "grid/video/s1").glob("*.mp4")), 6)
    wrong = []
    for path in [*s1, *sorted((realdata / "grid/video/s26").glob("*.mpg"))[:3]]:
        crops_THW = crop_video(Source(path, end_s=NUM_FRAMES / 25), MediaKind.FACE, PARAMS).clip_THW[::EVERY]
        mouths = [cv2.cvtColor(one, cv2.COLOR_GRAY2BGR) for one in crops_THW]
        lips = resized([one[32:64, 16:80] for one in mouths], (100, 50))
        # the middle of 288 rows: a square
        faces = [one[:, 36:324] for one in pictures_of(path, NUM_FRAMES)[::EVERY]]
        for name, pictures, expected in (
            ("crop", mouths, MediaKind.MOUTH),
            ("large", resized(mouths, (256, 256)), MediaKind.MOUTH),
            ("small", resized(mouths, (64, 64)), MediaKind.MOUTH),
            ("lips", lips, MediaKind.MOUTH),
            ("face", resized(faces, (96, 96)), MediaKind.FACE),
            ("wall", resized([one[:60, :60] for one in faces], (96, 96)), MediaKind.FACE),
        ):
            if kind_of(write_video(tmp_path / f"{name}.mp4", pictures)) is not expected:
                wrong.append((path.name, name))
    assert not wrong


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["nasa_13013_rotated.mp4", "h265_video.mp4", "no_face.mp4"])
def test_real_scenes_without_a_face(realdata: Path, tmp_path: Path, name: str) -> None:
    pictures = pictures_of(realdata / "hard" / name)[::4]
    for size in SIZES:
        assert kind_of(write_video(tmp_path / "a.mp4", resized(pictures, size))) is MediaKind.FACE, size


# -- decided without pictures ---------------------------------------------------------------------------------


@pytest.fixture
def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(*_: object) -> None:
        raise AssertionError("a picture was decoded")

    monkeypatch.setattr(media_kind, "decode", decode)


@pytest.mark.usefixtures("no_decoding")
def test_the_setting_and_large_pictures_decide_without_decoding(tmp_path: Path) -> None:
    mouth, face = write_mouth(tmp_path / "mouth.mp4", 3), write_face(tmp_path / "face.mp4", 3)
    for path in (mouth, face):
        for setting in ("face", "mouth"):
            assert media_kind_of(path, read_header(path), setting, PARAMS) is MediaKind(setting)
    assert kind_of(face) is MediaKind.FACE
    edge = MOUTH_MAX_PX
    tall = write_video(tmp_path / "tall.mp4", [np.zeros((edge + 2, 96, 3), np.uint8)] * 2)
    assert kind_of(tall) is MediaKind.FACE
    with pytest.raises(AssertionError, match="was decoded"):
        kind_of(write_video(tmp_path / "b.mp4", [np.zeros((edge, edge, 3), np.uint8)] * 2))


# -- faults ---------------------------------------------------------------------------------------------------


def test_a_truncated_video_has_a_kind(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mkv", mouth_pictures(60), options={"g": "10"})
    truncated = tmp_path / "truncated.mkv"
    truncated.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    assert kind_of(truncated) is MediaKind.MOUTH


def test_a_video_without_a_picture_is_rejected(tmp_path: Path) -> None:
    whole = write_mouth(tmp_path / "a.mp4", 20)
    header = read_header(whole)
    path = tmp_path / "b.mp4"
    path.write_bytes(b"\0" * 5_000)
    with pytest.raises(ClipRejected) as caught:
        media_kind_of(path, header, "auto", PARAMS)
    assert caught.value.reason is Reason.UNREADABLE


def test_the_no_face_message_of_a_small_video_names_the_setting(tmp_path: Path) -> None:
    for side_px, is_named in ((MOUTH_MAX_PX, True), (2 * MOUTH_MAX_PX, True), (2 * MOUTH_MAX_PX + 2, False)):
        path = write_video(tmp_path / "a.mp4", [bars(side_px, side_px)] * 12)
        with pytest.raises(ClipRejected) as caught:
            crop_video(path, kind_of(path), PARAMS)
        assert caught.value.reason is Reason.NO_FACE
        assert ("set corpus.media_kind: mouth" in caught.value.detail) is is_named
