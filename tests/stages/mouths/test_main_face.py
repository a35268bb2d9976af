"""Faces that are not chosen: a mouth beyond the picture's edge, a mesh unlike a face, a shot after a cut."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.errors import ClipRejected
from shards.schema import MediaKind, Reason
from stages.mouths.cropping import Figures, crop_video
from stages.mouths.landmarks import FaceTrack, Landmarks
from stages.mouths.main_face import main_face
from stages.settings import CropParams
from stages.videos.video import decode
from tests.support.faces import landmarks_of
from tests.support.videos import photograph, write_face, write_video

PARAMS = CropParams()
NUM_FRAMES = 60


def upright(scale: float = 1.5, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    return np.stack([np.array([[scale, 0, x], [0, scale, y]])] * NUM_FRAMES)


def face_of(landmarks: Landmarks) -> FaceTrack:
    face = main_face(landmarks, PARAMS)
    assert face is not None
    return face


# -- edges of the picture ----------------------------------------------------------------------------------


def test_a_whole_small_face_is_preferred_to_a_large_one_without_a_mouth() -> None:
    """The mouth of the large face lies below the picture. Its mesh continues there, and moves most."""
    opening_px = 8 + 6 * np.sin(np.arange(NUM_FRAMES))
    large, small = upright(3.0, 600, 100), upright(1.0, 50, 150)
    landmarks = landmarks_of(large, small, size=(1280, 560))
    speaking = landmarks_of(large, small, size=(1280, 560), opening_px=opening_px)
    for each in (landmarks, speaking):
        face = face_of(each)
        assert np.ptp(face.points_NK3[:, :, 0]) < 150
        assert face.frame_N.tolist() == list(range(NUM_FRAMES))
        assert face.outside_frames == []


@pytest.mark.parametrize(("side", "sign"), [("left", -1), ("right", 1), ("top", -1), ("bottom", 1)])
@pytest.mark.parametrize(("edge_px", "is_whole"), [(14, False), (20, False), (28, True), (48, True)])
def test_how_near_the_edge_a_mouth_may_be(side: str, sign: int, edge_px: int, is_whole: bool) -> None:
    """Distance of the edge from the mouth's middle in crop pixels; with 24, a quarter of the crop is outside."""
    scale, mouth = 2.0, np.array([129.31, 157.82])
    width, height = 2000, 2000
    positions = {"left": (edge_px * scale, 1000), "right": (width - edge_px * scale, 1000)} | {
        "top": (1000, edge_px * scale),
        "bottom": (1000, height - edge_px * scale),
    }
    x, y = np.array(positions[side]) - scale * mouth
    face = face_of(landmarks_of(upright(scale, x, y), size=(width, height)))
    assert len(face.frame_N) == (NUM_FRAMES if is_whole else 0)
    assert len(face.outside_frames) == (0 if is_whole else NUM_FRAMES)


def test_a_single_face_that_is_cut_off_is_rejected(tmp_path: Path) -> None:
    """The photograph ends just below the lips. The message names the edge and the fix."""
    path = write_video(tmp_path / "a.mp4", [photograph()[:152, 100:356]] * 20)
    with pytest.raises(ClipRejected) as caught:
        crop_video(path, MediaKind.FACE, PARAMS)
    assert caught.value.reason is Reason.MOUTH_OUTSIDE
    assert "whole mouth" in caught.value.detail


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("rows_below_px", "reason"), [(2, Reason.MOUTH_OUTSIDE), (6, Reason.MOUTH_OUTSIDE), (30, None)]
)
def test_a_speaker_cut_off_below_the_lip_is_rejected(
    realdata: Path, tmp_path: Path, rows_below_px: int, reason: Reason | None
) -> None:
    """GRID's speaker, whose lower lip ends some 214 px from the top."""
    source = realdata / "grid" / "video" / "s1" / "bbaf2n.mp4"
    lower_lip = 214
    rows = (lower_lip + rows_below_px) // 2 * 2
    pictures = [frame.rgb_HW3()[:rows, :, ::-1] for frame in decode(source, PARAMS)]
    path = write_video(tmp_path / "a.mp4", pictures[:30])
    if reason is None:
        crop_video(path, MediaKind.FACE, PARAMS)
        return
    with pytest.raises(ClipRejected) as caught:
        crop_video(path, MediaKind.FACE, PARAMS)
    assert caught.value.reason is reason


def test_a_face_outside_the_picture_for_a_moment_is_bridged() -> None:
    x = np.zeros(NUM_FRAMES)
    x[30:36] = 1000
    placements = np.stack([np.array([[1.5, 0, 600 + dx], [0, 1.5, 100]]) for dx in x])
    landmarks = landmarks_of(placements, size=(1400, 600))
    assert face_of(landmarks).outside_frames == []  # too far away to be the same face
    x[30:36] = 560
    placements = np.stack([np.array([[1.5, 0, 600 + dx], [0, 1.5, 100]]) for dx in x])
    assert set(face_of(replace(landmarks_of(placements), width=1400, height=600)).frame_N.tolist()) >= {
        *range(30),
        *range(36, 60),
    }


