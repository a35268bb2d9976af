"""Hard cuts between people framed alike, at any frame; and similar changes that are not cuts."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from shards.errors import ClipRejected
from shards.schema import MediaKind, Reason
from stages.mouths.cropping import crop_video
from stages.mouths.cuts import cut_frames
from stages.mouths.face_tracking import track_faces
from stages.mouths.geometry import stable_points
from stages.settings import CropParams
from stages.videos.video import decode
from tests.support.videos import face_pictures, placed, write_video

pytestmark = pytest.mark.usefixtures("networks_once")

PARAMS = CropParams()
Pictures = list[np.ndarray]
LOSSLESS: dict[str, Any] = {"codec": "rawvideo", "options": {}}
"""A picture is then the same in all videos of a test: the networks see it once. Encoding takes no time."""


@cache
def pictures_of(path: Path) -> Pictures:
    """Returns pictures of even width and height, for encoders."""
    pictures = (frame.rgb_HW3()[..., ::-1] for frame in decode(path, PARAMS))
    return [picture[: len(picture) // 2 * 2, : picture.shape[1] // 2 * 2] for picture in pictures]


@pytest.fixture(scope="module")
def two_people(realdata: Path) -> tuple[Pictures, Pictures]:
    """GRID's speakers 1 and 26: the same room, the same framing."""
    folder = realdata / "grid" / "video"
    return pictures_of(folder / "s1" / "bbaf2n.mp4"), pictures_of(folder / "s26" / "bgbsza.mpg")


@pytest.mark.realdata
@pytest.mark.parametrize("cut", [1, 2, 3, 15, 16, 17, 31, 32, 37, 48, 60, 72, 73, 74])
def test_a_cut_is_found_at_any_frame(two_people: tuple[Pictures, Pictures], tmp_path: Path, cut: int) -> None:
    one, other = two_people
    path = write_video(tmp_path / "a.mkv", one[:cut] + other[cut:75], **LOSSLESS)
    with pytest.raises(ClipRejected) as caught:
        crop_video(path, MediaKind.FACE, PARAMS)
    assert caught.value.reason is Reason.SCENE_CUT
    assert f"at {cut / 25:.2f} s" in caught.value.detail


@pytest.mark.realdata
def test_cut_frames_finds_a_cut_at_any_frame(two_people: tuple[Pictures, Pictures], tmp_path: Path) -> None:
    """Tests only the comparison, at all 74 frames, with the box of the faces."""
    one, other = (
        write_video(tmp_path / f"{i}.mkv", pictures, **LOSSLESS) for i, pictures in enumerate(two_people)
    )
    before, after = list(decode(one, PARAMS)), list(decode(other, PARAMS))
    box_F4 = np.tile([128.0, 95.0, 234.0, 228.0], (75, 1))
    for cut in range(1, 75):
        assert cut_frames(before[:cut] + after[cut:75], box_F4, 0, 74) == [cut]
        assert cut_frames(after[:cut] + before[cut:75], box_F4, 0, 74) == [cut]
    assert cut_frames(before, box_F4, 0, 74) == cut_frames(after[:75], box_F4, 0, 74) == []


Change = Callable[[Pictures, np.random.Generator], Pictures]

