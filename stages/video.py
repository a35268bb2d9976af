"""Video files in, gray and colour pictures with timestamps out (PyAV, one thread).

Files are untrusted: only plain local containers are opened, and pictures, duration and size are capped
before and while decoding. Nothing here keeps more than one full picture in memory.

Shapes: H height, W width in pixels after the display rotation; F source frames; T output frames.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from shards.errors import ClipRejected
from shards.schema import MediaKind, Reason
from stages.picture import SourceFrame
from stages.settings import CropParams

MOUTH_MAX_PX = 112
"""A square video no larger than this is taken for ready mouth crops (Chinese-LiPS ships 96x96, others 88 or 112)."""

TRUNCATION_TOLERANCE_S = 0.25
"""Headers round, and edit lists cut a few frames; a video that ends this much early has lost a character."""

MAX_SOURCE_FPS = 1_000
"""More frames than `max_source_s` at this rate are no video but an attack on memory."""

# Demuxers of containers that hold a video by themselves. Left out on purpose: playlists (HLS, concat), which
# open other files and the network, and pictures and text, which FFmpeg would play as a film of one frame.
# Audio containers are in, to be told apart as no_video.
_CONTAINERS = (
    "mov,matroska,avi,mpeg,mpegts,mpegvideo,h264,hevc,m4v,mjpeg,flv,asf,ogg,ivf,nut,mxf,wav,mp3,flac,aac"
)
_OPTIONS = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}


@dataclass(frozen=True, slots=True)
class Header:
    """What the container says; `width` and `height` before rotation, `duration_s` None where not stated."""

    width: int
    height: int
    fps: float | None
    duration_s: float | None


def sniff_media_kind(path: Path) -> MediaKind:
    """Face video or ready mouth crops, from the header's picture size alone.

    Raises ClipRejected (missing_file, unreadable, no_video).
    """
    with _opened(path) as (_, stream):
        is_mouth = stream.width == stream.height <= MOUTH_MAX_PX
    return MediaKind.MOUTH if is_mouth else MediaKind.FACE


def read_header(path: Path, params: CropParams) -> Header:
    """What the container says. Raises ClipRejected (missing_file, unreadable, no_video, oversized)."""
    with _opened(path, params) as (container, stream):
        return _header(container, stream)


def decode(path: Path, params: CropParams) -> Iterator[SourceFrame]:
    """Every picture of `path` in the order of showing; each is valid until the next is asked for.

    Raises ClipRejected: missing_file, unreadable, no_video, oversized, and truncated where the file breaks
    off, holds less than it announces, or lacks more than `max_gap_s` in its midst.
    """
    with _opened(path, params) as (container, stream):
        header = _header(container, stream)
        clock = _Clock(1 / header.fps if header.fps else 1 / params.target_fps)
        index = -1
        try:
            for index, picture in enumerate(container.decode(stream)):
                _check_size(path, picture.width, picture.height, params)
                time_s, gap_s = clock.read(picture)
                if time_s > params.max_source_s or index > params.max_source_s * MAX_SOURCE_FPS:
                    raise ClipRejected(
                        Reason.OVERSIZED,
                        f"{path.name} goes on after {time_s:.0f} s and {index} frames; "
                        f"crop.max_source_s is {params.max_source_s:g}",
                    )
                if gap_s > max(params.max_gap_s, 2 * clock.step_s):
                    raise ClipRejected(
                        Reason.TRUNCATED,
                        f"{path.name} has no picture between {time_s - gap_s:.2f} and {time_s:.2f} s "
                        f"(crop.max_gap_s is {params.max_gap_s:g}); get the file anew",
                    )
                yield SourceFrame(index, time_s, picture)
        except av.error.FFmpegError as error:
            count = index + 1
            raise ClipRejected(
                Reason.TRUNCATED if count else Reason.UNREADABLE,
                f"{path.name} cannot be decoded after {count} frames ({error.strerror}); get the file anew",
            ) from error
        if index < 0:
            raise ClipRejected(Reason.UNREADABLE, f"{path.name} announces video but holds not one picture")
        assert clock.time_s is not None, "a clock that read a picture shows a time"
        found_s = clock.time_s + clock.step_s
        if header.duration_s is not None and header.duration_s - found_s > TRUNCATION_TOLERANCE_S:
            raise ClipRejected(
                Reason.TRUNCATED,
                f"{path.name} announces {header.duration_s:.2f} s but holds {index + 1} frames, "
                f"{found_s:.2f} s; get the file anew",
            )


class _Clock:
    """Seconds since the first picture, always rising: a missing or backward timestamp counts as one step."""

    def __init__(self, step_s: float) -> None:
        self.step_s = step_s
        self.time_s: float | None = None
        self._origin_s = 0.0

    def read(self, picture: av.VideoFrame) -> tuple[float, float]:
        """Time of `picture`, and the time since the one before (0 for the first)."""
        stamp = None if picture.pts is None else float(picture.pts * picture.time_base)
        if self.time_s is None:
            self._origin_s = stamp or 0.0
            self.time_s = 0.0
            return 0.0, 0.0
        expected_s = self.time_s + self.step_s
        time_s = expected_s if stamp is None else stamp - self._origin_s
        if time_s <= self.time_s:
            # joined transport streams start their clock anew: go on from here
            self._origin_s += time_s - expected_s
            time_s = expected_s
        gap_s = time_s - self.time_s
        self.time_s = time_s
        return time_s, gap_s


def resample(times_s_F: NDArray[np.float64], target_fps: float) -> NDArray[np.int32]:
    """The source frame shown at each output frame k, at k / target_fps after the first: the nearest in time.

    Gives T indices, int32, never falling. T / target_fps is the duration within 1/25 s for sources of 12.5 fps
    and more, where the last picture is taken to stand for the median interval.
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
    # of two equally near the earlier, whatever the last bit says
    nearer_before = wanted - times[after - 1] <= times[after] - wanted + 1e-6
    return np.where(nearer_before, after - 1, after).astype(np.int32)