# -- meshes unlike a face ------------------------------------------------------------------------------------


def squashed(landmarks: Landmarks, frames: dict[int, float]) -> Landmarks:
    """Returns landmarks with meshes shrunk to this share of their height in these frames."""
    points, boxes = landmarks.points_MK3.copy(), landmarks.box_M4.copy()
    for frame, share in frames.items():
        member = int(np.flatnonzero(landmarks.frame_M == frame)[0])
        top = boxes[member, 1]
        points[member, :, 1] = top + share * (points[member, :, 1] - top)
        boxes[member, 3] = top + share * (boxes[member, 3] - top)
    return replace(landmarks, points_MK3=points, box_M4=boxes)


@pytest.mark.parametrize(
    "frames", [{20: 0.5}, {20: 0.2}, {20: 0.5, 40: 0.2}, {20: 0.5, 21: 0.2}, {0: 0.3}, {59: 0.3}]
)
def test_squashed_meshes_are_dropped(frames: dict[int, float]) -> None:
    good = landmarks_of(upright(2.0, 300, 100))
    face = face_of(squashed(good, frames))
    assert face.implausible_frames == sorted(frames)
    assert face.frame_N.tolist() == [i for i in range(NUM_FRAMES) if i not in frames]


def test_wrong_meshes_do_not_change_the_window(tmp_path: Path) -> None:
    """They are bridged and counted. The crop depends only on the good meshes."""
    path = write_face(tmp_path / "a.mp4", NUM_FRAMES)
    good = landmarks_of(upright(1.2, 100, 0), size=(512, 288))
    points = squashed(good, {20: 0.5, 40: 0.2})
    figures = Figures()
    plain = crop_video(path, MediaKind.FACE, PARAMS, find_landmarks=lambda *_: good)
    bridged = crop_video(path, MediaKind.FACE, PARAMS, figures, find_landmarks=lambda *_: points)
    assert plain.transform_T23 is not None
    assert bridged.transform_T23 is not None
    assert np.abs(plain.transform_T23 - bridged.transform_T23).max() < 1e-3
    assert (figures.implausible_frames, figures.bridged_frames) == (2, 2)


def test_a_head_that_turns_away_and_back_is_plausible() -> None:
    """Its mesh is less like the mean face than a squashed mesh, but it moves there without a jump."""
    landmarks = landmarks_of(upright(2.0, 300, 100))
    yaw = np.radians(70) * np.sin(np.linspace(0, np.pi, NUM_FRAMES))[:, None]
    points = landmarks.points_MK3.copy()
    middle = points[:, :, 0].mean()
    points[:, :, 0] = middle + (points[:, :, 0] - middle) * np.cos(yaw)
    face = face_of(replace(landmarks, points_MK3=points))
    assert face.implausible_frames == []
    assert len(face.frame_N) == NUM_FRAMES


def test_jumps_of_a_real_face_are_plausible() -> None:
    """A jump alone is not a fault: cameras drop frames."""
    jumps = np.where(np.arange(NUM_FRAMES) % 20 < 10, 0.0, 60.0)
    placements = np.stack([np.array([[2.0, 0, 300 + dx], [0, 2.0, 100]]) for dx in jumps])
    assert face_of(landmarks_of(placements)).implausible_frames == []


# -- cuts ------------------------------------------------------------------------------------------------------


def test_a_cut_ends_only_the_tracks_around_it() -> None:
    """A screen in the background changes its picture. The speaker in front continues."""
    opening_px = 6 + 5 * np.sin(np.arange(NUM_FRAMES))
    speaker, screen = (
        landmarks_of(upright(2.0, 50, 50), opening_px=opening_px),
        landmarks_of(upright(0.9, 900, 50)),
    )
    frame_M = np.concatenate([speaker.frame_M, screen.frame_M])
    order = np.argsort(frame_M, kind="stable")
    both = replace(
        speaker,
        frame_M=frame_M[order],
        points_MK3=np.concatenate([speaker.points_MK3, screen.points_MK3])[order],
        box_M4=np.concatenate([speaker.box_M4, screen.box_M4])[order],
        cut_frame_C=np.array([25], np.int32),
        cut_box_C4=screen.box_M4[25:26],
    )
    face = face_of(both)
    assert (len(face.frame_N), face.cut_frames) == (NUM_FRAMES, [])
    on_speaker = face_of(replace(both, cut_box_C4=speaker.box_M4[25:26]))
    assert on_speaker.frame_N.tolist() == list(range(25, NUM_FRAMES))
    assert on_speaker.cut_frames == [25]
