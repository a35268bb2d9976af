"""Writes small videos with known frames with PyAV, and faces of a photograph at known positions."""

import functools
import wave
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import av
import cv2
import numpy as np

PHOTOGRAPH = Path(__file__).parents[2] / "pipeline" / "demo" / "astronaut.png"
CODE_BITS = 10
EACH_ALONE = {"g": "1", "qp": "10", "preset": "ultrafast"}
"""x264's options that encode equal pictures equally, so that tests with `networks_once` search each of them once."""


@functools.cache
def _photograph() -> np.ndarray:
    picture = cv2.imread(str(PHOTOGRAPH))
    assert picture is not None
    return picture


def photograph() -> np.ndarray:
    """Returns NASA's portrait of Eileen Collins, BGR."""
    return _photograph().copy()


def numbered(index: int, width: int = 160, height: int = 96) -> np.ndarray:
    """Returns a gray BGR picture that shows `index` as black and white bars, for `number_of`."""
    picture = np.full((height, width, 3), 128, np.uint8)
    bar = width // CODE_BITS
    for bit in range(CODE_BITS):
        picture[:, bit * bar : (bit + 1) * bar] = 235 if index >> bit & 1 else 20
    return picture


def number_of(gray_HW: np.ndarray) -> int:
    """Returns the index that `numbered` drew."""
    bar = gray_HW.shape[1] // CODE_BITS
    middle = gray_HW.shape[0] // 2
    return sum(int(gray_HW[middle, bit * bar + bar // 2] > 128) << bit for bit in range(CODE_BITS))


def write_video(
    path: Path,
    pictures: Iterable[np.ndarray],
    rate: Fraction | int = 25,
    times_s: Sequence[Fraction | float] | None = None,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    pixel_ratio: Fraction | None = None,
) -> Path:
    """Writes one video stream of BGR pictures, at `times_s` (seconds) or at a constant `rate`."""
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = None
        for number, picture in enumerate(pictures):
            if stream is None:
                stream = container.add_stream(codec, rate=rate)
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = pix_fmt
                stream.options = {"crf": "12", "preset": "veryfast"} if options is None else options
                if pixel_ratio is not None:
                    stream.codec_context.sample_aspect_ratio = pixel_ratio
                stream.codec_context.time_base = (
                    Fraction(1, 90_000) if times_s is not None else 1 / Fraction(rate)
                )
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="bgr24")
            frame.time_base = stream.codec_context.time_base
            frame.pts = number if times_s is None else round(Fraction(times_s[number]) * 90_000)
            container.mux(stream.encode(frame))
        assert stream is not None, "a video has at least one picture"
        container.mux(stream.encode(None))
    return path


def write_audio(path: Path, seconds: float = 0.5) -> Path:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(2 * int(16_000 * seconds)))
    return path


def set_rotation(path: Path, quarter_turns: int) -> None:
    """Writes a display matrix into an mp4's track header that turns the picture clockwise by so many quarters."""
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarter_turns % 4]
    set_display_matrix(path, cos, sin, -sin, cos)


def set_display_matrix(
    path: Path, a: float, b: float, c: float, d: float, x: float = 0, y: float = 0
) -> None:
    """Writes any display matrix: stored (u, v) is shown at (a u + c v + x, b u + d v + y). ISO/IEC 14496-12, 6.2.2."""
    matrix = [a, b, 0, c, d, 0, x, y, 1]
    units = [65_536] * 9
    units[2] = units[5] = units[8] = 1 << 30
    payload = bytearray(path.read_bytes())
    start = payload.index(b"tkhd") + 4 + 40
    for index, (value, unit) in enumerate(zip(matrix, units, strict=True)):
        payload[start + 4 * index : start + 4 * index + 4] = round(value * unit).to_bytes(
            4, "big", signed=True
        )
    path.write_bytes(payload)