def mean_fps(times_s_F: NDArray[np.float64]) -> float | None:
    """Mean rate of the source in 1/s; None for a single picture."""
    if len(times_s_F) < 2:
        return None
    return float((len(times_s_F) - 1) / (times_s_F[-1] - times_s_F[0]))


@contextmanager
def _opened(
    path: Path, params: CropParams | None = None
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The container and its first video stream; with `params`, caps are checked before anything is decoded."""
    if not path.is_file():
        raise ClipRejected(
            Reason.MISSING_FILE, f"{path} is {'no plain file' if path.exists() else 'missing'}"
        )
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        raise ClipRejected(Reason.UNREADABLE, f"{path.name} is empty (0 bytes); get the file anew")
    if params and size_bytes > params.max_source_mb * 1e6:
        raise ClipRejected(
            Reason.OVERSIZED,
            f"{path.name} has {size_bytes / 1e6:.0f} MB; crop.max_source_mb is {params.max_source_mb:g}",
        )
    try:
        # absolute, so that no name can be read as a protocol ("http:x.mp4")
        container = av.open(str(path.absolute()), options=_OPTIONS, metadata_errors="replace")
    except av.error.FFmpegError as error:
        raise ClipRejected(
            Reason.UNREADABLE, f"{path.name} is no video file that FFmpeg can read ({error.strerror})"
        ) from error
    with container:
        stream = _video_stream(path, container)
        if params:
            _check_size(path, stream.width, stream.height, params)
            _check_duration(path, _header(container, stream), params)
            # a bitstream may hold larger pictures than its header says: the decoder refuses those
            stream.codec_context.options = {"max_pixels": str(_coded_pixels(params))}
        stream.codec_context.thread_count = 1
        yield container, stream


def _video_stream(path: Path, container: av.container.InputContainer) -> av.VideoStream:
    for stream in container.streams.video:
        if stream.disposition & av.stream.Disposition.attached_pic:
            continue  # the cover of a piece of music
        if stream.codec_context is None:
            raise ClipRejected(Reason.UNREADABLE, f"{path.name}: FFmpeg has no decoder for its video")
        if stream.width < 1 or stream.height < 1:
            raise ClipRejected(Reason.UNREADABLE, f"{path.name}: its video has no picture size")
        return stream
    kinds = sorted({stream.type for stream in container.streams}) or ["nothing"]
    raise ClipRejected(Reason.NO_VIDEO, f"{path.name} holds no video stream (only {', '.join(kinds)})")


def _header(container: av.container.InputContainer, stream: av.VideoStream) -> Header:
    duration_s = None
    if stream.duration and stream.time_base:
        duration_s = float(stream.duration * stream.time_base)
    elif container.duration and len(container.streams) == 1:
        # with sound beside it the container's duration may be the sound's; Matroska's counts from 0, also where
        # the first picture comes later
        duration_s = (container.duration - max(container.start_time or 0, 0)) / av.time_base
    rate = stream.average_rate or stream.guessed_rate
    return Header(stream.width, stream.height, float(rate) if rate else None, duration_s)


def _coded_pixels(params: CropParams) -> int:
    """Pictures are coded in whole blocks, which FFmpeg counts too: at most 128 px more on a side."""
    return params.max_source_pixels * 2 + 128 * 128


def _check_size(path: Path, width: int, height: int, params: CropParams) -> None:
    if width * height > params.max_source_pixels:
        raise ClipRejected(
            Reason.OVERSIZED,
            f"{path.name} has {width}x{height} pictures; crop.max_source_pixels is {params.max_source_pixels}",
        )


def _check_duration(path: Path, header: Header, params: CropParams) -> None:
    if header.duration_s is not None and header.duration_s > params.max_source_s:
        raise ClipRejected(
            Reason.OVERSIZED,
            f"{path.name} announces {header.duration_s:.0f} s; crop.max_source_s is {params.max_source_s:g}",
        )
