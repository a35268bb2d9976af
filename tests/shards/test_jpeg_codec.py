"""Clips as one tall JPEG: PIL reads the same cells, and hostile files are refused."""

import io

import numpy as np
import PIL.Image
import pytest

from shards.codec import MAX_CLIP_BYTES, decode_clip, encode_clip
from shards.settings import PackParams
from tests.support.crops import crop_like, mean_error

JPEG = PackParams(codec="jpeg")
CLIP = crop_like(20)
PAYLOAD = encode_clip(CLIP, JPEG)


def with_comment(payload: bytes, comment: bytes) -> bytes:
    """Returns `payload` with its comment replaced."""
    size = int.from_bytes(payload[22:24], "big")
    return payload[:20] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + payload[22 + size :]


def other_jpeg(picture: np.ndarray, comment: bytes) -> bytes:
    """Returns a JPEG of PIL with the comment of a clip."""
    file = io.BytesIO()
    PIL.Image.fromarray(picture).save(file, "jpeg", comment=b"x")
    return with_comment(file.getvalue(), comment)


@pytest.mark.parametrize(
    ("num_frames", "columns"), [(1, 1), (20, 1), (682, 1), (683, 2), (1000, 2), (1365, 3)]
)
def test_the_cells_have_the_documented_places(num_frames: int, columns: int) -> None:
    clip_THW = np.repeat(np.arange(num_frames, dtype=np.uint8)[:, None, None], 96, axis=1).repeat(96, axis=2)
    picture = PIL.Image.open(io.BytesIO(payload := encode_clip(clip_THW, JPEG)))
    rows = -(-num_frames // columns)
    assert (picture.mode, picture.size) == ("L", (96 * columns, 96 * rows))
    assert picture.info["comment"] == f"{num_frames}x96x96".encode()
    picture_HW = np.asarray(picture)
    for number in (*range(0, num_frames, 97), num_frames - 1):
        row, column = number % rows, number // rows
        cell = picture_HW[96 * row : 96 * row + 96, 96 * column : 96 * column + 96]
        assert np.abs(cell.astype(int) - clip_THW[number]).max() <= 1
    last = picture_HW[-96:, -96:].astype(int)
    assert np.abs(last - clip_THW[-1]).max() <= 1  # also if there is no frame for the last cell
    assert np.abs(decode_clip(payload, "jpeg", num_frames).astype(int) - clip_THW).max() <= 1


def test_a_shape_that_the_image_size_does_not_define() -> None:
    """1,000 frames of 96×96 in two columns and of 48×192 in one column have the same image size."""
    for height, width in ((96, 96), (48, 192)):
        clip_THW = crop_like(1000, height, width)
        payload = encode_clip(clip_THW, JPEG)
        assert PIL.Image.open(io.BytesIO(payload)).size == (192, 48_000)
        decoded = decode_clip(payload, "jpeg", 1000)
        assert decoded.shape == clip_THW.shape
        assert mean_error(decoded, clip_THW) < 2


def test_higher_quality_is_larger_and_more_exact() -> None:
    payloads = [encode_clip(CLIP, PackParams(codec="jpeg", jpeg_quality=quality)) for quality in (95, 90, 60)]
    errors = [mean_error(decode_clip(payload, "jpeg", 20), CLIP) for payload in payloads]
    assert [len(p) for p in payloads] == sorted((len(p) for p in payloads), reverse=True)
    assert errors == sorted(errors)


def test_a_clip_too_large_for_a_jpeg_is_refused() -> None:
    for shape in ((1, 65_501, 1), (1, 1, 65_501), (2, 65_500, 40_000)):
        with pytest.raises(ValueError, match=r"does not fit a JPEG|larger than"):
            encode_clip(np.zeros(shape, np.uint8), JPEG)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xff\xd8",
        PAYLOAD[:-1],
        PAYLOAD[:-40],
        PAYLOAD[:200],
        PAYLOAD[:20] + PAYLOAD[22 + int.from_bytes(PAYLOAD[22:24], "big") :],  # no comment
        with_comment(PAYLOAD, b"20x96x97"),
        with_comment(PAYLOAD, b"20x97x96"),
        with_comment(PAYLOAD, b"20x0x96"),
        with_comment(PAYLOAD, b"20x96x0"),
        with_comment(PAYLOAD, b"20x99999x96"),
        with_comment(PAYLOAD, b"10x192x96"),
        with_comment(PAYLOAD, b"20x96x96 "),
        with_comment(PAYLOAD, b"999999x96x96"),
        other_jpeg(np.zeros((1920, 96, 3), np.uint8), b"20x96x96"),  # colour
        other_jpeg(np.zeros((1919, 96), np.uint8), b"20x96x96"),
        other_jpeg(np.zeros((1920, 192), np.uint8), b"20x96x96"),
    ],
)  # fmt: skip
def test_anything_else_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError):
        decode_clip(payload, "jpeg", 20)


def test_the_forged_comment_is_well_formed() -> None:
    assert with_comment(PAYLOAD, b"20x96x96") == PAYLOAD
    picture = np.asarray(PIL.Image.open(io.BytesIO(PAYLOAD)))
    assert decode_clip(other_jpeg(picture, b"20x96x96"), "jpeg", 20).shape == CLIP.shape


def test_a_header_that_claims_too_much_allocates_no_memory() -> None:
    """A picture of 65,500 × 65,500 px would be 4 GB."""
    forged = bytearray(with_comment(PAYLOAD, b"1x65500x65500"))
    at = forged.index(b"\xff\xc0") + 5
    forged[at : at + 4] = (65_500).to_bytes(2, "big") * 2
    assert MAX_CLIP_BYTES < 65_500 * 65_500
    with pytest.raises(ValueError, match="claims"):
        decode_clip(bytes(forged), "jpeg", 1)


def test_damage_is_a_value_error_or_a_clip_of_that_shape() -> None:
    rng = np.random.default_rng(0)
    for trial in range(300):
        garbled = bytearray(PAYLOAD)
        for place in rng.integers(0, 300 if trial % 2 else len(garbled), rng.integers(1, 8)):
            garbled[place] = rng.integers(256)
        try:
            clip_THW = decode_clip(bytes(garbled), "jpeg", 20)
        except ValueError:
            continue
        assert clip_THW.shape == CLIP.shape
