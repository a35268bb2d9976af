"""The closed sets of values in the tables. Has no heavy imports, because `errors` uses it."""

import re
from enum import StrEnum

CLIP_ID_PATTERN = re.compile(r"[A-Za-z0-9_-]{1,120}")

TRAIN_SPLIT, VALID_SPLIT, TEST_SPLIT = "train", "valid", "test"
"""Training learns from `train` and selects the best model on `valid`; other splits are only scored."""

UNLABELLED_SPLIT = "unlabelled"
"""Clips without a label: training may read them (`loader.unlabelled_share`), and nothing scores them.

A clip of this split may have a label, which is hidden: nothing is trained on it."""


class MediaKind(StrEnum):
    FACE = "face"
    MOUTH = "mouth"


class Transfer(StrEnum):
    """Transfer characteristics of a video: SDR, or one of the two HDR curves of ITU-R BT.2100."""

    SDR = "sdr"
    PQ = "pq"
    HLG = "hlg"


class Status(StrEnum):
    OK = "ok"
    REJECTED = "rejected"


class Reason(StrEnum):
    """Why a clip was rejected: the closed set of reasons in crops.parquet."""

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
