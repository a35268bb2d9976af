"""The limits on requests, and the messages of refused requests for people who are not engineers.

There is one message for each reason of crops.parquet and of the server, with a status.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.inference.text_of_video import AT_REST
from shards.schema import Reason

BAD_REQUEST, FOREIGN, WRONG_HOST, TOO_LARGE, SLOW_UPLOAD, BUSY, STOPPING, NO_READER, NO_ROOM = (
    "bad_request", "foreign", "wrong_host", "too_large", "slow_upload", "busy", "stopping", "no_reader", "no_room",
)  # fmt: skip

_STATUS = {
    BAD_REQUEST: 400, FOREIGN: 403, SLOW_UPLOAD: 408, TOO_LARGE: 413, WRONG_HOST: 421, BUSY: 503, STOPPING: 503,
    NO_READER: 500, NO_ROOM: 507, Reason.CRASHED: 500, Reason.TIMEOUT: 504, Reason.OVERSIZED: 413,
}  # fmt: skip
_UNREADABLE_VIDEO = 422

_MESSAGES: Mapping[str, str] = {
    Reason.NO_FACE: "No face was found. Look into the camera in good light, with the whole face in the picture.",
    Reason.LOW_DETECTION: "The mouth is hidden or outside the picture for too long. Keep the whole face in view.",
    Reason.MOUTH_OUTSIDE: "The edge of the picture cuts off the mouth or the chin. Show the whole face.",
    Reason.SCENE_CUT: "The video changes to another scene. Split it there and try each part.",
    Reason.SMALL_MOUTH: "The mouth is too small to read. Come closer to the camera, or crop the video to the face.",
    Reason.TURNED_AWAY: "The head is turned too far to the side. Look towards the camera.",
    Reason.UNSTABLE_TRACK: "The face moves too much. Keep the camera and the head still.",
    Reason.STILL_MOUTH: "The mouth does not move, or something covers it. Show a face that speaks.",
    Reason.TOO_SHORT: "The video is too short to read. Say at least a word or two.",
    Reason.TOO_LONG: "The video is too long to read as one piece. Split it into sentences.",
    Reason.NO_VIDEO: "The file contains no moving pictures. Choose a video.",
    Reason.UNREADABLE: "This file cannot be opened as a video. MP4, WebM, MOV, MKV, AVI and MPEG files work.",
    Reason.TRUNCATED: "The video ends too early, or pictures are missing in the middle. Record or copy it again.",
    Reason.CRASHED: "Reading this video failed, and the reader was restarted. Other videos can be read.",
    STOPPING: "The server is shutting down. Start it again with: pipeline serve",
    BUSY: "Too many videos are waiting. Try again in a minute.",
    BAD_REQUEST: "The request contains no video. Send it as multipart/form-data, in the field `video`.",
    NO_ROOM: "The server has no disk space to store the video while it reads it. Free some space on its disk, or start "
    "it with TMPDIR set to a folder with free space.",
    AT_REST: "Nobody speaks in this video: the mouth does not move.",
    FOREIGN: "Another website sent this request. Only this server's own page may send requests.",
    WRONG_HOST: "This is not the server's own address. Use the address that `pipeline serve` prints.",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """A request beyond one of these limits is refused with a message."""

    max_upload_mb: float = 100.0
    """Size of the whole request, 1 MB = 10^6 bytes."""
    max_video_s: float = 60.0
    timeout_s: float = 120.0
    """Time for one video, from the start of its reading."""
    max_places: int = 8
    """Number of videos that are uploaded, waiting or being read."""
    pause_s: float = 10.0
    """A connection without any transfer for this time is closed."""
    slowest_kb_s: float = 50.0
    """A slower upload, as a mean over about `pause_s`, is stopped; 1 kB = 10^3 bytes."""

    @property
    def max_upload_bytes(self) -> int:
        return int(self.max_upload_mb * 1e6)


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer if there is no reading."""

    status: int
    reason: str
    message: str
    """For everybody."""
    detail: str | None
    """For engineers."""

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "status"}


def refusal(reason: str, limits: Limits, detail: str | None = None) -> Refusal:
    """Returns the answer for a reason of crops.parquet or of this module."""
    messages = {
        Reason.OVERSIZED: f"The video is too long or its pictures are too large: at most {limits.max_video_s:g} s, "
        "and pictures up to 4K. Choose a shorter or smaller video.",
        Reason.TIMEOUT: f"Reading this video took longer than {limits.timeout_s:g} s and was stopped. Try a shorter "
        "video.",
        SLOW_UPLOAD: f"The upload stopped or was slower than {limits.slowest_kb_s:g} kB per second, so it was "
        "cancelled. Try again over a faster connection.",
        TOO_LARGE: f"The file is too large: at most {limits.max_upload_mb:g} MB. Choose a smaller file.",
    }
    message = messages.get(reason) or _MESSAGES.get(reason) or "The video could not be read."
    return Refusal(_STATUS.get(reason, _UNREADABLE_VIDEO), str(reason), message, detail)
