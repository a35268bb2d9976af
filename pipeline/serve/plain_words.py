"""What went wrong, for people: the ledger's reasons and the server's own, each with a status code of HTTP."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.inference.text_of_video import AT_REST
from pipeline.serve.limits import Limits
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
    Reason.LOW_DETECTION: "The mouth is hidden or out of the picture for too long. Keep the whole face in view.",
    Reason.MOUTH_OUTSIDE: "The edge of the picture cuts off the mouth or the chin. Show the whole face.",
    Reason.SCENE_CUT: "The video cuts to another shot in the middle of what is read. Cut it there, and try each part.",
    Reason.SMALL_MOUTH: "The mouth is too small to read. Come closer to the camera, or cut the picture to the face.",
    Reason.TURNED_AWAY: "The head is turned too far to the side. Look towards the camera.",
    Reason.UNSTABLE_TRACK: "The face moves too much to follow. Hold the camera still, and the head calm.",
    Reason.STILL_MOUTH: "The mouth does not move, or something covers it. Show a face that speaks.",
    Reason.TOO_SHORT: "The video is too short to read. Speak at least a word or two.",
    Reason.TOO_LONG: "The video is too long to read in one go. Cut it into sentences.",
    Reason.NO_VIDEO: "The file holds no moving picture. Choose a video.",
    Reason.UNREADABLE: "This is no video that can be opened. MP4, WebM, MOV, MKV, AVI and MPEG files work.",
    Reason.TRUNCATED: "The video breaks off, or lacks pictures in its midst. Record it again, or get it anew.",
    Reason.CRASHED: "Reading this video failed, and the reader was started anew. Other videos can be read.",
    STOPPING: "The server is being stopped. Start it again with: pipeline serve",
    BUSY: "Too many videos are waiting already. Try again in a minute.",
    BAD_REQUEST: "The request carries no video. Send it as multipart/form-data, in the field `video`.",
    NO_ROOM: "The server has no room to keep the video while it reads it. Free some space on its disk, or start it "
    "with TMPDIR set to a folder that has room.",
    AT_REST: "Nobody speaks in this video: the mouth does not move.",
    FOREIGN: "Another website asked for this. Only this server's own page may.",
    WRONG_HOST: "The server is asked for by a name that is not its own. Use the address that `pipeline serve` prints.",
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """What is answered in place of a reading."""

    status: int
    reason: str
    message: str
    """For anybody."""
    detail: str | None
    """For who wants to know it exactly."""

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "status"}


def refusal(reason: str, limits: Limits, detail: str | None = None) -> Refusal:
    """The answer for a reason of the ledger, or one of this module's."""
    words = {
        Reason.OVERSIZED: f"The video is too long or its pictures are too large: at most {limits.max_video_s:g} s, "
        "and pictures up to 4K.",
        Reason.TIMEOUT: f"Reading this video took longer than {limits.timeout_s:g} s, so it was given up. Try a "
        "shorter one.",
        SLOW_UPLOAD: f"The upload stopped, or came more slowly than {limits.slowest_kb_s:g} kB a second, so it was "
        "given up. Try again over a better connection.",
        TOO_LARGE: f"The file is too large: at most {limits.max_upload_mb:g} MB.",
    }
    message = words.get(reason) or _MESSAGES.get(reason) or "The video could not be read."
    return Refusal(_STATUS.get(reason, _UNREADABLE_VIDEO), str(reason), message, detail)
