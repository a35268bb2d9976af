"""Decoded pictures equal what a player shows: pixel aspect ratios and display matrices."""

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from shards.errors import ClipRejected
from shards.schema import Reason, Transfer
from stages.videos.media import Source
from stages.videos.picture import Window
from stages.videos.video import decode, read_header
from tests.support.displayed import ORIENTATIONS, PARAMS, SHOWN, SHOWN_GRAY, first_of, stored, write_hdr
from tests.support.videos import numbered, set_display_matrix, write_video

RATIOS = [
    *(Fraction(*pair) for pair in ((1, 1), (4, 3), (3, 4), (16, 15), (15, 16), (12, 11), (10, 11), (16, 11))),
    *(Fraction(*pair) for pair in ((40, 33), (64, 45), (1, 2), (2, 1), (8, 9), (32, 27), (3, 2), (2, 3))),
    *(Fraction(*pair) for pair in ((128, 117), (24, 11))),
]
DISPLAYED = [
    (ratio, matrix)
    for i, ratio in enumerate(RATIOS)
    for j, matrix in enumerate(ORIENTATIONS)
    if i < 2 or (i + j) % 4 == 0
]
"""Every orientation with square pixels and with 4:3; every ratio with an upright orientation and with a turned one."""


def write_stored(
    path: Path,
    matrix: tuple[int, int, int, int],
    ratio: Fraction,
    num_frames: int = 1,
    shown: np.ndarray = SHOWN,
) -> Path:
    picture = stored(shown, matrix, ratio)
    write_video(path, [picture] * num_frames, options={"crf": "8", "preset": "veryfast"}, pixel_ratio=ratio)
    height, width = picture.shape[:2]
    a, b, c, d = matrix
    set_display_matrix(
        path, *matrix, x=width * (a < 0) + height * (c < 0), y=width * (b < 0) + height * (d < 0)
    )
    return path


@pytest.mark.parametrize(("ratio", "matrix"), DISPLAYED)
def test_any_ratio_and_orientation_gives_the_displayed_picture(
    tmp_path: Path, ratio: Fraction, matrix: tuple[int, int, int, int]
) -> None:
    frame = first_of(write_stored(tmp_path / "a.mp4", matrix, ratio))
    width, height = frame.size
    # the stored width is rounded to an even number
    assert abs(width - 512) <= max(1, ratio) and abs(height - 288) <= max(1, ratio)
    gray = cv2.resize(frame.gray(), (512, 288)).astype(int)
    assert np.abs(gray - SHOWN_GRAY).mean() <= 2
    window = Window(30, 40, 131, 90)
    assert np.array_equal(frame.gray(window), frame.gray()[40:90, 30:131])
    rgb = frame.rgb_HW3()
    assert rgb.shape == (height, width, 3)
    assert np.abs(cv2.resize(rgb, (512, 288))[..., ::-1].astype(int) - SHOWN).mean() <= 3
    view = frame.rgb_view(np.array([[1.0, 0, 20], [0, 1, 30]]), 200, repeat_border=True)
    assert np.abs(view - rgb[30:230, 20:220]).mean() <= 2


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mkv", "libx264"),
        ("a.mov", "libx264"),
        ("a.ts", "libx264"),
        ("a.mp4", "libx265"),
        ("a.mp4", "libvpx-vp9"),
        ("a.avi", "mpeg4"),
        ("a.mov", "mjpeg"),
        # MPEG-2 stores the ratio of the picture, 16:9
        ("a.mpg", "mpeg2video"),
    ],
)
def test_the_ratio_of_every_container_is_used(tmp_path: Path, name: str, codec: str) -> None:
    picture = cv2.resize(SHOWN, (384, 288), interpolation=cv2.INTER_AREA)
    options = {"b": "5000000", "x265-params": "log-level=error"}
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = write_video(
        tmp_path / name,
        [picture] * 2,
        codec=codec,
        pix_fmt=pix_fmt,
        options=options,
        pixel_ratio=Fraction(4, 3),
    )
    frame = first_of(path)
    assert frame.size == (512, 288)
    assert np.abs(frame.gray().astype(int) - SHOWN_GRAY).mean() <= 2
    header = read_header(path)
    assert (header.width, header.height) == (512, 288)


def test_the_containers_ratio_overrides_the_bitstreams(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [SHOWN[:, ::2]], pixel_ratio=Fraction(2))
    set_container_ratio(path, Fraction(3, 2))
    assert first_of(path).size == (384, 288)


def set_container_ratio(path: Path, ratio: Fraction) -> None:
    """Overwrites the pixel aspect ratio of an mp4. ISO/IEC 14496-12, 12.1.4."""
    payload = bytearray(path.read_bytes())
    place = payload.index(b"pasp") + 4
    payload[place : place + 8] = ratio.numerator.to_bytes(4, "big") + ratio.denominator.to_bytes(4, "big")
    path.write_bytes(payload)


def test_a_ratio_that_only_compensates_rounding_is_ignored(tmp_path: Path) -> None:
    """FFmpeg's scale=-2 gives 200 x 112 pixels for 16:9, and 224:225 to compensate."""
    pictures = [cv2.resize(SHOWN, (200, 112))]
    plain = write_video(tmp_path / "plain.mp4", pictures)
    near = write_video(tmp_path / "near.mp4", pictures, pixel_ratio=Fraction(224, 225))
    assert np.array_equal(first_of(near).gray(), first_of(plain).gray())