def write_mirrored(path: Path, pictures: Iterable[np.ndarray], rate: Fraction | int = 25) -> Path:
    """Writes an mp4 that shows these pictures, stored mirrored and narrow: its pixels are 4:3."""
    stored = [
        cv2.resize(
            picture[:, ::-1], (picture.shape[1] * 3 // 4, picture.shape[0]), interpolation=cv2.INTER_AREA
        )
        for picture in pictures
    ]
    write_video(path, stored, rate, pixel_ratio=Fraction(4, 3))
    set_display_matrix(path, -1, 0, 0, 1, x=stored[0].shape[1])
    return path


def placed(
    scale: float = 1.0,
    degrees: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    about: tuple[float, float] = (223, 118),
) -> np.ndarray:
    """Returns the 2x3 similarity that turns and scales the photograph about its face, then moves it by `shift`."""
    matrix = cv2.getRotationMatrix2D(about, degrees, scale)
    matrix[:, 2] += shift
    return np.asarray(matrix, np.float64)


def face_pictures(
    placements: Iterable[np.ndarray], width: int = 512, height: int = 288, speaking: bool = False
) -> Iterable[np.ndarray]:
    """Yields the photograph placed by each 2x3 matrix. With `speaking`, the lips open and close all the time."""
    for number, matrix in enumerate(placements):
        opening_px = round(4 + 4 * np.sin(number * 1.3)) if speaking else None
        yield _face_picture(np.asarray(matrix, np.float64).tobytes(), width, height, opening_px).copy()


@functools.lru_cache(32)  # a speaking face in one place has nine pictures
def _face_picture(matrix: bytes, width: int, height: int, opening_px: int | None) -> np.ndarray:
    source = _photograph() if opening_px is None else _with_open_mouth(_photograph(), opening_px)
    matrix_23 = np.frombuffer(matrix).reshape(2, 3)
    return cv2.warpAffine(
        source, matrix_23, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )


def _with_open_mouth(picture: np.ndarray, opening_px: int) -> np.ndarray:
    """Returns the picture with a lower jaw and a dark gap between the lips."""
    row, left, right = 144, 206, 242
    opened = picture.copy()
    opened[row + opening_px :, left:right] = picture[row : len(picture) - opening_px, left:right]
    opened[row : row + opening_px, left:right] = (40, 30, 60)
    return opened


def write_face(
    path: Path,
    num_frames: int = 30,
    rate: Fraction | int = 25,
    speaking: bool = False,
    **placement: float,
) -> Path:
    """Writes a video of the face, which is still or speaks."""
    path.write_bytes(_face_video(path.suffix, num_frames, rate, speaking, **placement))
    return path


@functools.lru_cache(64)
def _face_video(
    suffix: str, num_frames: int, rate: Fraction | int, speaking: bool, **placement: float
) -> bytes:
    places = [placed(**placement)] * (num_frames if speaking else 1)
    pictures = list(face_pictures(places, speaking=speaking))
    return _written(suffix, pictures if speaking else pictures * num_frames, rate)


def _written(suffix: str, pictures: Iterable[np.ndarray], rate: Fraction | int = 25) -> bytes:
    with TemporaryDirectory() as folder:
        return write_video(Path(folder, f"written{suffix}"), pictures, rate).read_bytes()


def mouth_pictures(
    num_frames: int, width: int = 96, height: int = 96, mouth_share: float = 0.45, seed: int = 0
) -> list[np.ndarray]:
    """Returns crops of the photograph's mouth, which speaks and drifts. The drift depends on the seed.

    The mouth takes `mouth_share` of the width.
    """
    drift = np.random.default_rng(seed).normal(0, 0.7, (num_frames, 2)).cumsum(axis=0).clip(-2, 2)
    scale = mouth_share * width / 37  # the lips are 37 px wide, from 205 to 242
    centre = np.array([(width - 1) / 2, (height - 1) / 2])
    placements = [
        np.array([[scale, 0, x], [0, scale, y]]) for x, y in drift + centre - scale * np.array([223, 144])
    ]
    return list(face_pictures(placements, width, height, speaking=True))


def write_mouth(path: Path, num_frames: int = 20, seed: int = 0, size: int = 96) -> Path:
    """Writes a ready mouth clip, square."""
    path.write_bytes(_mouth_video(path.suffix, num_frames, seed, size))
    return path


@functools.lru_cache(64)
def _mouth_video(suffix: str, num_frames: int, seed: int, size: int) -> bytes:
    return _written(suffix, mouth_pictures(num_frames, size, size, seed=seed))
