"""One mouth clip from one video: what preprocessing and inference alike call.

Shapes: T output frames, H = W = params.size_px.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.errors import ClipRejected
from shards.schema import MediaKind, Reason
from stages.geometry import inside, longest_gap, mouth_track
from stages.landmarks import Landmarks, landmark_video, main_face
from stages.settings import CropParams
from stages.video import decode, mean_fps, read_header, resample

CODE_VERSION = 1
"""Raise it when the same video and parameters would give another clip: it is part of every clip's cache key."""

HEADER_SLACK_S = 1.0
"""A header that announces more than `max_frames` by this much is believed without decoding."""

FindLandmarks = Callable[[Path, CropParams], Landmarks]


@dataclass
class Figures:
    """What was measured of a video, named as the columns of crops.parquet; None where it was not reached."""

    source_fps: float | None = None
    source_width: int | None = None
    source_height: int | None = None
    source_frames: int | None = None
    num_frames: int | None = None
    duration_s: float | None = None
    num_faces: int | None = None
    detection_rate: float | None = None
    landmarked_frames: int | None = None
    bridged_frames: int | None = None
    mouth_width_px: float | None = None
    jitter_px: float | None = None
    yaw_deg: float | None = None
    sharpness: float | None = None
    mean_luma: float | None = None

    def as_row(self) -> dict[str, float | int | None]:
        return asdict(self)


@dataclass(frozen=True)
class MouthClip:
    """A mouth clip, how it was cut, and its figures.

    `transform_T23` (source pixel to crop pixel, float32) is None for ready mouth crops; `frame_index_T` holds the
    source frame shown at each output frame, `landmarked` the source frames searched for a face (both int32).
    """

    clip_THW: NDArray[np.uint8]
    transform_T23: NDArray[np.float32] | None
    frame_index_T: NDArray[np.int32]
    landmarked: NDArray[np.int32]
    figures: Figures


def crop_video(
    path: Path,
    media_kind: MediaKind,
    params: CropParams,
    figures: Figures | None = None,
    find_landmarks: FindLandmarks = landmark_video,
) -> MouthClip:
    """The mouth of the video at `path` at `target_fps`, gray, uint8, `size_px` square.

    Raises ClipRejected with a reason of the closed enum; what was measured until then stands in `figures`, which
    is filled as it becomes known. `find_landmarks` may come from a cache.
    """
    figures = Figures() if figures is None else figures
    header = read_header(path, params)
    figures.source_fps, figures.source_width, figures.source_height = header.fps, header.width, header.height
    longest_s = params.max_frames / params.target_fps + HEADER_SLACK_S
    if header.duration_s is not None and header.duration_s > longest_s:
        raise _too_long(header.duration_s * params.target_fps, params)
    if media_kind is MediaKind.MOUTH:
        times_s_F = np.array([frame.time_s for frame in decode(path, params)])
        landmarks = None
    else:
        landmarks = find_landmarks(path, params)
        times_s_F = landmarks.times_s_F
        figures.source_width, figures.source_height = landmarks.width, landmarks.height
        figures.num_faces, figures.landmarked_frames = landmarks.num_faces, len(landmarks.landmarked)
    frame_index_T = resample(times_s_F, params.target_fps)
    figures.source_frames = len(times_s_F)
    figures.source_fps = mean_fps(times_s_F) or header.fps
    figures.num_frames = len(frame_index_T)
    figures.duration_s = float(times_s_F[-1] + _step_s(times_s_F, params))
    _check_length(len(frame_index_T), params)
    transform_T23 = None
    if landmarks is not None:
        transform_T23 = _transform(landmarks, frame_index_T, params, figures)
    clip_THW = render_from_track(path, transform_T23, frame_index_T, params)
    figures.mean_luma = float(clip_THW.mean())
    figures.sharpness = float(np.median([cv2.Laplacian(crop, cv2.CV_64F).var() for crop in clip_THW]))
    searched = np.zeros(0, np.int32) if landmarks is None else landmarks.landmarked
    return MouthClip(clip_THW, transform_T23, frame_index_T, searched, figures)


def render_from_track(
    path: Path,
    transform_T23: NDArray[np.float32] | None,
    frame_index_T: NDArray[np.int32],
    params: CropParams,
) -> NDArray[np.uint8]:
    """The clip (T, size_px, size_px) that a known track cuts from `path`: the same bytes each time.

    Without a transform the whole picture, which must be square, is the mouth. One picture is held at a time.
    Raises ClipRejected as `video.decode` does, and `truncated` where the file ends before the track.
    """
    size = (params.size_px, params.size_px)
    clip_THW = np.empty((len(frame_index_T), *size), np.uint8)
    shrink = 1 if transform_T23 is None else _shrink(transform_T23)
    done = 0
    for frame in decode(path, params):
        if done == len(frame_index_T):
            break  # the last pictures are shown at no output frame
        if frame.index != frame_index_T[done]:
            continue
        gray_HW = frame.gray_HW()
        picture = _resized(gray_HW, size, path) if transform_T23 is None else _area_shrunk(gray_HW, shrink)
        while done < len(frame_index_T) and frame_index_T[done] == frame.index:
            clip_THW[done] = (
                picture if transform_T23 is None else _warp(picture, transform_T23[done], shrink, size)
            )
            done += 1
    if done < len(frame_index_T):
        raise ClipRejected(
            Reason.TRUNCATED, f"{path.name} ends before frame {frame_index_T[done]}, which its track shows"
        )
    return clip_THW


