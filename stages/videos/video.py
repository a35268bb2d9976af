"""Decodes video files to gray and colour pictures with timestamps (PyAV, one thread).

Files are untrusted: only plain local containers are opened. Picture size, duration and file size are limited before and
during decoding. This module keeps no reference to a picture that it yielded.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import av

from shards.errors import ClipRejected
from shards.machine import is_address_space_short
from shards.schema import Reason
from stages.settings import CropParams
from stages.videos.display import MAX_PIXEL_RATIO, Display, pixel_ratio, square_size
from stages.videos.media import Media, Source, check_file_size, source_of
from stages.videos.picture import SourceFrame
from stages.videos.streams import Clock, select_video_stream, timestamp_s
from stages.videos.zip_directory import find_member
from stages.videos.zip_member import MemberFile, opened_member

TRUNCATION_TOLERANCE_S = 0.25
"""Headers round, and edit lists cut a few frames. A video that ends earlier than this lost a character."""

MAX_SOURCE_FPS = 1_000
"""More frames than `max_source_s` at this rate are an attack on memory, not a video."""

TIME_SLACK_S = 1e-6
"""Timestamps are ratios in floating point. Rounding must not decide on a part's first and last picture."""

JUMP_MARGIN_S = 1.0
"""Jumps aim this much before a part: an index stores times of decoding, up to 16 pictures before showing."""

# demuxers that find a key frame by an index, and whose timestamps do not restart inside the file
_INDEXED = frozenset({"mov", "matroska"})
_MAX_LEADING = 32

# Demuxers of containers that hold a video by themselves. Left out on purpose: playlists (HLS, concat), which
# open other files and the network, and pictures and text, which FFmpeg would play as a video of one frame.
# Audio containers are in the list so that they are reported as no_video.
_CONTAINERS = (
    "mov,matroska,avi,mpeg,mpegts,mpegvideo,h264,hevc,m4v,mjpeg,flv,asf,ogg,ivf,nut,mxf,wav,mp3,flac,aac"
)
OPEN_OPTIONS: dict[str, Any] = {"options": {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}}
"""Options for PyAV to open an untrusted file: only that file, as a container that holds a video by itself."""
if int(av.__version__.partition(".")[0]) < 19:
    # tags need not be UTF-8; PyAV 19 handles that itself and does not have this argument
    OPEN_OPTIONS["metadata_errors"] = "replace"


@dataclass(frozen=True, slots=True)
class Header:
    """Values of the container's header. `duration_s` is None if the header does not give it.

    `width` and `height` are in square pixels, before the picture is turned upright.
    """

    width: int
    height: int
    fps: float | None
    duration_s: float | None
    start_s: float = 0.0
    """Time of the first picture since the container's begin, from which players count: sound may begin earlier."""
    max_duration_s: float | None = None
    """From the first picture to the end of the file. Sound and other streams may be longer than the pictures."""


def read_header(media: Media, params: CropParams | None = None) -> Header:
    """Returns the container's header. If `media` is a part, `duration_s` is that of the part.

    Raises ClipRejected (missing_file, unreadable, no_video, and with the limits of `params` also oversized).
    """
    source = source_of(media)
    with _opened(source, params) as (container, stream):
        header = _header(source, container, stream)
    if not source.is_part:
        return header
    ends_s = [end_s for end_s in (source.end_s, header.duration_s) if end_s is not None]
    return replace(header, duration_s=max(0.0, min(ends_s) - (source.start_s or 0.0)) if ends_s else None)


