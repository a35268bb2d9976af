"""Writes a video with the mouth box and captions burnt in: H.264 in mp4, sound kept."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.inference.caption_font import CaptionFont
from pipeline.inference.captions import caption_lines
from pipeline.inference.text_of_video import Segment, VideoReading
from pipeline.params import Params
from shards.errors import ClipRejected
from stages.mouths.cropping import MouthClip
from stages.mouths.pieces import Piece
from stages.videos.picture import SourceFrame
from stages.videos.streams import select_video_stream
from stages.videos.video import OPEN_OPTIONS, decode, read_header

BOX_RGB = (64, 220, 120)
CAPTION_SHARE = 1 / 18
"""Height of the letters, as a share of the picture's shorter side."""
MARGIN_SHARE = 1 / 20
TICK_S = Fraction(1, 90_000)
"""MPEG's clock: a frame of every usual rate lasts a whole number of ticks, or nearly."""
KEPT_SOUND = frozenset({"aac", "mp3", "ac3", "opus", "alac"})
"""Audio codecs that mp4 players know; other sound is encoded as AAC."""


@dataclass
class MouthBoxes:
    """Where the mouth was cropped: collected while a video is read (`read_video`'s `on_mouth`)."""

    size_px: int
    _corners: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    """The corners of the crop by source frame, (4, 2)."""
    _order: list[int] = field(default_factory=list)
    _spans: list[tuple[int, int]] = field(default_factory=list)
    """First and last source frame of each piece."""

    def __call__(self, piece: Piece, mouth: MouthClip) -> None:
        if mouth.transform_T23 is None:
            return
        frame_T = mouth.frame_index_T + piece.first_frame
        for frame, transform_23 in zip(frame_T.tolist(), mouth.transform_T23, strict=True):
            self._corners[frame] = _corners(transform_23, self.size_px)
        self._spans.append((int(frame_T[0]), int(frame_T[-1])))
        self._order = sorted(self._corners)

    def at(self, frame: int) -> NDArray[np.float32] | None:
        """Returns the last known box of the same piece, since a source of 60 frames/s has frames without a crop."""
        if not any(first <= frame <= last for first, last in self._spans):
            return None
        return self._corners[self._order[bisect_right(self._order, frame) - 1]]


def burn_in(
    video: Path, reading: VideoReading, boxes: MouthBoxes, font: CaptionFont, params: Params, file: BinaryIO
) -> str:
    """Writes the captioned video, mp4, to `file`; returns what was lost, "" if nothing.

    Raises ClipRejected if no picture can be decoded, FFmpegError if the file cannot be written.
    """
    captions = _Captions(reading.segments, font)
    header = read_header(video)
    step_s = 1 / header.fps if header.fps else 0.0
    end_s = 0.0
    no_limit = params.crop.model_copy(update={"max_source_s": math.inf, "max_gap_s": math.inf})
    with (
        av.open(file, "w", format="mp4") as out,
        av.open(str(video.absolute()), **OPEN_OPTIONS) as source,
    ):
        sound = _Sound(source, out)
        stream = None
        for frame in _until_error(decode(video, no_limit)):
            rgb_HW3 = frame.rgb_HW3()
            # H.264 in 4:2:0 needs even sides
            rgb_HW3 = np.ascontiguousarray(rgb_HW3[: len(rgb_HW3) // 2 * 2, : rgb_HW3.shape[1] // 2 * 2])
            if stream is None:
                stream = _picture_stream(out, rgb_HW3, header.fps)
                sound.announce()
            _draw_box(rgb_HW3, boxes.at(frame.index))
            # captions count from the start of the sound, pictures from the first picture
            captions.draw(rgb_HW3, frame.time_s + header.start_s)
            end_s = frame.time_s + step_s
            picture = av.VideoFrame.from_ndarray(rgb_HW3, format="rgb24")
            picture.time_base, picture.pts = TICK_S, round(frame.time_s / TICK_S)
            out.mux(stream.encode(picture))
            sound.up_to(frame.time_s)
        assert stream is not None, "decode gives a picture or raises"
        out.mux(stream.encode(None))
        sound.up_to(end_s)
    return sound.lost


def _until_error(frames: Iterator[SourceFrame]) -> Iterator[SourceFrame]:
    """Yields the frames before an error: the text of a truncated video covers the same frames."""
    has_frames = False
    try:
        for frame in frames:
            yield frame
            has_frames = True
    except ClipRejected:
        if not has_frames:
            raise


def _picture_stream(
    out: av.container.OutputContainer, rgb_HW3: NDArray[np.uint8], fps: float | None
) -> av.VideoStream:
    """Adds the video stream; `fps` decides how long the last picture stays."""
    rate = None if fps is None else Fraction(fps).limit_denominator(1001)
    stream = out.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "veryfast"})
    stream.height, stream.width = rgb_HW3.shape[:2]
    stream.pix_fmt = "yuv420p"
    stream.codec_context.time_base = TICK_S
    return stream


def _draw_box(rgb_HW3: NDArray[np.uint8], corners_42: NDArray[np.float32] | None) -> None:
    if corners_42 is not None:
        thickness = max(2, round(min(rgb_HW3.shape[:2]) / 360))
        cv2.polylines(rgb_HW3, [np.rint(corners_42).astype(np.int32)], True, BOX_RGB, thickness, cv2.LINE_AA)


