"""The sound of a clip as log-mel vectors in step with its frames, for `pack.audio`.

Sound and picture are aligned by their timestamps. Files are untrusted: they are opened like videos, and the decoded
sound is limited. Shapes: N samples at 16 kHz, T frames, K vectors of a frame, M mel bands, F bins of a spectrum.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache

import av
import numpy as np
from numpy.typing import NDArray

from shards.errors import ClipRejected
from shards.schema import Reason
from shards.sound import BANDS, VECTORS_A_FRAME
from stages.settings import CropParams
from stages.videos.media import Source, check_file_size
from stages.videos.video import OPEN_OPTIONS, picture_start_s
from stages.videos.zip_directory import find_member
from stages.videos.zip_member import MemberFile, opened_member

SOUND_VERSION = 1
"""Raise it when the same sound would give other vectors."""
RATE = 16_000
WINDOW = 400
"""Samples of a vector's window, 25 ms; as in Kaldi and torchaudio."""
_FFT = 512
_FLOOR = 1e-10
"""The smallest power: the logarithm of silence is -23."""
_JITTER_S = 0.02
"""Containers round timestamps to milliseconds: sound that is off by less follows without a gap."""
_MARGIN_S = 1.0
"""Jumps aim this much before the wanted time."""
MAX_RATE, MAX_CHANNELS = 384_000, 64
_INDEXED = frozenset({"mov", "matroska", "wav"})
"""Demuxers that jump to a time."""


class NoSound(Exception):
    """A clip has no usable sound. Says why."""


def sound_of_clip(
    video: Source, file: Source | None, num_frames: int, params: CropParams
) -> NDArray[np.float16]:
    """Returns the log-mel vectors (float16, T×4×40) of a clip of `num_frames` frames at `target_fps`.

    The sound is a track of `video`, or `file`, which begins with the first picture of the whole video. Where sound
    begins later or ends earlier than the clip, the rest is silence. Raises NoSound if there is none, or it cannot be
    read.
    """
    try:
        begin_s = picture_start_s(video, params)
        if file is not None:
            begin_s -= picture_start_s(replace(video, start_s=None, end_s=None), params)
        num_samples = math.ceil(num_frames / params.target_fps * RATE) + WINDOW
        source = file or video
        sound_N = read_sound_file(source, begin_s - WINDOW / 2 / RATE, num_samples, params, file is not None)
    except ClipRejected as error:
        raise NoSound(error.detail) from error
    if not sound_N.any():
        raise NoSound(f"{source.name} is silent during the clip")
    return log_mel(sound_N, num_frames, params.target_fps)


def log_mel(sound_N: NDArray[np.float32], num_frames: int, fps: float) -> NDArray[np.float16]:
    """Returns 4 log-mel vectors of each frame (T×4×40) of a sound that begins half a window before the clip.

    Vector k is the logarithm of the power in 40 mel bands, from 0 to 8 kHz, in a Hann window around the time
    (k + 1/2) / (4 fps).
    """
    start_V = np.floor((np.arange(num_frames * VECTORS_A_FRAME) + 0.5) * RATE / (fps * VECTORS_A_FRAME))
    window_VN = sound_N[start_V.astype(int)[:, None] + np.arange(WINDOW)] * _hann()
    power_VF = np.abs(np.fft.rfft(window_VN, _FFT)) ** 2
    mel_VM = np.log(np.maximum(power_VF @ mel_filters(), _FLOOR))
    return mel_VM.astype(np.float16).reshape(num_frames, VECTORS_A_FRAME, BANDS)


def silence(num_frames: int) -> NDArray[np.float16]:
    """Returns the vectors of silence."""
    return np.full((num_frames, VECTORS_A_FRAME, BANDS), np.log(_FLOOR), np.float16)


@lru_cache
def _hann() -> NDArray[np.float64]:
    return np.hanning(WINDOW + 1)[:-1]