def decode(media: Media, params: CropParams) -> Iterator[SourceFrame]:
    """Yields every picture of `media` in the order of showing, all of one size. Each owns its memory.

    For a part, yields exactly the pictures of the whole file's decoding, counted and timed from the part's first.
    Raises ClipRejected: missing_file, unreadable, no_video, oversized, and truncated. A file is truncated if it breaks
    off, holds less than its header announces, ends before the part does, has a gap of more than `max_gap_s`, or if
    FFmpeg marks a picture as damaged.
    """
    source = source_of(media)
    begin_s = -TIME_SLACK_S if source.start_s is None else source.start_s - TIME_SLACK_S
    end_s = float("inf") if source.end_s is None else source.end_s - TIME_SLACK_S
    first_s: float | None = None
    last_s = max(begin_s, 0.0)
    index, is_damaged = -1, False
    with _opened_before(source, params, begin_s) as (header, clock, make_display, pictures):
        for display, picture, time_s, gap_s in _timed(source, pictures, clock, make_display, params):
            # pictures that are predicted from a damaged picture are damaged too, until the next key frame
            is_damaged = picture.is_corrupt or (is_damaged and not picture.key_frame)
            if time_s < begin_s:
                continue
            # for a part, only missing time inside it counts
            _check_gap(source, min(gap_s, time_s - last_s, end_s - last_s), last_s, clock.step_s, params)
            if time_s >= end_s:
                break
            if is_damaged:
                raise ClipRejected(
                    Reason.TRUNCATED,
                    f"{source.name} is damaged at frame {index + 1}, {time_s:.2f} s: bytes are missing or wrong "
                    "there; get the file again",
                )
            first_s = time_s if first_s is None else first_s
            last_s, index = time_s, index + 1
            yield SourceFrame(
                index, time_s - first_s, display.convert(picture), display.orientation, display.transfer
            )
        else:
            _check_end(source, header.duration_s, clock.end_s, index + 1)
        if first_s is None:
            raise ClipRejected(
                Reason.TRUNCATED,
                f"{source.name} shows no new picture between {source.start_s or 0:.3f} and {end_s:.3f} s: the part is "
                "shorter than one picture; correct its start and end, in seconds",
            )


def picture_start_s(media: Media, params: CropParams) -> float:
    """Returns the time of the first picture of `media` on the clock of the file, which its sound shares.

    Raises ClipRejected like `decode`.
    """
    source = source_of(media)
    begin_s = -TIME_SLACK_S if source.start_s is None else source.start_s - TIME_SLACK_S
    with _opened_before(source, params, begin_s) as (_, clock, make_display, pictures):
        for _, _, time_s, _ in _timed(source, pictures, clock, make_display, params):
            if time_s >= begin_s:
                return clock.origin_s + time_s
    raise ClipRejected(
        Reason.TRUNCATED, f"{source.name} shows no picture from {source.start_s or 0:.3f} s on"
    )


def _check_end(source: Source, announced_s: float | None, found_s: float, num_frames: int) -> None:
    """Raises ClipRejected if a video breaks off, or the requested part lies beyond its end."""
    is_beyond = source.start_s is not None and source.start_s >= found_s - TIME_SLACK_S
    wanted_s = announced_s if source.end_s is None else source.end_s
    if not is_beyond and (wanted_s is None or wanted_s - found_s <= TRUNCATION_TOLERANCE_S):
        return
    if announced_s is not None and announced_s - found_s > TRUNCATION_TOLERANCE_S:
        fault = f"announces {announced_s:.2f} s but ends at {found_s:.2f} s, {num_frames} frames; get the file again"
    else:
        part = f"begins at {source.start_s:.2f} s" if is_beyond else f"should end at {wanted_s:.2f} s"
        or_cut = "" if announced_s is not None else ", or get the file again if it is incomplete"
        fault = f"ends at {found_s:.2f} s, but the part {part}; correct its start and end, in seconds{or_cut}"
    raise ClipRejected(Reason.TRUNCATED, f"{source.name} {fault}")


