"""Which of the video streams in a file is the video."""

import av
from av.stream import Disposition

from shards.errors import ClipRejected
from shards.schema import Reason

_PICTURE_CODECS = frozenset({"mjpeg", "png", "bmp", "gif", "webp"})


def shown_stream(container: av.container.InputContainer, name: str) -> av.VideoStream:
    """The video that a player shows: no cover and no thumbnail; of several the default one, else FFmpeg's choice.

    Raises ClipRejected (no_video, unreadable), calling the file by `name`.
    """
    streams = [one for one in container.streams.video if not one.disposition & Disposition.attached_pic]
    if not streams:
        if container.streams.video:
            raise ClipRejected(
                Reason.NO_VIDEO, f"{name} holds a cover picture and no video; get the video itself"
            )
        kinds = sorted({one.type for one in container.streams}) or ["nothing"]
        raise ClipRejected(Reason.NO_VIDEO, f"{name} holds no video stream (only {', '.join(kinds)})")
    streams = [one for one in streams if one.codec_context is not None]
    if not streams:
        raise ClipRejected(Reason.UNREADABLE, f"{name}: FFmpeg has no decoder for its video")
    streams = [one for one in streams if one.width > 0 and one.height > 0]
    if not streams:
        raise ClipRejected(Reason.UNREADABLE, f"{name}: its video has no picture size")
    streams = [one for one in streams if not _is_still(one)] or streams
    # FFmpeg takes the default one, then the one it finds most pictures in, but a thumbnail too that is the default
    best = container.streams.best("video")
    if best in streams:
        return best
    return max(streams, key=lambda one: (bool(one.disposition & Disposition.default), one.width * one.height))


def _is_still(stream: av.VideoStream) -> bool:
    """Whether it is one picture; Matroska does not count them."""
    return stream.frames == 1 or (stream.frames == 0 and stream.codec_context.name in _PICTURE_CODECS)
