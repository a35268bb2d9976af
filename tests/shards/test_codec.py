"""Clip payloads: plain .npy that every reader understands, and hostile payloads that allocate no memory."""

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.codec import clip_extension, decode_clip, decode_raw, encode_clip, encode_raw
from shards.settings import PackParams
from tests.support.crops import crop_like, mean_error

CODECS = ("raw", "jpeg", "h264", "ffv1")
MEAN_ERROR = {"raw": 0.0, "jpeg": 2.0, "h264": 2.5, "ffv1": 0.0}
"""Mean error in gray levels, for clips with grain; lossy codecs drop noise."""

CLIP = np.random.default_rng(0).integers(0, 256, (7, 12, 10), dtype=np.uint8)


def npy(array: np.ndarray, **options: bool) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def test_plain_numpy_reads_what_we_write_and_the_other_way_round() -> None:
    assert np.array_equal(np.load(io.BytesIO(encode_raw(CLIP)), allow_pickle=False), CLIP)
    assert np.array_equal(decode_raw(npy(CLIP)), CLIP)
    assert encode_raw(CLIP) == npy(CLIP)


def test_the_clip_is_writable_and_not_a_view_of_the_payload() -> None:
    clip_THW = decode_raw(encode_raw(CLIP))
    clip_THW[:] = 0
    assert clip_THW.flags.c_contiguous


def test_a_strided_clip_gives_the_same_bytes() -> None:
    wide = np.zeros((7, 12, 20), np.uint8)
    wide[:, :, ::2] = CLIP
    assert encode_raw(wide[:, :, ::2]) == encode_raw(CLIP)


@pytest.mark.parametrize(
    "clip",
    [CLIP.astype(np.int16), CLIP[0], CLIP[:0], CLIP[None]],
    ids=["int16", "one_frame", "no_frame", "four_axes"],
)
def test_only_clips_are_encoded(clip: np.ndarray) -> None:
    with pytest.raises(ValueError, match="three axes"):
        encode_raw(clip)


def with_shape(shape: str) -> bytes:
    """Returns a payload with `shape` in its header, followed by the bytes of a real clip."""
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(10 + len(header) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + CLIP.tobytes()


def test_the_forged_header_is_well_formed() -> None:
    assert np.array_equal(decode_raw(with_shape("(7, 12, 10)")), CLIP)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"PK",
        encode_raw(CLIP)[:-1],
        encode_raw(CLIP) + b"x",
        encode_raw(CLIP)[:40],
        with_shape("(999999999, 999999999, 999999999)"),
        with_shape("(70, 12, 10)"),
        with_shape("(0, 12, 10)"),
        with_shape("(-7, -12, 10)"),
        with_shape("(7, 120)"),
        with_shape("((7), 12, 10)"),
        with_shape("(7, 12, 10" + ", 1" * 200 + ")"),
        with_shape("[" * 500),
        npy(CLIP.astype(np.int8)),
        npy(np.asfortranarray(CLIP)),
        npy(np.array([{"a": 1}], dtype=object), allow_pickle=True),
        npy(CLIP).replace(b"\x93NUMPY\x01", b"\x93NUMPY\x02"),
    ],
)  # fmt: skip
def test_anything_else_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"payload|claims"):
        decode_raw(payload)


def test_every_single_byte_of_the_header_may_be_wrong() -> None:
    payload = encode_raw(CLIP)
    for place in range(128):
        for value in (0, 0x28, 0x30, 0x39, 0xFF):
            changed = bytearray(payload)
            changed[place] = value
            try:
                clip_THW = decode_raw(bytes(changed))
            except ValueError:
                continue
            assert np.array_equal(clip_THW.ravel(), CLIP.ravel())


def test_an_archive_is_refused() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("clip.npy", encode_raw(CLIP))
    with pytest.raises(ValueError, match="payload"):
        decode_raw(file.getvalue())


def test_the_set_of_codecs_is_closed() -> None:
    assert [clip_extension(codec) for codec in CODECS] == ["npy", "jpg", "mp4", "mkv"]
    for use in (
        lambda: clip_extension("pickle"),
        lambda: decode_clip(b"", "", 1),
    ):
        with pytest.raises(ValueError, match="use one of raw, jpeg, h264, ffv1"):
            use()


@pytest.mark.parametrize("codec", CODECS)
@settings(deadline=None, max_examples=25)
@given(
    num_frames=st.integers(1, 40),
    height=st.integers(1, 50),
    width=st.integers(1, 50),
    seed=st.integers(0, 9),
    is_noise=st.booleans(),
)
def test_any_clip_is_decoded_again(
    codec: str, num_frames: int, height: int, width: int, seed: int, is_noise: bool
) -> None:
    if is_noise:
        clip_THW = np.random.default_rng(seed).integers(0, 256, (num_frames, height, width), dtype=np.uint8)
    else:
        clip_THW = crop_like(num_frames, height, width, seed)
    params = PackParams(codec=codec)
    payload = encode_clip(clip_THW, params)
    assert payload == encode_clip(clip_THW[::-1][::-1], params), (
        "equal clips give equal bytes for any memory layout"
    )
    decoded = decode_clip(payload, codec, num_frames)
    assert (decoded.shape, decoded.dtype) == (clip_THW.shape, np.uint8)
    assert decoded.flags.c_contiguous and decoded.flags.writeable
    if MEAN_ERROR[codec] == 0:
        assert np.array_equal(decoded, clip_THW)
    elif not is_noise and min(height, width) >= 16:
        assert mean_error(decoded, clip_THW) < MEAN_ERROR[codec]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("num_frames", [1, 2, 75, 683])
def test_frames_keep_their_order(codec: str, num_frames: int) -> None:
    clip_THW = crop_like(num_frames, 24, 24)
    decoded = decode_clip(encode_clip(clip_THW, PackParams(codec=codec)), codec, num_frames)
    assert decoded.shape == clip_THW.shape
    for ours, true in zip(decoded, clip_THW, strict=True):
        assert mean_error(ours, true) < max(MEAN_ERROR[codec], 0.01)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "clip",
    [CLIP.astype(np.int16), CLIP[0], CLIP[:0], CLIP[None], CLIP[:, :0]],
    ids=["int16", "one_frame", "no_frame", "four_axes", "no_rows"],
)
def test_every_codec_refuses_other_arrays(codec: str, clip: np.ndarray) -> None:
    with pytest.raises(ValueError, match="three axes"):
        encode_clip(clip, PackParams(codec=codec))


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_refuses_payloads_of_other_codecs(codec: str) -> None:
    clip_THW = crop_like(5)
    for other in CODECS:
        payload = encode_clip(clip_THW, PackParams(codec=other))
        if other != codec:
            with pytest.raises(ValueError, match="payload"):
                decode_clip(payload, codec, 5)