def _timed(
    source: Source,
    pictures: Iterator[av.VideoFrame],
    clock: Clock,
    make_display: "_MakeDisplay",
    params: CropParams,
) -> Iterator[tuple[Display, av.VideoFrame, float, float]]:
    """Yields pictures with their time and the time since the previous one. Raises ClipRejected if decoding fails."""
    count, display = 0, None
    try:
        for count, picture in enumerate(pictures, start=1):
            if display is None:
                display = make_display(picture)
            _check_size(source, picture.width, picture.height, params)
            # coordinates of one picture would have no meaning in the next
            change = display.change(picture)
            if change:
                raise ClipRejected(
                    Reason.UNREADABLE,
                    f"{source.name} changes {change} at frame {count - 1}; re-encode it in one format",
                )
            time_s, gap_s = clock.read(picture)
            if time_s > params.max_source_s or count > params.max_source_s * MAX_SOURCE_FPS:
                raise ClipRejected(
                    Reason.OVERSIZED,
                    f"{source.name} is longer than {time_s:.0f} s and {count} frames; "
                    f"crop.max_source_s is {params.max_source_s:g}",
                )
            yield display, picture, time_s, gap_s
    except av.error.FFmpegError as error:
        raise ClipRejected(
            Reason.TRUNCATED if count else Reason.UNREADABLE,
            f"{source.name} cannot be decoded after {count} frames ({error.strerror}); get the file again",
        ) from error
    if not count:
        raise ClipRejected(
            Reason.UNREADABLE, f"{source.name} announces video but holds no picture; get the file again"
        )


_MakeDisplay = Callable[[av.VideoFrame], Display]
"""Returns the Display of a file, which depends on its first picture. Called with the first picture that is read."""


@contextmanager
def _opened_before(
    source: Source, params: CropParams, begin_s: float
) -> Iterator[tuple[Header, Clock, _MakeDisplay, Iterator[av.VideoFrame]]]:
    """Opens a file, and yields its header, clock, display and its pictures from some time before `begin_s` on.

    Jumps if the container has an index, otherwise decodes from the start.
    """
    if begin_s > 2 * JUMP_MARGIN_S:
        with _opened(source, params) as (container, stream):
            jumped = _jump(container, stream, begin_s)
            if jumped is not None:
                origin_s, display, pictures = jumped
                header = _header(source, container, stream)
                yield header, Clock(header.fps, origin_s), lambda _: display, pictures
                return
    with _opened(source, params) as (container, stream):
        header = _header(source, container, stream)
        # AVI stores no times of showing, and FFmpeg's guesses go back and forth; the pictures are in order
        is_avi = container.format.name == "avi"
        clock = Clock(header.fps, by_decoding=is_avi)
        yield header, clock, lambda first: Display(first, stream), container.decode(stream)


def _jump(
    container: av.container.InputContainer, stream: av.VideoStream, begin_s: float
) -> tuple[float, Display, Iterator[av.VideoFrame]] | None:
    """Returns timestamp and display of the file's first picture, and pictures from a key frame before `begin_s` on.

    Pictures shown after a key frame need no picture before it. Returns None if the jump does not land on a key frame.
    """
    if _INDEXED.isdisjoint(container.format.name.split(",")):
        return None
    try:
        first = next(container.decode(stream))
        origin_s = timestamp_s(first)
        if origin_s is None:
            return None
        display = Display(first, stream)
        wanted_s = origin_s + begin_s - JUMP_MARGIN_S
        container.seek(int(wanted_s / stream.time_base), stream=stream, backward=True)
        pictures = container.decode(stream)
        # pictures shown before the key frame may depend on missing pictures
        landed = next((picture for picture in islice(pictures, _MAX_LEADING) if picture.key_frame), None)
    except (av.error.FFmpegError, StopIteration):
        return None
    stamp_s = None if landed is None else timestamp_s(landed)
    if stamp_s is None or not origin_s <= stamp_s <= origin_s + begin_s:
        return None
    return origin_s, display, chain([landed], pictures)


def _check_gap(source: Source, gap_s: float, since_s: float, step_s: float, params: CropParams) -> None:
    if gap_s > max(params.max_gap_s, 2 * step_s):
        raise ClipRejected(
            Reason.TRUNCATED,
            f"{source.name} has no picture between {since_s:.2f} and {since_s + gap_s:.2f} s "
            f"(crop.max_gap_s is {params.max_gap_s:g}); get the file again",
        )