@pytest.mark.parametrize("ratio", [Fraction(1, 1000), Fraction(1000), Fraction(1, 11), Fraction(11)])
def test_an_absurd_ratio_is_rejected(tmp_path: Path, ratio: Fraction) -> None:
    path = write_video(tmp_path / "a.mp4", [SHOWN], pixel_ratio=Fraction(2))
    set_container_ratio(path, ratio)
    with pytest.raises(ClipRejected, match=r"a\.mp4 has pixels of .* re-encode it") as caught:
        first_of(path)
    assert caught.value.reason is Reason.UNREADABLE


def test_the_displayed_size_is_limited(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", [SHOWN], pixel_ratio=Fraction(2))
    with pytest.raises(ClipRejected, match="1024x288") as caught:
        next(iter(decode(path, PARAMS.model_copy(update={"max_source_pixels": 512 * 288}))))
    assert caught.value.reason is Reason.OVERSIZED


def test_a_ratio_that_changes_is_rejected(tmp_path: Path) -> None:
    parts = [
        write_video(tmp_path / f"{ratio}.ts", [SHOWN] * 20, pixel_ratio=Fraction(ratio)) for ratio in (1, 2)
    ]
    both = tmp_path / "both.ts"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(ClipRejected, match="shape of its pixels from 1 to 2") as caught:
        list(decode(both, PARAMS))
    assert caught.value.reason is Reason.UNREADABLE


@pytest.mark.parametrize(
    ("matrix", "nearest"),
    [
        ((0.98, 0.17, -0.17, 0.98), (1, 0, 0, 1)),
        ((-0.98, 0.17, 0.17, 0.98), (-1, 0, 0, 1)),
        ((0.17, 0.98, -0.98, 0.17), (0, 1, -1, 0)),
        ((-2.0, 0.0, 0.0, 2.0), (-1, 0, 0, 1)),
        ((0, 0, 0, 0), (1, 0, 0, 1)),
        ((1, 1, 1, 1), (1, 0, 0, 1)),
    ],
)
def test_other_matrices_give_the_nearest_orientation(
    tmp_path: Path, matrix: tuple[float, float, float, float], nearest: tuple[int, int, int, int]
) -> None:
    path = write_stored(tmp_path / "a.mp4", nearest, Fraction(1))
    set_display_matrix(path, *matrix)
    frame = first_of(path)
    assert frame.size == (512, 288)
    assert np.abs(frame.gray().astype(int) - SHOWN_GRAY).mean() <= 2


@pytest.mark.parametrize("matrix", ORIENTATIONS)
def test_the_matrix_of_matroska_is_used(tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    a, b, c, d = (65_536 * value for value in matrix)
    picture = stored(SHOWN, matrix, Fraction(1))
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "8"})
        stream.height, stream.width = picture.shape[:2]
        stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 1 << 30])
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="bgr24")))
        container.mux(stream.encode(None))
    assert np.abs(first_of(path).gray().astype(int) - SHOWN_GRAY).mean() <= 2


def test_a_matrix_in_the_bitstream_applies_to_all_pictures(tmp_path: Path) -> None:
    """H.264's display orientation message, only before the first picture: mirrored, then turned anticlockwise."""
    plain = write_video(
        tmp_path / "plain.h264", [stored(SHOWN, (0, 1, 1, 0), Fraction(1))] * 4, options={"crf": "8"}
    )
    payload = plain.read_bytes()
    # not cancelled 0, mirrored 1, flipped 0, 2^14 of 2^16 of a turn, repetition period 0 (1), no extension 0, end
    message = int("010010000000000000010100", 2).to_bytes(3, "big")
    first_picture = payload.index(b"\0\0\1\x65")
    turned = tmp_path / "a.h264"
    turned.write_bytes(
        payload[:first_picture] + b"\0\0\1\x06\x2f\x03" + message + b"\x80" + payload[first_picture:]
    )
    frames = list(decode(turned, PARAMS))
    assert len(frames) == 4
    for frame in frames:
        assert np.abs(frame.gray().astype(int) - SHOWN_GRAY).mean() <= 2


@pytest.mark.parametrize("name", ["mirrored", "oblong", "hdr"])
def test_a_part_has_exactly_the_pictures_of_the_whole_video(tmp_path: Path, name: str) -> None:
    """For HDR, the file's first picture decides the brightness of white. Here it is darker than the part."""
    path = tmp_path / "a.mkv"
    if name == "hdr":
        small = cv2.resize(SHOWN, (128, 72), interpolation=cv2.INTER_AREA)
        pictures = [small // 2] + [small] * 149
        write_hdr(path, pictures, Transfer.PQ, 203, {"g": "10", "crf": "4"})
    else:
        path = tmp_path / "a.mp4"
        matrix, ratio = ((-1, 0, 0, 1), Fraction(1)) if name == "mirrored" else ((0, 1, 1, 0), Fraction(4, 3))
        pictures = [stored(numbered(number, 320, 96), matrix, ratio) for number in range(150)]
        write_video(path, pictures, options={"g": "10", "crf": "12"}, pixel_ratio=ratio)
        set_display_matrix(path, *matrix)
    whole = [frame.gray() for frame in decode(path, PARAMS)]
    part = [frame.gray() for frame in decode(Source(path, start_s=4.0, end_s=5.0), PARAMS)]
    assert len(part) == 25
    assert all(np.array_equal(one, other) for one, other in zip(part, whole[100:125], strict=True))
