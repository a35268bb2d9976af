"""The video stream of a file, and the times of its pictures.

Chooses the stream, turns the timestamps of its pictures into rising times, and times at any frame rate into frames at
the target rate.

Shapes: F source frames; T output frames.
"""

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from shards.errors import ClipRejected
from shards.schema import Reason

_PICTURE_CODECS = frozenset({"mjpeg", "png", "bmp", "gif", "webp"})
DEFAULT_FPS = 25.0
"""Frame rate for pictures without times in a file without a frame rate."""


def select_video_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """Returns the video that a player shows, not a cover or a thumbnail: the default stream, else FFmpeg's choice.

    Raises ClipRejected (no_video, unreadable); its message names the file `name`.
    """
    streams = [
        stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic
    ]
    if not streams:
        if container.streams.video:
            raise ClipRejected(
                Reason.NO_VIDEO, f"{name} holds only a cover picture and no video; get the video itself"
            )
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "no stream at all"
        raise ClipRejected(Reason.NO_VIDEO, f"{name} has no video stream (it has {kinds}); give a video file")
    streams = [stream for stream in streams if stream.codec_context is not None]
    if not streams:
        raise ClipRejected(
            Reason.UNREADABLE, f"{name}: FFmpeg has no decoder for its video; re-encode it as H.264"
        )
    streams = [stream for stream in streams if stream.width > 0 and stream.height > 0]
    if not streams:
        raise ClipRejected(Reason.UNREADABLE, f"{name}: its video has no picture size; get the file again")
    streams = [stream for stream in streams if not _is_still(stream)] or streams
    # FFmpeg prefers the default stream, then the stream with most pictures, but also takes a default thumbnail
    best = container.streams.best("video")
    if best in streams:
        return best
    return max(
        streams,
        key=lambda stream: (bool(stream.disposition & Disposition.default), stream.width * stream.height),
    )


def _is_still(stream: av.VideoStream) -> bool:
    """Returns whether the stream is one picture. Matroska does not store the number of frames."""
    return stream.frames == 1 or (stream.frames == 0 and stream.codec_context.name in _PICTURE_CODECS)


class Clock:
    """Seconds since the first picture, always rising: a missing or backward timestamp counts as one step, 1 / `fps`.

    `origin_s` is the first picture's timestamp, for when another picture is read first. With `by_decoding`, timestamps
    are times of decoding.
    """

    def __init__(self, fps: float | None, origin_s: float | None = None, by_decoding: bool = False) -> None:
        self.step_s = 1 / (fps or DEFAULT_FPS)
        self._by_decoding = by_decoding
        self.time_s: float | None = None
        self.end_s = 0.0
        """Time until which pictures are shown, by their own durations: the last picture may have a long one."""
        self._origin_s = origin_s

    @property
    def origin_s(self) -> float:
        """The timestamp of time 0, once a picture was read."""
        return self._origin_s or 0.0

    def read(self, picture: av.VideoFrame) -> tuple[float, float]:
        """Returns the time of `picture`, and the time since the previous picture (0 for the first)."""
        time_s, gap_s = self._read(picture)
        # some containers have no durations
        shown_s = float(picture.duration * picture.time_base) if picture.duration else 0.0
        # for every picture: mp4 gives the long duration to the last stored picture, which may be shown earlier
        self.end_s = max(self.end_s, time_s + max(shown_s, self.step_s))
        return time_s, gap_s

    def _read(self, picture: av.VideoFrame) -> tuple[float, float]:
        stamp_s = timestamp_s(picture, self._by_decoding)
        if self._origin_s is None:
            self._origin_s = stamp_s or 0.0
        if self.time_s is None:
            self.time_s = 0.0 if stamp_s is None else stamp_s - self._origin_s
            return self.time_s, 0.0
        expected_s = self.time_s + self.step_s
        time_s = expected_s if stamp_s is None else stamp_s - self._origin_s
        if time_s <= self.time_s:
            # joined transport streams restart their clock: continue from here
            self._origin_s += time_s - expected_s
            time_s = expected_s
        gap_s = time_s - self.time_s
        self.time_s = time_s
        return time_s, gap_s


def timestamp_s(picture: av.VideoFrame, by_decoding: bool = False) -> float | None:
    """Returns the time that the file gives to `picture`; None if it gives none."""
    stamp = picture.dts if by_decoding else picture.pts
    return None if stamp is None else float(stamp * picture.time_base)


def resample(times_s_F: NDArray[np.float64], target_fps: float) -> NDArray[np.int32]:
    """Returns the source frame of each output frame k, at k / target_fps after the first: the nearest in time.

    Returns T indices, int32, never falling. T / target_fps equals the duration within 1/25 s for sources of at least
    12.5 fps; the last picture counts with the median interval.
    """
    assert len(times_s_F) > 0 and np.all(np.diff(times_s_F) > 0), "timestamps must rise"
    times = times_s_F - times_s_F[0]
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1 / target_fps
    # 1e-6: timestamps are ratios in floating point, and 75 frames at 25 fps must stay 75
    num_by_duration = int(np.floor((times[-1] + step) * target_fps + 0.5 + 1e-6))
    num_in_reach = int(np.floor((times[-1] + step / 2) * target_fps + 1e-6)) + 1
    wanted = np.arange(max(1, min(num_by_duration, num_in_reach))) / target_fps
    after = np.clip(np.searchsorted(times, wanted), 1, max(1, len(times) - 1))
    if len(times) == 1:
        return np.zeros(len(wanted), np.int32)
    # of two equally near frames the earlier, independent of the last bit
    nearer_before = wanted - times[after - 1] <= times[after] - wanted + 1e-6
    return np.where(nearer_before, after - 1, after).astype(np.int32)


def mean_fps(times_s_F: NDArray[np.float64]) -> float | None:
    """Returns the mean frame rate of the source in 1/s; None for a single picture."""
    if len(times_s_F) < 2:
        return None
    return float((len(times_s_F) - 1) / (times_s_F[-1] - times_s_F[0]))