@lru_cache
def mel_filters() -> NDArray[np.float64]:
    """Returns the triangular filters (F×M) of HTK, equally spaced on the scale 2595 log10(1 + f / 700 Hz)."""
    edges_mel = np.linspace(0, 2595 * np.log10(1 + RATE / 2 / 700), BANDS + 2)
    edge_hz = 700 * (10 ** (edges_mel / 2595) - 1)
    bin_F1 = np.linspace(0, RATE / 2, _FFT // 2 + 1)[:, None]
    rising_FM = (bin_F1 - edge_hz[:-2]) / (edge_hz[1:-1] - edge_hz[:-2])
    falling_FM = (edge_hz[2:] - bin_F1) / (edge_hz[2:] - edge_hz[1:-1])
    return np.maximum(0, np.minimum(rising_FM, falling_FM))


# -- reading a file ----------------------------------------------------------------------------------------


def read_sound_file(
    source: Source, begin_s: float, num_samples: int, params: CropParams, from_start: bool = False
) -> NDArray[np.float32]:
    """Returns `num_samples` at 16 kHz, mono, from `begin_s` of the file's clock on; silence where there is no sound.

    With `from_start`, `begin_s` counts from the first sound of the file. Raises ClipRejected (missing_file,
    unreadable, oversized), and NoSound if the file has no sound.
    """
    check_file_size(source, params.max_source_mb)
    if source.member is None:
        return _read(source, str(source.path.absolute()), begin_s, num_samples, params, from_start)
    with opened_member(find_member(source.path, source.member)) as file:
        sound_N = _read(source, file, begin_s, num_samples, params, from_start)
        file.check()
    return sound_N


def _read(
    source: Source,
    file: str | MemberFile,
    begin_s: float,
    num_samples: int,
    params: CropParams,
    from_start: bool,
) -> NDArray[np.float32]:
    try:
        with av.open(file, **OPEN_OPTIONS) as container:
            stream = _sound_stream(source, container)
            origin_s = 0.0
            if from_start and stream.start_time is not None:
                origin_s = float(stream.start_time * stream.time_base)
            return _placed(source, container, stream, origin_s + begin_s, num_samples, params)
    except av.error.FFmpegError as error:
        raise ClipRejected(
            Reason.UNREADABLE, f"the sound of {source.name} cannot be decoded ({error.strerror})"
        ) from error


def _sound_stream(source: Source, container: av.container.InputContainer) -> av.AudioStream:
    stream = container.streams.best("audio")
    if stream is None:
        raise NoSound(f"{source.name} has no sound")
    assert isinstance(stream, av.AudioStream)
    context = stream.codec_context
    if context is None:
        raise ClipRejected(Reason.UNREADABLE, f"FFmpeg has no decoder for the sound of {source.name}")
    if not (0 < context.sample_rate <= MAX_RATE and 0 < context.channels <= MAX_CHANNELS):
        raise ClipRejected(
            Reason.OVERSIZED,
            f"the sound of {source.name} has {context.channels} channels at {context.sample_rate} Hz",
        )
    context.thread_count = 1
    return stream


def _placed(
    source: Source,
    container: av.container.InputContainer,
    stream: av.AudioStream,
    begin_s: float,
    num_samples: int,
    params: CropParams,
) -> NDArray[np.float32]:
    """Returns the samples from `begin_s` on, each piece of sound at its time."""
    sound_N = np.zeros(num_samples, np.float32)
    frames = container.decode(stream)
    if begin_s > 2 * _MARGIN_S and not _INDEXED.isdisjoint(container.format.name.split(",")):
        container.seek(int((begin_s - _MARGIN_S) / stream.time_base), stream=stream, backward=True)
    end_s = begin_s + num_samples / RATE
    for start_s, piece_N in _pieces(source, frames, begin_s, end_s, params):
        place = round((start_s - begin_s) * RATE)
        first, stop = max(place, 0), min(place + len(piece_N), num_samples)
        if first < stop:
            sound_N[first:stop] = piece_N[first - place : stop - place]
    return sound_N


def _pieces(
    source: Source, frames: Iterator[av.AudioFrame], begin_s: float, end_s: float, params: CropParams
) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """Yields each piece of sound without gaps near the wanted time, at 16 kHz, with its begin."""
    piece: _Piece | None = None
    next_s, decoded_s = 0.0, 0.0
    for frame in frames:
        seconds = frame.samples / frame.sample_rate
        decoded_s += seconds
        if decoded_s > params.max_source_s + _MARGIN_S:
            raise ClipRejected(
                Reason.OVERSIZED,
                f"the sound of {source.name} is longer than crop.max_source_s ({params.max_source_s:g} s)",
            )
        stamp_s = next_s if frame.pts is None else float(frame.pts * frame.time_base)
        follows = abs(stamp_s - next_s) <= _JITTER_S
        start_s = next_s if piece and follows else stamp_s
        next_s = start_s + seconds
        # resampling needs a little sound around the clip
        if next_s < begin_s - _MARGIN_S / 2:
            continue
        if start_s > end_s + _MARGIN_S / 2:
            break
        if piece and not (follows and piece.fits(frame)):
            yield piece.finished()
            piece = None
        piece = piece or _Piece(start_s, frame)
        piece.add(frame)
    if piece:
        yield piece.finished()


class _Piece:
    """Sound without gaps, resampled to 16 kHz mono."""

    def __init__(self, start_s: float, first: av.AudioFrame) -> None:
        self.start_s, self._form = start_s, _form_of(first)
        self._resampler = av.AudioResampler("flt", "mono", RATE)
        self._parts: list[NDArray[np.float32]] = []

    def fits(self, frame: av.AudioFrame) -> bool:
        return _form_of(frame) == self._form

    def add(self, frame: av.AudioFrame | None) -> None:
        if frame is not None:
            frame.pts = None  # counted here
        self._parts += [part.to_ndarray()[0] for part in self._resampler.resample(frame)]

    def finished(self) -> tuple[float, NDArray[np.float32]]:
        self.add(None)
        return self.start_s, np.concatenate(self._parts) if self._parts else np.zeros(0, np.float32)


def _form_of(frame: av.AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.sample_rate
