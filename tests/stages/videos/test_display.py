"""Decoded pictures equal what a player shows: pixel aspect ratios, display matrices, HDR, more than 8 bits."""

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from shards.errors import ClipRejected
from shards.schema import MediaKind, Reason, Transfer
from stages.mouths.cropping import MouthClip, crop_video
from stages.settings import CropParams
from stages.videos.media import Source
from stages.videos.picture import SourceFrame, Window
from stages.videos.tone import ToneCurve
from stages.videos.video import decode, read_header
from tests.support.videos import (
    face_pictures,
    numbered,
    photograph,
    placed,
    set_display_matrix,
    write_mouth,
    write_video,
)

PARAMS = CropParams()
SHOWN = cv2.GaussianBlur(photograph(), (0, 0), 2)
"""The picture that a player shows; BGR, 512 x 288."""
SHOWN_GRAY = cv2.cvtColor(SHOWN, cv2.COLOR_BGR2GRAY).astype(int)

TRC = {Transfer.PQ: 16, Transfer.HLG: 18}
"""FFmpeg's numbers."""

RATIOS = [
    *(Fraction(*pair) for pair in ((1, 1), (4, 3), (3, 4), (16, 15), (15, 16), (12, 11), (10, 11), (16, 11))),
    *(Fraction(*pair) for pair in ((40, 33), (64, 45), (1, 2), (2, 1), (8, 9), (32, 27), (3, 2), (2, 3))),
    *(Fraction(*pair) for pair in ((128, 117), (24, 11))),
]

ORIENTATIONS: dict[tuple[int, int, int, int], Callable[[np.ndarray], np.ndarray]] = {
    (1, 0, 0, 1): lambda shown: shown,
    (-1, 0, 0, 1): np.fliplr,
    (1, 0, 0, -1): np.flipud,
    (-1, 0, 0, -1): lambda shown: np.rot90(shown, 2),
    (0, 1, 1, 0): lambda shown: shown.swapaxes(0, 1),
    (0, -1, -1, 0): lambda shown: np.rot90(shown.swapaxes(0, 1), 2),
    (0, 1, -1, 0): lambda shown: np.rot90(shown),
    (0, -1, 1, 0): lambda shown: np.rot90(shown, -1),
}
"""a, b, c, d of the display matrix, and how the picture is stored that a player turns upright with it."""


def stored(shown: np.ndarray, matrix: tuple[int, int, int, int], ratio: Fraction) -> np.ndarray:
    """Returns the picture as stored. The ratio is that of stored pixels, before they are turned upright."""
    turned = ORIENTATIONS[matrix](shown)
    height, width = turned.shape[:2]
    size = (2 * round(width / ratio / 2), height)
    return cv2.resize(np.ascontiguousarray(turned), size, interpolation=cv2.INTER_CUBIC)


def write_stored(
    path: Path,
    matrix: tuple[int, int, int, int],
    ratio: Fraction,
    num_frames: int = 1,
    shown: np.ndarray = SHOWN,
) -> Path:
    picture = stored(shown, matrix, ratio)
    write_video(path, [picture] * num_frames, options={"crf": "8"}, pixel_ratio=ratio)
    height, width = picture.shape[:2]
    a, b, c, d = matrix
    set_display_matrix(
        path, *matrix, x=width * (a < 0) + height * (c < 0), y=width * (b < 0) + height * (d < 0)
    )
    return path


def first_of(path: Path) -> SourceFrame:
    return next(iter(decode(path, PARAMS)))


@pytest.mark.parametrize("matrix", ORIENTATIONS)
@pytest.mark.parametrize("ratio", RATIOS, ids=str)
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


# -- more than 8 bits, and HDR ---------------------------------------------------------------------------


