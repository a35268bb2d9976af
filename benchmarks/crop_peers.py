"""The variants that the crop stage is compared with: decoding only, and the data preparation of public lip readers.

Each function processes one clip in one process, so that all run in the same pool.
"""

import zipfile
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from shards.schema import Status
from stages.clips.clip_work import Clip, Done
from stages.mouths.landmarker import model_bundle
from stages.mouths.landmarks import INNER_LIPS, LEFT_EYE_CORNERS, NOSE_BASE, OUTER_LIPS, RIGHT_EYE_CORNERS
from stages.videos.streams import select_video_stream

CANONICAL_4 = np.array([(102.07, 94.27), (156.36, 93.58), (129.00, 135.90), (129.31, 157.82)])
"""Eyes, nose and mouth of the mean face on 256x256; the detector finds the tip of the nose, which costs the same."""


def decode_only(clip: Clip) -> Done:
    """Decodes every picture on one thread and only touches its luma plane."""
    num_frames = 0
    with av.open(str(Path(clip.root) / clip.media)) as container:
        stream = select_video_stream(container, clip.media)
        stream.codec_context.thread_count = 1
        for picture in container.decode(stream):
            memoryview(picture.planes[0])[0]
            num_frames += 1
    return _done(clip, num_frames)


def auto_avsr_like(clip: Clip) -> Done:
    """Repeats auto_avsr's preparation with mediapipe, step by step, rewritten for this measurement.

    The whole video in colour, a face detection with four key points on every frame, key points averaged over up to
    13 frames, a similarity (LMedS) and a warp of the whole picture to 256x256 for each frame, gray, a crop of 96x96.
    The original needs an interface that mediapipe removed and a detector model that it no longer ships; this one uses
    the short-range detector, which is faster.
    """
    return _peer_loop(clip, _detected_key_points)


def mediapipe_loop(clip: Clip) -> Done:
    """Does the same with key points of mediapipe's FaceLandmarker, which its current interface offers instead."""
    return _peer_loop(clip, _landmarked_key_points)


def _peer_loop(clip: Clip, find: Callable[[Any], NDArray[np.float64] | None]) -> Done:
    import mediapipe

    with av.open(str(Path(clip.root) / clip.media)) as container:
        rgb_frames = [picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]
    points: list[NDArray[np.float64] | None] = []
    for rgb in rgb_frames:
        found = find(mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(rgb)))
        height, width = rgb.shape[:2]
        points.append(None if found is None else found * (width, height))
    seen = [i for i, p in enumerate(points) if p is not None]
    if seen:
        filled = np.stack([points[min(seen, key=lambda j: abs(i - j))] for i in range(len(points))])  # type: ignore[misc]
        clip_THW = np.stack([_patch(rgb, filled, i) for i, rgb in enumerate(rgb_frames)])
        assert clip_THW.shape[1:] == (96, 96)
    return _done(clip, len(rgb_frames))


def _detected_key_points(image: Any) -> NDArray[np.float64] | None:
    found = _detector().detect(image).detections
    return np.array([(p.x, p.y) for p in found[0].keypoints[:4]]) if found else None


def _landmarked_key_points(image: Any) -> NDArray[np.float64] | None:
    found = _landmarker().detect(image).face_landmarks
    if not found:
        return None
    parts = (RIGHT_EYE_CORNERS, LEFT_EYE_CORNERS, NOSE_BASE, OUTER_LIPS + INNER_LIPS)
    return np.array([np.mean([(found[0][i].x, found[0][i].y) for i in part], axis=0) for part in parts])


def _patch(rgb: NDArray[np.uint8], points_F42: NDArray[np.float64], i: int) -> NDArray[np.uint8]:
    margin = min(6, i, len(points_F42) - 1 - i)
    smoothed = points_F42[i - margin : i + margin + 1].mean(axis=0)
    smoothed += points_F42[i].mean(axis=0) - smoothed.mean(axis=0)
    matrix, _ = cv2.estimateAffinePartial2D(smoothed, CANONICAL_4, method=cv2.LMEDS)
    warped = cv2.warpAffine(rgb, matrix, (256, 256), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    gray = cv2.cvtColor(warped, cv2.COLOR_RGB2GRAY)
    x, y = (matrix @ [*smoothed[3], 1]).round().astype(int)
    return np.asarray(gray[max(0, y - 48) : y + 48, max(0, x - 48) : x + 48], np.uint8)


@cache
def _detector():  # type: ignore[no-untyped-def]
    from mediapipe.tasks.python import BaseOptions, vision

    with zipfile.ZipFile(BytesIO(model_bundle())) as models:
        model = models.read("face_detector.tflite")
    options = vision.FaceDetectorOptions(
        base_options=BaseOptions(model_asset_buffer=model), running_mode=vision.RunningMode.IMAGE
    )
    return vision.FaceDetector.create_from_options(options)


@cache
def _landmarker():  # type: ignore[no-untyped-def]
    from mediapipe.tasks.python import BaseOptions, vision

    options = vision.FaceLandmarkerOptions(
        base_options=BaseOptions(model_asset_buffer=model_bundle()), running_mode=vision.RunningMode.IMAGE
    )
    return vision.FaceLandmarker.create_from_options(options)


def _done(clip: Clip, num_frames: int) -> Done:
    row = {"clip_id": clip.clip_id, "status": Status.OK.value, "source_frames": num_frames}
    return Done(row, None, from_cache=False)
