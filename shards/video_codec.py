"""Encodes and decodes a mouth clip as gray video: H.264 in an .mp4, or lossless FFV1 in an .mkv.

Encoding is deterministic: one thread, no dates, no random ids. Gray levels are 0..255 and tagged as full range, so
every player shows the same levels. Payloads are untrusted: only the container, codec and pixel layout that are written
here are decoded, and sizes are checked before memory is allocated.
"""

import io
import struct
from collections.abc import Iterator
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange
from numpy.typing import NDArray

MAX_SIDE_PX = 1024
"""Limit for width and height of a frame; `crop.size_px` is at most 512."""

CONTAINER_FPS = 25
"""Only for video players: the true frame rate is in the .json of the clip."""


class _Format(NamedTuple):
    container: str
    encoder: str
    decoder: str
    layouts: frozenset[str]
    """Pixel layouts of FFmpeg whose first plane is the clip."""
    options: dict[str, str]


# Measured on 75 frames of 96×96 (docs/benchmarks.md). h264: `psnr` optimises exact gray levels, not perceived
# quality; `fastdecode` (no arithmetic coding, no deblocking) decodes 1.4 times as fast for 8 % more bytes. With
# `mbtree`, x264 (core 165) sometimes gave different bytes for the same clip if a side is not a multiple of 16 (also
# 88 px), and it saves no more than a crf higher by one. ffv1: Golomb-Rice codes decode 1.5 times as fast as the range
# coder; contexts kept over the whole clip (g) save 18 % of the bytes; `slicecrc` lets other tools detect damage
# (FFmpeg only logs it and shows the previous frame; the sha256 in the catalogue detects it).
_FORMATS = {
    "h264": _Format(
        "mp4",
        "libx264",
        "h264",
        # FFmpeg decodes monochrome H.264 with two empty colour planes
        frozenset({"gray", "yuvj420p"}),
        {"preset": "medium", "tune": "psnr,fastdecode", "mbtree": "0"},
    ),
    "ffv1": _Format(
        "matroska",
        "ffv1",
        "ffv1",
        frozenset({"gray"}),
        {"level": "3", "coder": "rice", "context": "1", "slices": "1", "slicecrc": "1"},
    ),
}
_DECODING = {
    "protocol_whitelist": "none",  # FFmpeg opens no other file
    "max_pixels": str(MAX_SIDE_PX**2),
    "err_detect": "crccheck+explode",
}

# boxes of an .mp4 with one track by FFmpeg: boxes that contain boxes, and boxes that are not parsed
_NESTS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl"})
_LEAVES = frozenset(
    b"ftyp free mdat mvhd tkhd edts udta mdhd hdlr vmhd dinf stsd stts stss ctts stsc stsz stco".split()
)
_MAX_DEPTH = 5
_MAX_EDITS_BYTES = 44
"""Size of a list with one edit, including headers: FFmpeg copies its sample table for each edit."""


def encode_video(clip_THW: NDArray[np.uint8], codec: str, crf: int) -> bytes:
    """Returns the clip as video; `crf` is only for h264. Raises ValueError if the encoder refuses the clip."""
    chosen = _FORMATS[codec]
    num_frames, height, width = clip_THW.shape
    if max(height, width) > MAX_SIDE_PX:
        raise ValueError(f"frames of {height} x {width} px are too large; the limit is {MAX_SIDE_PX} px")
    # one key frame, because the clip is always decoded completely
    options = chosen.options | {"g": str(num_frames)} | ({"crf": str(crf)} if codec == "h264" else {})
    file = io.BytesIO()
    try:
        with av.open(file, "w", format=chosen.container, options={"fflags": "+bitexact"}) as container:
            stream = container.add_stream(chosen.encoder, rate=CONTAINER_FPS, options=options)
            stream.height, stream.width, stream.pix_fmt = height, width, "gray"
            stream.codec_context.thread_count = 1
            stream.codec_context.color_range = ColorRange.JPEG
            for number, frame_HW in enumerate(clip_THW):
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HW), format="gray")
                picture.pts, picture.color_range = number, ColorRange.JPEG
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
    except MemoryError:
        raise  # the MemoryError of FFmpeg is also an FFmpegError
    except av.error.FFmpegError as error:
        raise ValueError(
            f"a clip of shape {clip_THW.shape} cannot be encoded as {codec} ({error})"
        ) from error
    return file.getvalue()


