"""Chooses the face that speaks, with synthetic landmarks and with two real people next to each other."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd
import pytest

from shards.schema import MediaKind
from stages.clips.cache import ClipCache
from stages.mouths.cropping import crop_video
from stages.mouths.landmarks import Landmarks
from stages.mouths.main_face import main_face
from stages.mouths.voice import agreement
from stages.settings import CropParams
from tests.support.faces import landmarks_of
from tests.support.sounds import write_talk
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


def chosen(*people: Landmarks, loudness_T: np.ndarray | None = None) -> int:
    face = main_face(together(*people), PARAMS, None if loudness_T is None else lambda: loudness_T)
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


SYLLABLES = np.random.default_rng(5).normal(size=(2, NUM_FRAMES))
LIPS_PX = 6 + np.array([3.0, 5.0])[:, None] * SYLLABLES


@pytest.mark.parametrize("order", [1, -1])
def test_the_face_that_the_sound_belongs_to_is_chosen_though_another_moves_more(order: int) -> None:
    people = [person(1.5, 0, LIPS_PX[0]), person(2.0, 900, LIPS_PX[1])]
    loudness_T = np.interp(np.arange(NUM_FRAMES) + 0.5, np.arange(NUM_FRAMES), 2 * SYLLABLES[0] - 9)
    for shift in (-1, 0, 1):
        heard = chosen(*people[::order], loudness_T=np.roll(loudness_T, shift))
        assert people[::order][heard] is people[0]
    assert people[::order][chosen(*people[::order])] is people[1], "by motion"


def test_sound_of_somebody_outside_the_picture_leaves_the_choice_to_motion() -> None:
    people = [person(2.0, 0, LIPS_PX[0]), person(1.5, 900, LIPS_PX[1])]
    for loudness_T in (np.cos(np.arange(NUM_FRAMES) ** 1.3), np.full(NUM_FRAMES, -23.0)):
        assert chosen(*people, loudness_T=loudness_T) == 1


def test_one_face_needs_no_sound() -> None:
    def loudness() -> np.ndarray:
        raise AssertionError("reading the sound costs time")

    assert main_face(person(2.0, 0, SPEECH_PX), PARAMS, loudness) is not None
    # the lips of the second face rest
    assert (
        main_face(together(person(1.9, 0, STILL), person(2.0, 900, SPEECH_PX)), PARAMS, loudness) is not None
    )
    assert (
        main_face(together(person(2.0, 0, STILL), person(0.5, 900, SPEECH_PX)), PARAMS, loudness) is not None
    )


@pytest.mark.parametrize("fps", [25.0, 30.0])
def test_agreement_is_a_correlation_without_slow_changes(fps: float) -> None:
    rng = np.random.default_rng(1)
    height_N, loudness_T = rng.normal(size=(2, 80)).cumsum(axis=1)
    times_s_N = np.sort(rng.uniform(0, 80 / fps, 80))
    at_T = pd.Series(np.interp((np.arange(80) + 0.5) / fps, times_s_N, height_N))
    width = 2 * round(0.3 * fps) + 1

    def quick(values: pd.Series) -> pd.Series:
        padded = pd.concat([values.iloc[[0] * width], values, values.iloc[[-1] * width]], ignore_index=True)
        return (padded - padded.rolling(width, center=True).mean()).iloc[width:-width].reset_index(drop=True)

    lips, sound = quick(at_T), quick(pd.Series(loudness_T))
    expected = max(lips.corr(sound.shift(lag)) for lag in (-1, 0, 1))
    assert agreement(times_s_N, height_N, loudness_T, fps) == pytest.approx(expected)


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


@pytest.mark.realdata
@pytest.mark.parametrize("speaker_left", [True, False])
def test_of_two_real_people_who_both_speak_the_sound_chooses(
    realdata: Path, tmp_path: Path, speaker_left: bool
) -> None:
    """Motion chooses the same face whoever is heard."""
    names = ("s1/bbaf2n", "s1/bbaf4p")
    speaking = []
    for name in names:
        with av.open(str(realdata / "grid" / "video" / f"{name}.mp4")) as container:
            speaking.append([frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)])
    heard = names[0] if speaker_left else names[1]
    with av.open(str(realdata / "grid_audio" / f"{heard}.flac")) as container:
        resampler = av.AudioResampler("flt", "mono", 16_000)
        parts = [part for frame in container.decode(audio=0) for part in resampler.resample(frame)]
        sound_N = np.concatenate([part.to_ndarray()[0] for part in parts])
    video = write_talk(tmp_path / "two.mkv", side_by_side(*speaking), sound_N)
    cache = ClipCache(tmp_path / "cache")
    by_sound = PARAMS.model_copy(update={"speaker": "sound"})
    made, kept = (cache.crop(video, MediaKind.FACE, by_sound) for _ in range(2))
    assert kept.from_cache and kept.figures == made.figures
    assert made.figures.sound_agreement is not None
    assert made.track is not None and made.track.transform_T23 is not None
    middle = np.linalg.inv(np.vstack([made.track.transform_T23[30], [0, 0, 1]])) @ [48, 48, 1]
    assert (middle[0] < speaking[0][0].shape[1]) == speaker_left
    assert cache.crop(video, MediaKind.FACE, PARAMS).figures.sound_agreement is None