def write_planes(
    path: Path,
    planes: list[np.ndarray],
    pix_fmt: str,
    transfer: int = 2,
    color_range: int = 1,
    colorspace: int = 2,
    num_frames: int = 1,
    pixel_ratio: Fraction | None = None,
) -> Path:
    """Writes samples unchanged; lossless except for mp4. `transfer`: 16 is PQ, 18 HLG; `colorspace`: 9 is BT.2020."""
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, pix_fmt)
    kind = np.uint8 if planes[0].dtype == np.uint8 else np.uint16
    for plane, samples in zip(frame.planes, planes, strict=True):
        rows = np.frombuffer(plane, kind).reshape(plane.height, -1)
        rows[:, : samples.shape[1]] = samples
    frame.color_range, frame.colorspace = color_range, colorspace
    with av.open(str(path), "w") as container:
        is_mp4 = path.suffix == ".mp4"
        stream = container.add_stream("libx264" if is_mp4 else "ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.options = {"crf": "4"} if is_mp4 else {}
        context = stream.codec_context
        context.color_trc, context.color_range, context.colorspace = transfer, color_range, colorspace
        if pixel_ratio is not None:
            context.sample_aspect_ratio = pixel_ratio
        for number in range(num_frames):
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("color_range", [1, 2])
def test_more_bits_are_rounded_to_8_bits(tmp_path: Path, bits: int, color_range: int) -> None:
    """All code values; ITU-T H.273: limited range is scaled by 2^(bits - 8), full range by (2^bits - 1) / 255."""
    code = np.arange(1 << bits, dtype=np.uint16).reshape(-1, 64)
    gray_levels = np.full((len(code) // 2, 32), 1 << bits - 1, np.uint16)
    path = write_planes(
        tmp_path / "a.mkv", [code, gray_levels, gray_levels], f"yuv420p{bits}le", color_range=color_range
    )
    frame = first_of(path)
    assert frame.transfer is Transfer.SDR
    if color_range == 2:
        exact = code * (255 / ((1 << bits) - 1))
    else:
        exact = (np.clip(np.rint(code / (1 << bits - 8)), 0, 255) - 16) * (255 / 219)
    # rounding changes a value by half an 8-bit step
    step = 1 if color_range == 2 else 255 / 219
    assert np.abs(frame.gray() - np.clip(exact, 0, 255)).max() <= step / 2 + 0.51
    neutral = frame.rgb_HW3().astype(int)
    assert np.abs(neutral - neutral[..., :1]).max() <= 1


def pq_signal(nits: np.ndarray) -> np.ndarray:
    """BT.2100, table 4: the inverse of PQ's EOTF."""
    y = (nits / 10_000) ** 0.1593017578125
    return np.asarray(((0.8359375 + 18.8515625 * y) / (1 + 18.6875 * y)) ** 78.84375)


def hlg_signal(nits_HW3: np.ndarray) -> np.ndarray:
    """BT.2100, table 5: the inverse of the OOTF at 1,000 nits, then the OETF, of each colour."""
    display = nits_HW3 / 1000
    luminance = (display @ [0.2627, 0.678, 0.0593])[..., None]
    scene = display * np.maximum(luminance, 1e-9) ** (1 / 1.2 - 1)
    upper = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.asarray(np.where(scene <= 1 / 12, np.sqrt(3 * scene), upper))


def hdr_planes(
    bgr: np.ndarray, transfer: Transfer, white_nits: float, bits: int, is_full: bool
) -> list[np.ndarray]:
    """Returns 4:2:0 code values of an SDR picture with that light for white: BT.1886, BT.2087, BT.2100."""
    linear_HW3 = white_nits * (bgr[..., ::-1] / 255.0) ** 2.4
    to_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.088, 0.8956]])
    nits_HW3 = linear_HW3 @ to_2020.T
    signal_HW3 = pq_signal(nits_HW3) if transfer is Transfer.PQ else hlg_signal(nits_HW3)
    luma = signal_HW3 @ [0.2627, 0.678, 0.0593]
    chroma = [(signal_HW3[..., 2] - luma) / 1.8814, (signal_HW3[..., 0] - luma) / 1.4746]
    chroma = [cv2.resize(plane, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for plane in chroma]
    if is_full:
        coded = [luma * (2**bits - 1)] + [plane * (2**bits - 1) + 2 ** (bits - 1) for plane in chroma]
    else:
        unit = 2 ** (bits - 8)
        coded = [(219 * luma + 16) * unit] + [(224 * plane + 128) * unit for plane in chroma]
    return [np.rint(plane).astype(np.uint8 if bits == 8 else np.uint16) for plane in coded]


@pytest.mark.parametrize("white_nits", [203, 100])
@pytest.mark.parametrize(("bits", "is_full"), [(10, False), (10, True), (12, False), (8, False)])
@pytest.mark.parametrize("transfer", [Transfer.PQ, Transfer.HLG])
def test_hdr_gets_the_brightness_of_sdr(
    tmp_path: Path, transfer: Transfer, bits: int, is_full: bool, white_nits: float
) -> None:
    planes = hdr_planes(SHOWN, transfer, white_nits, bits, is_full)
    path = write_planes(
        tmp_path / "a.mkv",
        planes,
        "yuv420p" if bits == 8 else f"yuv420p{bits}le",
        TRC[transfer],
        1 + is_full,
        9,
    )
    frame = first_of(path)
    assert frame.transfer is transfer
    gray = frame.gray().astype(int)
    assert gray.mean() == pytest.approx(SHOWN_GRAY.mean(), rel=0.05)
    assert np.abs(gray - SHOWN_GRAY).mean() < 6
    rgb = frame.rgb_HW3()[..., ::-1].astype(int)
    assert np.abs(rgb - SHOWN).mean() < 9
    view = frame.rgb_view(np.array([[1.0, 0, 0], [0, 1, 0]]), 288, repeat_border=True)
    assert np.abs(view[..., ::-1] - rgb[:, :288]).mean() < 3


@pytest.mark.parametrize("transfer", [Transfer.PQ, Transfer.HLG])
def test_highlights_keep_their_order_and_darkness_stays_dark(tmp_path: Path, transfer: Transfer) -> None:
    nits = np.geomspace(0.1, 1000, 256)
    nits_HW3 = np.repeat(np.tile(nits, (16, 1))[..., None], 3, axis=2)
    signal = (pq_signal if transfer is Transfer.PQ else hlg_signal)(nits_HW3)[..., 0]
    luma = np.rint((219 * signal + 16) * 4).astype(np.uint16)
    neutral = np.full((8, 128), 512, np.uint16)
    path = write_planes(tmp_path / "a.mkv", [luma, neutral, neutral], "yuv420p10le", TRC[transfer], 1, 9)
    gray = first_of(path).gray()[0].astype(int)
    assert (np.diff(gray) >= 0).all()
    assert gray[0] < 20 and gray[-1] == 255
    # SDR white of BT.2408 and twice as much
    assert 235 <= gray[np.searchsorted(nits, 203)] < gray[np.searchsorted(nits, 406)]


def test_a_transfer_that_changes_is_rejected(tmp_path: Path) -> None:
    parts = [
        write_hdr(tmp_path / f"{transfer}.ts", [SHOWN] * 10, transfer, 203, {"crf": "12"})
        for transfer in (Transfer.PQ, Transfer.HLG)
    ]
    both = tmp_path / "both.ts"
    both.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(ClipRejected, match="changes from pq to hlg at frame 10") as caught:
        list(decode(both, PARAMS))
    assert caught.value.reason is Reason.UNREADABLE


def test_codes_beyond_the_announced_bits_are_white() -> None:
    """A damaged file may have such codes."""
    luma = np.array([[940, 1023, 65_535]], np.uint16)
    curve = ToneCurve(Transfer.PQ, 10, False, luma)
    gray = curve.luma(luma)
    assert gray[0, 1] == gray[0, 2] == 255
    assert [plane.shape for plane in curve.chroma(luma, luma, luma)] == [(1, 3)] * 2


def test_hdr_as_rgb(tmp_path: Path) -> None:
    """10-bit RGB in PQ, like screen captures and edited videos."""
    signal_HW3 = pq_signal(203 * (SHOWN_GRAY[..., None].repeat(3, axis=2) / 255) ** 2.4)
    planes = [np.rint(1023 * signal_HW3[..., 0]).astype(np.uint16)] * 3
    path = write_planes(tmp_path / "a.mkv", planes, "gbrp10le", 16, 2, 0)
    frame = first_of(path)
    assert frame.transfer is Transfer.PQ
    assert np.abs(frame.gray().astype(int) - SHOWN_GRAY).mean() < 4


def test_hdr_with_oblong_pixels(tmp_path: Path) -> None:
    planes = hdr_planes(np.ascontiguousarray(cv2.resize(SHOWN, (256, 288))), Transfer.PQ, 203, 10, False)
    path = write_planes(tmp_path / "a.mp4", planes, "yuv420p10le", 16, 1, 9, pixel_ratio=Fraction(2))
    frame = first_of(path)
    assert frame.size == (512, 288)
    assert np.abs(frame.gray().astype(int) - SHOWN_GRAY).mean() < 6


def write_hdr(
    path: Path, pictures: list[np.ndarray], transfer: Transfer, white_nits: float, options: dict[str, str]
) -> Path:
    """Writes H.264 of 10 bit from BGR pictures in SDR, with that light for white."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options=options)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p10le"
        context = stream.codec_context
        context.color_trc, context.color_range, context.colorspace = TRC[transfer], 1, 9
        for number, picture in enumerate(pictures):
            planes = hdr_planes(picture, transfer, white_nits, 10, is_full=False)
            samples = np.concatenate([plane.ravel() for plane in planes]).reshape(-1, stream.width)
            frame = av.VideoFrame.from_ndarray(samples, format="yuv420p10le")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("name", ["mirrored", "oblong", "hdr"])
def test_a_part_has_exactly_the_pictures_of_the_whole_video(tmp_path: Path, name: str) -> None:
    """For HDR, the file's first picture decides the brightness of white. Here it is darker than the part."""
    path = tmp_path / "a.mkv"
    if name == "hdr":
        pictures = [SHOWN // 2] + [SHOWN] * 149
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


# -- mouths ----------------------------------------------------------------------------------------------


def face_clip(path: Path) -> MouthClip:
    return crop_video(path, MediaKind.FACE, PARAMS)


@pytest.fixture(scope="module")
def plain_clip(tmp_path_factory: pytest.TempPathFactory) -> MouthClip:
    return face_clip(write_video(tmp_path_factory.mktemp("plain") / "a.mp4", moving_faces()))


def moving_faces() -> list[np.ndarray]:
    return list(face_pictures([placed(1.2, 0, (2 * number, number)) for number in range(15)], speaking=True))


@pytest.mark.parametrize(
    ("matrix", "ratio"),
    [
        ((1, 0, 0, 1), Fraction(4, 3)),
        ((1, 0, 0, 1), Fraction(3, 4)),
        ((-1, 0, 0, 1), Fraction(1)),
        ((0, 1, 1, 0), Fraction(16, 11)),
        ((0, -1, 1, 0), Fraction(1, 2)),
    ],
)
def test_the_mouth_crop_equals_that_of_the_plain_video(
    tmp_path: Path, plain_clip: MouthClip, matrix: tuple[int, int, int, int], ratio: Fraction
) -> None:
    pictures = [stored(picture, matrix, ratio) for picture in moving_faces()]
    path = write_video(tmp_path / "a.mp4", pictures, pixel_ratio=ratio)
    set_display_matrix(path, *matrix)
    clip = face_clip(path)
    assert np.abs(clip.clip_THW.astype(int) - plain_clip.clip_THW).mean() < 2.5
    assert clip.figures.mouth_width_px == pytest.approx(plain_clip.figures.mouth_width_px, rel=0.03)
    width, height = clip.figures.source_width, clip.figures.source_height
    assert width == pytest.approx(512, abs=1) and height == pytest.approx(288, abs=1)
    assert clip.figures.source_transfer is Transfer.SDR
    assert clip.transform_T23 is not None and plain_clip.transform_T23 is not None
    corners = np.array([[200, 260], [110, 170], [1, 1]])
    assert np.abs((clip.transform_T23 - plain_clip.transform_T23) @ corners).max() < 2


def test_the_figures_name_the_transfer(tmp_path: Path, plain_clip: MouthClip) -> None:
    planes = hdr_planes(moving_faces()[0], Transfer.HLG, 203, 10, False)
    path = write_planes(tmp_path / "a.mkv", planes, "yuv420p10le", 18, 1, 9, num_frames=12)
    figures = face_clip(path).figures
    assert figures.as_row()["source_transfer"] == "hlg"
    assert figures.mean_luma == pytest.approx(plain_clip.figures.mean_luma, rel=0.1)


def test_a_ready_mouth_has_square_pixels(tmp_path: Path) -> None:
    square = write_mouth(tmp_path / "square.mp4")
    pictures = [frame.rgb_HW3()[..., ::-1] for frame in decode(square, PARAMS)]
    narrow = [cv2.resize(picture, (72, 96), interpolation=cv2.INTER_AREA) for picture in pictures]
    oblong = write_video(tmp_path / "oblong.mp4", narrow, pixel_ratio=Fraction(4, 3))
    clips = [crop_video(path, MediaKind.MOUTH, PARAMS) for path in (square, oblong)]
    assert np.abs(clips[0].clip_THW.astype(int) - clips[1].clip_THW).mean() < 3
    assert (clips[1].figures.source_width, clips[1].figures.source_height) == (96, 96)
    assert clips[1].figures.source_transfer is Transfer.SDR


# -- a real speaker ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def speaker_pictures(realdata: Path) -> list[np.ndarray]:
    video = realdata / "grid" / "video" / "s1" / "bbaf2n.mp4"
    return [np.ascontiguousarray(frame.rgb_HW3()[..., ::-1]) for frame in decode(video, PARAMS)]


@pytest.fixture(scope="module")
def speaker_clip(speaker_pictures: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> MouthClip:
    """The clip of the plain video, encoded like the others through RGB, which already changes 1.7 levels."""
    return face_clip(write_video(tmp_path_factory.mktemp("speaker") / "a.mp4", speaker_pictures))


@pytest.mark.parametrize(
    ("matrix", "ratio"),
    [
        ((1, 0, 0, 1), Fraction(4, 3)),
        ((1, 0, 0, 1), Fraction(3, 4)),
        ((1, 0, 0, 1), Fraction(16, 11)),
        ((-1, 0, 0, 1), Fraction(1)),
        ((1, 0, 0, -1), Fraction(12, 11)),
        ((0, 1, 1, 0), Fraction(1)),
        ((0, -1, -1, 0), Fraction(8, 9)),
        ((0, 1, -1, 0), Fraction(3, 2)),
    ],
)
def test_the_mouth_crop_of_a_real_speaker(
    tmp_path: Path,
    speaker_pictures: list[np.ndarray],
    speaker_clip: MouthClip,
    matrix: tuple[int, int, int, int],
    ratio: Fraction,
) -> None:
    pictures = [stored(picture, matrix, ratio) for picture in speaker_pictures]
    path = write_video(tmp_path / "a.mp4", pictures, pixel_ratio=ratio)
    set_display_matrix(path, *matrix)
    clip = face_clip(path)
    assert np.abs(clip.clip_THW.astype(int) - speaker_clip.clip_THW).mean() <= 2
    # the mouth is 37.9 px wide
    assert clip.figures.mouth_width_px == pytest.approx(speaker_clip.figures.mouth_width_px, abs=0.7)


@pytest.mark.parametrize("white_nits", [203, 100])
@pytest.mark.parametrize("transfer", [Transfer.PQ, Transfer.HLG])
def test_a_real_speaker_in_hdr(
    tmp_path: Path,
    speaker_pictures: list[np.ndarray],
    speaker_clip: MouthClip,
    transfer: Transfer,
    white_nits: float,
) -> None:
    path = write_hdr(tmp_path / "a.mp4", speaker_pictures, transfer, white_nits, {"crf": "12"})
    clip = face_clip(path)
    assert clip.figures.source_transfer is transfer
    # the mean luma is 146
    assert clip.figures.mean_luma == pytest.approx(speaker_clip.figures.mean_luma, rel=0.1)
    assert np.abs(clip.clip_THW.astype(int) - speaker_clip.clip_THW).mean() < 6