NO_CUTS: dict[str, Change] = {
    "a flash": lambda pictures, _: [
        np.full_like(p, 255) if i in (16, 33, 47) else p for i, p in enumerate(pictures)
    ],
    "light goes down": lambda pictures, _: [
        np.asarray(p * (0.4 if i >= 30 else 1.0), np.uint8) for i, p in enumerate(pictures)
    ],
    "fade to black": lambda pictures, _: [
        np.asarray(p * (1 - i / len(pictures)), np.uint8) for i, p in enumerate(pictures)
    ],
    "a frozen picture": lambda pictures, _: pictures[:20] + [pictures[20]] * 8 + pictures[28:],
    "every fourth frame": lambda pictures, _: [pictures[i // 4 * 4] for i in range(len(pictures))],
    "noise": lambda pictures, rng: [
        np.clip(p + rng.normal(0, 25, p.shape), 0, 255).astype(np.uint8) for p in pictures
    ],
    "a shaking hand": lambda pictures, rng: [
        cv2.warpAffine(p, np.float32([[1, 0, x], [0, 1, y]]), p.shape[1::-1], borderMode=cv2.BORDER_REFLECT)
        for p, (x, y) in zip(pictures, rng.uniform(-9, 9, (len(pictures), 2)), strict=True)
    ],
}


@pytest.mark.realdata
@pytest.mark.parametrize("change", NO_CUTS)
@pytest.mark.parametrize("name", ["grid/video/s26/bgbsza.mpg", "hard/carphone_pristine.mp4"])
def test_changes_that_are_not_cuts(realdata: Path, tmp_path: Path, name: str, change: str) -> None:
    pictures = NO_CUTS[change](pictures_of(realdata / name), np.random.default_rng(0))
    path = write_video(tmp_path / "a.mkv", pictures, **LOSSLESS)
    assert track_faces(path, PARAMS).cut_frame_C.tolist() == []


@pytest.mark.realdata
@pytest.mark.parametrize("at", [15, 16, 17, 33])
def test_a_single_picture_of_another_person_is_not_a_shot(
    two_people: tuple[Pictures, Pictures], tmp_path: Path, at: int
) -> None:
    """Frame 16 is the last of one stretch and the first of the next."""
    one, other = two_people
    path = write_video(tmp_path / "a.mkv", [*one[:at], other[at], *one[at + 1 :]], **LOSSLESS)
    assert track_faces(path, PARAMS).cut_frame_C.tolist() == []


def test_a_cut_to_a_picture_without_a_face_is_a_gap(tmp_path: Path) -> None:
    """Like in a damaged file, or with a slide that is shown for a moment: the gap is bridged."""
    face = next(iter(face_pictures([placed(1.2)])))
    slide = np.random.default_rng(0).integers(0, 255, (18, 32, 3), dtype=np.uint8)
    slide = cv2.resize(slide, face.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    pictures = [slide if 20 <= i < 27 else face for i in range(60)]
    clip = crop_video(write_video(tmp_path / "a.mp4", pictures), MediaKind.FACE, PARAMS)
    assert clip.figures.bridged_frames == 7


@pytest.mark.realdata
@pytest.mark.parametrize("cuts", [(1,), (16,), (15, 17, 19), (16, 32, 48), (74,)])
def test_faces_next_to_cuts_are_in_their_own_frames(
    two_people: tuple[Pictures, Pictures], tmp_path: Path, cuts: tuple[int, ...]
) -> None:
    """Also if a cut is the first or last frame of a stretch: the same result as with landmarks on every frame."""
    one, other = two_people
    shots = np.searchsorted(cuts, np.arange(75), side="right")
    pictures = [(one, other)[shot % 2][i] for i, shot in enumerate(shots)]
    path = write_video(tmp_path / "a.mkv", pictures, **LOSSLESS)
    ours, every = (
        track_faces(path, PARAMS.model_copy(update={"tolerance_px": tolerance})) for tolerance in (0.35, 0.0)
    )
    assert ours.frame_M.tolist() == every.frame_M.tolist() == list(range(75))
    landmarked = ours.landmarked
    assert set(landmarked.tolist()) >= {number for cut in cuts for number in (cut - 1, cut)}
    assert np.abs(ours.points_MK3[landmarked] - every.points_MK3[landmarked]).max() < 0.01
    eyes_and_nose = (stable_points(found.points_MK3.astype(float))[:, :3] for found in (ours, every))
    assert np.abs(np.subtract(*eyes_and_nose)).max() < 3


def with_wall(pictures: Pictures) -> Pictures:
    """Returns the pictures with a textured wall around the middle, where the person is."""
    height, width = pictures[0].shape[:2]
    wall = np.random.default_rng(5).integers(0, 255, (height // 6, width // 6, 3), dtype=np.uint8)
    wall = cv2.resize(wall, (width, height), interpolation=cv2.INTER_NEAREST)
    wall[:, width // 4 : -width // 4] = 0
    return [np.where(wall > 0, wall, picture) for picture in pictures]


@pytest.mark.realdata
@pytest.mark.parametrize("cut", [25, 40])
def test_a_cut_with_a_constant_background_is_found(
    two_people: tuple[Pictures, Pictures], tmp_path: Path, cut: int
) -> None:
    one, other = (with_wall(pictures) for pictures in two_people)
    path = write_video(tmp_path / "a.mkv", one[:cut] + other[cut:75], **LOSSLESS)
    assert set(track_faces(path, PARAMS).cut_frame_C.tolist()) == {cut}


@pytest.mark.realdata
@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("cut", [17, 38])
def test_a_cut_with_a_mixed_picture_is_found_once(
    two_people: tuple[Pictures, Pictures], tmp_path: Path, cut: int, share: float
) -> None:
    """Frame rate converters mix the last picture of one shot with the first of the next."""
    one, other = two_people
    mixed = cv2.addWeighted(one[cut - 1], 1 - share, other[cut], share, 0)
    path = write_video(tmp_path / "a.mkv", [*one[: cut - 1], mixed, *other[cut:75]], **LOSSLESS)
    found = set(track_faces(path, PARAMS).cut_frame_C.tolist())
    assert len(found) == 1
    assert found <= {cut - 1, cut}


@pytest.mark.realdata
@pytest.mark.parametrize("begin", [14, 16, 30])
def test_another_person_after_black_is_another_shot_but_not_the_same_person(
    two_people: tuple[Pictures, Pictures], tmp_path: Path, begin: int
) -> None:
    one, other = two_people
    black = [np.zeros_like(one[0])] * 5
    changed = write_video(tmp_path / "a.mkv", one[:begin] + black + other[begin + 5 : 75], **LOSSLESS)
    assert set(track_faces(changed, PARAMS).cut_frame_C.tolist()) == {begin + 5}
    same = write_video(tmp_path / "b.mkv", one[:begin] + black + one[begin + 5 :], **LOSSLESS)
    found = track_faces(same, PARAMS)
    assert found.cut_frame_C.tolist() == []
    assert crop_video(same, MediaKind.FACE, PARAMS, None, lambda *_: found).figures.bridged_frames == 5


@pytest.mark.realdata
def test_two_cuts_in_one_clip_are_found(two_people: tuple[Pictures, Pictures], tmp_path: Path) -> None:
    one, other = two_people
    path = write_video(tmp_path / "a.mkv", one[:20] + other[20:45] + one[45:], **LOSSLESS)
    found = track_faces(path, PARAMS)
    assert sorted(set(found.cut_frame_C.tolist())) == [20, 45]
    with pytest.raises(ClipRejected, match="scene_cut"):
        crop_video(path, MediaKind.FACE, PARAMS, None, lambda *_: found)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["bwwuzn", "prii9a", "sran9s"])
def test_a_faint_face_in_damaged_pictures_is_not_another_shot(realdata: Path, name: str) -> None:
    """These GRID clips begin with twelve gray pictures with a faint face."""
    path = realdata / "grid" / "video" / "s1" / f"{name}.mp4"
    assert track_faces(path, PARAMS).cut_frame_C.tolist() == []
