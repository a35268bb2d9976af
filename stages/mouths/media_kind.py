"""Decides whether a video shows a face or is a ready mouth crop. If the size does not decide, its pictures do.

A picture shows a whole face if the detector finds one with a high enough logit that is not squeezed to the picture's
top (the detector takes the nostrils of a mouth crop for eyes). Otherwise the picture is placed at the mouth of a flat
drawn face. Then the mesh model is sure that this is a face only if the picture is a mouth.

Shapes: H height, W width of a picture, S side of the mesh model's view.
"""

import threading
from collections.abc import Iterator
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.errors import ClipRejected
from shards.schema import MediaKind
from stages.mouths.landmarker import face_mesh
from stages.mouths.landmarks import INNER_LIPS, LEFT_EYE_CORNERS, OUTER_LIPS, RIGHT_EYE_CORNERS
from stages.settings import CropParams, KindSetting
from stages.videos.media import Media
from stages.videos.picture import SourceFrame
from stages.videos.video import Header, decode

if TYPE_CHECKING:
    from stages.mouths.face_mesh import FaceMesh

MOUTH_MAX_PX = 300
"""A video with a longer side is a face video, without decoding. Ready mouths of public corpora are 46 to 256 px wide.
The smallest usual face videos (GRID, 360x288) are larger."""

MAX_PICTURES = 5
"""Most pictures that are examined, spread over the clip: the first often suffices."""

LONGEST_STEP_S = 2.0
"""Longest time from one picture to the next: hours of video are not decoded for this."""

FACE_LOGIT = 7.0
"""Least logit of a whole face: 515 of 521 pictures of faces of 88 to 224 px had more."""

FACE_HEIGHT = 0.44
"""A face is whole if its middle between eyes and mouth lies below this share of the picture's height. That holds for
98.8 % of those 515. In 99 % of mouth crops a falsely detected face has its middle at 0.425 or higher up."""

SMALL_FACE = 0.2
"""A face is also whole if its eyes are closer together than this share of the picture's width."""

CENTRED_LOGIT, SQUEEZED_LOGIT, CENTRED_EYES = 12.0, 12.0, 0.1
"""A face with the mouth in the picture's middle, as in LRW, is also whole: if its logit is above CENTRED_LOGIT, plus
SQUEEZED_LOGIT times how much its mesh is squeezed (eyes as far from each other as from the mouth), and its eyes are
CENTRED_EYES of the height below the top. That finds 92 % of such pictures, and a face in 0.9 % of mouth crops."""

USUAL_SQUEEZE = 0.8
"""Distance between the eyes divided by the distance from eyes to mouth, for a face towards the camera."""

MOUTH_LOGIT, SURE_LOGIT = 3.0, 7.0
"""A video is a mouth if its median score is above the first; a picture above the second suffices. docs/decisions.md."""

VIEW_PX = 256
_MOUTH_X, _MOUTH_Y, _MOUTH_WIDTH_PX = 128.0, 162.0, 60.0
"""Position and width of the mouth in the mesh model's view of a face."""
_MOUTH_SHARES = (0.48, 0.34, 0.6)
"""Shares of the crop's width that the mouth may take, the usual share first."""
_MISPLACED_PX, _MISPLACED_LOGIT = 6.0, 0.25
"""Lips further than this from the crop's middle are a fault: the logit falls by so much for each further pixel."""
_FLAT_LEVELS = 6.0
"""A picture with a smaller standard deviation of gray levels shows nothing."""
_GRAY_LEVELS = 4.0
"""A picture with a smaller mean difference of red and blue is gray: the model gets it in a skin tone."""
_SKIN_TONE = (1.2, 0.95, 0.85)

# x, y, sigmas in x and y, and weight of brows, eyes and nostrils, in pixels of the view
_FEATURES = (
    (90, 76, 16, 4, 0.6), (166, 76, 16, 4, 0.6), (93, 90, 11, 5, 1.0), (163, 90, 11, 5, 1.0),
    (115, 135, 5, 4, 0.3), (141, 135, 5, 4, 0.3),
)  # fmt: skip
_DARKEST = 0.2

_models = threading.local()


class _Face(Enum):
    """What the detector finds in a picture. DOUBTFUL: a mouth crop's nostrils may be taken for eyes."""

    NONE = 0
    DOUBTFUL = 1
    WHOLE = 2


def media_kind_of(media: Media, header: Header, setting: KindSetting, params: CropParams) -> MediaKind:
    """Returns the kind by `corpus.media_kind`. For `auto`, the size decides, and for small videos the pictures.

    A small video without a whole face that is not clearly a mouth is a face video: crop rejects it if it finds no face,
    and its message names the setting. Raises ClipRejected as `decode` does if no picture can be decoded, and
    MachineError if LiteRT is missing.
    """
    if setting != "auto":
        return MediaKind(setting)
    if max(header.width, header.height) > MOUTH_MAX_PX:
        return MediaKind.FACE
    num_whole, scores = 0, []
    for frame in _spread(media, header, params):
        face = _find_face(frame)
        if face is _Face.WHOLE:
            num_whole += 1
            continue
        scores.append(mouth_score(frame.rgb_HW3()))
        # one picture without a face suffices; with a doubtful face, two pictures are needed
        num_needed = 1 if face is _Face.NONE else 2
        if not num_whole and len(scores) >= num_needed and min(scores[-num_needed:]) > SURE_LOGIT:
            return MediaKind.MOUTH
    is_mouth = num_whole < len(scores) and np.median(scores) > MOUTH_LOGIT
    return MediaKind.MOUTH if is_mouth else MediaKind.FACE


