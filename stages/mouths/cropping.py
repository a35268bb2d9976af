"""Cuts one mouth clip out of one video. Preprocessing and inference both call it.

Shapes: T output frames, H = W = params.size_px.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.errors import ClipRejected
from shards.schema import MediaKind, Reason, Transfer
from stages.mouths.face_search import SMALLEST_MOUTH_PX
from stages.mouths.face_tracking import track_faces
from stages.mouths.geometry import longest_gap, mouth_track
from stages.mouths.landmarks import FaceTrack, Landmarks
from stages.mouths.main_face import main_face
from stages.mouths.media_kind import kind_hint
from stages.mouths.mouth_pictures import MouthPatches
from stages.mouths.rendering import mouth_motion, render_from_track
from stages.mouths.voice import loudness_of
from stages.settings import CropParams
from stages.videos.media import Media, source_of
from stages.videos.picture import Window
from stages.videos.streams import mean_fps, resample
from stages.videos.video import decode, read_header

CODE_VERSION = 4
"""Raise it when the same video and parameters would give a different clip: it is part of every clip's cache key."""

HEADER_SLACK_S = 1.0
"""A video whose header announces more than `max_frames` plus this is rejected without decoding."""

FindLandmarks = Callable[[Media, CropParams, MouthPatches], Landmarks]
"""Returns the faces of a video. May keep decoded pixels in the patches."""


@dataclass
class Figures:
    """Measurements of a video, named as the columns of crops.parquet. None: cropping did not get that far."""

    source_fps: float | None = None
    source_width: int | None = None
    source_height: int | None = None
    source_transfer: Transfer | None = None
    source_frames: int | None = None
    num_frames: int | None = None
    duration_s: float | None = None
    num_faces: int | None = None
    detection_rate: float | None = None
    landmarked_frames: int | None = None
    bridged_frames: int | None = None
    implausible_frames: int | None = None
    mouth_width_px: float | None = None
    jitter_px: float | None = None
    yaw_deg: float | None = None
    sharpness: float | None = None
    mean_luma: float | None = None
    mouth_motion: float | None = None
    sound_agreement: float | None = None

    def as_row(self) -> dict[str, float | int | str | None]:
        return asdict(self)


@dataclass(frozen=True)
class MouthClip:
    """A mouth clip, how it was cut, and its figures.

    `transform_T23` (source pixel to crop pixel, float32) is None for ready mouth crops. `frame_index_T` holds the
    source frame of each output frame, `landmarked` the source frames searched for a face (both int32).
    """

    clip_THW: NDArray[np.uint8]
    transform_T23: NDArray[np.float32] | None
    frame_index_T: NDArray[np.int32]
    landmarked: NDArray[np.int32]
    figures: Figures


def crop_video(
    media: Media,
    media_kind: MediaKind,
    params: CropParams,
    figures: Figures | None = None,
    find_landmarks: FindLandmarks = track_faces,
) -> MouthClip:
    """Returns the mouth of a video at `target_fps`, gray, uint8, `size_px` square.

    Raises ClipRejected with a reason of the closed enum. `figures` is filled as measurements become known, so after
    a rejection it holds what was measured until then. `find_landmarks` may read a cache.
    """
    figures = Figures() if figures is None else figures
    header = read_header(media, params)
    figures.source_fps, figures.source_width, figures.source_height = header.fps, header.width, header.height
    longest_s = params.max_frames / params.target_fps + HEADER_SLACK_S
    if header.duration_s is not None and header.duration_s > longest_s:
        raise _too_long(media, header.duration_s * params.target_fps, params)
    patches = MouthPatches()
    if media_kind is MediaKind.MOUTH:
        times_s_F = _keep_whole(media, params, patches, figures)
        landmarks = None
    else:
        landmarks = find_landmarks(media, params, patches)
        times_s_F = landmarks.times_s_F
        figures.source_width, figures.source_height = landmarks.width, landmarks.height
        figures.source_transfer = landmarks.transfer
        figures.num_faces, figures.landmarked_frames = landmarks.num_faces, len(landmarks.landmarked)
    return cut_mouth(media, landmarks, times_s_F, params, patches, figures)