def _transform(
    landmarks: Landmarks, frame_index_T: NDArray[np.int32], params: CropParams, figures: Figures
) -> NDArray[np.float32]:
    """The window of each output frame; raises ClipRejected where the face is not good enough."""
    num_landmarked = len(landmarks.landmarked)
    face = main_face(landmarks, params)
    if face is None:
        figures.detection_rate = 0.0
        raise ClipRejected(Reason.NO_FACE, f"no face in {num_landmarked} frames")
    face = inside(face, landmarks.width, landmarks.height)
    figures.detection_rate = len(face.frame_N) / num_landmarked
    figures.bridged_frames = int((~np.isin(frame_index_T, face.frame_N)).sum())
    if figures.detection_rate < params.min_detection_rate or not len(face.frame_N):
        raise ClipRejected(
            Reason.LOW_DETECTION,
            f"the mouth is seen in {figures.detection_rate:.0%} of the frames, "
            f"crop.min_detection_rate asks for {params.min_detection_rate:.0%}",
        )
    step_s = _step_s(landmarks.times_s_F, params)
    begin_s, end_s = longest_gap(landmarks.times_s_F, face.frame_N, step_s)
    if end_s - begin_s > params.max_gap_s + 1e-6:
        raise ClipRejected(
            Reason.LOW_DETECTION,
            f"the mouth is not seen from {begin_s:.2f} to {end_s:.2f} s, longer than crop.max_gap_s "
            f"({params.max_gap_s:g} s)",
        )
    track = mouth_track(face, landmarks.times_s_F, num_landmarked, frame_index_T, params)
    figures.mouth_width_px, figures.yaw_deg = track.mouth_width_px, track.yaw_deg
    figures.jitter_px = track.jitter_px
    for reason, value, limit, name, fault in (
        (Reason.SMALL_MOUTH, -track.mouth_width_px, -params.min_mouth_width_px, "min_mouth_width_px",
         f"the mouth is {track.mouth_width_px:.1f} px wide"),
        (Reason.TURNED_AWAY, track.yaw_deg, params.max_yaw_deg, "max_yaw_deg",
         f"the head is turned by {track.yaw_deg:.0f} degrees"),
        (Reason.UNSTABLE_TRACK, track.jitter_px, params.max_jitter_px, "max_jitter_px",
         f"the face moves {track.jitter_px:.1f} px a frame in the crop"),
    ):  # fmt: skip
        if value > limit:
            raise ClipRejected(reason, f"{fault}; crop.{name} is {abs(limit):g}")
    return track.transform_T23


def _check_length(num_frames: int, params: CropParams) -> None:
    if num_frames > params.max_frames:
        raise _too_long(num_frames, params)
    if num_frames < params.min_frames:
        raise ClipRejected(
            Reason.TOO_SHORT,
            f"{num_frames} frames at {params.target_fps:g} fps; crop.min_frames is {params.min_frames}",
        )


def _too_long(num_frames: float, params: CropParams) -> ClipRejected:
    return ClipRejected(
        Reason.TOO_LONG,
        f"{num_frames:.0f} frames at {params.target_fps:g} fps; crop.max_frames is {params.max_frames}. "
        "Cut the clip at pauses, or raise the limit",
    )


def _step_s(times_s_F: NDArray[np.float64], params: CropParams) -> float:
    return float(np.median(np.diff(times_s_F))) if len(times_s_F) > 1 else 1 / params.target_fps


def _shrink(transform_T23: NDArray[np.float32]) -> int:
    """Whole factor by which pictures are shrunk before the warp, one for the clip so that it cannot flicker.

    Bilinear sampling reads four pixels; below half scale it would skip some and shimmer.
    """
    scales = np.hypot(transform_T23[:, 0, 0], transform_T23[:, 1, 0])
    return max(1, int(1 / np.median(scales)))


def _area_shrunk(gray_HW: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    height, width = (side // factor for side in gray_HW.shape)
    if factor == 1 or not height or not width:
        return gray_HW
    whole = gray_HW[: height * factor, : width * factor]
    return np.asarray(cv2.resize(whole, (width, height), interpolation=cv2.INTER_AREA), np.uint8)


def _warp(
    shrunk_HW: NDArray[np.uint8], transform_23: NDArray[np.float32], shrink: int, size: tuple[int, int]
) -> NDArray[np.uint8]:
    # the middle of a cell of factor f lies at f i + (f - 1) / 2 of the picture's pixels
    to_source_33 = np.diag([shrink, shrink, 1.0])
    to_source_33[:2, 2] = (shrink - 1) / 2
    matrix = transform_23.astype(np.float64) @ to_source_33
    return np.asarray(
        cv2.warpAffine(shrunk_HW, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
        np.uint8,
    )


def _resized(gray_HW: NDArray[np.uint8], size: tuple[int, int], path: Path) -> NDArray[np.uint8]:
    height, width = gray_HW.shape
    if height != width:
        raise ClipRejected(
            Reason.UNREADABLE, f"{path.name} is {width}x{height}; a ready mouth clip must be square"
        )
    if (height, width) == size:
        return gray_HW
    interpolation = cv2.INTER_AREA if height > size[0] else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(gray_HW, size, interpolation=interpolation), np.uint8)