@contextmanager
def _opened(
    source: Source, params: CropParams | None = None
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Yields the container and its video stream. With `params`, checks the limits before decoding.

    Raises MemoryError instead of ClipRejected, also for errors of the block, if memory may be the cause.
    """
    check_file_size(source, params.max_source_mb if params else math.inf)
    try:
        with _opened_anywhere(source, params) as opened:
            yield opened
    except ClipRejected as rejection:
        # FFmpeg reports invalid data if it has no memory to decode it
        if is_address_space_short() or isinstance(rejection.__cause__, MemoryError):
            raise MemoryError(str(rejection)) from rejection
        raise


@contextmanager
def _opened_anywhere(
    source: Source, params: CropParams | None
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    if source.member is None:
        # absolute, so that no name can be read as a protocol ("http:x.mp4")
        with _container(source, str(source.path.absolute()), params) as opened:
            yield opened
        return
    with opened_member(find_member(source.path, source.member)) as file:
        try:
            with _container(source, file, params) as opened:
                yield opened
        except ClipRejected:
            # the zip may be the cause of FFmpeg's error
            file.check()
            raise
        file.check()


@contextmanager
def _container(
    source: Source, file: str | MemberFile, params: CropParams | None
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    try:
        container = av.open(file, **OPEN_OPTIONS)
    except av.error.FFmpegError as error:
        raise ClipRejected(
            Reason.UNREADABLE,
            f"{source.name} is not a video file that FFmpeg can read ({error.strerror}); get the file again",
        ) from error
    with container:
        stream = select_video_stream(container, source.name)
        if params:
            header = _header(source, container, stream)
            _check_size(source, stream.width, stream.height, params)
            _check_size(source, header.width, header.height, params)
            _check_duration(source, header, params)
            # a bitstream may hold larger pictures than its header says: the decoder rejects them
            stream.codec_context.options = {"max_pixels": str(_coded_pixels(params))}
        stream.codec_context.thread_count = 1
        yield container, stream


def _header(source: Source, container: av.container.InputContainer, stream: av.VideoStream) -> Header:
    """Returns the header. Raises ClipRejected (unreadable) if its pixel aspect ratio is absurd."""
    ratio = pixel_ratio(stream)
    if not 1 / MAX_PIXEL_RATIO <= ratio <= MAX_PIXEL_RATIO:
        raise ClipRejected(
            Reason.UNREADABLE,
            f"{source.name} has pixels of {ratio.numerator}:{ratio.denominator} (width to height), but the limits are "
            f"1:{MAX_PIXEL_RATIO} and {MAX_PIXEL_RATIO}:1; re-encode it with the right sample aspect ratio",
        )
    rate = stream.average_rate or stream.guessed_rate
    start_s = 0.0
    if stream.start_time is not None and container.start_time is not None and stream.time_base:
        start_s = max(0.0, float(stream.start_time * stream.time_base) - container.start_time / av.time_base)
    duration_s = max_duration_s = None
    if stream.duration and stream.time_base:
        duration_s = max_duration_s = float(stream.duration * stream.time_base)
    elif container.duration:
        # Matroska counts from 0, even if the first picture is later
        file_s = (container.duration - max(container.start_time or 0, 0)) / av.time_base
        max_duration_s = file_s - start_s
        # if the file also has sound, this may be the duration of the sound
        duration_s = max_duration_s if len(container.streams) == 1 else None
    size = square_size(stream.width, stream.height, ratio)
    return Header(*size, float(rate) if rate else None, duration_s, start_s, max_duration_s)


def _coded_pixels(params: CropParams) -> int:
    """Returns the limit with whole coded blocks, which FFmpeg counts: at most 128 px more on a side."""
    return params.max_source_pixels * 2 + 128 * 128


def _check_size(source: Source, width: int, height: int, params: CropParams) -> None:
    if width * height > params.max_source_pixels:
        raise ClipRejected(
            Reason.OVERSIZED,
            f"{source.name} has {width}x{height} pictures; crop.max_source_pixels is {params.max_source_pixels}",
        )


def _check_duration(source: Source, header: Header, params: CropParams) -> None:
    if header.duration_s is not None and header.duration_s > params.max_source_s:
        raise ClipRejected(
            Reason.OVERSIZED,
            f"{source.name} announces {header.duration_s:.0f} s; crop.max_source_s is {params.max_source_s:g}",
        )