def kind_hint(width: int, height: int) -> str:
    """Returns the end of a message about a video without a face, or ""."""
    # `auto` takes larger videos for faces, but they may be mouth crops
    if max(width, height) > 2 * MOUTH_MAX_PX:
        return ""
    return "; if its pictures are ready mouth crops, set corpus.media_kind: mouth"


def mouth_score(rgb_HW3: NDArray[np.uint8]) -> float:
    """Returns how similar a picture is to a mouth crop: a logit, from about -20 to 15."""
    if cv2.cvtColor(rgb_HW3, cv2.COLOR_RGB2GRAY).std() < _FLAT_LEVELS:
        return -20.0
    picture_HW3 = np.asarray(rgb_HW3 / 255, np.float32)
    if np.abs(picture_HW3[..., 0] - picture_HW3[..., 2]).mean() * 255 < _GRAY_LEVELS:
        picture_HW3 = np.asarray(np.minimum(picture_HW3 * np.array(_SKIN_TONE), 1), np.float32)
    best = -20.0
    for share in _MOUTH_SHARES:
        landmarks, logit = _mesh().fit_mesh(_drawn_into_face(picture_HW3, share))
        lips_2 = landmarks[list(OUTER_LIPS + INNER_LIPS), :2].mean(axis=0)
        off_px = float(np.hypot(*(lips_2 - (_MOUTH_X, _MOUTH_Y))))
        best = max(best, logit - _MISPLACED_LOGIT * max(0.0, off_px - _MISPLACED_PX))
        if best > SURE_LOGIT:
            break
    return best


def _spread(media: Media, header: Header, params: CropParams) -> Iterator[SourceFrame]:
    """Yields some pictures, including the first. A truncated video gives those before its end."""
    step_s = min((header.duration_s or np.inf) / MAX_PICTURES, LONGEST_STEP_S)
    num = 0
    try:
        for frame in decode(media, params):
            if frame.time_s >= num * step_s:
                yield frame
                num += 1
            if num == MAX_PICTURES:
                return
    except ClipRejected:
        # crop reports the damage; one picture is enough for the kind
        if not num:
            raise


def _find_face(frame: SourceFrame) -> _Face:
    found = _Face.NONE
    width, height = frame.size
    for mesh, logit in _mesh().faces_with_logits(frame):
        parts = (RIGHT_EYE_CORNERS, LEFT_EYE_CORNERS, OUTER_LIPS + INNER_LIPS)
        right, left, mouth = (mesh[list(part), :2].mean(axis=0) for part in parts)
        is_inside = all(0 <= eye[0] < width and 0 <= eye[1] < height for eye in (right, left))
        if not is_inside or not logit >= FACE_LOGIT:
            continue
        found = _Face.DOUBTFUL
        eyes = (right + left) / 2
        apart_px = float(np.linalg.norm(left - right))
        squeeze = apart_px / max(float(np.linalg.norm(eyes - mouth)), 1e-6) - USUAL_SQUEEZE
        is_centred = logit > CENTRED_LOGIT + SQUEEZED_LOGIT * squeeze and eyes[1] > CENTRED_EYES * height
        is_low = eyes[1] + mouth[1] > 2 * FACE_HEIGHT * height
        if is_low or apart_px < SMALL_FACE * width or is_centred:
            return _Face.WHOLE
    return found


def _mesh() -> "FaceMesh":
    """Returns the models of this thread: ingest examines several videos at once."""
    if not hasattr(_models, "mesh"):
        _models.mesh = face_mesh("corpus.media_kind to face or mouth")
    mesh: FaceMesh = _models.mesh
    return mesh


def _drawn_into_face(picture_HW3: NDArray[np.float32], mouth_share: float) -> NDArray[np.float32]:
    """Returns (S, S, 3), 0..1: a flat face in the colour of the crop's border, with the crop as its mouth."""
    rim = (picture_HW3[0], picture_HW3[-1], picture_HW3[:, 0], picture_HW3[:, -1])
    colour = np.median(np.concatenate(rim), axis=0)
    scale = _MOUTH_WIDTH_PX / mouth_share / picture_HW3.shape[1]
    height, width = (max(2, round(side * scale)) for side in picture_HW3.shape[:2])
    if scale < 1:
        picture_HW3 = np.asarray(
            cv2.resize(picture_HW3, (width, height), interpolation=cv2.INTER_AREA), np.float32
        )
    scale = _MOUTH_WIDTH_PX / mouth_share / picture_HW3.shape[1]
    middle_y, middle_x = ((side - 1) / 2 for side in picture_HW3.shape[:2])
    to_view_23 = np.array([[scale, 0, _MOUTH_X - scale * middle_x], [0, scale, _MOUTH_Y - scale * middle_y]])
    view = np.asarray(1 - _DARKEST * _features(), np.float32)[..., None] * colour.astype(np.float32)
    size = (VIEW_PX, VIEW_PX)
    return np.asarray(
        cv2.warpAffine(picture_HW3, to_view_23, size, dst=view, borderMode=cv2.BORDER_TRANSPARENT), np.float32
    )


@cache
def _features() -> NDArray[np.float64]:
    """Returns (S, S), 0..1: how dark a face is at brows, eyes and nostrils."""
    y, x = np.mgrid[:VIEW_PX, :VIEW_PX]
    parts = [
        weight * np.exp(-(((x - at_x) / sigma_x) ** 2 + ((y - at_y) / sigma_y) ** 2) / 2)
        for at_x, at_y, sigma_x, sigma_y, weight in _FEATURES
    ]
    return np.asarray(np.minimum(np.sum(parts, axis=0), 1), np.float64)
