"""A mouth clip as gray video: H.264 in an .mp4, or FFV1, which loses nothing, in an .mkv.

Encoding is deterministic: one thread, no dates, no random ids. Gray levels are 0..255 and tagged so, and every
player shows the same ones. Payloads are untrusted: only the one container, codec and pixel layout that is
written here is decoded, and sizes are checked before anything of that size is allocated.
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
"""Of a picture; `crop.size_px` ends at 512."""

CONTAINER_FPS = 25
"""Only players look at it: the true rate stands beside the clip, in its .json."""


class _Format(NamedTuple):
    container: str
    encoder: str
    decoder: str
    layouts: frozenset[str]
    """FFmpeg's pixel layouts whose first plane is the clip."""
    options: dict[str, str]


# Measured on 75 frames of 96×96 (docs/benchmarks.md). h264: `psnr` spends bits on true gray levels, not on what
# pleases the eye; `fastdecode` (no arithmetic coding, no deblocking) decodes 1.4 times as fast for 8 % more bytes;
# with `mbtree` x264 (core 165) gave the same clip other bytes now and then where a side is no multiple of 16, 88 px
# too, and it saves no more than a crf higher by one. ffv1: Golomb-Rice codes decode 1.5 times as fast as the range
# coder; contexts kept over the whole clip (g) save 18 % of the bytes; `slicecrc` lets other tools tell damage
# (FFmpeg itself only logs it, and shows the frame before: the catalogue's sha256 is what notices).
_FORMATS = {
    "h264": _Format(
        "mp4",
        "libx264",
        "h264",
        # FFmpeg shows monochrome H.264 with two empty planes of colour
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
    "protocol_whitelist": "none",  # nothing outside the payload is opened
    "max_pixels": str(MAX_SIDE_PX**2),
    "err_detect": "crccheck+explode",
}

# the boxes of an .mp4 as FFmpeg writes one track; those that hold others, and those that are not looked into
_NESTS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl"})
_LEAVES = frozenset(
    b"ftyp free mdat mvhd tkhd edts udta mdhd hdlr vmhd dinf stsd stts stss ctts stsc stsz stco".split()
)
_MAX_DEPTH = 5
_MAX_EDITS_BYTES = 44
"""A list of one edit, headers included: FFmpeg copies its table of samples for each."""


def encode_video(clip_THW: NDArray[np.uint8], codec: str, crf: int) -> bytes:
    """The clip as video; `crf` counts for h264 only. ValueError where the encoder refuses it."""
    chosen = _FORMATS[codec]
    num_frames, height, width = clip_THW.shape
    if max(height, width) > MAX_SIDE_PX:
        raise ValueError(
            f"frames of {height} x {width} px are too large; a side has {MAX_SIDE_PX} px at most"
        )
    # one key frame: the clip is read as a whole
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
        raise  # FFmpeg's is an error of both kinds
    except av.error.FFmpegError as error:
        raise ValueError(f"a clip of {clip_THW.shape} cannot be encoded as {codec} ({error})") from error
    return file.getvalue()


def decode_video(payload: bytes, codec: str, num_frames: int, max_bytes: int) -> NDArray[np.uint8]:
    """The clip, uint8, T×H×W; ValueError where the payload is not exactly such a video of `num_frames`."""
    chosen = _FORMATS[codec]
    if num_frames > len(payload):
        raise ValueError(f"{len(payload)} bytes hold no {num_frames} frames")
    if chosen.container == "mp4":
        _check_boxes(payload, num_frames)
    else:
        _check_segment(payload)
    try:
        # tags that are no UTF-8, which PyAV 18 refuses with a ValueError, are none of ours
        with av.open(io.BytesIO(payload), format=chosen.container, options=_DECODING) as container:
            return _pictures(container, chosen, num_frames, max_bytes)
    except MemoryError:
        raise  # FFmpeg's is an error of both kinds
    except av.error.FFmpegError as error:
        raise ValueError(f"the payload cannot be decoded as {codec} ({error})") from error


def _pictures(
    container: av.container.InputContainer, chosen: _Format, num_frames: int, max_bytes: int
) -> NDArray[np.uint8]:
    kinds = [stream.type for stream in container.streams]
    if kinds != ["video"]:
        raise ValueError(f"the payload holds {', '.join(kinds) or 'nothing'}, not one video alone")
    stream = container.streams.video[0]
    context = stream.codec_context
    if context is None or context.name != chosen.decoder:
        raise ValueError(f"the payload's video is not {chosen.decoder}")
    height, width = context.height, context.width
    if (
        not (0 < height <= MAX_SIDE_PX and 0 < width <= MAX_SIDE_PX)
        or height * width * num_frames > max_bytes
    ):
        raise ValueError(f"the payload claims {num_frames} frames of {height} x {width} px")
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
            what = "is damaged" if picture.is_corrupt else f"is one more than the catalogue's {num_frames}"
            raise ValueError(f"frame {count} {what}")
        plane = picture.planes[0]
        # rows are padded: a line is longer than the picture is wide
        clip_THW[count] = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height, :width]
        count += 1
    if count < num_frames:
        raise ValueError(f"the payload ends after {count} frames, the catalogue says {num_frames}")
    return clip_THW


def _check_boxes(payload: bytes, num_frames: int) -> None:
    """ValueError where an .mp4 is not of one track with a table of `num_frames` samples.

    FFmpeg allocates that table by its count alone, which in a small hostile file may run to gigabytes; so do
    fragments and compressed headers, which our files have none of.
    """
    tables = [at for name, at in _boxes(payload, 0, len(payload), 0) if name == b"stsz"]
    if len(tables) != 1 or tables[0] + 12 > len(payload):
        raise ValueError(f"the payload is no .mp4 of one track; it has {len(tables)}")
    count = int.from_bytes(payload[tables[0] + 8 : tables[0] + 12], "big")
    if count != num_frames:
        raise ValueError(f"the payload announces {count} frames, the catalogue says {num_frames}")


def _boxes(payload: bytes, start: int, end: int, depth: int) -> Iterator[tuple[bytes, int]]:
    """Name and first byte within of every box between `start` and `end`."""
    while start < end:
        if start + 8 > end:
            raise ValueError("the payload is a cut .mp4")
        size, name = struct.unpack_from(">I4s", payload, start)
        is_ours = name in _LEAVES or (name in _NESTS and depth < _MAX_DEPTH)
        if not is_ours or size < 8 or start + size > end or (name == b"edts" and size > _MAX_EDITS_BYTES):
            raise ValueError(f"the payload is no .mp4 of ours: a box {name!r} of {size} bytes")
        yield name, start + 8
        if name in _NESTS:
            yield from _boxes(payload, start + 8, start + size, depth + 1)
        start += size


def _check_segment(payload: bytes) -> None:
    """ValueError where an .mkv does not end where it says: FFmpeg takes one that lost its end for a whole one."""
    start = 5 + (payload[4] & 0x7F) if payload.startswith(b"\x1a\x45\xdf\xa3") and len(payload) > 4 else 0
    head = payload[start : start + 12]
    size = int.from_bytes(head[5:], "big")
    # the segment's id, and its size in eight bytes
    if not start or head[:5] != b"\x18\x53\x80\x67\x01" or start + len(head) + size != len(payload):
        raise ValueError("the payload is no .mkv of one segment that ends where it says")