def decode_video(payload: bytes, codec: str, num_frames: int, max_bytes: int) -> NDArray[np.uint8]:
    """Returns the uint8 clip, T×H×W. Raises ValueError unless the payload is such a video of `num_frames`."""
    chosen = _FORMATS[codec]
    if num_frames > len(payload):
        raise ValueError(f"a payload of {len(payload)} bytes cannot hold {num_frames} frames")
    if chosen.container == "mp4":
        _check_boxes(payload, num_frames)
    else:
        _check_segment(payload)
    try:
        # PyAV 18 raises ValueError for tags that are not UTF-8; our files have none
        with av.open(io.BytesIO(payload), format=chosen.container, options=_DECODING) as container:
            return _pictures(container, chosen, num_frames, max_bytes)
    except MemoryError:
        raise  # the MemoryError of FFmpeg is also an FFmpegError
    except av.error.FFmpegError as error:
        raise ValueError(f"the payload cannot be decoded as {codec} ({error})") from error


def _pictures(
    container: av.container.InputContainer, chosen: _Format, num_frames: int, max_bytes: int
) -> NDArray[np.uint8]:
    kinds = [stream.type for stream in container.streams]
    if kinds != ["video"]:
        raise ValueError(f"the payload has {', '.join(kinds) or 'no streams'} instead of exactly one video")
    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None or context.name != chosen.decoder:
        raise ValueError(f"the video of the payload is not {chosen.decoder}")
    height, width = context.height, context.width
    if (
        not (0 < height <= MAX_SIDE_PX and 0 < width <= MAX_SIDE_PX)
        or height * width * num_frames > max_bytes
    ):
        raise ValueError(
            f"the payload claims {num_frames} frames of {height} x {width} px, more than allowed"
        )
    context.thread_count = 1
    context.options = {name: _DECODING[name] for name in ("max_pixels", "err_detect")}
    clip_THW = np.empty((num_frames, height, width), np.uint8)
    count = 0
    for picture in container.decode(stream):
        if (picture.height, picture.width) != (height, width) or picture.format.name not in chosen.layouts:
            raise ValueError(
                f"frame {count} is {picture.format.name} of {picture.height} x {picture.width} px; expected "
                f"{height} x {width} of {', '.join(sorted(chosen.layouts))}"
            )
        if picture.is_corrupt or count == num_frames:
            what = (
                "is damaged"
                if picture.is_corrupt
                else f"is more than the {num_frames} frames in the catalogue"
            )
            raise ValueError(f"frame {count} {what}")
        plane = picture.planes[0]
        # rows are padded: a line may be longer than the width
        clip_THW[count] = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height, :width]
        count += 1
    if count < num_frames:
        raise ValueError(f"the payload ends after {count} frames, but the catalogue says {num_frames}")
    return clip_THW


def _check_boxes(payload: bytes, num_frames: int) -> None:
    """Raises ValueError unless an .mp4 has one track with a table of `num_frames` samples.

    FFmpeg allocates this table by its count, which can be gigabytes in a small hostile file. The same holds for
    fragments and compressed headers, which our files do not have.
    """
    tables = [at for name, at in _boxes(payload, 0, len(payload), 0) if name == b"stsz"]
    if len(tables) != 1 or tables[0] + 12 > len(payload):
        raise ValueError(f"the payload is not an .mp4 with one track; it has {len(tables)}")
    count = int.from_bytes(payload[tables[0] + 8 : tables[0] + 12], "big")
    if count != num_frames:
        raise ValueError(f"the payload announces {count} frames, but the catalogue says {num_frames}")


def _boxes(payload: bytes, start: int, end: int, depth: int) -> Iterator[tuple[bytes, int]]:
    """Yields name and content offset of every box between `start` and `end`, including nested boxes."""
    while start < end:
        if start + 8 > end:
            raise ValueError("the payload is a truncated .mp4")
        size, name = struct.unpack_from(">I4s", payload, start)
        is_ours = name in _LEAVES or (name in _NESTS and depth < _MAX_DEPTH)
        if not is_ours or size < 8 or start + size > end or (name == b"edts" and size > _MAX_EDITS_BYTES):
            raise ValueError(
                f"the payload is not an .mp4 of this program: it has a box {name!r} of {size} bytes"
            )
        yield name, start + 8
        if name in _NESTS:
            yield from _boxes(payload, start + 8, start + size, depth + 1)
        start += size


def _check_segment(payload: bytes) -> None:
    """Raises ValueError unless an .mkv has exactly the size in its header: FFmpeg accepts a truncated file."""
    start = 5 + (payload[4] & 0x7F) if payload.startswith(b"\x1a\x45\xdf\xa3") and len(payload) > 4 else 0
    head = payload[start : start + 12]
    size = int.from_bytes(head[5:], "big")
    # the id of the segment, and its size in eight bytes
    if not start or head[:5] != b"\x18\x53\x80\x67\x01" or start + len(head) + size != len(payload):
        raise ValueError("the payload is not an .mkv with one segment that ends at the size in its header")
