"""The closed sets of words that the tables use. Imports nothing heavy, so that errors can name them."""

import re
from enum import StrEnum

CLIP_ID_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,120}")

TRAIN_SPLIT, VALID_SPLIT = "train", "valid"
"""The splits that training learns from, and chooses its best model by; all others are only scored."""


class MediaKind(StrEnum):
    FACE = "face"
    MOUTH = "mouth"


class Transfer(StrEnum):
    """How a video's code values stand for light: SDR, or HDR by either curve of ITU-R BT.2100."""

    SDR = "sdr"
    PQ = "pq"
    HLG = "hlg"


class Status(StrEnum):
    OK = "ok"
    REJECTED = "rejected"


class Reason(StrEnum):
    """Why a clip was rejected: the closed set that crops.parquet may hold."""

    MISSING_FILE = "missing_file"
    UNREADABLE = "unreadable"
    UNSAFE_PATH = "unsafe_path"
    NO_VIDEO = "no_video"
    TRUNCATED = "truncated"
    OVERSIZED = "oversized"
    NO_FACE = "no_face"
    LOW_DETECTION = "low_detection"
    MOUTH_OUTSIDE = "mouth_outside"
    SCENE_CUT = "scene_cut"
    SMALL_MOUTH = "small_mouth"
    TURNED_AWAY = "turned_away"
    UNSTABLE_TRACK = "unstable_track"
    STILL_MOUTH = "still_mouth"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    EMPTY_TEXT = "empty_text"
    LABEL_TOO_LONG = "label_too_long"
    CRASHED = "crashed"
    TIMEOUT = "timeout"
