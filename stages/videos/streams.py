"""Chooses the video stream of a file."""

import av
from av.stream import Disposition

from shards.errors import ClipRejected
from shards.schema import Reason

_PICTURE_CODECS = frozenset({"mjpeg", "png", "bmp", "gif", "webp"})


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
