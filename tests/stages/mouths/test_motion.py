"""The motion of the mouth in its crop: large for speakers, almost 0 for still pictures and covered mouths."""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.schema import MediaKind, Reason
from stages.mouths.cropping import crop_video
from stages.mouths.rendering import mouth_motion
from stages.settings import CropParams
from tests.support.pictures import pictures_of, rejected
from tests.support.videos import face_pictures, mouth_pictures, placed, write_video

pytestmark = pytest.mark.usefixtures("networks_once")

PARAMS = CropParams()
LIMIT = 0.1
"""The limit that params.yaml suggests."""
STEPS = np.arange(50) / 50


def gray(pictures: Sequence[np.ndarray]) -> np.ndarray:
    return np.stack([cv2.cvtColor(one, cv2.COLOR_BGR2GRAY) for one in pictures])


def still_crops(*placements: np.ndarray) -> np.ndarray:
    """Returns crops of the photograph's still mouth, placed by these 2x3 matrices from crop to crop."""
    scale = 0.45 * 96 / 37
    canonical = np.array([[scale, 0, 47.5 - scale * 223], [0, scale, 47.5 - scale * 144], [0, 0, 1]])
    return gray(list(face_pictures([placement @ canonical for placement in placements], 96, 96)))


def turned(degrees: float = 0.0, scale: float = 1.0, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    matrix = cv2.getRotationMatrix2D((47.5, 47.5), degrees, scale)
    matrix[:, 2] += (x, y)
    return np.asarray(matrix)


def noisy(clip_THW: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, sigma, clip_THW.shape)
    return np.clip(clip_THW + noise, 0, 255).astype(np.uint8)


MOVED = {
    "nothing": [turned()] * 50,
    "pan": [turned(x=4 * np.sin(9 * t)) for t in STEPS],
    "shake": [turned(x=4 * np.sin(40 * t), y=2 * np.sin(50 * t)) for t in STEPS],
    "zoom": [turned(scale=1 + 0.3 * t) for t in STEPS],
    "roll": [turned(8 * np.sin(12 * t)) for t in STEPS],
}


@pytest.mark.parametrize("sigma", [0, 2, 5, 10])
@pytest.mark.parametrize("name", MOVED)
def test_a_still_picture_stays_below_the_limit(name: str, sigma: float) -> None:
    clip = noisy(still_crops(*MOVED[name]), sigma)
    assert mouth_motion(clip, 25) < LIMIT


@pytest.mark.parametrize("name", MOVED)
def test_a_change_of_light_is_not_motion(name: str) -> None:
    light = 1 + 0.3 * np.sin(8 * STEPS)[:, None, None]
    clip = np.clip(still_crops(*MOVED[name]) * light, 0, 255).astype(np.uint8)
    assert mouth_motion(clip, 25) < LIMIT


@pytest.mark.parametrize("gain", [0.3, 1.0])
@pytest.mark.parametrize("sigma", [0, 5])
def test_a_speaker_is_above_the_limit(gain: float, sigma: float) -> None:
    clip = noisy((gray(mouth_pictures(50)) * gain).astype(np.uint8), sigma)
    assert mouth_motion(clip, 25) > 3 * LIMIT


def test_the_motion_is_the_change_of_the_mouth() -> None:
    """By its definition, for a mouth that jumps between two gray levels, at any frame rate."""
    x = np.linspace(0, 4 * np.pi, 96)
    texture = 128 + 30 * np.sin(x)[None, :] * np.cos(x)[:, None]
    open_, closed = texture.copy(), texture.copy()
    open_[28:70, 22:74] += 20
    closed[28:70, 22:74] -= 20
    for fps, frames_each in ((25, 3), (50, 6), (100, 12)):
        states = [open_ if t // frames_each % 2 else closed for t in range(8 * frames_each + 1)]
        clip = np.stack(states).round().astype(np.uint8)
        contrast = np.median([cv2.resize(one, (48, 48), interpolation=cv2.INTER_AREA).std() for one in clip])
        assert mouth_motion(clip, fps) == pytest.approx(40 / contrast, rel=0.06)


@pytest.mark.parametrize("num_frames", [1, 2, 3])
def test_clips_with_few_frames(num_frames: int) -> None:
    assert mouth_motion(gray(mouth_pictures(num_frames)), 25) >= 0
    assert mouth_motion(np.full((num_frames, 96, 96), 90, np.uint8), 25) == 0


# -- from video to figures ------------------------------------------------------------------------------------


def test_the_limit_rejects_only_if_it_is_set(tmp_path: Path) -> None:
    still = write_video(tmp_path / "still.mp4", list(face_pictures([placed()])) * 20)
    speaking = write_video(tmp_path / "speaking.mp4", face_pictures([placed()] * 20, speaking=True))
    strict = PARAMS.model_copy(update={"min_mouth_motion": LIMIT})
    assert crop_video(still, MediaKind.FACE, PARAMS).figures.mouth_motion < LIMIT
    error, figures = rejected(still, strict)
    assert error.reason is Reason.STILL_MOUTH and "crop.min_mouth_motion is 0.1" in error.detail
    assert figures.mouth_motion is not None and figures.mouth_motion < LIMIT
    motion = crop_video(speaking, MediaKind.FACE, strict).figures.mouth_motion
    assert motion is not None and motion > LIMIT
    ready = write_video(tmp_path / "ready.mp4", mouth_pictures(20))
    motion = crop_video(ready, MediaKind.MOUTH, strict).figures.mouth_motion
    assert motion is not None and motion > LIMIT


def painted(pictures: list[np.ndarray]) -> list[np.ndarray]:
    """Returns the pictures with a gray rectangle over the mouth of GRID's two speakers."""
    covered = [picture.copy() for picture in pictures]
    for picture in covered:
        picture[180:250, 110:230] = 128
    return covered


def shaken(pictures: list[np.ndarray]) -> list[np.ndarray]:
    """Returns one picture filmed by a shaking hand: more motion than the fit follows, within the limit of jitter."""
    height, width = pictures[30].shape[:2]
    turns = 2 * np.pi * np.arange(len(pictures)) / len(pictures)
    moves = [np.array([[1, 0, 27.0 * np.sin(1.5 * t)], [0, 1, 10 * np.sin(4 * t + 1)]]) for t in turns]
    return [
        cv2.warpAffine(pictures[30], move, (width, height), borderMode=cv2.BORDER_REPLICATE) for move in moves
    ]


@pytest.mark.realdata
@pytest.mark.parametrize("change", [None, painted, lambda pictures: [pictures[30]] * len(pictures), shaken])
def test_real_speakers_are_above_the_limit_and_still_mouths_below(
    realdata: Path, tmp_path: Path, change: Callable[[list[np.ndarray]], list[np.ndarray]] | None
) -> None:
    """The videos are strongly compressed."""
    paths = [
        *sorted((realdata / "grid/video/s1").glob("*.mp4"))[:2],
        *sorted((realdata / "grid/video/s26").glob("*"))[:2],
    ]
    for path in paths:
        pictures = pictures_of(path, 50)
        shown = pictures if change is None else change(pictures)
        video = write_video(tmp_path / "a.mp4", shown, options={"crf": "35"})
        motion = crop_video(video, MediaKind.FACE, PARAMS).figures.mouth_motion
        assert motion is not None and (motion > LIMIT) is (change is None), path.name
