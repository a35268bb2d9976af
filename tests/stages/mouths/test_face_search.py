"""Small faces are found down to the smallest mouth that a crop may have, anywhere in the picture."""

from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from shards.errors import ClipRejected
from shards.schema import MediaKind
from stages.mouths.cropping import crop_video
from stages.mouths.face_search import DetectFaces, Square, find_faces
from stages.mouths.landmarker import face_finder
from stages.settings import CropParams
from stages.videos.picture import SourceFrame
from stages.videos.video import decode
from tests.support.videos import photograph, write_video

pytestmark = pytest.mark.usefixtures("networks_once")

MOUTH_CORNERS = [61, 291]
SMALLEST_PX = 16.0
NINE_PLACES = [(x, y) for y in (0.0, 0.5, 1.0) for x in (0.0, 0.5, 1.0)]
MIDDLE_AND_CORNERS = NINE_PLACES[::2]


def frame_of(bgr: np.ndarray) -> SourceFrame:
    picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(bgr), format="bgr24")
    return SourceFrame(0, 0.0, picture.reformat(format="yuv420p"))


def mouth_of(mesh: np.ndarray) -> np.ndarray:
    return mesh[MOUTH_CORNERS, :2].astype(float)


def on_gray(
    small: np.ndarray, place: tuple[float, float], width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a gray picture with `small` at `place` (0 to 1 of the free space), and the position of its corner."""
    picture = np.full((height, width, 3), 128, np.uint8)
    x, y = round(place[0] * (width - small.shape[1])), round(place[1] * (height - small.shape[0]))
    picture[y : y + small.shape[0], x : x + small.shape[1]] = small
    return picture, np.array([x, y])


def shrunk(bgr: np.ndarray, factor: float) -> np.ndarray:
    return cv2.resize(bgr, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


def find_at_places(
    detect: DetectFaces,
    bgr: np.ndarray,
    mouth_px: float,
    size: tuple[int, int],
    places: Sequence[tuple[float, float]] = NINE_PLACES,
) -> None:
    mouth = mouth_of(detect(frame_of(bgr))[0])
    factor = mouth_px / float(np.linalg.norm(mouth[1] - mouth[0]))
    small = shrunk(bgr, factor)
    for place in places:
        picture, corner = on_gray(small, place, *size)
        meshes = find_faces(detect, frame_of(picture), [], SMALLEST_PX, 3)
        assert len(meshes) == 1, (mouth_px, place)
        middle = mouth_of(meshes[0]).mean(axis=0)
        expected = (mouth.mean(axis=0) + 0.5) * factor - 0.5 + corner
        assert np.linalg.norm(middle - expected) < 0.08 * mouth_px, (mouth_px, place)


@pytest.mark.parametrize("mouth_px", [16.5, 21.0, 34.0, 50.0])
def test_found_at_nine_places(mouth_px: float) -> None:
    """With faces that the detector misses in the whole picture: 2 to 9 % of its width."""
    with face_finder("litert", 3) as detect:
        find_at_places(detect, photograph()[:300, 60:400], mouth_px, (1920, 1080))


@pytest.mark.parametrize("size", [(720, 1280), (2560, 1440)])
def test_found_in_pictures_of_other_sizes(size: tuple[int, int]) -> None:
    with face_finder("litert", 3) as detect:
        find_at_places(detect, photograph()[:300, 60:400], 18.0, size, MIDDLE_AND_CORNERS)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["grid/video/s1/bbaf2n.mp4", "grid/video/s26/bgbsza.mpg"])
def test_real_people_are_found(realdata: Path, name: str) -> None:
    bgr = next(decode(realdata / name, CropParams())).rgb_HW3()[..., ::-1]
    with face_finder("litert", 3) as detect:
        for mouth_px in (16.5, 26.0):
            find_at_places(detect, bgr, mouth_px, (1280, 720), MIDDLE_AND_CORNERS)
        # here a tile's edge cuts the face: the error of its first mesh is a fifth of the mouth's width
        find_at_places(detect, bgr, 37.18, (1280, 720), [(0.8124, 0.6667)])


def test_mediapipes_graph_finds_a_small_face() -> None:
    pytest.importorskip("mediapipe")
    with face_finder("mediapipe", 3) as detect:
        small = shrunk(photograph()[:300, 60:400], 0.45)
        picture, corner = on_gray(small, (1.0, 0.5), 1280, 720)
        (mesh,) = find_faces(detect, frame_of(picture), [], SMALLEST_PX, 3)
        assert (mouth_of(mesh) > corner).all()


def test_a_large_face_takes_one_detection() -> None:
    squares: list[Square | None] = []

    with face_finder("litert", 3) as find:

        def detect(frame: SourceFrame, square: Square | None = None) -> list[np.ndarray]:
            squares.append(square)
            return find(frame, square)

        picture = frame_of(photograph())
        (mesh,) = find_faces(detect, picture, [], SMALLEST_PX, 3)
        box = np.concatenate([mesh[:, :2].min(axis=0), mesh[:, :2].max(axis=0)]).astype(float)
        find_faces(detect, picture, [box], SMALLEST_PX, 3)
        assert squares == [None, None]


def test_each_known_small_face_takes_one_more_detection() -> None:
    small = shrunk(photograph()[:300, 60:400], 0.4)
    picture, _ = on_gray(small, (0.1, 0.2), 1280, 720)
    other, corner = on_gray(small, (0.9, 0.8), 1280, 720)
    picture[corner[1] :, corner[0] :] = other[corner[1] :, corner[0] :]
    with face_finder("litert", 3) as find:
        meshes = find_faces(find, frame_of(picture), [], SMALLEST_PX, 3)
        assert len(meshes) == 2
        boxes = [np.concatenate([m[:, :2].min(axis=0), m[:, :2].max(axis=0)]).astype(float) for m in meshes]
        squares: list[Square | None] = []

        def detect(frame: SourceFrame, square: Square | None = None) -> list[np.ndarray]:
            squares.append(square)
            return find(frame, square)

        again = find_faces(detect, frame_of(picture), boxes, None, 3)
        assert len(squares) == 3
        assert np.abs(mouth_of(again[0]) - mouth_of(meshes[0])).max() < 1
        assert np.abs(mouth_of(again[1]) - mouth_of(meshes[1])).max() < 1


def test_the_largest_faces_are_kept() -> None:
    head = photograph()[10:190, 140:310]
    picture = np.full((720, 1280, 3), 90, np.uint8)
    for x, factor in ((100, 0.42), (500, 0.5), (900, 0.45)):
        small = shrunk(head, factor)
        picture[300 : 300 + len(small), x : x + small.shape[1]] = small
    with face_finder("litert", 3) as detect:
        assert len(find_faces(detect, frame_of(picture), [], SMALLEST_PX, 3)) == 3
        (largest,) = find_faces(detect, frame_of(picture), [], SMALLEST_PX, 1)
        assert 500 < mouth_of(largest)[:, 0].mean() < 600


def test_a_whole_small_face_is_preferred_to_a_large_one_that_is_cut_off(tmp_path: Path) -> None:
    """In the whole picture the detector finds only the large face, whose mouth lies below the edge."""
    large = cv2.resize(photograph()[0:142, 120:330], None, fx=3.0, fy=3.0)
    small = shrunk(photograph()[:300, 60:400], 0.55)
    picture = np.full((720, 1280, 3), 128, np.uint8)
    picture[-len(large) :, 40 : 40 + large.shape[1]] = large
    picture[60 : 60 + len(small), 1000 : 1000 + small.shape[1]] = small
    with face_finder("litert", 3) as detect:
        assert len(detect(frame_of(picture))) == 1
    clip = crop_video(write_video(tmp_path / "a.mp4", [picture] * 20), MediaKind.FACE, CropParams())
    assert clip.figures.mouth_width_px == pytest.approx(22.8, abs=1)


@pytest.mark.parametrize("place", [(0.0, 1.0), (1.0, 0.3)])
def test_the_crop_of_a_small_face_is_ok(tmp_path: Path, place: tuple[float, float]) -> None:
    """The mouth is 23 px wide in 1280 px: 5 % of the picture's width is face."""
    small = shrunk(photograph()[:300, 60:400], 0.55)
    picture, _ = on_gray(small, place, 1280, 720)
    path = write_video(tmp_path / "a.mp4", [picture] * 20, options={"crf": "8", "preset": "veryfast"})
    clip = crop_video(path, MediaKind.FACE, CropParams())
    assert clip.figures.mouth_width_px == pytest.approx(22.8, abs=0.5)
    assert clip.figures.detection_rate == 1
    with pytest.raises(ClipRejected, match="small_mouth"):
        crop_video(path, MediaKind.FACE, CropParams(min_mouth_width_px=24.0))


def test_the_no_face_message_gives_the_smallest_size(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [np.full((288, 512, 3), 120, np.uint8)] * 12)
    with pytest.raises(ClipRejected, match=r"no_face.*a mouth of 20 px \(crop\.min_mouth_width_px\)"):
        crop_video(path, MediaKind.FACE, CropParams(min_mouth_width_px=20.0))


def test_a_moving_small_face_is_found_inside_a_stretch(tmp_path: Path) -> None:
    """It crosses the picture. With such a low tolerance nearly every frame is landmarked."""
    small = shrunk(photograph()[:300, 60:400], 0.5)
    pictures = [on_gray(small, (0.2 + i / 200, 0.4 + 0.002 * np.sin(i)), 1280, 720)[0] for i in range(33)]
    path = write_video(tmp_path / "a.mp4", pictures, options={"crf": "8", "preset": "veryfast"})
    clip = crop_video(path, MediaKind.FACE, CropParams(tolerance_px=0.02))
    assert clip.figures.detection_rate == 1
    assert len(clip.landmarked) > 15
