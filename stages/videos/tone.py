"""Converts HDR to SDR: a curve maps PQ and HLG code values (ITU-R BT.2100) to gray levels of an SDR screen.

A code value is decoded to its light in nits. That light is divided by the light of SDR white, encoded
with the inverse of the SDR screen's curve (ITU-R BT.1886, a power of 2.4), and highlights above KNEE are compressed
towards 255. The curve is applied to luma. Chroma is scaled by the slope of the curve and converted from BT.2020 to
BT.709 colours, which is exact for grays and nearly so for skin.

Shapes: C code values; H height, W width in pixels.
"""

from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from shards.enums import Transfer

Doubles = NDArray[np.float64]

WHITE_NITS = 203.0
"""Light of SDR white in HDR: ITU-R BT.2408, used by cameras and phones."""

LOW_WHITE_NITS = 100.0
"""The same in older masters, and in the output of FFmpeg's zscale from SDR by default."""

WHITE_PERCENTILE = 99.5
LOW_WHITE_RANGE_NITS = (20.0, 110.0)
"""SDR white counts as low if this percentile of the file's first picture lies in this range.

A brighter picture shows that white is higher. A darker picture (a film that fades in) shows nothing.
"""

HLG_PEAK_NITS = 1000.0
HLG_SYSTEM_GAMMA = 1.2
"""Peak light of the reference screen for HLG, and its system gamma: ITU-R BT.2100."""

SDR_GAMMA = 2.4
KNEE = 0.9

MAX_CHROMA_GAIN = 4.0
"""Limit for near-black pixels: there the curve is steep, and chroma is mostly noise."""

# BT.2020 to BT.709, linear light: ITU-R BT.2087
_TO_BT709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])


def nits_of(transfer: Transfer, signal_C: Doubles) -> Doubles:
    """Returns the light of each signal (0..1) on the screen, in nits: ITU-R BT.2100, tables 4 and 5."""
    signal_C = np.clip(signal_C, 0, 1)
    if transfer is Transfer.PQ:
        m1, m2 = 2610 / 16384, 2523 / 4096 * 128
        c1, c2, c3 = 3424 / 4096, 2413 / 4096 * 32, 2392 / 4096 * 32
        power_C = signal_C ** (1 / m2)
        return np.asarray(10_000 * (np.maximum(power_C - c1, 0) / (c2 - c3 * power_C)) ** (1 / m1))
    assert transfer is Transfer.HLG, "SDR needs no curve"
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene_C = np.where(signal_C <= 0.5, signal_C**2 / 3, (np.exp((signal_C - c) / a) + b) / 12)
    return np.asarray(HLG_PEAK_NITS * scene_C**HLG_SYSTEM_GAMMA)


def sdr_signal(nits_C: Doubles, white_nits: float) -> Doubles:
    """Returns the SDR signal (0..1) of this light relative to `white_nits`, with compressed highlights."""
    signal_C = (nits_C / white_nits) ** (1 / SDR_GAMMA)
    above_C = np.maximum(signal_C - KNEE, 0)
    return np.asarray(np.minimum(signal_C, KNEE) + (1 - KNEE) * (1 - np.exp(-above_C / (1 - KNEE))))


class ToneCurve:
    """The curve for one video: code values of `bits` bits to 8-bit SDR in full range, BT.709."""

    def __init__(
        self, transfer: Transfer, bits: int, is_full_range: bool, first_luma_HW: NDArray[Any]
    ) -> None:
        self._bits, self._is_full_range = bits, is_full_range
        code_C = np.arange(1 << bits, dtype=np.float64)
        signal_C = code_C / code_C[-1] if is_full_range else (code_C / (1 << bits - 8) - 16) / 219
        nits_C = nits_of(transfer, signal_C)
        # every fourth pixel is enough; a damaged file may hold code values above `bits` bits
        brightest = np.percentile(first_luma_HW[::4, ::4], WHITE_PERCENTILE, method="nearest")
        brightest_nits = nits_C[min(int(brightest), len(nits_C) - 1)]
        is_low = LOW_WHITE_RANGE_NITS[0] <= brightest_nits <= LOW_WHITE_RANGE_NITS[1]
        sdr_C = sdr_signal(nits_C, LOW_WHITE_NITS if is_low else WHITE_NITS)
        self._gray_C = np.rint(255 * sdr_C).astype(np.uint8)
        slope_C = np.gradient(sdr_C, signal_C)
        self._slope_C = np.clip(slope_C, 0, MAX_CHROMA_GAIN).astype(np.float32)

    def luma(self, luma_HW: NDArray[Any]) -> NDArray[np.uint8]:
        return np.asarray(self._gray_C.take(luma_HW, mode="clip"), np.uint8)

    def chroma(
        self, luma_HW: NDArray[Any], cb_HW: NDArray[Any], cr_HW: NDArray[Any]
    ) -> list[NDArray[np.uint8]]:
        """Returns Cb and Cr. `luma_HW` may have more pixels than chroma; then it is subsampled."""
        down, across = (round(many / few) for many, few in zip(luma_HW.shape, cb_HW.shape, strict=True))
        luma_HW = luma_HW[::down, ::across][: cb_HW.shape[0], : cb_HW.shape[1]]
        slope_HW = self._slope_C.take(luma_HW, mode="clip")
        middle = 1 << self._bits - 1
        scale = 255 / ((1 << self._bits) - 1 if self._is_full_range else 224 << self._bits - 8)
        planes = [(plane.astype(np.float32) - middle) * slope_HW for plane in (cb_HW, cr_HW)]
        to_sdr = np.concatenate([scale * _chroma_to_bt709(), [[128], [128]]], axis=1)
        chroma_HW2 = cv2.transform(cv2.merge(planes), to_sdr)
        return [np.clip(np.rint(plane), 0, 255).astype(np.uint8) for plane in cv2.split(chroma_HW2)]


@cache
def _chroma_to_bt709() -> Doubles:
    """Returns (2, 2): Cb and Cr of BT.2020 to Cb and Cr of BT.709, for colours near gray."""
    return np.asarray(
        (_from_rgb(0.2126, 0.0722) @ _TO_BT709 @ np.linalg.inv(_from_rgb(0.2627, 0.0593)))[1:, 1:]
    )


def _from_rgb(red: float, blue: float) -> Doubles:
    """Returns (3, 3): R, G, B to Y, Cb, Cr; `red` and `blue` are their shares in luma."""
    luma_3 = np.array([red, 1 - red - blue, blue])
    to_cb, to_cr = (
        (np.array([0, 0, 1]) - luma_3) / (2 - 2 * blue),
        (np.array([1, 0, 0]) - luma_3) / (2 - 2 * red),
    )
    return np.stack([luma_3, to_cb, to_cr])
