"""Chooses the face that speaks, with synthetic landmarks and with two real people next to each other."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from shards.schema import MediaKind
from stages.mouths.cropping import crop_video
from stages.mouths.landmarks import Landmarks
from stages.mouths.main_face import main_face
from stages.settings import CropParams
from tests.support.faces import landmarks_of
from tests.support.videos import write_video

pytestmark = pytest.mark.usefixtures("networks_once")

PARAMS = CropParams()
NUM_FRAMES = 50
SPEECH_PX = 6 + 5 * np.sin(np.arange(NUM_FRAMES))
STILL = 0.0


def person(
    scale: float, x: float, opening_px: np.ndarray | float, frames: Sequence[int] = range(NUM_FRAMES)
) -> Landmarks:
    placements = np.array([[[scale, 0, x], [0, scale, 0]]] * NUM_FRAMES)
    absent = sorted(set(range(NUM_FRAMES)) - set(frames))
    return landmarks_of(placements, opening_px=opening_px, unseen=absent)


def together(*people: Landmarks) -> Landmarks:
    """Returns their detections frame by frame, in the order of the people."""
    frame_M = np.concatenate([each.frame_M for each in people])
    order = np.argsort(frame_M, kind="stable")
    return replace(
        people[0],
        frame_M=frame_M[order],
        points_MK3=np.concatenate([each.points_MK3 for each in people])[order],
        box_M4=np.concatenate([each.box_M4 for each in people])[order],
    )


def chosen(*people: Landmarks) -> int:
    face = main_face(together(*people), PARAMS)
    assert face is not None
    (index,) = [
        i
        for i, each in enumerate(people)
        if len(face.frame_N) == len(each.frame_M) and np.array_equal(face.points_NK3, each.points_MK3)
    ]
    return index


@pytest.mark.parametrize("order", [1, -1])
def test_a_smaller_face_that_speaks_is_chosen(order: int) -> None:
    silent, speaker = person(2.0, 0, STILL), person(1.2, 900, SPEECH_PX)
    people = [silent, speaker][::order]
    assert people[chosen(*people)] is speaker


@pytest.mark.parametrize("order", [1, -1])
def test_the_largest_face_is_chosen_if_nobody_speaks(order: int) -> None:
    large, small = person(2.0, 0, STILL), person(1.2, 900, STILL)
    people = [large, small][::order]
    assert people[chosen(*people)] is large


def test_a_smile_is_not_speech() -> None:
    smiling = 2 + 0.3 * np.sin(np.arange(NUM_FRAMES) / 9)
    assert chosen(person(1.2, 900, smiling), person(2.0, 0, STILL)) == 1


def test_of_two_speakers_the_one_who_speaks_more_is_chosen() -> None:
    assert chosen(person(2.0, 0, SPEECH_PX / 3), person(1.5, 900, SPEECH_PX)) == 1


def test_a_small_speaker_in_the_background_is_ignored() -> None:
    assert chosen(person(2.0, 0, STILL), person(0.5, 900, SPEECH_PX)) == 0


def test_a_speaker_who_passes_by_is_ignored() -> None:
    assert chosen(person(2.0, 0, STILL), person(2.0, 900, SPEECH_PX, range(15, 30))) == 0


def test_turning_the_head_is_not_speech() -> None:
    """A face that narrows and widens changes the distance between its eyes; its closed lips do not part."""
    placements = np.array([[[2 * np.cos(i / 9), 0, 0], [0, 2, 0]] for i in range(NUM_FRAMES)])
    turning = landmarks_of(placements, opening_px=0.0)
    assert chosen(turning, person(1.5, 900, SPEECH_PX)) == 1


def side_by_side(left: list[np.ndarray], right: list[np.ndarray]) -> list[np.ndarray]:
    height = max(left[0].shape[0], right[0].shape[0])
    pairs = []
    for pair in zip(left, right, strict=True):
        padded = [
            cv2.copyMakeBorder(p, 0, height - len(p), 0, 0, cv2.BORDER_CONSTANT, value=(90,) * 3)
            for p in pair
        ]
        pairs.append(np.concatenate(padded, axis=1))
    return pairs


@pytest.mark.realdata
@pytest.mark.parametrize("speaker_left", [True, False])
def test_of_two_real_people_the_speaker_is_chosen(realdata: Path, tmp_path: Path, speaker_left: bool) -> None:
    """A GRID speaker is next to the larger, frozen picture of another speaker."""

    def pictures(name: str) -> list[np.ndarray]:
        with av.open(str(realdata / "grid" / "video" / name)) as container:
            return [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]

    speaking = pictures("s1/bbaf2n.mp4")
    frozen = cv2.resize(pictures("s26/bgbsza.mpg")[0], None, fx=1.3, fy=1.3)
    still = [frozen[:374, :468]] * len(speaking)
    sides = (speaking, still) if speaker_left else (still, speaking)
    clip = crop_video(write_video(tmp_path / "a.mp4", side_by_side(*sides)), MediaKind.FACE, PARAMS)
    assert clip.figures.num_faces == 2
    assert clip.transform_T23 is not None
    middle = np.linalg.inv(np.vstack([clip.transform_T23[30], [0, 0, 1]])) @ [48, 48, 1]
    assert (middle[0] < sides[0][0].shape[1]) == speaker_left