def cut_mouth(
    media: Media,
    landmarks: Landmarks | None,
    times_s_F: NDArray[np.float64],
    params: CropParams,
    patches: MouthPatches,
    figures: Figures,
) -> MouthClip:
    """Cuts the mouth out of a video (or part) with known faces. `landmarks` None: its pictures are mouths.

    Decodes the video again only if `patches` lack pixels. Raises ClipRejected.
    """
    frame_index_T = resample(times_s_F, params.target_fps)
    figures.source_frames = len(times_s_F)
    figures.source_fps = mean_fps(times_s_F) or figures.source_fps
    figures.num_frames = len(frame_index_T)
    figures.duration_s = float(times_s_F[-1] + _step_s(times_s_F, params))
    _check_length(media, len(frame_index_T), params)
    transform_T23 = None
    if landmarks is not None:
        transform_T23 = _transform(media, landmarks, frame_index_T, params, figures)
    clip_THW = render_from_track(media, transform_T23, frame_index_T, params, patches)
    figures.mean_luma = float(clip_THW.mean())
    figures.sharpness = float(np.median([cv2.Laplacian(crop, cv2.CV_64F).var() for crop in clip_THW]))
    figures.mouth_motion = mouth_motion(clip_THW, params.target_fps)
    if figures.mouth_motion < params.min_mouth_motion:
        raise ClipRejected(
            Reason.STILL_MOUTH,
            f"the mouth moves by {figures.mouth_motion:.3f} of the crop's contrast; crop.min_mouth_motion is "
            f"{params.min_mouth_motion:g}. Check for a still picture or a covered mouth",
        )
    searched = np.zeros(0, np.int32) if landmarks is None else landmarks.landmarked
    return MouthClip(clip_THW, transform_T23, frame_index_T, searched, figures)


def _keep_whole(
    media: Media, params: CropParams, patches: MouthPatches, figures: Figures
) -> NDArray[np.float64]:
    """Returns the times of all pictures. Keeps the whole pictures in `patches`."""
    times_s = []
    for frame in decode(media, params):
        times_s.append(frame.time_s)
        figures.source_transfer = frame.transfer
        patches.keep(frame, Window(0, 0, *frame.size))
    return np.array(times_s)


def _transform(
    media: Media,
    landmarks: Landmarks,
    frame_index_T: NDArray[np.int32],
    params: CropParams,
    figures: Figures,
) -> NDArray[np.float32]:
    """Returns the transform of each output frame. Raises ClipRejected if the face is not good enough."""
    num_frames = len(landmarks.times_s_F)
    loudness = partial(loudness_of, media, len(frame_index_T), params) if params.speaker == "sound" else None
    face = main_face(landmarks, params, loudness)
    if face is None:
        figures.detection_rate = 0.0
        raise ClipRejected(
            Reason.NO_FACE,
            f"no face found in {num_frames} frames; the smallest face searched has a mouth of "
            f"{max(params.min_mouth_width_px, SMALLEST_MOUTH_PX):g} px (crop.min_mouth_width_px)"
            f"{kind_hint(landmarks.width, landmarks.height)}",
        )
    figures.detection_rate = len(face.frame_N) / num_frames
    figures.sound_agreement = face.sound_agreement
    figures.bridged_frames = int((~np.isin(frame_index_T, face.frame_N)).sum())
    figures.implausible_frames = len(face.implausible_frames)
    if face.cut_frames:
        at_s = ", ".join(f"{landmarks.times_s_F[frame]:.2f}" for frame in face.cut_frames)
        raise ClipRejected(
            Reason.SCENE_CUT,
            f"the video cuts to another shot at {at_s} s; split the clip and its transcript there",
        )
    _check_seen(landmarks, face, params)
    track = mouth_track(face, landmarks.times_s_F, frame_index_T, params)
    figures.mouth_width_px, figures.yaw_deg = track.mouth_width_px, track.yaw_deg
    figures.jitter_px = track.jitter_px
    for reason, value, limit, name, fault in (
        (Reason.SMALL_MOUTH, -track.mouth_width_px, -params.min_mouth_width_px, "min_mouth_width_px",
         f"the mouth is {track.mouth_width_px:.2f} px wide"),
        (Reason.TURNED_AWAY, track.yaw_deg, params.max_yaw_deg, "max_yaw_deg",
         f"the head is turned sideways by {track.yaw_deg:.0f} degrees"),
        (Reason.UNSTABLE_TRACK, track.jitter_px, params.max_jitter_px, "max_jitter_px",
         f"the face moves {track.jitter_px:.1f} px per frame in the crop (crop.smoothing_s {params.smoothing_s:g}, "
         f"crop.max_lag_px {params.max_lag_px:g})"),
    ):  # fmt: skip
        if value > limit:
            raise ClipRejected(reason, f"{fault}; crop.{name} is {abs(limit):g}")
    return track.transform_T23