def _corners(transform_23: NDArray[np.float32], size_px: int) -> NDArray[np.float32]:
    """Returns the corners of the crop in the source picture, (4, 2), px."""
    edge = size_px - 0.5
    corners_42 = np.array([(-0.5, -0.5), (edge, -0.5), (edge, edge), (-0.5, edge)])
    back_23 = cv2.invertAffineTransform(transform_23.astype(np.float64))
    return np.asarray(corners_42 @ back_23[:, :2].T + back_23[:, 2], np.float32)


class _Captions:
    def __init__(self, segments: Sequence[Segment], font: CaptionFont) -> None:
        self._segments = [segment for segment in segments if segment.text]
        self._begins_s = [segment.start_s for segment in self._segments]
        self._font = font
        self._shown: int | None = None
        self._strip: NDArray[np.uint8] | None = None

    def draw(self, rgb_HW3: NDArray[np.uint8], time_s: float) -> None:
        number = bisect_right(self._begins_s, time_s) - 1
        if number < 0 or time_s >= self._segments[number].end_s:
            return
        height, width = rgb_HW3.shape[:2]
        margin = round(min(height, width) * MARGIN_SHARE)
        if number != self._shown or self._strip is None:
            self._shown = number
            size_px = max(8, round(min(height, width) * CAPTION_SHARE))
            lines = caption_lines(self._segments[number].text)
            self._strip = self._font.strip(lines, size_px, width - 2 * margin)[: height - 2 * margin]
        strip_HW4 = self._strip
        top = height - margin - len(strip_HW4)
        left = (width - strip_HW4.shape[1]) // 2
        place = rgb_HW3[top : top + len(strip_HW4), left : left + strip_HW4.shape[1]]
        share = strip_HW4[..., 3:].astype(np.float32) / 255
        place[:] = np.rint(share * strip_HW4[..., :3] + (1 - share) * place)


class _Sound:
    """Copies the first audio stream of a file into another: unchanged if mp4 players know its codec, else as AAC."""

    def __init__(self, source: av.container.InputContainer, out: av.container.OutputContainer) -> None:
        self._source, self._out = source, out
        self._packets: Iterator[av.Packet] = iter(())
        self._waiting: av.Packet | None = None
        self._num_damaged = 0
        self._early_s = 0.0

    @property
    def lost(self) -> str:
        losses = []
        if self._early_s > 0.05:
            losses.append(f"{self._early_s:.2f} s of sound before the first picture were left out")
        if self._num_damaged:
            losses.append(f"{self._num_damaged} damaged audio packets were left out")
        return ", ".join(losses)

    def announce(self) -> None:
        """Adds the audio stream; must run before the first packet, since a container lists its streams first."""
        streams = self._source.streams
        sound = streams.audio[0] if streams.audio else None
        if sound is None or sound.codec_context is None:
            return
        # the times of pictures count from the first picture
        shown = select_video_stream(self._source, self._source.name)
        first = next((frame for frame in self._source.decode(shown) if frame.pts is not None), None)
        begin_s = float(first.pts * first.time_base) if first is not None else 0.0
        self._source.seek(0)
        if sound.start_time is not None and sound.time_base is not None:
            self._early_s = begin_s - float(sound.start_time * sound.time_base)
        if sound.codec_context.name in KEPT_SOUND:
            self._packets = self._copied(sound, self._out.add_stream_from_template(sound), begin_s)
        else:
            # AAC supports few rates; sound at another rate is resampled
            rates = av.Codec("aac", "w").audio_rates or [sound.rate]
            rate = min(rates, key=lambda rate: abs(rate - sound.rate))
            self._packets = self._encoded(sound, self._out.add_stream("aac", rate=rate), begin_s)

    def up_to(self, time_s: float) -> None:
        """Writes the sound up to `time_s`: players need sound and pictures interleaved."""
        while True:
            if self._waiting is None:
                self._waiting = next(self._packets, None)
            if self._waiting is None or float(self._waiting.pts * self._waiting.time_base) > time_s:
                return
            self._out.mux(self._waiting)
            self._waiting = None

    def _copied(self, sound: av.AudioStream, stream: av.AudioStream, begin_s: float) -> Iterator[av.Packet]:
        shift = round(begin_s / sound.time_base)
        for packet in self._source.demux(sound):
            if packet.pts is None or packet.dts is None or packet.pts < shift:
                continue
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = stream
            yield packet

    def _encoded(self, sound: av.AudioStream, stream: av.AudioStream, begin_s: float) -> Iterator[av.Packet]:
        for frame in self._decoded(sound):
            if frame.pts is None or float(frame.pts * frame.time_base) < begin_s:
                continue
            frame.pts -= round(begin_s / frame.time_base)
            yield from (packet for packet in stream.encode(frame) if packet.pts is not None)
        yield from (packet for packet in stream.encode(None) if packet.pts is not None)

    def _decoded(self, sound: av.AudioStream) -> Iterator[av.AudioFrame]:
        """Decodes packet by packet: leaves out a damaged packet and keeps those after it."""
        for packet in self._source.demux(sound):
            try:
                yield from packet.decode()
            except av.error.FFmpegError:
                self._num_damaged += 1
