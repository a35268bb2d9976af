"""Decoded pictures equal what a player shows: HDR, and more than 8 bits."""

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from shards.errors import ClipRejected
from shards.schema import Reason, Transfer
from stages.videos.tone import ToneCurve
from stages.videos.video import decode
from tests.support.displayed import (
    PARAMS,
    SHOWN,
    SHOWN_GRAY,
    TRC,
    first_of,
    hdr_planes,
    hlg_signal,
    pq_signal,
    write_hdr,
    write_planes,
)


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