def _check_seen(landmarks: Landmarks, face: FaceTrack, params: CropParams) -> None:
    """Raises ClipRejected if the mouth is detected in too few frames, or one gap is too long."""
    fault = _detection_fault(landmarks, face.frame_N, params)
    if fault is None:
        return
    in_picture_or_not = np.sort(np.concatenate([face.frame_N, np.array(face.outside_frames, np.int32)]))
    if _detection_fault(landmarks, in_picture_or_not, params) is None:
        share = len(face.outside_frames) / len(landmarks.times_s_F)
        raise ClipRejected(
            Reason.MOUTH_OUTSIDE,
            f"the edge of the picture cuts off the mouth or the chin in {share:.0%} of the frames, too many for "
            "crop.min_detection_rate or crop.max_gap_s; use a video that shows the whole mouth",
        )
    raise ClipRejected(Reason.LOW_DETECTION, fault)


def _detection_fault(landmarks: Landmarks, frame_N: NDArray[np.int32], params: CropParams) -> str | None:
    rate = len(frame_N) / len(landmarks.times_s_F)
    if rate < params.min_detection_rate or not len(frame_N):
        return (
            f"the mouth is detected in {rate:.0%} of the frames; "
            f"crop.min_detection_rate is {params.min_detection_rate:.0%}"
        )
    begin_s, end_s = longest_gap(landmarks.times_s_F, frame_N, _step_s(landmarks.times_s_F, params))
    if end_s - begin_s > params.max_gap_s + 1e-6:
        return (
            f"the mouth is not detected from {begin_s:.2f} to {end_s:.2f} s, which is longer than crop.max_gap_s "
            f"({params.max_gap_s:g} s)"
        )
    return None


def _check_length(media: Media, num_frames: int, params: CropParams) -> None:
    if num_frames > params.max_frames:
        raise _too_long(media, num_frames, params)
    if num_frames < params.min_frames:
        raise ClipRejected(
            Reason.TOO_SHORT,
            f"the clip has {num_frames} frames at {params.target_fps:g} fps; crop.min_frames is {params.min_frames}",
        )


def _too_long(media: Media, num_frames: float, params: CropParams) -> ClipRejected:
    advice = (
        "Give shorter parts in the corpus table (columns start and end): crop.split_long only cuts whole videos"
        if source_of(media).is_part
        else "Set crop.split_long: true to cut it at pauses; a clip with a label also needs a transcript with times "
        "(.align, .TextGrid, .srt, .vtt) next to the video"
    )
    return ClipRejected(
        Reason.TOO_LONG,
        f"the clip has {num_frames:.0f} frames at {params.target_fps:g} fps; crop.max_frames is {params.max_frames}. "
        f"{advice}, or raise the limit",
    )


def _step_s(times_s_F: NDArray[np.float64], params: CropParams) -> float:
    return float(np.median(np.diff(times_s_F))) if len(times_s_F) > 1 else 1 / params.target_fps
